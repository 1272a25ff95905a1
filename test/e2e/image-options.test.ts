/** The options of an image build on a real engine, each by both builders where both have a use for it. */
import assert from "node:assert/strict"
import { mkdir, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import type { TestContext } from "node:test"
import { bentoctl, docker, root, run, temporaryFolder } from "./support.ts"
import type { Ran } from "./support.ts"
import { startRegistry } from "./registry.ts"
import type { Registry } from "./registry.ts"

const { folder, remove } = await temporaryFolder()
const env = { BENTOML_HOME: path.join(folder, "bentoml") }
/** Names are ours alone, so that nothing of the user's is touched. */
const NAME = `bentoctl-e2e-options-${process.pid}`
const made = new Set<string>()
const registries: Registry[] = []
const BUILDERS = ["assemble", "dockerfile"] as const

after(async () => {
  // What was pulled is there under its digest, too.
  const pulled = registries.map((registry) => docker("images", "-q", registry.reference.replace(/:1$/, "")))
  for (const ids of await Promise.all(pulled)) for (const id of ids.split("\n")) if (id !== "") made.add(id)
  if (made.size > 0) await run("docker", ["rmi", "-f", ...made])
  await remove()
})

before(async () => {
  const model = path.join(root, "examples/iris/iris.onnx")
  assert.equal((await bentoctl(["models", "import", model, "--name", "iris"], env)).code, 0)
})

let count = 0
/** Builds a Bento with this bentofile and set-up script; its tag. */
async function bentoOf(bentofile: string, script?: string): Promise<string> {
  count += 1
  const project = path.join(folder, `project${count}`)
  await mkdir(project)
  const setup = script === undefined ? "" : "docker: {setup_script: setup.sh}\n"
  const text = `models: [iris]\nname: ${NAME}-${count}\n${setup}${bentofile}`
  await writeFile(path.join(project, "bentofile.yaml"), text)
  // A text of its own, so that no step of another run is taken from the engine's cache.
  if (script !== undefined) await writeFile(path.join(project, "setup.sh"), `#!/bin/sh\n# ${NAME}\n${script}`)
  const { code, stdout, stderr } = await bentoctl(["build", project, "--version", "1", "-o", "tag"], env)
  assert.equal(code, 0, stderr)
  return stdout.trim().replace("__tag__:", "")
}

/** Makes an image named after its builder; its name. */
async function imageOf(
  tag: string,
  builder: (typeof BUILDERS)[number],
  args: readonly string[],
  more: Readonly<Record<string, string>> = {},
): Promise<Ran & { readonly image: string }> {
  const image = `${tag.split(":")[0]}:${builder}`
  made.add(image)
  const common = ["containerize", tag, "-t", image, "--builder", builder, "--progress", "plain"]
  return { ...(await bentoctl([...common, ...args], { ...env, ...more })), image }
}

const label = (image: string, key: string): Promise<string> =>
  docker("image", "inspect", "-f", `{{index .Config.Labels ${JSON.stringify(key)}}}`, image)

/** What stands in a file that the set-up script wrote. */
const read = (image: string, file: string): Promise<string> =>
  docker("run", "--rm", "--network", "none", "--entrypoint", "cat", image, file)

for (const builder of BUILDERS) {
  describe(`by --builder ${builder}`, () => {
    const secret = `s3cr3t '"$(id)\` \n\\`
    const hostile = `"$(reboot)" \`id\` $HOME \\ 'x' # \u2028 LABEL evil=1 \\`
    let tag: string
    let first: Awaited<ReturnType<typeof imageOf>>
    before(async () => {
      tag = await bentoOf(
        "labels: {team: bento, kept: 'yes'}\nenvs: [{name: TOKEN, value: from-bento, stage: build}]\n",
        'ls /sys/class/net > /etc/networks-seen\nprintf %s "$TOKEN" | sha256sum > /etc/token\n' +
          'test -z "${OTHER-}"\ncat /proc/sys/kernel/random/uuid > /etc/run\n',
      )
      first = await imageOf(tag, builder, args, { TOKEN: secret })
      assert.equal(first.code, 0, first.stderr)
    })
    const args = [
      "--label=team=mine",
      `--label=hostile=${hostile}`,
      "--label=empty=",
      "--build-arg=TOKEN",
      "--build-arg=OTHER=x",
      "--build-arg=http_proxy=http://127.0.0.1:1",
      "--network=none",
    ]

    test("--label is on the image, whatever its value holds, over the Bento's", async () => {
      assert.deepEqual(
        await Promise.all(["team", "kept", "hostile", "empty", "evil"].map((key) => label(first.image, key))),
        ["mine", "yes", hostile, "", ""],
      )
      assert.equal(await label(first.image, "bentoctl.bento"), tag)
    })

    test("--build-arg is the value of a build-time variable, and in no history", async () => {
      const { stdout } = await run("sh", ["-c", 'printf %s "$1" | sha256sum', "sh", secret])
      assert.equal(await read(first.image, "/etc/token"), stdout.trim())
      const told = await docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", first.image)
      assert.doesNotMatch(told + (await docker("image", "inspect", first.image)), /s3cr3t/)
    })

    test("a --build-arg that nothing uses is told, and a proxy is no such thing", () => {
      assert.match(first.stderr, /^Warning: nothing uses the build argument OTHER$/m)
      assert.doesNotMatch(first.stderr, /argument http_proxy/)
    })

    test("--network none leaves a step without a network", async () => {
      assert.equal(await read(first.image, "/etc/networks-seen"), "lo")
    })

    test("a --network that the engine does not know is its error, in one line", async () => {
      const { code, stderr } = await imageOf(tag, builder, ["--network", "container:nothing"])
      assert.equal(code, 1)
      assert.match(stderr, /^Error: the image build failed: network mode "container:nothing" not supported/m)
    })

    test("a step is not run again, but with --no-cache", async () => {
      const runs = [await read(first.image, "/etc/run")]
      for (const more of [[], ["--no-cache"]]) {
        const { code, stderr, image } = await imageOf(tag, builder, [...args, ...more], { TOKEN: secret })
        assert.equal(code, 0, stderr)
        runs.push(await read(image, "/etc/run"))
      }
      assert.equal(runs[0], runs[1])
      assert.notEqual(runs[1], runs[2])
    })
  })
}

test("--network host is that of the engine's machine", async () => {
  const tag = await bentoOf("", "ls /sys/class/net > /etc/networks-seen\n")
  const { code, stderr, image } = await imageOf(tag, "assemble", ["--network", "host"])
  assert.equal(code, 0, stderr)
  const list = ["--entrypoint", "ls", image, "/sys/class/net"]
  const here = await docker("run", "--rm", "--network", "host", ...list)
  assert.equal(await read(image, "/etc/networks-seen"), here)
})

/** One for each test: an engine keeps what it has pulled. */
async function registryFor(t: TestContext): Promise<Registry> {
  const registry = await startRegistry()
  t.after(() => registry.close())
  registries.push(registry)
  return registry
}

describe("--pull", () => {
  test("takes the registry's newer base; without it the engine's own stays; where it cannot, it is an error", async (t) => {
    const registry = await registryFor(t)
    const tag = await bentoOf(`docker: {base_image: "${registry.reference}"}\n`)
    const versions: string[] = []
    for (const [held, builder, args] of [
      ["1", "assemble", []],
      ["2", "assemble", []],
      ["2", "assemble", ["--pull"]],
      ["3", "dockerfile", []],
      ["3", "dockerfile", ["--pull"]],
    ] as const) {
      await registry.hold({ Labels: { version: held }, Env: ["PATH=/bin"] })
      const { code, stderr, image } = await imageOf(tag, builder, args)
      assert.equal(code, 0, stderr)
      versions.push(await label(image, "version"))
    }
    assert.deepEqual(versions, ["1", "1", "2", "2", "3"])
    registry.close()
    const { code, stderr } = await imageOf(tag, "assemble", ["--pull"])
    assert.equal(code, 1)
    assert.match(
      stderr,
      /is in the engine and cannot be pulled anew: [^]*without --pull\. \[BASE_IMAGE_UNAVAILABLE\]/,
    )
  })
})

describe("--cache-from", () => {
  interface Usage {
    readonly BuildCache: readonly { readonly ID: string }[] | null
  }
  const engineSocket = "/var/run/docker.sock"
  const ask = async (method: string, url: string): Promise<string> => {
    const args = ["-sS", "-X", method, "--unix-socket", engineSocket, `http://engine${url}`]
    return (await run("curl", args)).stdout
  }
  const cacheIds = async (): Promise<string[]> =>
    ((JSON.parse(await ask("GET", "/system/df")) as Usage).BuildCache ?? []).map(({ ID }) => ID)

  test("takes a step from an image that carries its cache, and leaves it out of another", async (t) => {
    if ((process.env["DOCKER_HOST"] ?? "") !== "") return t.skip("the engine is elsewhere")
    if ((await run("curl", ["--version"])).code !== 0) return t.skip("there is no curl")
    const before_ = new Set(await cacheIds())
    const tag = await bentoOf("", "cat /proc/sys/kernel/random/uuid > /etc/run\n")
    /** What the step wrote in an image that is made now. */
    const madeNow = async (args: readonly string[]): Promise<string> => {
      const { code, stderr, image } = await imageOf(tag, "dockerfile", args)
      assert.equal(code, 0, stderr)
      return read(image, "/etc/run")
    }
    /** The engine loses what it remembers of our steps; an image stays. */
    const forget = async (): Promise<void> => {
      // One at a time, as the engine wants it; what others lie on goes after them.
      for (let left = Infinity; ;) {
        const mine = (await cacheIds()).filter((each) => !before_.has(each))
        if (mine.length === 0 || mine.length === left) return
        left = mine.length
        for (const id of mine) {
          await ask("POST", `/build/prune?all=1&filters=${encodeURIComponent(JSON.stringify({ id: [id] }))}`)
        }
      }
    }
    const first = await madeNow(["--build-arg", "BUILDKIT_INLINE_CACHE=1"])
    const kept = `${NAME}-kept:1`
    made.add(kept)
    await docker("tag", `${tag.split(":")[0]}:dockerfile`, kept)
    await forget()
    assert.notEqual(await madeNow(["--cache-from", `${NAME}-nothing:1`]), first)
    await forget()
    assert.equal(await madeNow(["--cache-from", kept]), first)
  })
})

describe("--platform", () => {
  test("is that of the image and of what is in it", async (t) => {
    const registry = await registryFor(t)
    await registry.hold({}, "arm64")
    const tag = await bentoOf(`docker: {base_image: "${registry.reference}"}\n`)
    for (const builder of BUILDERS) {
      const { code, stderr, image } = await imageOf(tag, builder, ["--platform", "linux/arm64"])
      assert.equal(code, 0, stderr)
      assert.equal(await docker("image", "inspect", "-f", "{{.Architecture}}", image), "arm64")
    }
  })
})

test("build --containerize takes them all", async () => {
  const project = path.join(folder, "whole")
  await mkdir(project)
  const name = `${NAME}-whole`
  const text = `models: [iris]\nname: ${name}\ndocker: {setup_script: setup.sh}\nenvs: [{name: TOKEN, value: '', stage: build}]\n`
  await writeFile(path.join(project, "bentofile.yaml"), text)
  await writeFile(
    path.join(project, "setup.sh"),
    '#!/bin/sh\nls /sys/class/net > /etc/seen; echo "$TOKEN" >> /etc/seen\n',
  )
  const image = [
    ["--builder", "dockerfile"],
    ["--platform", "linux/amd64"],
    ["--no-cache"],
    ["--cache-from", "nothing:1"],
    ["--build-arg", "TOKEN=abc"],
    ["--network", "none"],
    ["--progress", "json"],
  ].flat()
  made.add(`${name}:1`).add(`${name}:latest`)
  const args = ["build", project, "--version", "1", "--label", "team=a", "--containerize", ...image, "-q"]
  const { code, stderr } = await bentoctl(args, env)
  assert.equal(code, 0, stderr)
  assert.equal(await read(`${name}:1`, "/etc/seen"), "lo\nabc")
  assert.equal(await label(`${name}:1`, "team"), "a")
  const events = stderr.trimEnd().split("\n")
  assert.ok(
    events.every((line) => line.startsWith("{")),
    stderr,
  )
})
