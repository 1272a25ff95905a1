/** `--push` against real registries: with and without a password, full, gone, and behind a line that breaks. */
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import { chmod, mkdir, writeFile } from "node:fs/promises"
import net from "node:net"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { ensurePrograms, PASSWORD, startRegistry } from "../setup/registry.ts"
import type { Registry } from "../setup/registry.ts"
import { bentoctl, docker, freePort, root, run, temporaryFolder } from "./support.ts"
import { assertWithin } from "../within.ts"

const there = await ensurePrograms(["docker-registry"])
const skip = there.available ? false : (there.reason ?? "no registry")

const { folder, remove } = await temporaryFolder()
const base = `bentoctl-e2e-push-base:${process.pid}`
const bin = path.join(folder, "bin")
const logins = path.join(folder, "logins")
const env = {
  BENTOML_HOME: path.join(folder, "bentoml"),
  BENTOCTL_BASE_IMAGE: base,
  DOCKER_CONFIG: logins,
  PATH: `${bin}:${process.env["PATH"]}`,
}
const WEIGHTS_BYTES = 4 << 20
const cleanUp: (() => unknown)[] = []
let open: Registry
let locked: Registry
/** The way to `open` for whole images: what is counted is what was sent. The runtime travels once. */
let counted: Awaited<ReturnType<typeof line>>

