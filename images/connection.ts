/**
 * Where the Docker Engine is, found as docker's own client finds it: `DOCKER_HOST`, else the docker context that
 * `DOCKER_CONTEXT` or config.json names, else the socket of this machine.
 */
import { createHash } from "node:crypto"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import path from "node:path"
import { createSecureContext } from "node:tls"
import { BentoError } from "../store/errors.ts"
import { shellWord } from "../templates/quote.ts"
import { controlProblem } from "./grammar.ts"

type Env = Readonly<Record<string, string | undefined>>

export type Connection = {
  /** For messages. */
  readonly where: string
} & (
  | { readonly kind: "socket"; readonly path: string }
  | { readonly kind: "tcp"; readonly host: string; readonly port: number; readonly tls: Tls | null }
  /** What `ssh` is given: it runs docker's own client over there, which lends its standard streams as a connection. */
  | { readonly kind: "ssh"; readonly args: readonly string[] }
)

/** As Node takes it. */
export interface Tls {
  readonly ca?: Buffer
  readonly cert?: Buffer
  readonly key?: Buffer
  readonly rejectUnauthorized: boolean
}

const DEFAULT_SOCKET = "/var/run/docker.sock"

/** Asks nothing of the engine. Throws ENGINE_CONFIG_INVALID. */
export function resolveConnection(env: Env): Connection {
  const host = valueOf(env, "DOCKER_HOST")
  if (host !== null) return parseHost(host, "DOCKER_HOST", withoutPassword(host), () => environmentTls(env))
  const context = contextName(env)
  if (context !== null && context.name !== "default") return contextConnection(env, context)
  const path = localSocket(env)
  return { kind: "socket", path, where: path }
}

/** Variables that are set to nothing count as not set, as in docker. */
function valueOf(env: Env, name: string): string | null {
  return env[name] || null
}

function invalid(message: string, hint: string, cause?: unknown): BentoError {
  return new BentoError("ENGINE_CONFIG_INVALID", message, { hint, cause })
}

/**
 * The first of the usual sockets that is there: docker's, one of a rootless docker, of Docker Desktop, Podman's. The
 * first one where none is there, for the message.
 */
function localSocket(env: Env): string {
  const runtimeDir = valueOf(env, "XDG_RUNTIME_DIR")
  const home = valueOf(env, "HOME")
  const others = [
    ...(runtimeDir === null ? [] : [path.join(runtimeDir, "docker.sock")]),
    ...(home === null ? [] : [path.join(home, ".docker/run/docker.sock")]),
    ...(runtimeDir === null ? [] : [path.join(runtimeDir, "podman/podman.sock")]),
    "/run/podman/podman.sock",
  ]
  return [DEFAULT_SOCKET, ...others].find((socket) => existsSync(socket)) ?? DEFAULT_SOCKET
}

// Addresses -----------------------------------------------------------------------------------------------------

const KINDS = "Use unix:///path/to/docker.sock, tcp://host:port or ssh://user@host."

/** `source` is what to blame: a variable, or a context. */
function parseHost(host: string, source: string, where: string, readTls: () => Tls | null): Connection {
  const wrong = (reason: string): BentoError =>
    invalid(`${source} is ${JSON.stringify(withoutPassword(host))}, ${reason}`, KINDS)
  if (host.startsWith("/")) return { kind: "socket", path: host, where }
  if (host.startsWith("unix://")) {
    return { kind: "socket", path: host.slice("unix://".length) || DEFAULT_SOCKET, where }
  }
  const schemed = /^[\w.-]+:\d+$/.test(host) ? `tcp://${host}` : host
  const url = URL.parse(schemed.replace(/^tcp:\/\/:/, "tcp://localhost:"))
  if (url === null) throw wrong("which is no address")
  const { protocol, hostname, port, pathname } = url
  switch (protocol) {
    case "tcp:":
    case "http:":
    case "https:": {
      if (!["", "/"].includes(pathname)) throw wrong("and an engine is at no path")
      const tls = readTls() ?? (protocol === "https:" ? { rejectUnauthorized: true } : null)
      const usual = protocol === "tcp:" ? (tls === null ? 2375 : 2376) : protocol === "http:" ? 80 : 443
      const name = hostname === "" ? "localhost" : hostname
      return { kind: "tcp", host: name, port: port === "" ? usual : Number(port), tls, where }
    }
    case "ssh:":
      return { kind: "ssh", args: sshArguments(url, wrong), where }
    default:
      throw wrong(`and ${protocol}// is not supported`)
  }
}

