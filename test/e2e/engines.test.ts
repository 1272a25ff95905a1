/** The same image by every way to an engine: TLS, ssh, docker contexts; in containerd's image store; and by Podman. */
import assert from "node:assert/strict"
import { chmod, mkdir, readFile, writeFile } from "node:fs/promises"
import { createConnection, createServer as createNetServer } from "node:net"
import type { AddressInfo, Server } from "node:net"
import path from "node:path"
import { createServer } from "node:tls"
import { after, before, describe, test } from "node:test"
import { aptUnpack } from "../setup/apt.ts"
import { noOtherEngines, startContainerdEngine, startPodman, startSshd } from "../setup/other-engines.ts"
import { SetupError } from "../setup/process.ts"
import { makeCertificates, noCertificates } from "../images/certificates.ts"
import { bentoctl, docker, filesOf, root, run, temporaryFolder } from "./support.ts"

const { folder, remove } = await temporaryFolder()
const unavailable = await noOtherEngines()
const env = { BENTOML_HOME: path.join(folder, "bentoml"), HOME: path.join(folder, "home") }
/** Names are ours alone, so that nothing of the user's is touched. */
const NAME = `bentoctl-e2e-engines-${process.pid}`
const SOCKET = "/var/run/docker.sock"
const stops: (() => unknown)[] = []
let expected = ""

after(async () => {
  for (const stop of stops.toReversed()) await stop()
  await run("docker", ["rmi", "-f", `${NAME}:1`, `${NAME}-base:1`])
  await remove()
})

async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  return (server.address() as AddressInfo).port
}

/** A small base with a shell, as docker's and Podman's `import` take it. */
async function baseArchive(): Promise<string> {
  const unpacked = path.join(folder, "busybox")
  await aptUnpack(["busybox-static"], unpacked)
  const tree = path.join(folder, "base")
  await mkdir(path.join(tree, "bin"), { recursive: true })
  for (const name of ["home", "opt", "etc", "tmp"]) await mkdir(path.join(tree, name))
  const script =
    'cp "$1" "$2/bin/busybox"; for name in sh cat env chmod touch; do ln -s busybox "$2/bin/$name"; done'
  const busybox = (await run("sh", ["-c", `find '${unpacked}' -path '*/bin/busybox'`])).stdout.trim()
  const copied = await run("sh", ["-euc", script, "sh", busybox, tree])
  assert.equal(copied.code, 0, copied.stderr)
  await chmod(path.join(tree, "tmp"), 0o1777)
  const archive = path.join(folder, "base.tar")
  await run("tar", ["-C", tree, "--owner=0", "--group=0", "-cf", archive, "."])
  return archive
}

