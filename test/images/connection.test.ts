/** Where the engine is, as docker's own client finds it; and the ways there, over TLS and ssh. */
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { chmod, cp, mkdir, readFile, writeFile } from "node:fs/promises"
import { createServer as createHttpServer } from "node:http"
import { createServer } from "node:https"
import type { AddressInfo, Server } from "node:net"
import path from "node:path"
import { after, describe, test } from "node:test"
import { resolveConnection } from "../../images/connection.ts"
import type { Connection } from "../../images/connection.ts"
import { createDockerBuilder } from "../../images/docker.ts"
import { BentoError } from "../../store/errors.ts"
import type { ErrorCode } from "../../store/errors.ts"
import { makeCertificates, noCertificates } from "./certificates.ts"
import { temporaryFolder } from "./support.ts"

const { folder, remove } = await temporaryFolder()
const servers: Server[] = []
after(async () => {
  for (const server of servers) server.close()
  await remove()
})

const hasCode = (code: ErrorCode, text: RegExp) => (error: unknown) => {
  assert.ok(error instanceof BentoError, String(error))
  assert.equal(error.code, code)
  assert.match(`${error.message}\n${error.hint}`, text)
  return true
}

let count = 0
/** A folder as ~/.docker is: a current context, and contexts by their names. */
async function dockerConfig(
  current: string | null,
  contexts: Readonly<Record<string, object>> = {},
): Promise<string> {
  const config = path.join(folder, `config${count++}`)
  await mkdir(config)
  if (current !== null) {
    await writeFile(path.join(config, "config.json"), JSON.stringify({ auths: {}, currentContext: current }))
  }
  for (const [name, docker] of Object.entries(contexts)) {
    const meta = path.join(config, "contexts/meta", idOf(name))
    await mkdir(meta, { recursive: true })
    const text = JSON.stringify({ Name: name, Metadata: {}, Endpoints: { docker } })
    await writeFile(path.join(meta, "meta.json"), text)
  }
  return config
}

const idOf = (context: string): string => createHash("sha256").update(context).digest("hex")

/** What a connection leads to, in few words. */
function told(connection: Connection): string {
  switch (connection.kind) {
    case "socket":
      return connection.path
    case "tcp":
      return `${connection.host} ${connection.port}${connection.tls === null ? "" : " TLS"}`
    case "ssh":
      return connection.args.join(" ")
  }
}

describe("an address in DOCKER_HOST", () => {
  const ssh = "-o ConnectTimeout=30 -T --"
  for (const [host, expected] of [
    ["unix:///run/user/1000/docker.sock", "/run/user/1000/docker.sock"],
    ["unix://", "/var/run/docker.sock"],
    ["unix:///a b/%41.sock", "/a b/%41.sock"],
    ["/a/docker.sock", "/a/docker.sock"],
    ["tcp://build", "build 2375"],
    ["tcp://", "localhost 2375"],
    ["tcp://:99", "localhost 99"],
    ["tcp://10.0.0.1:99", "10.0.0.1 99"],
    ["tcp://[::1]:99", "[::1] 99"],
    ["build.example.com:2375", "build.example.com 2375"],
    ["https://build", "build 443 TLS"],
    ["ssh://build", `${ssh} build docker system dial-stdio`],
    ["ssh://me@build:2222", `-l me -p 2222 ${ssh} build docker system dial-stdio`],
    ["ssh://corp%5Cme@[fe80::1]/", `-l corp\\me ${ssh} fe80::1 docker system dial-stdio`],
    ["ssh://build/run/a.sock", `${ssh} build docker --host='unix:///run/a.sock' system dial-stdio`],
    ["ssh://build/a';reboot%20", `${ssh} build docker --host='unix:///a'\\'';reboot ' system dial-stdio`],
  ] as const) {
    test(`${host} leads to ${expected}`, () => {
      assert.equal(told(resolveConnection({ DOCKER_HOST: host })), expected)
    })
  }

  for (const [host, reason] of [
    ["nonsense", /no address/],
    ["npipe:////./pipe/docker_engine", /npipe:\/\/ is not supported/],
    ["tcp://build:2375/path", /at no path/],
    ["tcp://build:99999", /no address/],
    ["ssh://", /no address|no host/],
    ["ssh://me:s3cret@build", /no password/],
    ["ssh://-oProxyCommand=reboot", /no host/],
    ["ssh://-oProxyCommand=reboot@build", /no user/],
    ["ssh://%2doProxyCommand@build", /no user/],
    ["ssh://a%20b@build", /no user/],
    ["ssh://$(reboot)@build", /no user/],
    ["ssh://build/a%0Ab", /no socket/],
    ["ssh://build/%zz", /no address/],
    ["ssh://build?x", /ends with the host/],
  ] as const) {
    test(`${JSON.stringify(host)} is ENGINE_CONFIG_INVALID, without its password`, () => {
      const resolve = (): Connection => resolveConnection({ DOCKER_HOST: host })
      assert.throws(resolve, hasCode("ENGINE_CONFIG_INVALID", reason))
      assert.throws(resolve, (error: Error) => !error.message.includes("s3cret"))
    })
  }
})