before(async () => {
  if (skip !== false) return
  await Promise.all([mkdir(bin), mkdir(logins), mkdir(path.join(folder, "base/opt"), { recursive: true })])
  await mkdir(path.join(folder, "base/home"))
  await docker("import", await tarOf(path.join(folder, "base")), base)
  await importModel("small")
  await importModel("iris", WEIGHTS_BYTES)
  for (const name of ["first", "second"]) {
    const project = path.join(folder, name)
    await mkdir(project)
    await writeFile(path.join(project, "bentofile.yaml"), `models: [iris]\nname: ${name}\n`)
    assert.equal((await bentoctl(["build", project, "--version", "1"], env)).code, 0)
  }
  open = await start("open")
  counted = await line(open)
  locked = await start("locked", { password: true })
})
after(async () => {
  for (const undo of cleanUp.reverse()) await undo()
  const made = await run("docker", ["images", "--format", "{{.Repository}}:{{.Tag}}"])
  const ours = made.stdout
    .split("\n")
    .filter((name) => name === base || /^127\.0\.0\.1:\d+\/e2e-push\//.test(name))
  if (ours.length > 0) await run("docker", ["rmi", "-f", ...ours])
  await remove()
})

/** With as many bytes beside it that cannot be compressed, so that they are seen on the line. */
async function importModel(name: string, bytes = 0): Promise<void> {
  const model = path.join(root, "examples/iris/iris.onnx")
  assert.equal((await bentoctl(["models", "import", model, "--name", name, "--version", "1"], env)).code, 0)
  const file = path.join(env.BENTOML_HOME, "models", name, "1/weights.bin")
  if (bytes > 0) await writeFile(file, randomBytes(bytes))
}

async function tarOf(dir: string): Promise<string> {
  const file = `${dir}.tar`
  assert.equal((await run("tar", ["-C", dir, "-cf", file, "."])).code, 0)
  return file
}

async function start(name: string, options: Parameters<typeof startRegistry>[2] = {}): Promise<Registry> {
  const registry = await startRegistry(path.join(folder, `registry-${name}`), await freePort(), options)
  cleanUp.push(registry.stop)
  return registry
}

/** Writes a config.json of docker's; the folder of it is for DOCKER_CONFIG. */
async function config(name: string, content: object): Promise<{ DOCKER_CONFIG: string }> {
  const dir = path.join(folder, `config-${name}`)
  await mkdir(dir, { recursive: true })
  await writeFile(path.join(dir, "config.json"), JSON.stringify(content))
  return { DOCKER_CONFIG: dir }
}

const auths = (host: string, password: string): object => ({
  auths: { [host]: { auth: Buffer.from(`me:${password}`).toString("base64") } },
})

/** A small image that no test shares with another: a model alone. */
const pushModel = (reference: string, more: Record<string, string> = {}, ...args: string[]) =>
  bentoctl(["models", "containerize", "small", "-t", reference, "--push", ...args], { ...env, ...more })

const asBasic = `Basic ${Buffer.from(`me:${PASSWORD}`).toString("base64")}`

async function manifest(host: string, name: string, reference: string) {
  // The second one is what engines write that keep their images in containerd.
  const accept =
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
  const answer = await fetch(`http://${host}/v2/${name}/manifests/${reference}`, {
    headers: { accept, authorization: asBasic },
  })
  assert.equal(answer.status, 200)
  const digest = answer.headers.get("docker-content-digest")
  const { config, layers } = (await answer.json()) as {
    config: { digest: string }
    layers: { digest: string; size: number }[]
  }
  return { digest, config, layers }
}

interface Result {
  readonly image_id: string
  readonly tags: readonly string[]
  readonly size_bytes: number
  readonly duration_ms: number
  readonly pushed: readonly {
    readonly reference: string
    readonly digest: string
    readonly repo_digest: string
    readonly layers_sent: number
    readonly layers_present: number
    readonly sent_bytes: number
    readonly duration_ms: number
  }[]
}

/** A line to a registry that counts what is sent, and may break or stop. */
async function line(
  to: Registry,
  whatNow: (sent: string) => "go on" | "cut" | "stall" = () => "go on",
): Promise<{ host: string; sentBytes: () => number }> {
  let sentBytes = 0
  const port = Number(to.host.split(":")[1])
  const server = net.createServer((client) => {
    const registry = net.connect(port, "127.0.0.1")
    const cut = (): void => {
      client.destroy()
      registry.destroy()
    }
    for (const socket of [client, registry]) socket.on("error", cut).on("close", cut)
    registry.pipe(client)
    client.on("data", (chunk: Buffer) => {
      sentBytes += chunk.length
      const now = whatNow(chunk.toString("latin1"))
      if (now === "cut") cut()
      else if (now === "stall") client.pause()
      else registry.write(chunk)
    })
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  cleanUp.push(() => server.close())
  const address = server.address()
  assert.ok(typeof address === "object" && address !== null)
  return { host: `127.0.0.1:${address.port}`, sentBytes: () => sentBytes }
}

describe("--push", { skip }, () => {
  test("sends an image under all its names; the registry has every layer, and gives back the same image", async () => {
    const name = `${counted.host}/e2e-push/first`
    const args = ["containerize", "first", "-t", `${name}:1`, "-t", `${name}:latest`, "--push", "-o", "json"]
    const { code, stdout, stderr } = await bentoctl(args, env)
    assert.deepEqual([code, stderr], [0, ""])
    const result = JSON.parse(stdout) as Result
    assert.deepEqual(
      result.pushed.map(({ reference }) => reference),
      [`${name}:1`, `${name}:latest`],
    )
    const [first, second] = result.pushed
    assert.ok(first !== undefined && second !== undefined)
    assert.ok(first.sent_bytes > WEIGHTS_BYTES && result.size_bytes > WEIGHTS_BYTES && first.duration_ms > 0)
    assert.deepEqual([second.digest, second.layers_sent, second.sent_bytes], [first.digest, 0, 0])
    assert.equal(first.repo_digest, `${name}@${first.digest}`)

    const layers = JSON.parse(
      await docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", result.image_id),
    ) as string[]
    await docker("rmi", "-f", result.image_id)
    const found = await manifest(open.host, "e2e-push/first", "latest")
    assert.deepEqual([found.digest, found.config.digest], [first.digest, result.image_id])
    assert.equal(found.layers.length, layers.length)
    assert.equal(found.layers.length, first.layers_sent + first.layers_present)
    for (const { digest } of found.layers) {
      const blob = await fetch(`http://${open.host}/v2/e2e-push/first/blobs/${digest}`, { method: "HEAD" })
      assert.equal(blob.status, 200)
    }
    await docker("pull", "-q", first.repo_digest)
    assert.equal(await docker("image", "inspect", "-f", "{{.Id}}", first.repo_digest), result.image_id)
    await docker("rmi", "-f", result.image_id)
  })

  test("sends nothing of a model that the registry has from another service", async () => {
    const before = counted.sentBytes()
    assert.ok(before > WEIGHTS_BYTES)
    const push = () =>
      bentoctl(["containerize", "second", "-t", `${counted.host}/e2e-push/second:1`, "--push"], env)
    const second = await push()
    assert.equal(second.code, 0, second.stderr)
    assert.ok(counted.sentBytes() - before < 100_000, `${counted.sentBytes() - before} bytes were sent`)
    assert.match(
      second.stderr,
      /^(#\d+) layer [0-9a-f]{12} \(model iris:1\)\n\1 \| Mounted from e2e-push\/first\n\1 CACHED$/m,
    )
    const again = await push()
    assert.match(again.stderr, /\| Layer already exists\n#\d+ CACHED/)
    assert.match(
      again.stdout,
      /\nPushed \S+@sha256:[0-9a-f]{64}\n {2}0 layers sent, \d there already, in [\d.]+s\n/,
    )
  })

  test("of `build --containerize` goes to the names that -t gives", async () => {
    const reference = `${counted.host}/e2e-push/built:1`
    const args = ["build", path.join(folder, "first"), "--version", "2", "--containerize", "-t", reference]
    const { code, stdout, stderr } = await bentoctl([...args, "--push", "-o", "json"], env)
    assert.equal(code, 0, stderr)
    const { image } = JSON.parse(stdout) as { image: Result }
    assert.equal(image.pushed[0]?.digest, (await manifest(open.host, "e2e-push/built", "1")).digest)
  })

  test("--progress json tells each layer, and ends in the digest", async () => {
    const reference = `${open.host}/e2e-push/progress:1`
    const { code, stderr } = await pushModel(reference, {}, "--progress", "json", "-q")
    assert.equal(code, 0)
    const events = stderr
      .trim()
      .split("\n")
      .map((event) => JSON.parse(event) as Record<string, unknown>)
    const steps = events.filter(({ step }) => String(step).startsWith(`push ${reference} `))
    assert.deepEqual(
      steps.filter(({ type }) => type === "step").map(({ state }) => state),
      ["started", "done"],
    )
    const last = events.at(-1)
    assert.deepEqual([last?.["type"], last?.["reference"]], ["pushed", reference])
    assert.match(String(last?.["repo_digest"]), /@sha256:[0-9a-f]{64}$/)
  })
})

describe("--push to a registry with a password", { skip }, () => {
  test("takes what `docker login` wrote", async () => {
    const login = spawn("docker", ["login", locked.host, "-u", "me", "--password-stdin"], {
      env: { ...process.env, ...env },
      stdio: ["pipe", "ignore", "ignore"],
    })
    login.stdin.end(PASSWORD)
    assert.equal(await new Promise((resolve) => login.once("close", resolve)), 0)
    const { code, stderr } = await pushModel(`${locked.host}/e2e-push/login:1`)
    assert.equal(code, 0, stderr)
    assert.equal((await manifest(locked.host, "e2e-push/login", "1")).layers.length, 1)
  })

  test("takes what the credential helper of the registry knows", async () => {
    const file = path.join(bin, "docker-credential-e2e")
    const body = `#!/bin/sh\n[ "$1 $(cat)" = "get ${locked.host}" ] && echo '{"Username":"me","Secret":"${PASSWORD}"}'\n`
    await writeFile(file, body)
    await chmod(file, 0o755)
    const given = await config("helper", { credHelpers: { [locked.host]: "e2e" }, credsStore: "not-asked" })
    const { code, stderr } = await pushModel(`${locked.host}/e2e-push/helper:1`, given)
    assert.equal(code, 0, stderr)
  })

  test("gives its images as a base to whom it lets in", async () => {
    const given = await config("base", auths(locked.host, PASSWORD))
    const reference = `${locked.host}/e2e-push/base:1`
    assert.equal((await pushModel(reference, given)).code, 0)
    await docker("rmi", reference)
    const build = (more: object) => {
      const args = ["models", "containerize", "iris", "-t", `${locked.host}/e2e-push/on-base:1`]
      return bentoctl([...args, "--base-image", reference], { ...env, ...more })
    }
    const refused = await build({ DOCKER_CONFIG: "/nowhere" })
    assert.equal(refused.code, 1)
    assert.match(refused.stderr, /BASE_IMAGE_UNAVAILABLE/)
    const { code, stderr } = await build(given)
    assert.equal(code, 0, stderr)
  })

  test("is refused with a wrong one, without showing it", async () => {
    const given = await config("wrong", auths(locked.host, "hunter2"))
    const reference = `${locked.host}/e2e-push/wrong:1`
    const { code, stderr } = await pushModel(reference, given, "--debug")
    assert.equal(code, 1)
    assert.match(
      stderr,
      new RegExp(`Error: ${locked.host} does not let you push ${reference} .*config\\.json`),
    )
    assert.match(stderr, new RegExp(`Hint: .*docker login ${locked.host}.*\\[REGISTRY_DENIED\\]`))
    assert.doesNotMatch(stderr, /hunter2|bWU6aHVudGVyMg/)
  })

  test("is refused with none", async () => {
    const reference = `${locked.host}/e2e-push/none:1`
    const { code, stderr } = await pushModel(reference, await config("none", {}))
    assert.equal(code, 1)
    assert.match(stderr, new RegExp(`${reference}, and .*config-none/config\\.json has none`))
    assert.match(stderr, /docker login.*\[REGISTRY_DENIED\]/)
  })

  for (const [name, helper, message] of [
    ["is missing", "nowhere", /docker-credential-nowhere is not installed/],
    ["fails", "failing", /docker-credential-failing ended with 1 for 127.*: the keychain is locked/],
  ] as const) {
    test(`ends before anything is built when the credential helper ${name}`, async () => {
      const file = path.join(bin, "docker-credential-failing")
      await writeFile(file, "#!/bin/sh\necho the keychain is locked\nexit 1\n")
      await chmod(file, 0o755)
      const given = await config(helper, { credsStore: helper })
      const { code, stdout, stderr } = await pushModel(`${locked.host}/e2e-push/x:1`, given)
      assert.deepEqual([code, stdout], [1, ""])
      assert.match(stderr, message)
      assert.match(stderr, /^Error: .*\nHint: .*\[CREDENTIALS_UNAVAILABLE\]\n$/)
    })
  }
})

describe("--push that cannot be done", { skip }, () => {
  test("to a name without a registry ends before anything is built", async () => {
    const reference = `e2e-push-${process.pid}:1`
    const { code, stdout, stderr } = await pushModel(reference)
    assert.deepEqual([code, stdout], [1, ""])
    assert.match(
      stderr,
      new RegExp(`^Error: ${reference} names no registry.*\nHint: .*-t registry.*REGISTRY_MISSING`),
    )
    assert.notEqual((await run("docker", ["image", "inspect", reference])).code, 0)
  })

  test("to a registry that is not there", async () => {
    const reference = `127.0.0.1:${await freePort()}/e2e-push/gone:1`
    const { code, stderr } = await pushModel(reference)
    assert.equal(code, 1)
    assert.match(
      stderr,
      new RegExp(`cannot connect to \\S+, so ${reference} was not pushed: .*connection refused`),
    )
    assert.match(stderr, new RegExp(`docker push ${reference}.*\\[REGISTRY_UNREACHABLE\\]`))
  })

  test("to a registry whose disk is full", async (t) => {
    const storage = path.join(folder, "small-disk")
    await mkdir(storage)
    const mounted = await run("mount", ["-t", "tmpfs", "-o", "size=256k", "tmpfs", storage])
    if (mounted.code !== 0) return t.skip(`no small disk to be had: ${mounted.stderr.trim()}`)
    cleanUp.push(() => run("umount", ["-l", storage]))
    const full = await start("full", { storage })
    const first = await pushModel(`${full.host}/e2e-push/full:1`)
    assert.equal(first.code, 0, first.stderr)
    // The layers are there, so that the engine does not try again for a minute before it tells.
    await writeFile(path.join(storage, "fill"), Buffer.alloc(1 << 20)).catch(() => {})
    const reference = `${full.host}/e2e-push/full:2`
    const { code, stderr } = await pushModel(reference)
    assert.equal(code, 1)
    assert.match(stderr, new RegExp(`Error: ${full.host} failed while ${reference} was pushed: .*500`))
    assert.match(stderr, /Hint: .*disk is full.*\[PUSH_FAILED\]/)
  })

  test("because the connection breaks at the end", async () => {
    const broken = await line(open, (sent) => (/^PUT \S+\/manifests\//.test(sent) ? "cut" : "go on"))
    const reference = `${broken.host}/e2e-push/cut:1`
    const { code, stderr } = await pushModel(reference)
    assert.equal(code, 1)
    assert.match(stderr, new RegExp(`connection to ${broken.host} broke off while ${reference} was pushed`))
    assert.match(stderr, /Layers that arrived are not sent again.*\[PUSH_FAILED\]/)
  })

  test("at first, because the connection breaks in a layer, is tried again by the engine", async () => {
    let cuts = 0
    const shaky = await line(open, (sent) => (sent.startsWith("PATCH ") && cuts++ === 0 ? "cut" : "go on"))
    // A layer that no other test has sent, since the engine would not send it again.
    await importModel("shaky", 1 << 20)
    const reference = `${shaky.host}/e2e-push/shaky:1`
    const args = ["models", "containerize", "shaky", "-t", reference, "--push"]
    const { code, stderr } = await bentoctl(args, env)
    assert.equal(code, 0, stderr)
    assert.ok(cuts > 1)
    assert.match(stderr, /\| Retrying in 5 seconds\n/)
  })

  test("because of Ctrl-C ends with 130 at once; the image stays in the engine", async () => {
    const stalled = await line(open, (sent) => (/^(POST|PATCH|PUT) /.test(sent) ? "stall" : "go on"))
    const reference = `${stalled.host}/e2e-push/stalled:1`
    const args = ["models", "containerize", "small", "-t", reference, "--push"]
    await assertWithin(2000, async () => {
      const child = spawn(process.execPath, [path.join(root, "dist/cli/main.js"), ...args], {
        env: { ...process.env, ...env },
      })
      let stderr = ""
      const closed = new Promise((resolve) => child.once("close", resolve))
      await new Promise<void>((resolve) => {
        child.stderr.on("data", (chunk: Buffer) => {
          stderr += chunk.toString()
          if (stderr.includes(` push ${reference}`)) setTimeout(resolve, 300)
        })
        child.once("close", () => resolve())
      })
      const pressedMs = performance.now()
      child.kill("SIGINT")
      assert.equal(await closed, 130, stderr)
      const tookMs = performance.now() - pressedMs
      assert.match(stderr, /Interrupted by SIGINT\.\n$/)
      await docker("image", "inspect", reference)
      return tookMs
    })
  })
})
