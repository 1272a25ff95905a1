/** What a real engine makes of our Dockerfiles and contexts (`--builder dockerfile`): layers, cache, cancellation, and nothing secret. */
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { cp, mkdir, readFile, readdir, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, describe, test } from "node:test"
import { buildBento } from "../../images/build.ts"
import type { BuildEvent } from "../../images/builder.ts"
import { containerize } from "../../images/containerize.ts"
import { createDockerBuilder } from "../../images/docker.ts"
import { NODE_FLAGS } from "../../store/node-flags.ts"
import { BentoError, BuildError } from "../../store/errors.ts"
import { formatTag } from "../../store/tag.ts"
import { bentoctl, docker, root, run, searchImage, temporaryFolder, until } from "./support.ts"
import { assertWithin } from "../within.ts"

const { folder, remove } = await temporaryFolder()
const home = path.join(folder, "bentoml")
const runtimeDir = path.join(root, "dist/image")
const engine = createDockerBuilder(process.env)
const made = new Set<string>()
const unavailable = await engine.ping().then(
  () => false,
  (error: unknown) => `no Docker Engine answers: ${error instanceof Error ? error.message : String(error)}`,
)
after(async () => {
  if (made.size > 0) await run("docker", ["rmi", "-f", ...made])
  await remove()
})

/** Names are ours alone, so that nothing of the user's is touched. */
const NAME = `bentoctl-e2e-images-${process.pid}`
let count = 0

async function project(files: Readonly<Record<string, string>>): Promise<string> {
  const dir = path.join(folder, `project${count++}`)
  for (const [name, text] of Object.entries(files)) {
    await mkdir(path.dirname(path.join(dir, name)), { recursive: true })
    await writeFile(path.join(dir, name), text)
  }
  await cp(path.join(root, "test/fixtures/bentoml-home/models"), path.join(home, "models"), {
    recursive: true,
  })
  return dir
}

const SERVICE = `import { api, json, service } from "bentoctl/runtime"
export const svc = service({
  name: "e2e",
  apis: [api({ name: "echo", input: json(), output: json(), handler: (value) => value })],
})
`

interface Image {
  readonly id: string
  readonly tag: string
  readonly events: readonly BuildEvent[]
  readonly layers: readonly string[]
  readonly config: {
    readonly Env: readonly string[]
    readonly Labels: Readonly<Record<string, string>>
    readonly User: string
    readonly Cmd: readonly string[] | null
    readonly Entrypoint: readonly string[]
    readonly StopSignal: string
    readonly WorkingDir: string
    readonly ExposedPorts: Readonly<Record<string, unknown>>
  }
}

async function build(
  dir: string,
  env: Readonly<Record<string, string>> = {},
  signal?: AbortSignal,
): Promise<Image> {
  const { bento } = await buildBento({
    contextDir: dir,
    name: NAME,
    home,
    runtimeDir,
    nodePath: process.execPath,
    env: process.env,
    stderr: process.stderr,
    now: new Date(),
    random: (size) => crypto.getRandomValues(new Uint8Array(size)),
  })
  return image(formatTag(bento.tag), env, signal)
}

async function image(
  tag: string,
  env: Readonly<Record<string, string>> = {},
  signal?: AbortSignal,
): Promise<Image> {
  const [name = "", version = ""] = tag.split(":")
  const events: BuildEvent[] = []
  const baseImage = process.env["BENTOCTL_BASE_IMAGE"]
  for await (const event of containerize({
    bento: { name, version },
    home,
    runtimeDir,
    engine,
    builder: "dockerfile",
    baseImage,
    env,
    signal,
  })) {
    events.push(event)
  }
  const built = events.at(-1)
  assert.equal(built?.type, "built")
  for (const made_ of built?.type === "built" ? built.tags : []) made.add(made_)
  const [inspected] = JSON.parse(await docker("image", "inspect", tag)) as [
    { Id: string; RootFS: { Layers: string[] }; Config: Image["config"] },
  ]
  assert.equal(built?.type === "built" && built.imageId, inspected?.Id)
  return { id: inspected.Id, tag, events, layers: inspected.RootFS.Layers, config: inspected.Config }
}