function withoutPassword(address: string): string {
  return address.replace(/(\/\/[^/@:]*):[^/@]*@/, "$1:***@")
}

/** Those of docker's own client. What begins with a dash, or means something to a shell, is no name. */
function sshArguments(url: URL, wrong: (reason: string) => BentoError): string[] {
  if (url.password !== "") throw wrong("and ssh takes no password there: log in with a key or an agent")
  if (url.search !== "" || url.hash !== "") throw wrong("and an address for ssh ends with the host or a path")
  const host = url.hostname.replace(/^\[(.*)\]$/, "$1")
  const [user, socket] = [url.username, url.pathname].map((part) => {
    try {
      return decodeURIComponent(part)
    } catch {
      throw wrong("which is no address")
    }
  }) as [string, string] // as many as went in
  if (!/^[\w.:%]([\w.:%-]*)$/.test(host)) throw wrong("which names no host")
  if (!/^([\w.+@\\][\w.+@\\-]*)?$/.test(user)) throw wrong("which names no user")
  if (controlProblem(socket) !== null) throw wrong("which names no socket")
  const there = socket.replaceAll("/", "") === "" ? [] : [`--host=${shellWord(`unix://${socket}`)}`]
  return [
    ...(user === "" ? [] : ["-l", user]),
    ...(url.port === "" ? [] : ["-p", url.port]),
    "-o",
    "ConnectTimeout=30",
    "-T",
    "--",
    host,
    ["docker", ...there, "system", "dial-stdio"].join(" "),
  ]
}

// TLS -----------------------------------------------------------------------------------------------------------

/** By `DOCKER_TLS_VERIFY`, or `DOCKER_TLS` alone for TLS that believes every engine. */
function environmentTls(env: Env): Tls | null {
  const verify = valueOf(env, "DOCKER_TLS_VERIFY") !== null
  if (!verify && valueOf(env, "DOCKER_TLS") === null) return null
  const folder = valueOf(env, "DOCKER_CERT_PATH") ?? configFolder(env)
  const blame = "DOCKER_TLS_VERIFY is set"
  if (folder === null)
    throw invalid(`${blame}, and nothing says where its certificates are`, "Set DOCKER_CERT_PATH.")
  const hint = "Set DOCKER_CERT_PATH to the folder with ca.pem, cert.pem and key.pem."
  const tls = readTls(folder, verify, blame, hint)
  if (verify && tls.ca === undefined)
    throw invalid(`${blame}, but there is no ${path.join(folder, "ca.pem")}`, hint)
  return tls
}

function readTls(folder: string, verify: boolean, blame: string, hint: string): Tls {
  const read = (name: string): Buffer | null => {
    try {
      return readFileSync(path.join(folder, name))
    } catch (error) {
      if (isMissing(error)) return null
      throw invalid(
        `${blame}, but ${path.join(folder, name)} cannot be read: ${messageOf(error)}`,
        hint,
        error,
      )
    }
  }
  const [ca, cert, key] = [read("ca.pem"), read("cert.pem"), read("key.pem")]
  if ((cert === null) !== (key === null)) {
    throw invalid(`${blame}, and of cert.pem and key.pem in ${folder} only one is there`, hint)
  }
  const tls = {
    ...(verify && ca !== null && { ca }),
    ...(cert !== null && key !== null && { cert, key }),
    rejectUnauthorized: verify,
  }
  try {
    createSecureContext(tls)
  } catch (error) {
    throw invalid(
      `${blame}, but the certificates in ${folder} cannot be used: ${messageOf(error)}`,
      hint,
      error,
    )
  }
  return tls
}

// Docker contexts -----------------------------------------------------------------------------------------------

interface ContextName {
  readonly name: string
  /** Who asked for it. */
  readonly source: string
}

/** Where docker keeps its own settings; null where nobody has a home. */
export function configFolder(env: Env): string | null {
  const home = valueOf(env, "HOME")
  return valueOf(env, "DOCKER_CONFIG") ?? (home === null ? null : path.join(home, ".docker"))
}

function contextName(env: Env): ContextName | null {
  const named = valueOf(env, "DOCKER_CONTEXT")
  if (named !== null) return { name: named, source: "DOCKER_CONTEXT" }
  const folder = configFolder(env)
  if (folder === null) return null
  const file = path.join(folder, "config.json")
  const config = readJson(file, "Mend it, or set DOCKER_HOST.")
  const current = config === null ? undefined : config["currentContext"]
  return typeof current === "string" && current !== "" ? { name: current, source: file } : null
}

function contextConnection(env: Env, { name, source }: ContextName): Connection {
  const hint = "`docker context ls` lists them; `docker context use NAME` or DOCKER_CONTEXT chooses one."
  const folder = configFolder(env)
  const contexts = folder === null ? null : path.join(folder, "contexts")
  const id = createHash("sha256").update(name).digest("hex")
  const file = contexts === null ? null : path.join(contexts, "meta", id, "meta.json")
  const meta = file === null ? null : readJson(file, hint)
  if (contexts === null || meta === null) {
    const there = ["default", ...(contexts === null ? [] : contextNames(contexts))]
    const known = there.map((each) => JSON.stringify(each)).join(", ")
    throw invalid(
      `there is no docker context ${JSON.stringify(name)}, which ${source} names; there is ${known}`,
      hint,
    )
  }
  const endpoint = (meta["Endpoints"] as { docker?: { Host?: unknown; SkipTLSVerify?: unknown } } | undefined)
    ?.docker
  const blame = `the docker context ${JSON.stringify(name)}`
  if (typeof endpoint?.Host !== "string" || endpoint.Host === "") {
    throw invalid(`${blame} names no engine (${file})`, hint)
  }
  const certificates = path.join(contexts, "tls", id, "docker")
  const verify = endpoint.SkipTLSVerify !== true
  return parseHost(endpoint.Host, blame, `${endpoint.Host} (docker context ${JSON.stringify(name)})`, () => {
    if (verify && !existsSync(certificates)) return null
    return readTls(certificates, verify, blame, "Create the context anew, with `docker context create`.")
  })
}

/** Those that can be read, for a message. */
function contextNames(contexts: string): string[] {
  try {
    return readdirSync(path.join(contexts, "meta"))
      .flatMap((id) => {
        const name = readJson(path.join(contexts, "meta", id, "meta.json"), "")?.["Name"]
        return typeof name === "string" ? [name] : []
      })
      .toSorted()
  } catch {
    return []
  }
}

/** Null for a file that is not there. */
function readJson(file: string, hint: string): Readonly<Record<string, unknown>> | null {
  try {
    const value: unknown = JSON.parse(readFileSync(file, "utf8"))
    if (typeof value !== "object" || value === null) throw new Error("it holds no object")
    return { ...value }
  } catch (error) {
    if (isMissing(error)) return null
    // What the parser says quotes the file, which may hold passwords of registries.
    if (error instanceof SyntaxError) throw invalid(`${file} is not valid JSON`, hint)
    throw invalid(`${file} cannot be read: ${messageOf(error)}`, hint, error)
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ENOTDIR")
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