describe("of several that are named", () => {
  const contexts = { one: { Host: "tcp://one:1" }, two: { Host: "ssh://two" } }

  test("DOCKER_HOST wins over DOCKER_CONTEXT, and that over the current context", async () => {
    const DOCKER_CONFIG = await dockerConfig("one", contexts)
    const all = { DOCKER_CONFIG, DOCKER_CONTEXT: "two", DOCKER_HOST: "tcp://host:3" }
    assert.equal(told(resolveConnection(all)), "host 3")
    assert.match(told(resolveConnection({ ...all, DOCKER_HOST: "" })), /two docker/)
    const current = resolveConnection({ DOCKER_CONFIG, DOCKER_CONTEXT: "", DOCKER_HOST: "" })
    assert.deepEqual([told(current), current.where], ["one 1", 'tcp://one:1 (docker context "one")'])
  })

  test('the context "default" is the local socket, whatever config.json says', async () => {
    const DOCKER_CONFIG = await dockerConfig("one", contexts)
    assert.match(told(resolveConnection({ DOCKER_CONFIG, DOCKER_CONTEXT: "default" })), /\.sock$/)
  })

  test("~/.docker is looked into where DOCKER_CONFIG is not set", async () => {
    const home = path.join(folder, "home")
    await mkdir(home)
    await cp(await dockerConfig("one", contexts), path.join(home, ".docker"), { recursive: true })
    assert.equal(told(resolveConnection({ HOME: home })), "one 1")
  })

  test("a context that is not there is refused, with the names of those that are", async () => {
    const DOCKER_CONFIG = await dockerConfig("gone", contexts)
    const names = /no docker context "gone", which .*config\.json names; there is "default", "one", "two"/
    assert.throws(() => resolveConnection({ DOCKER_CONFIG }), hasCode("ENGINE_CONFIG_INVALID", names))
    const none = { DOCKER_CONFIG: path.join(folder, "none"), DOCKER_CONTEXT: "../../etc" }
    assert.throws(
      () => resolveConnection(none),
      hasCode("ENGINE_CONFIG_INVALID", /"\.\.\/\.\.\/etc", which DOCKER_CONTEXT/),
    )
  })

  test("a context without an engine, and files that hold no JSON, are refused by name", async () => {
    const DOCKER_CONFIG = await dockerConfig("empty", { empty: {}, odd: { Host: "gopher://x" } })
    const refused = (env: Record<string, string>, text: RegExp): void =>
      assert.throws(
        () => resolveConnection({ DOCKER_CONFIG, ...env }),
        hasCode("ENGINE_CONFIG_INVALID", text),
      )
    refused({}, /context "empty" names no engine/)
    refused({ DOCKER_CONTEXT: "odd" }, /context "odd" is "gopher:\/\/x"/)
    for (const text of ["{", "null", '{"auths":{"r":{"auth":hunter2']) {
      await writeFile(path.join(DOCKER_CONFIG, "config.json"), text)
      // Nothing of what is in it: passwords of registries are.
      refused({}, /^(?!.*hunter2).*config\.json (is not valid JSON|cannot be read: it holds no object)/)
    }
  })

  test("a rootless socket is found where the machine has no other and nothing is named", async (t) => {
    const XDG_RUNTIME_DIR = path.join(folder, "run")
    await mkdir(XDG_RUNTIME_DIR)
    await writeFile(path.join(XDG_RUNTIME_DIR, "docker.sock"), "")
    const found = told(resolveConnection({ XDG_RUNTIME_DIR }))
    if (found === "/var/run/docker.sock") return t.skip("this machine has the usual socket")
    assert.equal(found, path.join(XDG_RUNTIME_DIR, "docker.sock"))
  })
})

