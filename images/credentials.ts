/**
 * Credentials for a registry, found as docker's own client finds them: `config.json` of DOCKER_CONFIG or ~/.docker,
 * which holds them or names the program that does. Nothing in here puts a secret into an error.
 */
import { spawn } from "node:child_process"
import { readFile } from "node:fs/promises"
import path from "node:path"
import { text } from "node:stream/consumers"
import * as z from "zod"
import { BentoError } from "../store/errors.ts"
import { configFolder } from "./connection.ts"

type Env = Readonly<Record<string, string | undefined>>

/** What the engine is given for a registry (`X-Registry-Auth`), in the engine's spelling. */
export interface RegistryAuth {
  readonly username?: string
  readonly password?: string
  readonly identitytoken?: string
  readonly registrytoken?: string
  readonly serveraddress?: string
}

export interface Credentials {
  /** Null: there are none for this registry. */
  readonly auth: RegistryAuth | null
  /** Where they are from, or where they were looked for. */
  readonly source: string
}

/** Docker Hub goes by this name in config.json and in credential stores. */
const DOCKER_HUB = "https://index.docker.io/v1/"

/** The name under which docker keeps the credentials of a registry. */
export function credentialsKey(registry: string): string {
  return registry === "docker.io" || registry === "index.docker.io" ? DOCKER_HUB : registry
}

// config.json -------------------------------------------------------------------------------------------------------

const optionalText = z.string().nullish()

const authSchema = z.object({
  auth: optionalText,
  username: optionalText,
  password: optionalText,
  identitytoken: optionalText,
  registrytoken: optionalText,
})

const configSchema = z.object({
  auths: z.record(z.string(), authSchema).nullish(),
  credHelpers: z.record(z.string(), z.string()).nullish(),
  credsStore: optionalText,
})

export type DockerConfig = z.infer<typeof configSchema>

/** Reads the text of a config.json; `file` is for the error. */
export function parseDockerConfig(content: string, file: string): DockerConfig {
  let value: unknown
  try {
    value = JSON.parse(content)
  } catch {
    // Without the parser's message, which quotes what it stumbled over.
    throw unusable(`${file} is not valid JSON`)
  }
  const parsed = configSchema.safeParse(value)
  if (parsed.success) return parsed.data
  const [issue] = parsed.error.issues
  throw unusable(`${file}: ${issue?.path.join(".") || "the whole"} is not what docker writes there`)
}

/** What config.json says of a registry: the name of the program that knows, or the credentials themselves. */
export type Lookup =
  | { readonly kind: "helper"; readonly name: string }
  | { readonly kind: "auth"; readonly auth: RegistryAuth }
  | { readonly kind: "none" }

/** `credHelpers` of the registry go before `credsStore`, and that before `auths`. */
export function lookUp(config: DockerConfig, registry: string, file: string): Lookup {
  const key = credentialsKey(registry)
  const helper = config.credHelpers?.[key] || config.credsStore
  if (helper) return { kind: "helper", name: helper }
  const auths = Object.entries(config.auths ?? {})
  const [name, entry] =
    auths.find(([name]) => name === key) ?? auths.find(([name]) => hostOf(name) === key) ?? []
  if (name === undefined || entry === undefined) return { kind: "none" }
  const { identitytoken, registrytoken } = entry
  const { username, password } = entry.auth
    ? decodeAuth(entry.auth, `${file}: auths[${JSON.stringify(name)}].auth`)
    : entry
  const auth = {
    ...(username && { username }),
    ...(password && { password }),
    ...(identitytoken && { identitytoken }),
    ...(registrytoken && { registrytoken }),
  }
  // With a store in use, docker leaves an empty entry behind.
  if (Object.keys(auth).length === 0) return { kind: "none" }
  return { kind: "auth", auth: { ...auth, serveraddress: key } }
}