/** Which of our steps ran and which came from the cache. */
function steps(events: readonly BuildEvent[]): string[] {
  return events.flatMap((event) =>
    event.type === "step" &&
    (event.state === "done" || event.state === "cached") &&
    /^\[(?:stage-0 )?\d+\/\d+\] (?!FROM)/.test(event.name)
      ? [`${event.name.replace(/^\[.*?\] /, "").slice(0, 24)} ${event.state}`]
      : [],
  )
}

describe("an image", { skip: unavailable }, () => {
  test("takes every layer from the cache when the same Bento is built again", async () => {
    const dir = await project({
      "bentofile.yaml": "service: service.ts:svc\nmodels: [iris_sklearn]\n",
      "service.ts": SERVICE,
    })
    const first = await build(dir)
    const second = await image(first.tag)
    assert.deepEqual(second.layers, first.layers)
    const states = steps(second.events)
    assert.equal(states.length, 4)
    assert.deepEqual(
      states.filter((state) => !state.endsWith("cached")),
      [],
    )
  })

  test("has one layer per cause: a change of code makes anew only the last one", async () => {
    const dir = await project({
      "bentofile.yaml": "service: service.ts:svc\nmodels: [iris_sklearn, digits_sklearn]\n",
      "service.ts": SERVICE,
    })
    const before = await build(dir)
    let changes = 0
    await assertWithin(5000, async () => {
      await writeFile(path.join(dir, "service.ts"), `${SERVICE}// change ${changes++}\n`)
      const startedMs = performance.now()
      const changed = await build(dir)
      const tookMs = performance.now() - startedMs
      const shared = before.layers.filter((layer, index) => changed.layers[index] === layer)
      assert.equal(before.layers.length - shared.length, 1)
      assert.equal(before.layers.length, changed.layers.length)
      return tookMs
    })
  })

  test("is less than 55 MB above its base for a small model", async () => {
    const dir = await project({ "bentofile.yaml": "models: [iris_sklearn]\n" })
    const { tag } = await build(dir)
    const history = (
      await docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", tag)
    ).split("\n")
    const ours = history.slice(0, history.findIndex((line) => / USER 0:0/.test(line)) + 1)
    assert.ok(ours.length > 10)
    const bytes = ours.reduce((sum, line) => sum + Number(line.split(" ")[0]), 0)
    process.stderr.write(`layers above the base: ${bytes} bytes\n`)
    assert.ok(bytes > 40e6 && bytes < 55e6, String(bytes))
  })

  test("says exactly what the bentofile says, in variables and labels, however it is spelt", async () => {
    const values = [
      `a "b" 'c' $HOME \${PATH} $(id) \`id\` \\ # ü \u2028 {{x}} <<EOF && ;`,
      "\\",
      '"',
      "$",
      "",
      " lead and trail ",
      "a\\",
    ]
    const env = Object.fromEntries(values.map((value, index) => [`V${index}`, value]))
    const dir = await project({
      "bentofile.yaml": JSON.stringify({
        models: ["iris_sklearn"],
        labels: env,
        docker: { env },
        envs: values.map((value, index) => ({ name: `R${index}`, value, stage: "runtime" })),
      }),
    })
    const { config } = await build(dir)
    for (const [index, value] of values.entries()) {
      assert.ok(config.Env.includes(`V${index}=${value}`), `V${index} in ${JSON.stringify(config.Env)}`)
      assert.ok(config.Env.includes(`R${index}=${value}`), `R${index}`)
      assert.equal(config.Labels[`V${index}`], value)
    }
    assert.deepEqual(
      [config.User, config.Cmd, config.StopSignal, config.WorkingDir, Object.keys(config.ExposedPorts)],
      ["1034:1034", null, "SIGTERM", "/home/bentoml/bento", ["3000/tcp"]],
    )
    assert.deepEqual(config.Entrypoint, ["node", ...NODE_FLAGS, "/opt/bentoctl/entrypoint.js"])
  })

  test("holds the sources byte for byte, under names that are trouble, owned by root and readable by all", async () => {
    const names = [
      "with space",
      "line\nbreak",
      "$(x)`y`",
      "-rf",
      "ünï\u2028",
      "back\\slash",
      "q'uo\"te",
      "#hash",
      "a*b?[c]",
      "x".repeat(255),
    ]
    const dir = await project({
      "bentofile.yaml": "service: service.ts:svc\n",
      "service.ts": SERVICE,
      ...Object.fromEntries(names.map((name) => [`odd/${name}`, `content of ${name}`])),
    })
    const { tag } = await build(dir)
    const script = `
      const fs = require("fs"), out = {}
      for (const name of fs.readdirSync("src/odd")) out[name] = fs.readFileSync("src/odd/" + name, "utf8")
      console.log(JSON.stringify(out))`
    const found = JSON.parse(
      await docker("run", "--rm", "--user", "12345:0", tag, "node", "-e", script),
    ) as object
    assert.deepEqual(found, Object.fromEntries(names.map((name) => [name, `content of ${name}`])))
    const find = "find /opt/bentoctl /home/bentoml ! -user 0 -o ! -perm -o+r -o -perm /7022 ! -type l"
    assert.equal(await docker("run", "--rm", tag, "sh", "-c", find), "")
    assert.equal(await docker("run", "--rm", tag, "sh", "-c", "ls src | grep bentofile || true"), "")
  })

  test("gives build-time values to the steps that run, and keeps them in no layer, label, variable or history", async () => {
    const [secret, outside] = ["s3cr3t-in-the-bentofile", "s3cr3t-from-outside"]
    const dir = await project({
      "bentofile.yaml": `models: [iris_sklearn]
envs:
  - {name: WRITTEN, value: ${secret}, stage: build}
  - {name: GIVEN, stage: build}
  - {name: ALWAYS, value: "1"}
docker: {setup_script: setup.sh}
`,
      // No #! line: the shell takes it.
      "setup.sh": `test "$WRITTEN" = ${secret} && test "$(printf %s "$GIVEN" | sha256sum | cut -c1-8)" = ${sha(outside)} && test "$ALWAYS" = 1 && test "$(id -u)" = 0
printf %s "$GIVEN" | wc -c > /etc/length
`,
    })
    const { tag, config } = await build(dir, { GIVEN: outside })
    assert.equal(await docker("run", "--rm", tag, "cat", "/etc/length"), String(outside.length))
    assert.ok(!config.Env.some((variable) => /WRITTEN|GIVEN/.test(variable)))
    const searched = await searchImage(tag, [secret, outside])
    assert.deepEqual(searched.found, [])
    assert.ok(searched.bytes > 100e6, "the whole image was looked through")
    assert.doesNotMatch(await docker("history", "--no-trunc", tag), /s3cr3t/)
  })

  test("has its system packages, and neither package lists nor archives", async (t) => {
    const dir = await project({
      "bentofile.yaml": "models: [iris_sklearn]\ndocker: {system_packages: [tini]}\n",
    })
    let built: Image
    try {
      built = await build(dir)
    } catch (error) {
      // Only the network may fail it.
      assert.ok(
        error instanceof BuildError &&
          /Temporary failure|Could not resolve|Failed to fetch|Unable to connect/.test(
            error.logTail.join("\n"),
          ),
        String(error),
      )
      t.skip("no Debian archive can be reached from a container here")
      return
    }
    assert.match(await docker("run", "--rm", built.tag, "tini", "--version"), /tini version/)
    const left =
      "find /var/lib/apt/lists /var/cache/apt /var/log/apt /var/log/dpkg.log -type f -size +0 2>/dev/null; ls /tmp"
    assert.equal(await docker("run", "--rm", "--user", "0", built.tag, "sh", "-c", left), "")
  })
})