// Over TLS ------------------------------------------------------------------------------------------------------

const VERSION = JSON.stringify({ Version: "20.10.24", ApiVersion: "1.41", Os: "linux", Arch: "amd64" })

async function listen(server: Server): Promise<number> {
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  return (server.address() as AddressInfo).port
}

describe("over TLS", { skip: noCertificates }, () => {
  const good = noCertificates === false ? makeCertificates(folder, "good") : { server: "", client: "" }
  const other = noCertificates === false ? makeCertificates(folder, "other") : { server: "", client: "" }

  async function tlsEngine(certificates: string, isPicky = true): Promise<string> {
    const [ca, cert, key] = await Promise.all(
      ["ca.pem", "cert.pem", "key.pem"].map((name) => readFile(path.join(certificates, name))),
    )
    const options = { ca, cert, key, requestCert: isPicky, rejectUnauthorized: isPicky }
    const server = createServer(options as object, (_, response) => response.end(VERSION))
    return `tcp://localhost:${await listen(server)}`
  }
  const ping = (env: Record<string, string>) => createDockerBuilder(env).ping()

  test("an engine is talked to by DOCKER_TLS_VERIFY and DOCKER_CERT_PATH", async () => {
    const env = { DOCKER_HOST: await tlsEngine(good.server), DOCKER_TLS_VERIFY: "1" }
    assert.equal((await ping({ ...env, DOCKER_CERT_PATH: good.client })).version, "20.10.24")
  })

  test("the certificates lie in DOCKER_CONFIG where DOCKER_CERT_PATH is not set", async () => {
    const env = { DOCKER_HOST: await tlsEngine(good.server), DOCKER_TLS_VERIFY: "1" }
    assert.equal((await ping({ ...env, DOCKER_CONFIG: good.client })).version, "20.10.24")
  })

  test("a context brings its own certificates", async () => {
    const Host = await tlsEngine(good.server)
    const DOCKER_CONFIG = await dockerConfig("tls", { tls: { Host, SkipTLSVerify: false } })
    const to = path.join(DOCKER_CONFIG, "contexts/tls", idOf("tls"), "docker")
    await cp(good.client, to, { recursive: true })
    assert.equal((await ping({ DOCKER_CONFIG })).version, "20.10.24")
  })

  test("an engine is believed without a proof by DOCKER_TLS alone, and by a context that says so", async () => {
    const Host = await tlsEngine(other.server, false)
    assert.equal((await ping({ DOCKER_HOST: Host, DOCKER_TLS: "1", DOCKER_CERT_PATH: folder })).os, "linux")
    const DOCKER_CONFIG = await dockerConfig("lax", { lax: { Host, SkipTLSVerify: true } })
    assert.equal((await ping({ DOCKER_CONFIG })).os, "linux")
  })

  test("an engine of another authority, and one under another name, are ENGINE_TLS_FAILED", async () => {
    const env = { DOCKER_TLS_VERIFY: "1", DOCKER_CERT_PATH: good.client }
    const [mine, foreign] = [await tlsEngine(good.server), await tlsEngine(other.server, false)]
    await assert.rejects(
      ping({ ...env, DOCKER_HOST: foreign }),
      hasCode("ENGINE_TLS_FAILED", /self-signed|verify|issuer/),
    )
    const elsewhere = mine.replace("localhost", "127.1.2.3")
    await assert.rejects(ping({ ...env, DOCKER_HOST: elsewhere }), (error: BentoError) =>
      ["ENGINE_TLS_FAILED", "ENGINE_UNREACHABLE"].includes(error.code),
    )
  })

  test("an engine that does not believe us is ENGINE_TLS_FAILED", async () => {
    const mixed = path.join(folder, "mixed")
    await cp(other.client, mixed, { recursive: true })
    await cp(path.join(good.client, "ca.pem"), path.join(mixed, "ca.pem"))
    const env = { DOCKER_HOST: await tlsEngine(good.server), DOCKER_TLS_VERIFY: "1", DOCKER_CERT_PATH: mixed }
    await assert.rejects(ping(env), hasCode("ENGINE_TLS_FAILED", /alert|cert\.pem/i))
  })

  test("an engine without TLS is ENGINE_TLS_FAILED", async () => {
    const port = await listen(createHttpServer((_, response) => response.end(VERSION)))
    const env = { DOCKER_TLS_VERIFY: "1", DOCKER_CERT_PATH: good.client }
    await assert.rejects(
      ping({ ...env, DOCKER_HOST: `tcp://127.0.0.1:${port}` }),
      hasCode("ENGINE_TLS_FAILED", /wrong version number|packet length/),
    )
  })

  test("certificates that are missing, torn or of another key are refused by name before any connection", async () => {
    const env = { DOCKER_HOST: "tcp://127.0.0.1:1", DOCKER_TLS_VERIFY: "1" }
    const refused = (DOCKER_CERT_PATH: string, text: RegExp): void =>
      assert.throws(
        () => resolveConnection({ ...env, DOCKER_CERT_PATH }),
        hasCode("ENGINE_CONFIG_INVALID", text),
      )
    refused(path.join(folder, "none"), /there is no .*ca\.pem/)
    const torn = path.join(folder, "torn")
    await cp(good.client, torn, { recursive: true })
    await writeFile(path.join(torn, "cert.pem"), "-----BEGIN CERTIFICATE-----\n")
    refused(torn, /certificates in .*torn cannot be used/)
    await cp(path.join(other.client, "cert.pem"), path.join(torn, "cert.pem"))
    refused(torn, /cannot be used: .*mismatch/i)
    const half = path.join(folder, "half")
    await mkdir(half)
    for (const name of ["ca.pem", "key.pem"]) await cp(path.join(good.client, name), path.join(half, name))
    refused(half, /only one is there/)
    await mkdir(path.join(half, "cert.pem"))
    refused(half, /cert\.pem cannot be read/)
    assert.throws(() => resolveConnection(env), hasCode("ENGINE_CONFIG_INVALID", /nothing says where/))
  })
})