describe("an image", { skip: unavailable }, () => {
  let archive = ""
  before(async () => {
    archive = await baseArchive()
    await docker("import", archive, `${NAME}-base:1`)
    const model = path.join(root, "examples/iris/iris.onnx")
    assert.equal((await bentoctl(["models", "import", model, "--name", "iris"], env)).code, 0)
    const project = path.join(folder, "project")
    await mkdir(project)
    const text = `models: [iris]\nname: ${NAME}\ndocker: {setup_script: setup.sh, base_image: "${NAME}-base:1"}\nenvs: [{name: T, value: v, stage: build}]\n`
    await writeFile(path.join(project, "bentofile.yaml"), text)
    await writeFile(
      path.join(project, "setup.sh"),
      '#!/bin/sh\nset -eu\necho "$T" > /etc/t\ntouch -d @0 /etc/t\n',
    )
    assert.equal((await bentoctl(["build", project, "--version", "1"], env)).code, 0)
    expected = await make({})
  })

  async function make(more: Readonly<Record<string, string>>, args: readonly string[] = []): Promise<string> {
    const { code, stdout, stderr } = await bentoctl(
      ["containerize", NAME, "-t", `${NAME}:1`, "-o", "json", ...args],
      { ...env, ...more },
    )
    assert.equal(code, 0, stderr)
    return (JSON.parse(stdout) as { image_id: string }).image_id
  }

  test(
    "is made over TLS, by a context that docker's own client wrote",
    { skip: noCertificates },
    async () => {
      const { server, client } = makeCertificates(folder, "engine")
      const [ca, cert, key] = await Promise.all(
        ["ca.pem", "cert.pem", "key.pem"].map((name) => readFile(path.join(server, name))),
      )
      const options = { ca, cert, key, requestCert: true, rejectUnauthorized: true } as object
      const proxy = createServer(options, (socket) => {
        const engine = createConnection(SOCKET)
        for (const each of [socket, engine]) each.on("error", () => {})
        socket.pipe(engine).pipe(socket)
      })
      stops.push(() => proxy.close())
      const endpoint = `host=tcp://localhost:${await listen(proxy)}`
      const files = ["ca", "cert", "key"].map((name) => `${name}=${path.join(client, `${name}.pem`)}`)
      const DOCKER_CONFIG = path.join(folder, "docker-config")
      const docker_ = (...args: string[]) => run("docker", args, { env: { DOCKER_CONFIG } })
      const made = await docker_("context", "create", "far away", "--docker", [endpoint, ...files].join(","))
      if (made.code !== 0) {
        // Newer clients allow no spaces in a name.
        assert.equal(
          (await docker_("context", "create", "far.away", "--docker", [endpoint, ...files].join(","))).code,
          0,
        )
      }
      const DOCKER_CONTEXT = made.code === 0 ? "far away" : "far.away"
      assert.equal(await make({ DOCKER_CONFIG, DOCKER_CONTEXT }), expected)
      await docker_("context", "use", DOCKER_CONTEXT)
      assert.equal(
        await make({ DOCKER_CONFIG }, ["--no-cache", "--builder", "dockerfile"]).then((id) => id !== ""),
        true,
      )
    },
  )

  test("is made through ssh, which says so when it does not know the host", async () => {
    const port = await freePort()
    const sshd = await startSshd(await subfolder("sshd"), port)
    stops.push(sshd.stop)
    const far = { DOCKER_HOST: `ssh://root@127.0.0.1:${port}`, PATH: sshd.path }
    assert.equal(await make(far), expected)
    assert.equal(await make({ ...far, DOCKER_HOST: `${far.DOCKER_HOST}${SOCKET}` }), expected)
    const refused = async (host: string): Promise<string> => {
      const { code, stderr } = await bentoctl(["containerize", NAME], { ...env, ...far, DOCKER_HOST: host })
      assert.equal(code, 1)
      return stderr
    }
    assert.match(await refused(`ssh://nosuchuser@127.0.0.1:${port}`), /Permission denied \(publickey\)/)
    assert.match(await refused(`${far.DOCKER_HOST}/no/such.sock`), /ENGINE_UNREACHABLE/)
    await sshd.forgetHost()
    assert.match(await refused(far.DOCKER_HOST), /Host key verification failed[^]*ENGINE_UNREACHABLE/)
  })

  /** What is in the image, and its config, as in the one that the machine's own engine has. */
  async function isTheSame(client: readonly string[]): Promise<void> {
    // Each engine adds files of its own for a container.
    const isOfImage = (name: string): boolean => /^(bin|home|opt|tmp|etc\/t$)/.test(name)
    const theirs = await filesOf(`${NAME}:1`, isOfImage, client)
    assert.ok(theirs.has("etc/t") && theirs.has("opt/bentoctl/serve.js"))
    assert.deepEqual(theirs, await filesOf(`${NAME}:1`, isOfImage))
    const configOf = async ([program = "", ...args]: readonly string[]): Promise<unknown> => {
      const { stdout } = await run(program, [...args, "image", "inspect", `${NAME}:1`])
      const [{ Config }] = JSON.parse(stdout) as [{ Config: Record<string, unknown> }]
      const { "io.buildah.version": _, ...Labels } = Config["Labels"] as Record<string, string>
      const { User, Env, Entrypoint, WorkingDir, ExposedPorts, StopSignal } = Config
      return { User, Env, Entrypoint, WorkingDir, ExposedPorts, StopSignal, Labels }
    }
    assert.deepEqual(await configOf(client), await configOf(["docker"]))
  }

  test("is assembled in containerd's image store too, with the same files and config", async (t) => {
    const engine = await startContainerdEngine(await subfolder("next")).catch((error: unknown) => {
      if (!(error instanceof SetupError)) throw error
      t.skip(error.message)
      return null
    })
    if (engine === null) return
    stops.push(engine.stop)
    const far = { DOCKER_HOST: engine.DOCKER_HOST }
    const theirs = async (...args: string[]): Promise<string> => {
      const [program = "", ...before] = engine.client
      const { code, stdout, stderr } = await run(program, [...before, ...args])
      assert.equal(code, 0, stderr)
      return stdout.trim()
    }
    await theirs("import", archive, `${NAME}-base:1`)
    const offline = ["--network", "none"]
    const id = await make(far, [...offline, "--builder", "assemble"])
    assert.equal(await theirs("image", "inspect", "-f", "{{.Id}}", `${NAME}:1`), id)
    await isTheSame(engine.client)
    // Its manifest names blobs that are all there.
    const saved = await run("sh", [
      "-c",
      '"$@" | tar -t | grep -c ^blobs/sha256/.',
      "sh",
      ...engine.client,
      "save",
      `${NAME}:1`,
    ])
    assert.equal(Number(saved.stdout), 1 + 1 + (await layersOf(engine.client)))
    assert.equal(await make(far, offline), id, "as if nothing had happened")

    const another = await bentoctl(["containerize", NAME, "-t", `${NAME}:2`, "--label", "a=b", ...offline], {
      ...env,
      ...far,
    })
    assert.match(
      another.stderr,
      /^builder: assemble$[^]*layer runtime[^]*CACHED[^]*layer source and metadata\n#\d+ CACHED/m,
    )
    const built = await make(far, [...offline, "--builder", "dockerfile"])
    assert.equal(await theirs("image", "inspect", "-f", "{{.Id}}", `${NAME}:1`), built)
    await isTheSame(engine.client)
    assert.equal(
      await theirs("images", "-q", "--filter", "dangling=true"),
      "",
      "nothing is left without a name",
    )
  })

  async function layersOf([program = "", ...before]: readonly string[]): Promise<number> {
    const { stdout } = await run(program, [
      ...before,
      "image",
      "inspect",
      "-f",
      "{{len .RootFS.Layers}}",
      `${NAME}:1`,
    ])
    return Number(stdout)
  }

  test("is made by Podman with the same files and config, by the Dockerfile alone", async (t) => {
    const podman = await startPodman(await subfolder("podman"), (line) => t.diagnostic(line))
    stops.push(podman.stop)
    const far = { DOCKER_HOST: `unix://${podman.socket}` }
    const imported = await run("podman", [...podman.args, "import", archive, `${NAME}-base:1`])
    assert.equal(imported.code, 0, imported.stderr)
    const { code, stderr } = await bentoctl(["containerize", NAME, "-t", `${NAME}:1`], { ...env, ...far })
    assert.equal(code, 0, stderr)
    assert.match(stderr, /^builder: dockerfile \(Podman takes whole images only\)$/m)
    assert.match(stderr, /RUN .*setup.*script\n/)
    await isTheSame(["podman", ...podman.args])
    const forced = await bentoctl(["containerize", NAME, "--builder", "assemble"], { ...env, ...far })
    assert.match(forced.stderr, /Podman takes whole images only[^]*ASSEMBLE_IMPOSSIBLE/)
    const model = ["models", "containerize", "iris", "-t", `${NAME}-model:1`]
    const alone = await bentoctl(model, { ...env, ...far })
    assert.equal(alone.code, 0, alone.stderr)
    const based = await bentoctl([...model, "--base-image", `${NAME}-base:1`], { ...env, ...far })
    assert.equal(based.code, 1)
    assert.match(
      based.stderr,
      /^Error: the image of the model iris:\w+ cannot be assembled on .*: Podman takes whole images only\nHint: Leave out --base-image.*ASSEMBLE_IMPOSSIBLE\]\n$/,
    )
  })
})

async function subfolder(name: string): Promise<string> {
  const made = path.join(folder, name)
  await mkdir(made)
  return made
}

async function freePort(): Promise<number> {
  const server = createNetServer()
  const port = await listen(server)
  await new Promise((resolve) => server.close(resolve))
  return port
}