describe("a build that does not end well", { skip: unavailable }, () => {
  const tagged = async (): Promise<string> => docker("image", "ls", "-q", `${NAME}-failing`)
  const failing = async (script: string, signal?: AbortSignal): Promise<unknown> => {
    const dir = await project({
      "bentofile.yaml": `name: ${NAME}-failing\nmodels: [iris_sklearn]\ndocker: {setup_script: setup.sh}\n`,
      "setup.sh": `#!/bin/sh\n${script}\n`,
    })
    const { bento } = await buildBento({
      contextDir: dir,
      home,
      runtimeDir,
      nodePath: process.execPath,
      env: process.env,
      now: new Date(),
      random: (size) => crypto.getRandomValues(new Uint8Array(size)),
    })
    const baseImage = process.env["BENTOCTL_BASE_IMAGE"]
    try {
      for await (const _ of containerize({ bento: bento.tag, home, runtimeDir, engine, baseImage, signal }));
    } catch (error) {
      return error
    }
    return undefined
  }

  test("names the step that failed and the last lines that it printed, and tags nothing", async () => {
    // One stream: the engine promises no order between the two.
    const error = await failing("(seq 1 50; echo the reason) >&2; exit 7")
    assert.ok(error instanceof BuildError, String(error))
    assert.match(error.message, /failed at \[\d\/\d\] RUN .*setup\/script: exit code 7/)
    assert.equal(error.logTail.length, 20)
    assert.deepEqual([error.logTail[0], error.logTail.at(-1)], ["32", "the reason"])
    assert.equal(await tagged(), "")
  })

  test("because it was interrupted ends within a second, in the engine too, and tags nothing", async () => {
    const step = `sleep ${300 + (process.pid % 1000)}`
    const runs = async (): Promise<boolean> => (await commandLines(step)).length > 0
    await assertWithin(1000, async () => {
      const abort = new AbortController()
      const failed = failing(`exec ${step}`, abort.signal)
      await until("the step to run", runs)
      const abortedMs = performance.now()
      abort.abort(new Error("stop"))
      assert.match(String(await failed), /stop/)
      const tookMs = performance.now() - abortedMs
      await until("the engine to stop the step", async () => !(await runs()))
      assert.equal(await tagged(), "")
      return tookMs
    })
  })

  test("because the base image is not to be had names it and the ways out", async () => {
    const dir = await project({
      "bentofile.yaml": `models: [iris_sklearn]\ndocker: {base_image: "127.0.0.1:1/nobody/nothing:1"}\n`,
    })
    await assert.rejects(build(dir), (error) => {
      assert.ok(error instanceof BentoError && error.code === "BASE_IMAGE_UNAVAILABLE", String(error))
      assert.match(
        `${error.message} ${error.hint}`,
        /127\.0\.0\.1:1\/nobody\/nothing:1.*docker\.base_image.*BENTOCTL_BASE_IMAGE/,
      )
      return true
    })
  })

  test("ends the command with 1, the step and its log on stderr", async () => {
    const dir = await project({
      "bentofile.yaml": `name: ${NAME}-failing\nmodels: [iris_sklearn]\ndocker: {setup_script: setup.sh}\n`,
      "setup.sh": "#!/bin/sh\necho the reason; exit 9\n",
    })
    const { code, stderr } = await bentoctl(["build", dir, "--containerize"], { BENTOML_HOME: home })
    assert.equal(code, 1)
    assert.match(stderr, /exit code 9/)
    assert.match(stderr, /the reason/)
    assert.equal(await tagged(), "")
  })
})

function sha(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 8)
}

/** Command lines of processes on this machine that contain a text: containers' processes are seen from the host. */
async function commandLines(text: string): Promise<string[]> {
  const lines: string[] = []
  for (const pid of await readdir("/proc")) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue
    const line = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")
    if (line.replaceAll("\0", " ").trim() === text) lines.push(line)
  }
  return lines
}