// Over ssh ------------------------------------------------------------------------------------------------------

describe("over ssh", () => {
  /** A folder for PATH with an `ssh` that runs this shell script; its arguments come to lie in `args` beside it. */
  async function fakeSsh(
    script: string,
  ): Promise<{ env: Record<string, string>; args: () => Promise<string> }> {
    const bin = path.join(folder, `bin${count++}`)
    await mkdir(bin)
    const file = path.join(bin, "ssh")
    await writeFile(file, `#!/bin/sh\nprintf '%s\\n' "$@" >> '${bin}/args'\n${script}\n`)
    await chmod(file, 0o755)
    const env = { PATH: `${bin}:${process.env["PATH"]}`, DOCKER_HOST: "ssh://me@build:22" }
    return { env, args: () => readFile(path.join(bin, "args"), "utf8") }
  }

  test("one process serves many requests, and they come back as they are", async () => {
    const answers = path.join(folder, "answers.mjs")
    await writeFile(
      answers,
      `import { createServer } from "node:http"
       import { Duplex } from "node:stream"
       const server = createServer((_, response) => response.end(${JSON.stringify(VERSION)}))
       const socket = Duplex.from({ readable: process.stdin, writable: process.stdout })
       for (const name of ["setTimeout", "setKeepAlive", "setNoDelay", "ref", "unref"]) socket[name] = () => socket
       server.emit("connection", socket)\n`,
    )
    const { env, args } = await fakeSsh(`exec '${process.execPath}' '${answers}'`)
    const builder = createDockerBuilder(env)
    assert.equal((await builder.ping()).version, "20.10.24")
    for (let round = 0; round < 5; round += 1) await builder.inspect("x")
    const given = (await args()).trimEnd().split("\n")
    const once = ["-l", "me", "-p", "22", "-o", "ConnectTimeout=30", "-T", "--", "build"]
    assert.deepEqual(given.slice(0, 10), [...once, "docker system dial-stdio"])
    // Version and info are asked side by side; nothing needs a third.
    assert.ok(given.length <= 20, given.join(" "))
  })

  for (const [what, script, code, reason] of [
    [
      "that cannot connect",
      "echo 'ssh: connect to host build port 22: Connection refused' >&2; exit 255",
      "ENGINE_UNREACHABLE",
      /ssh:\/\/me@build:22 \(ssh: connect to host build port 22: Connection refused\)[^]*`ssh HOST docker version`/,
    ],
    [
      "that may not log in",
      "echo 'Warning: x' >&2; echo 'me@build: Permission denied (publickey).' >&2; exit 255",
      "ENGINE_UNREACHABLE",
      /\(me@build: Permission denied \(publickey\)\.\)/,
    ],
    [
      "that finds no docker",
      "echo 'sh: 1: docker: not found' >&2; exit 127",
      "ENGINE_UNREACHABLE",
      /not found/,
    ],
    [
      "whose docker may not use the socket",
      "echo 'permission denied while trying to connect to the Docker daemon socket' >&2; exit 1",
      "ENGINE_DENIED",
      /group `docker` over there/,
    ],
    ["that says nothing and fails", "exit 3", "ENGINE_UNREACHABLE", /exit code 3/],
    ["that says nothing and ends", "exit 0", "ENGINE_UNREACHABLE", /closed the connection/],
  ] as const) {
    test(`an ssh ${what} is ${code}, with its last words`, async () => {
      const { env } = await fakeSsh(script)
      await assert.rejects(createDockerBuilder(env).ping(), hasCode(code, reason))
    })
  }

  test("a machine without ssh is told so", async () => {
    const env = { PATH: path.join(folder, "empty"), DOCKER_HOST: "ssh://build" }
    await assert.rejects(createDockerBuilder(env).ping(), hasCode("ENGINE_UNREACHABLE", /no program `ssh`/))
  })

  test("an ssh that hangs is ended with the command that waits for it", async () => {
    const { env, args } = await fakeSsh(`echo $$ > '${folder}/hanging'; exec sleep 600`)
    const abort = new AbortController()
    const asked = createDockerBuilder(env).ping(abort.signal)
    setTimeout(() => abort.abort(new Error("stop")), 300)
    await assert.rejects(asked, /^Error: stop$/)
    await args()
    const pid = Number(await readFile(path.join(folder, "hanging"), "utf8"))
    await new Promise((resolve) => setTimeout(resolve, 200))
    assert.throws(() => process.kill(pid, 0), /ESRCH/)
  })
})
