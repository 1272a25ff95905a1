/**
 * Hostile values through a real engine: a Bento that is full of them is made into an image both ways, and `docker inspect` and
 * the image's own files must give back each value as it was written, and nothing else.
 */
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { cp, mkdir, writeFile } from "node:fs/promises"
import path from "node:path"
import { buffer } from "node:stream/consumers"
import { after, before, describe, test } from "node:test"
import fc from "fast-check"
import { extract } from "tar-stream"
import { HOSTILE, LINES } from "../images/hostile.ts"
import type { Hostile } from "../images/hostile.ts"
import { bentoctl, docker, root, run, temporaryFolder } from "./support.ts"

const { folder, remove } = await temporaryFolder()
const env = { BENTOML_HOME: path.join(folder, "bentoml") }
const NAME = `bentoctl-e2e-attack-${process.pid}`
const builders = ["assemble", "dockerfile"] as const

/** Lines of text: the hostile ones, and chance's; the seed makes a failure come again. */
const piece = fc.oneof(
  fc.constantFrom(...LINES.filter((what) => HOSTILE[what].length < 100).map((what) => HOSTILE[what])),
  fc.constantFrom("\\", '"', "'", "$", "#", "=", " ", "\u00a0", "\u0085", "\\n", "$$", "\\$", '\\"'),
  fc.string({ unit: "grapheme", maxLength: 6 }),
)
const random = fc
  .sample(fc.array(piece, { maxLength: 6 }), { seed: 1034, numRuns: 300 })
  .map((pieces) => pieces.join(""))
  // oxlint-disable-next-line no-control-regex -- control characters are what is left out
  .filter((value) => !/[\u0000-\u001f\u007f]/.test(value) && value.isWellFormed())
const values: readonly string[] = [...LINES.map((what) => HOSTILE[what]), ...random]

const labels = new Map([
  ...values.map((value, index) => [`value-${index}`, value] as const),
  // Keys, too, as far as a key may be so.
  ...LINES.filter((what) => what !== "prototype" && !/[=\s"'\\$]/.test(HOSTILE[what])).map(
    (what) => [HOSTILE[what], "key"] as const,
  ),
])
const names = (Object.keys(HOSTILE) as Hostile[]).filter(
  (what) =>
    what !== "dots" &&
    !/[/\0]/.test(HOSTILE[what]) &&
    HOSTILE[what].isWellFormed() &&
    HOSTILE[what].length < 256,
)
/** Path → content. */
const files = new Map([
  ...names.map((what) => [HOSTILE[what], what] as const),
  ...names.map((what) => [`folders/${HOSTILE[what]}/${HOSTILE[what]}`, what] as const),
  ["n".repeat(255), "a long name"],
  [`${`${"d".repeat(250)}/`.repeat(8)}x`, "a long path"],
])

before(async () => {
  await cp(path.join(root, "test/fixtures/bentoml-home/models"), path.join(env.BENTOML_HOME, "models"), {
    recursive: true,
  })
  const project = path.join(folder, "project")
  for (const [name, content] of files) {
    await mkdir(path.dirname(path.join(project, name)), { recursive: true })
    await writeFile(path.join(project, name), content)
  }
  // The shell's own view of the values that live only while building.
  const probe = values.map((_, index) => `printf %s "$BUILD_${index}" > /probe/${index}`)
  await writeFile(
    path.join(project, "set up $(touch .pwned).sh"),
    `#!/bin/sh\nset -eu\nmkdir /probe\n${probe.join("\n")}\nfind /probe -exec touch -h -d @0 {} +\n`,
    { mode: 0o755 },
  )
  const bentofile = {
    name: NAME,
    models: ["iris_sklearn"],
    include: ["*"],
    description: HOSTILE["command substitution"],
    labels: Object.fromEntries(labels),
    envs: values.flatMap((value, index) => [
      { name: `RUN_${index}`, value, stage: "runtime" },
      { name: `BUILD_${index}`, value, stage: "build" },
      { name: `ALL_${index}`, value },
    ]),
    docker: { setup_script: "set up $(touch .pwned).sh", env: { __proto__x: "x", constructor: "y" } },
  }
  // JSON is YAML, but for keys of more than 1024 characters.
  const yaml = JSON.stringify(bentofile, null, 1).replace(/"(x{1025,})": /, '? "$1"\n: ')
  await writeFile(path.join(folder, "bentofile.yaml"), yaml)
  const args = ["build", project, "-f", path.join(folder, "bentofile.yaml"), "--version", "1"]
  const { code, stderr } = await bentoctl(args, env)
  assert.equal(code, 0, stderr)
})
after(async () => {
  await run("docker", ["rmi", "-f", ...builders.map((builder) => `${NAME}:${builder}`)])
  await remove()
})

/** Paths and contents of the files in a folder of a container. */
async function filesOf(container: string, from: string): Promise<Map<string, string>> {
  const found = new Map<string, string>()
  const child = spawn("docker", ["cp", `${container}:${from}`, "-"], { stdio: ["ignore", "pipe", "inherit"] })
  const reader = extract()
  child.stdout.pipe(reader)
  for await (const entry of reader) {
    const { name, type } = entry.header
    if (type === "file") found.set(name.slice(name.indexOf("/") + 1), (await buffer(entry)).toString())
    else entry.resume()
  }
  return found
}

for (const builder of builders) {
  describe(`an image by ${builder}`, () => {
    const image = `${NAME}:${builder}`
    let config: { Env: string[]; Labels: Record<string, string> }
    before(async () => {
      const args = ["containerize", `${NAME}:1`, "--builder", builder, "-t", image]
      const { code, stderr } = await bentoctl(args, env)
      assert.equal(code, 0, stderr)
      const [found] = JSON.parse(await docker("image", "inspect", image)) as [{ Config: typeof config }]
      config = found.Config
    })

    test("has exactly the labels that were given", () => {
      const found = Object.entries(config.Labels).filter(
        ([key]) => !/^(bentoctl|org\.opencontainers)\./.test(key),
      )
      assert.deepEqual(new Map(found), labels)
      assert.equal(config.Labels["org.opencontainers.image.description"], HOSTILE["command substitution"])
    })

    test("has exactly the variables that were given", () => {
      const found = config.Env.filter((pair) => /^(RUN|ALL|BUILD)_/.test(pair))
      const expected = values.flatMap((value, index) => [`ALL_${index}=${value}`, `RUN_${index}=${value}`])
      assert.deepEqual(found.toSorted(), expected.toSorted())
      assert.ok(config.Env.includes("__proto__x=x") && config.Env.includes("constructor=y"))
    })

    test("has exactly the files that were given, and gave its set-up script exactly the values", async () => {
      const container = await docker("create", "--entrypoint", "none", image)
      try {
        const sources = await filesOf(container, "/home/bentoml/bento/src")
        assert.ok(sources.delete("set up $(touch .pwned).sh"))
        assert.deepEqual(sources, files)
        const probe = await filesOf(container, "/probe")
        assert.deepEqual(probe, new Map(values.map((value, index) => [String(index), value])))
        for (const made of ["/pwned", "/.pwned", "/home/bentoml/bento/.pwned"]) {
          assert.notEqual((await run("docker", ["cp", `${container}:${made}`, folder])).code, 0, made)
        }
      } finally {
        await docker("rm", container)
      }
    })
  })
}