/** Entries of old clients are whole addresses: `https://registry.example.com/v1/`. */
function hostOf(name: string): string {
  return name.replace(/^https?:\/\//, "").replace(/\/.*$/s, "")
}

/** `base64(user:password)`; a password may hold colons. */
function decodeAuth(encoded: string, where: string): { username: string; password: string } {
  const decoded = Buffer.from(encoded, "base64").toString()
  const colon = decoded.indexOf(":")
  if (colon < 1) throw unusable(`${where} is not base64 of user:password`)
  return { username: decoded.slice(0, colon), password: decoded.slice(colon + 1).replace(/^\0+|\0+$/g, "") }
}

// The programs that keep credentials ----------------------------------------------------------------------------------

const helperAnswer = z.object({ Username: z.string().nullish(), Secret: z.string() })

/** What `docker-credential-NAME get` printed. The user `<token>` says that the secret is an identity token. */
export function parseHelperAnswer(output: string, key: string): RegistryAuth | null {
  let value: unknown
  try {
    value = JSON.parse(output)
  } catch {
    return null
  }
  const parsed = helperAnswer.safeParse(value)
  if (!parsed.success) return null
  const { Username: username, Secret: secret } = parsed.data
  if (username === "<token>") return { identitytoken: secret, serveraddress: key }
  return { username: username ?? "", password: secret, serveraddress: key }
}

/** As long as someone may take to unlock a keychain. */
const HELPER_TIMEOUT_MS = 60_000

async function askHelper(
  name: string,
  key: string,
  { env, signal }: { readonly env: Env; readonly signal?: AbortSignal | undefined },
): Promise<RegistryAuth | null> {
  const program = `docker-credential-${name}`
  const failed = (reason: string, cause?: unknown): BentoError =>
    new BentoError("CREDENTIALS_UNAVAILABLE", `the credential helper ${program} ${reason}`, {
      hint: `Try it: \`echo ${key} | ${program} get\`. config.json of docker names it (credHelpers, credsStore); \`docker login\` without them keeps the password there.`,
      cause,
    })
  // It would be looked for in the working directory.
  if (!/^[\w.-]+$/.test(name)) throw failed("has a name that no program has")
  const limit = AbortSignal.timeout(HELPER_TIMEOUT_MS)
  const child = spawn(program, ["get"], {
    env,
    stdio: ["pipe", "pipe", "pipe"],
    signal: signal === undefined ? limit : AbortSignal.any([signal, limit]),
  })
  child.stdin.on("error", () => {}) // it may end without reading
  child.stdin.end(key)
  try {
    const ended = new Promise<number | null>((resolve, reject) => {
      child.once("error", reject)
      child.once("close", resolve)
    })
    const [output, errors, code] = await Promise.all([text(child.stdout), text(child.stderr), ended])
    if (code === 0) {
      const auth = parseHelperAnswer(output, key)
      if (auth === null) throw failed(`answered what is no {"Username": …, "Secret": …} for ${key}`)
      return auth
    }
    // The protocol has reasons on stdout.
    if (/credentials not found|no credentials/i.test(output)) return null
    const reason = (output.trim() || errors.trim()).split("\n")[0] ?? ""
    const told = reason === "" || /secret/i.test(reason) ? "" : `: ${reason.slice(0, 200)}`
    throw failed(`ended with ${code ?? "a signal"} for ${key}${told}`)
  } catch (error) {
    signal?.throwIfAborted()
    if (error instanceof BentoError) throw error
    if (limit.aborted) throw failed(`did not answer within ${HELPER_TIMEOUT_MS / 1000} s`)
    const missing = (error as NodeJS.ErrnoException).code === "ENOENT"
    throw failed(missing ? "is not installed" : "cannot be started", error)
  }
}

/** The credentials for a registry (`registry.example.com:5000`, `docker.io`). Throws CREDENTIALS_UNAVAILABLE. */
export async function findCredentials(
  registry: string,
  options: { readonly env: Env; readonly signal?: AbortSignal | undefined },
): Promise<Credentials> {
  const { env } = options
  const folder = configFolder(env)
  if (folder === null) return { auth: null, source: "DOCKER_CONFIG, which is not set," }
  const file = path.join(folder, "config.json")
  const content = await readFile(file, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT" || error.code === "ENOTDIR") return null
    throw unusable(`${file} cannot be read: ${error.code}`)
  })
  if (content === null) return { auth: null, source: file }
  const found = lookUp(parseDockerConfig(content, file), registry, file)
  if (found.kind === "none") return { auth: null, source: file }
  if (found.kind === "auth") return { auth: found.auth, source: file }
  const auth = await askHelper(found.name, credentialsKey(registry), options)
  return { auth, source: `docker-credential-${found.name}` }
}

function unusable(message: string): BentoError {
  return new BentoError("CREDENTIALS_UNAVAILABLE", message, {
    hint: "Mend it, or move it away and log in again: `docker login REGISTRY`. DOCKER_CONFIG names another folder for it.",
  })
}
