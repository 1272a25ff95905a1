/** Assembled images on a real engine: equal to those of the Dockerfile, the same everywhere, and no byte sent twice. */
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { randomFillSync } from "node:crypto"
import { existsSync } from "node:fs"
import { chmod, cp, mkdir, open, readFile, readdir, stat, utimes, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { buildBento } from "../../images/build.ts"
import type { BuilderName, BuildEvent } from "../../images/builder.ts"
import { containerize, containerizeModel } from "../../images/containerize.ts"
import { createDockerBuilder } from "../../images/docker.ts"
import type { Platform } from "../../images/plan.ts"
import { findLeftovers, removeLeftovers } from "../../images/prune.ts"
import type { TarHeader } from "../../images/tar.ts"
import { BentoError } from "../../store/errors.ts"
import type { Tag } from "../../store/tag.ts"
import { bentoctl, docker, filesOf, loadImage, root, run, temporaryFolder } from "./support.ts"
import { assertWithin } from "../within.ts"

const { folder, remove } = await temporaryFolder()
const home = path.join(folder, "bentoml")
const runtimeDir = path.join(root, "dist/image")
const engine = createDockerBuilder(process.env)
const baseImage = process.env["BENTOCTL_BASE_IMAGE"]
/** Names are ours alone, so that nothing of the user's is touched. */
const NAME = `bentoctl-e2e-assemble-${process.pid}`
const made = new Set<string>()
const unavailable = await engine.ping().then(
  () => false,
  (error: unknown) => `no Docker Engine answers: ${error instanceof Error ? error.message : String(error)}`,
)

before(async () => {
  await cp(path.join(root, "test/fixtures/bentoml-home/models"), path.join(home, "models"), {
    recursive: true,
  })
})
after(async () => {
  if (made.size > 0) await run("docker", ["rmi", "-f", ...made])
  await remove()
})

let count = 0
async function project(files: Readonly<Record<string, string>>): Promise<string> {
  const dir = path.join(folder, `project${count++}`)
  for (const [name, text] of Object.entries(files)) {
    await mkdir(path.dirname(path.join(dir, name)), { recursive: true })
    await writeFile(path.join(dir, name), text)
  }
  return dir
}

async function bentoOf(contextDir: string, name: string): Promise<Tag> {
  const { bento } = await buildBento({
    contextDir,
    name: `${NAME}-${name}`,
    home,
    runtimeDir,
    nodePath: process.execPath,
    env: process.env,
    now: new Date(),
    random: (size) => crypto.getRandomValues(new Uint8Array(size)),
  })
  return bento.tag
}

interface Made {
  readonly id: string
  readonly builder: BuilderName
  readonly events: readonly BuildEvent[]
  /** Layers of ours, in order: `runtime done`, `model cached`. */
  readonly layers: readonly string[]
}

async function make(
  bento: Tag,
  options: {
    builder?: BuilderName
    base?: string
    platform?: Platform
    env?: Record<string, string>
    suffix?: string
  } = {},
): Promise<Made> {
  const { builder, base = baseImage, platform, env = {}, suffix = builder ?? "auto" } = options
  const tags = [`${bento.name}:${suffix}`]
  for (const tag of tags) made.add(tag)
  const given = { bento, home, runtimeDir, engine, baseImage: base, tags, env, platform, builder }
  return collect(containerize(given))
}

async function collect(walk: AsyncIterable<BuildEvent>): Promise<Made> {
  const events: BuildEvent[] = []
  for await (const event of walk) events.push(event)
  const built = events.at(-1)
  assert.ok(built?.type === "built")
  for (const tag of built.tags) made.add(tag)
  const layers = events.flatMap((event) =>
    event.type === "step" && event.state !== "started" && event.name.startsWith("layer ")
      ? [`${event.name.split(" ")[1]} ${event.state}`]
      : [],
  )
  return { id: built.imageId, builder: built.builder, events, layers }
}

async function inspect(
  image: string,
): Promise<{ Config: Record<string, unknown>; Architecture: string; Os: string }> {
  const [found] = JSON.parse(await docker("image", "inspect", image)) as [Awaited<ReturnType<typeof inspect>>]
  return found
}

/** Builds a Bento both ways and compares all that a container can see. */
async function assertEqualBothWays(bento: Tag, options: Parameters<typeof make>[1] = {}): Promise<Made> {
  const assembled = await make(bento, { ...options, builder: "assemble" })
  const written = await make(bento, { ...options, builder: "dockerfile" })
  assert.deepEqual([assembled.builder, written.builder], ["assemble", "dockerfile"])
  const [a, b] = [await inspect(assembled.id), await inspect(written.id)]
  assert.deepEqual(a.Config, b.Config)
  assert.deepEqual([a.Architecture, a.Os], [b.Architecture, b.Os])
  assert.deepEqual(await filesOf(assembled.id), await filesOf(written.id))
  return assembled
}

/** A base of this run alone, which goes with it. */
async function loadBase(
  name: string,
  config: Readonly<Record<string, unknown>>,
  entries: readonly TarHeader[],
  architecture?: string,
): Promise<string> {
  const reference = `${NAME}-base-${name}:1`
  made.add(reference)
  await loadImage(reference, config, entries, architecture)
  return reference
}

const folders = (...given: readonly (readonly [name: string, mode: number, owner?: number])[]): TarHeader[] =>
  given.map(([name, mode, owner = 0]) => ({ type: "directory", name, mode, uid: owner, gid: owner }))

describe(
  "assembled and built by the Dockerfile, equal in every file and in the config",
  { skip: unavailable },
  () => {
    const exampleOf = async (example: string, model: string): Promise<Tag> => {
      const context = path.join(root, "examples", example)
      const args = ["models", "import", path.join(context, `${example}.onnx`), "--name", model]
      const imported = await bentoctl(args, { BENTOML_HOME: home })
      assert.equal(imported.code, 0, imported.stderr)
      return bentoOf(context, example)
    }

    test("no example is left out", async () => {
      const found = await readdir(path.join(root, "examples"), { withFileTypes: true })
      const examples = found.filter((entry) => entry.isDirectory()).map(({ name }) => name)
      assert.deepEqual(examples.toSorted(), ["digits", "iris"], "compare it here")
    })

    test("examples/iris", async () => {
      await assertEqualBothWays(await exampleOf("iris", "iris_clf"))
    })

    test("a Bento with a set-up script, variables, labels, two models, links, and sources that have a layer of their own", async () => {
      const dir = await project({
        "bentofile.yaml": [
          "models: [iris_sklearn, digits_sklearn]",
          'include: ["*"]',
          "labels: {owner: 'team \"a\"', empty: ''}",
          "envs: [{name: ALL, value: a b}, {name: SERVING, value: $HOME, stage: runtime}, {name: T, value: s3cr3t, stage: build}]",
          "docker: {setup_script: setup.sh, env: {NODE_ENV: mine, PATH: /here}}",
        ].join("\n"),
        "setup.sh":
          "#!/bin/sh\nset -eu\nPATH=/usr/bin:/bin\nchmod 0711 /home\nmkdir -p /home/bentoml /opt/tool\nchown 7:8 /home/bentoml\ntouch -d @0 /opt/tool/x\n",
        "a b/ü.txt": "x",
        "large.txt": LARGE,
      })
      await assertEqualBothWays(await bentoOf(dir, "setup"))
    })

    test("examples/digits, on a base that has neither folders, nor a PATH, nor a command", async () => {
      const base = await loadBase("bare", {}, folders(["etc", 0o755]))
      await assertEqualBothWays(await exampleOf("digits", "digits"), { base })
    })

    test("on a base whose folders are not root's, and whose config says all that one can say", async () => {
      const dir = await project({ "bentofile.yaml": "models: [iris_sklearn]\n" })
      const config = {
        User: "5",
        ExposedPorts: { "9/udp": {} },
        Env: ["A=1", "PATH=/x", "NODE_ENV=test", "E="],
        Cmd: ["c"],
        Entrypoint: ["e"],
        Volumes: { "/data": {} },
        WorkingDir: "/w",
        Labels: { "org.opencontainers.image.title": "base", z: "1" },
        StopSignal: "SIGINT",
        StopTimeout: 7,
        Shell: ["/bin/dash", "-c"],
        Healthcheck: { Test: ["CMD", "x"], Interval: 1e9 },
      }
      const base = await loadBase(
        "full",
        config,
        folders(["home", 0o1777, 3], ["opt", 0o750, 4], ["w", 0o755]),
      )
      await assertEqualBothWays(await bentoOf(dir, "full"), { base })
    })
  },
)

/** More than sources have without a layer of their own. */
const LARGE = "0123456789abcdef".repeat(40_000)

describe("an assembled image", { skip: unavailable }, () => {
  let bento: Tag
  let first: Made
  before(async () => {
    const dir = await project({
      "bentofile.yaml": "service: service.ts:svc\nmodels: [iris_sklearn, digits_sklearn]\n",
      "service.ts":
        'import { api, json, service } from "bentoctl/runtime"\nexport const svc = service({ name: "x", apis: [api({ name: "echo", input: json(), output: json(), handler: (value) => value })] })\n',
      "b/c.txt": "c",
      "a.txt": "a",
    })
    bento = await bentoOf(dir, "same")
    first = await make(bento)
  })

  test("has the same id in another folder, under another umask, zone, locale and user, with other times and order", async (t) => {
    const other = path.join(folder, "elsewhere", "b")
    const all = await readdir(home, { recursive: true, withFileTypes: true })
    for (const entry of all.toReversed()) {
      const from = path.join(entry.parentPath, entry.name)
      if (!entry.isFile() || from.includes(".bentoctl")) continue
      const to = path.join(other, path.relative(home, from))
      await mkdir(path.dirname(to), { recursive: true })
      await writeFile(to, await readFile(from))
      await chmod(to, ((await stat(from)).mode & 0o111) === 0 ? 0o640 : 0o750)
      await utimes(to, 1e9 + count++, 1e9)
    }
    const args = [
      "containerize",
      `${bento.name}:${bento.version}`,
      "-t",
      `${bento.name}:elsewhere`,
      "-o",
      "json",
    ]
    made.add(`${bento.name}:elsewhere`)
    const command = [process.execPath, path.join(root, "dist/cli/main.js"), ...args]
    const socket = "/var/run/docker.sock"
    const asOther = process.getuid?.() === 0 && existsSync(socket) && existsSync("/usr/bin/setpriv")
    if (asOther) {
      const group = String((await stat(socket)).gid)
      command.unshift("setpriv", "--reuid=12345", `--regid=${group}`, "--clear-groups")
      await run("chmod", ["-R", "a+rX", folder])
      await run("chown", ["-R", "12345", other])
    } else t.diagnostic("the user stays the same: this is not root")
    const env = {
      BENTOML_HOME: other,
      HOME: other,
      TZ: "Asia/Kathmandu",
      LC_ALL: "tr_TR.UTF-8",
      NODE_COMPILE_CACHE: path.join(other, "node"),
    }
    const { stdout, stderr } = await run("sh", ["-c", 'umask 0077; exec "$@"', "sh", ...command], {
      cwd: "/",
      env,
    })
    assert.equal(
      (JSON.parse(stdout || `{"stderr":${JSON.stringify(stderr)}}`) as { image_id?: string }).image_id,
      first.id,
      stderr,
    )
  })

  for (const sources of [{}, { "large.txt": LARGE }]) {
    const what = "large.txt" in sources ? ", with sources in a layer of their own" : ""
    test(`has the same id whether it is made with its Bento or later from the store${what}`, () =>
      assertSameLater(sources))
  }

  async function assertSameLater(sources: Readonly<Record<string, string>>): Promise<void> {
    const dir = await project({
      ...sources,
      "bentofile.yaml": [
        'include: ["*"]',
        "models: [{tag: 'iris_sklearn:latest', alias: a}]",
        'description: |\n  # Ü "x"\n\n  more',
        "labels: {z: '1', a: 'x y'}",
        "envs: [{name: Z, value: '1'}, {name: A, value: ' x ', stage: runtime}, {name: T, value: t, stage: build}]",
        "docker: {env: {Q: '0123', YES: 'yes', EMPTY: ''}}",
      ].join("\n"),
    })
    const name = `${NAME}-later`
    const env = { BENTOML_HOME: home, ...(baseImage === undefined ? {} : { BENTOCTL_BASE_IMAGE: baseImage }) }
    made.add(`${name}:1`).add(`${name}:latest`)
    const build = ["build", dir, "--name", name, "--version", "1", "--containerize", "-o", "json"]
    const [now, later] = [
      await bentoctl(build, env),
      await bentoctl(["containerize", name, "-o", "json"], env),
    ]
    const { image } = JSON.parse(now.stdout) as { image: { image_id: string } }
    assert.equal((JSON.parse(later.stdout) as { image_id: string }).image_id, image.image_id)
    const history = await docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image.image_id)
    assert.equal(/^bentoctl: source in /m.test(history), "large.txt" in sources)
    await bentoctl(["delete", "--yes", `${name}:1`], env)
  }

  test("sends nothing of a model that an image of another Bento holds", async () => {
    const dir = await project({
      // Of this run alone: an engine may have an image of a run that was killed.
      "bentofile.yaml": `models: [iris_sklearn, digits_sklearn]\nname: ${NAME}\n`,
    })
    const second = await make(await bentoOf(dir, "second"))
    assert.deepEqual(second.layers, ["runtime cached", "model cached", "model cached", "source done"])
  })

  test("is made again, and nothing is sent", async () => {
    const again = await make(bento, { suffix: "again" })
    assert.deepEqual([again.id, again.layers.filter((layer) => !layer.endsWith("cached"))], [first.id, []])
  })

  test("shows in its history what each layer is", async () => {
    const lines = (await docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", first.id)).split("\n")
    for (const cause of ["runtime", "model iris_sklearn", "source and metadata"]) {
      assert.ok(
        lines.some((line) => line.startsWith(`bentoctl: ${cause}`)),
        cause,
      )
    }
  })
})

describe("another platform", { skip: unavailable }, () => {
  test("is assembled without an emulator, with its own ONNX Runtime", async () => {
    const dir = await project({ "bentofile.yaml": "models: [iris_sklearn]\n" })
    const base = await loadBase("arm", {}, folders(["home", 0o755], ["opt", 0o755]), "arm64")
    const image = await make(await bentoOf(dir, "arm"), {
      base,
      platform: "linux/arm64",
      builder: "assemble",
    })
    assert.equal((await inspect(image.id)).Architecture, "arm64")
    const files = [...(await filesOf(image.id, (name) => name.includes("/napi-v6/"))).keys()]
    assert.ok(files.some((name) => name.endsWith("linux/arm64/onnxruntime_binding.node")))
    assert.ok(!files.some((name) => name.includes("x64")))
  })
})

describe("where assembling is not possible", { skip: unavailable }, () => {
  test("the Dockerfile is carried out, with a warning; asked for by name, it is an error", async () => {
    const dir = await project({ "bentofile.yaml": "models: [iris_sklearn]\n" })
    const bento = await bentoOf(dir, "link")
    const link = { type: "symlink", name: "opt", linkname: "usr" } as const
    const base = await loadBase("link", {}, [...folders(["usr", 0o755]), link])
    const image = await make(bento, { base })
    assert.equal(image.builder, "dockerfile")
    assert.ok(
      image.events.some((event) => event.type === "warning" && /\/opt is no folder/.test(event.message)),
    )
    assert.ok((await filesOf(image.id)).has("usr/bentoctl/serve.js"))
    const again = await bentoctl(
      ["containerize", `${bento.name}:${bento.version}`, "-t", `${bento.name}:auto`, "-o", "json"],
      { BENTOML_HOME: home, BENTOCTL_BASE_IMAGE: base },
    )
    const told = JSON.parse(again.stdout) as { builder: string; builder_reason: string }
    assert.deepEqual(told.builder, "dockerfile")
    assert.match(told.builder_reason, /\/opt is no folder/)
    assert.match(again.stderr, /^Warning: not assembled \(\/opt is no folder.*\n$/)
    await assert.rejects(
      make(bento, { base, builder: "assemble" }),
      (error) => error instanceof BentoError && error.code === "ASSEMBLE_IMPOSSIBLE",
    )
  })
})

describe("a foundation", { skip: unavailable }, () => {
  const foundations = async (): Promise<string[]> =>
    (await engine.list("bentoctl.foundation")).flatMap(({ tags }) => tags)

  test("is built once, serves the next code change, and goes when no image lies on it any more", async () => {
    const files = {
      "bentofile.yaml": "models: [iris_sklearn]\ndocker: {setup_script: setup.sh}\n",
      "setup.sh": `#!/bin/sh\necho ${NAME} > /etc/made\n`,
    }
    const before_ = await foundations()
    const first = await make(await bentoOf(await project(files), "setup1"))
    const [foundation = ""] = (await foundations()).filter((tag) => !before_.includes(tag))
    made.add(foundation)
    const second = await make(await bentoOf(await project({ ...files, "x.txt": "x" }), "setup2"))
    const isCached = (event: BuildEvent): boolean =>
      event.type === "step" && event.step === foundation && event.state === "cached"
    assert.deepEqual([first.builder, second.builder], ["assemble", "assemble"])
    assert.ok(second.events.some(isCached))
    assert.equal((await filesOf(second.id, (name) => name === "etc/made")).size, 1)

    const idle = async (): Promise<boolean> =>
      (await findLeftovers(engine)).some(({ reference }) => reference === foundation)
    assert.equal(await idle(), false)
    await docker("rmi", ...[1, 2].map((number) => `${NAME}-setup${number}:auto`))
    const leftovers = (await findLeftovers(engine)).filter(({ reference }) => reference === foundation)
    assert.equal(leftovers.length, 1)
    const dry = await bentoctl(["image", "prune", "--dry-run", "-o", "json"], {})
    const { would_remove } = JSON.parse(dry.stdout) as { would_remove: { reference: string }[] }
    assert.ok(would_remove.some(({ reference }) => reference === foundation))
    assert.ok((await foundations()).includes(foundation))
    for await (const { removed } of removeLeftovers(engine, leftovers)) assert.ok(removed)
    assert.ok(!(await foundations()).includes(foundation))
  })
})

describe("a model alone", { skip: unavailable }, () => {
  test("has its files in /models, readable by all, and the same id whoever makes it", async () => {
    const args = ["models", "containerize", "iris_sklearn", "-t", `${NAME}-model:1`, "-o", "json"]
    made.add(`${NAME}-model:1`)
    const ids = []
    for (const name of ["one", "two"]) {
      const store = path.join(folder, name)
      await cp(path.join(root, "test/fixtures/bentoml-home/models"), path.join(store, "models"), {
        recursive: true,
      })
      const { code, stdout, stderr } = await bentoctl(args, { BENTOML_HOME: store })
      assert.equal(code, 0, stderr)
      ids.push((JSON.parse(stdout) as { image_id: string }).image_id)
    }
    assert.equal(ids[0], ids[1])
    const files = await filesOf(`${NAME}-model:1`, (name) => name.startsWith("models"))
    assert.deepEqual(
      [...files].map(([name, facts]) => [name, ...facts.split(" ").slice(0, 3)]),
      [
        ["models/", "directory", "755", "0:0"],
        ["models/model.yaml", "file", "644", "0:0"],
        ["models/saved_model.onnx", "file", "644", "0:0"],
      ],
    )
    const { Config } = await inspect(`${NAME}-model:1`)
    assert.match((Config["Labels"] as Record<string, string>)["bentoctl.model.digest"] ?? "", /^sha256:/)
  })

  test("is for the platform that is asked for, with the same layer", async () => {
    const tags = ["amd64", "arm64"].map((architecture) => `${NAME}-model:${architecture}`)
    for (const [index, tag] of tags.entries()) {
      made.add(tag)
      const platform = index === 0 ? [] : ["--platform", "linux/arm64"]
      const args = ["models", "containerize", "iris_sklearn", "-t", tag, ...platform]
      const { code, stderr } = await bentoctl(args, { BENTOML_HOME: home })
      assert.equal(code, 0, stderr)
    }
    const facts = "{{.Architecture}} {{.RootFS.Layers}}"
    const [amd64 = "", arm64 = ""] = (await docker("image", "inspect", "-f", facts, ...tags)).split("\n")
    assert.match(arm64, /^arm64 /)
    assert.equal(amd64.replace("amd64", "arm64"), arm64)
  })

  test("lies on another image where that is asked for", async () => {
    const base = await loadBase("shell", { Env: ["A=1"], Cmd: ["sh"] }, folders(["bin", 0o755]))
    const tags = [`${NAME}-modelcar:1`]
    const image = await collect(
      containerizeModel({ model: { name: "iris_sklearn" }, home, engine, tags, baseImage: base }),
    )
    const { Config } = await inspect(image.id)
    assert.deepEqual([Config["Env"], Config["Cmd"]], [["A=1"], ["sh"]])
    const names = [...(await filesOf(image.id, (name) => /^(bin|models)/.test(name))).keys()]
    assert.ok(names.includes("bin/") && names.includes("models/saved_model.onnx"))
  })
})

describe("a large model", { skip: unavailable }, () => {
  const MODEL_BYTES = 200 << 20
  const tag = `${NAME}-large:1`
  const env = { BENTOML_HOME: home, ...(baseImage === undefined ? {} : { BENTOCTL_BASE_IMAGE: baseImage }) }
  let bento: Tag

  before(async () => {
    const from = path.join(home, "models/iris_sklearn")
    const [version = ""] = (await readdir(from)).filter((name) => name !== "latest")
    const to = path.join(home, "models/large/v1")
    await cp(path.join(from, version), to, { recursive: true })
    const manifest = path.join(to, "model.yaml")
    const text = await readFile(manifest, "utf8")
    await writeFile(
      manifest,
      text.replace(/^name: .*$/m, "name: large").replace(/^version: .*$/m, "version: v1"),
    )
    const weights = await open(path.join(to, "weights.bin"), "w")
    for (let at = 0; at < MODEL_BYTES; at += 1 << 20)
      await weights.write(randomFillSync(Buffer.alloc(1 << 20)))
    await weights.close()
    bento = await bentoOf(await project({ "bentofile.yaml": "models: ['large:v1']\n" }), "large")
    made.add(tag)
  })

  /** The real command; `see` gets its events while it runs. */
  function start(see: (event: { type: string; step?: string; current?: number }, pid: number) => void) {
    const args = ["containerize", `${bento.name}:${bento.version}`, "-t", tag, "--progress", "json"]
    const child = spawn(process.execPath, [path.join(root, "dist/cli/main.js"), ...args], {
      env: { ...process.env, ...env },
      stdio: ["ignore", "ignore", "pipe"],
    })
    const pid = child.pid ?? assert.fail()
    let rest = ""
    child.stderr.on("data", (chunk: Buffer) => {
      const lines = (rest + chunk.toString()).split("\n")
      rest = lines.pop() ?? ""
      for (const line of lines) see(JSON.parse(line) as { type: string }, pid)
    })
    const ended = new Promise<number | null>((resolve) => child.on("close", resolve))
    return { child, ended }
  }

  test("interrupted while it is sent: over within a second, exit code 130, nothing named", async () => {
    const interrupt = async (): Promise<number> => {
      let pressedMs = 0
      const { ended } = start((event, pid) => {
        if (pressedMs > 0 || event.type !== "progress" || !event.step?.includes("large")) return
        if ((event.current ?? 0) < MODEL_BYTES / 4) return
        pressedMs = performance.now()
        process.kill(pid, "SIGINT")
      })
      assert.equal(await ended, 130)
      assert.ok(pressedMs > 0)
      const tookMs = performance.now() - pressedMs
      assert.equal(await engine.inspect(tag), null)
      return tookMs
    }
    await assertWithin(1000, interrupt)
  })

  test("stays below 200 MiB of memory, and is not read again for a rebuild", async () => {
    let peakKiB = 0
    const watch = start((_, pid) => {
      void readFile(`/proc/${pid}/status`, "utf8").then(
        (status) => (peakKiB = Math.max(peakKiB, Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0))),
        () => {},
      )
    })
    assert.equal(await watch.ended, 0)
    assert.ok(peakKiB > 0 && peakKiB < 200 * 1024, `${peakKiB} KiB`)
    const states: string[] = []
    const again = start((event) => {
      if (event.type === "step" && "state" in event && event.step?.includes("large"))
        states.push(String(event.state))
    })
    assert.equal(await again.ended, 0)
    assert.deepEqual(states, ["started", "cached"])
  })
})
