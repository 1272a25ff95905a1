/** The same image by every way to an engine: TLS, ssh, docker contexts; and by Podman. */
import assert from "node:assert/strict"
import { chmod, mkdir, readFile, writeFile } from "node:fs/promises"
import { createConnection, createServer as createNetServer } from "node:net"
import type { AddressInfo, Server } from "node:net"
import path from "node:path"
import { createServer } from "node:tls"
import { after, before, describe, test } from "node:test"
import { aptUnpack } from "../setup/apt.ts"
import { noOtherEngines, startPodman, startSshd } from "../setup/other-engines.ts"
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
    // What is in the image; each engine adds its own for a container.
    const isOfImage = (name: string): boolean => /^(bin|home|opt|tmp|etc\/t$)/.test(name)
    const theirs = await filesOf(`${NAME}:1`, isOfImage, ["podman", ...podman.args])
    assert.ok(theirs.has("etc/t") && theirs.has("opt/bentoctl/serve.js"))
    assert.deepEqual(theirs, await filesOf(`${NAME}:1`, isOfImage))
    const configOf = async (...command: string[]): Promise<Record<string, unknown>> => {
      const { stdout } = await run("sh", [
        "-c",
        'exec "$@"',
        "sh",
        ...command,
        "image",
        "inspect",
        `${NAME}:1`,
      ])
      const [{ Config }] = JSON.parse(stdout) as [{ Config: Record<string, unknown> }]
      const { "io.buildah.version": _, ...Labels } = Config["Labels"] as Record<string, string>
      return Object.fromEntries(
        ["User", "Env", "Entrypoint", "WorkingDir", "ExposedPorts", "StopSignal"]
          .map((key) => [key, Config[key]])
          .concat([["Labels", Labels]]),
      ) as Record<string, unknown>
    }
    assert.deepEqual(await configOf("podman", ...podman.args), await configOf("docker"))
    const forced = await bentoctl(["containerize", NAME, "--builder", "assemble"], { ...env, ...far })
    assert.match(forced.stderr, /Podman takes whole images only[^]*ASSEMBLE_IMPOSSIBLE/)
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
