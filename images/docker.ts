/**
 * The Docker Engine as an `ImageEngine`: the only file that knows dockerode.
 *
 * dockerode's own `followProgress` ends without an error when the stream says `{"error": …}`, so every event is looked
 * at here. Errors of the connection become errors that say what to do.
 */
import type { Agent as HttpAgent } from "node:http"
import { Agent } from "node:https"
import { addAbortSignal } from "node:stream"
import type { Readable } from "node:stream"
import type Docker from "dockerode"
import type { DockerOptions, DockerVersion, ImageBuildOptions, ImageInspectInfo } from "dockerode"
import { BentoError, BuildError } from "../store/errors.ts"
import { LoadRefused, platformOf, PushRefused } from "./builder.ts"
import type {
  BuildEvent,
  BuildOptions,
  EngineInfo,
  HistoryEntry,
  ImageEngine,
  ImageInfo,
  ImageSummary,
  LayerBlob,
  PushProgress,
} from "./builder.ts"
import { BuildText } from "./build-text.ts"
import { BuildKitTrace } from "./buildkit.ts"
import type { BuildFailure } from "./buildkit.ts"
import { resolveConnection } from "./connection.ts"
import type { Connection } from "./connection.ts"
import type { BuildContext } from "./context.ts"
import { findCredentials } from "./credentials.ts"
import type { RegistryAuth } from "./credentials.ts"
import { readLayerBlobs } from "./image-archive.ts"
import type { Platform } from "./plan.ts"
import { registryOf, splitReference } from "./reference.ts"
import { sshAgent } from "./ssh.ts"

type Env = Readonly<Record<string, string | undefined>>

/** The engine that docker's own client would talk to. Nothing is asked of it before the first call. */
export function createDockerBuilder(env: Env, options: { pingTimeoutMs?: number } = {}): ImageEngine {
  return new DockerBuilder(env, options.pingTimeoutMs)
}

/** ssh has to log in first, and gives up by itself. */
const PING_TIMEOUT_MS = { socket: 10_000, tcp: 10_000, ssh: 45_000 } as const

class DockerBuilder implements ImageEngine {
  readonly #env: Env
  readonly #pingTimeoutMs: number | undefined
  readonly #module: Promise<{ default: typeof Docker }>
  #known: Connection | undefined
  #docker: Promise<Docker> | undefined
  #info: Promise<EngineInfo> | undefined

  constructor(env: Env, pingTimeoutMs: number | undefined) {
    this.#env = env
    this.#pingTimeoutMs = pingTimeoutMs
    // It takes a while to load, and whoever made this builder has something to do meanwhile.
    this.#module = import("dockerode")
    this.#module.catch(() => {}) // the first call tells
  }

  get #connection(): Connection {
    return (this.#known ??= resolveConnection(this.#env))
  }

  #client(): Promise<Docker> {
    this.#docker ??= this.#module.then(
      (module) => new module.default(clientOptions(this.#connection, this.#env)),
    )
    return this.#docker
  }

  /** What an engine is does not change; whoever asked first may have been early. */
  async ping(signal?: AbortSignal): Promise<EngineInfo> {
    const asked = (this.#info ??= this.#askInfo(signal))
    try {
      return await asked
    } catch (error) {
      if (this.#info === asked) this.#info = undefined
      throw error
    }
  }

  async #askInfo(signal: AbortSignal | undefined): Promise<EngineInfo> {
    const docker = await this.#client()
    const timeoutMs = this.#pingTimeoutMs ?? PING_TIMEOUT_MS[this.#connection.kind]
    const limit = AbortSignal.timeout(timeoutMs)
    const abortSignal = signal === undefined ? limit : AbortSignal.any([signal, limit])
    // The types know no options here; dockerode 5 does.
    type Ask<T> = (o: { abortSignal: AbortSignal }) => Promise<T>
    const askVersion = docker.version.bind(docker) as Ask<Partial<DockerVersion> | null>
    const askInfo = docker.info.bind(docker) as Ask<unknown>
    const { where } = this.#connection
    const [version, info] = await this.#ask(signal, async () => {
      try {
        return await Promise.all([
          askVersion({ abortSignal }),
          // Whoever may build need not be allowed to see this.
          askInfo({ abortSignal }).catch((error: unknown) => {
            if (statusOf(error) === undefined) throw error
            return null
          }),
        ])
      } catch (error) {
        if (limit.aborted) throw unreachable(where, `no answer within ${timeoutMs / 1000} s`, error)
        if (/client sent an http request to an https server/i.test(messageOf(error))) {
          throw tlsFailed(where, "the engine speaks TLS, and DOCKER_TLS_VERIFY is not set", error)
        }
        if (statusOf(error) === undefined) throw error
        throw unreachable(where, `what answers there is no Docker Engine: ${withoutStatus(error)}`, error)
      }
    })
    const { Version = "", ApiVersion, Os = "", Arch = "" } = version ?? {}
    if (ApiVersion === undefined) throw unreachable(where, "what answers there is no Docker Engine")
    if (!isAtLeast(ApiVersion, OLDEST_API)) {
      throw new BentoError(
        "ENGINE_TOO_OLD",
        `the Docker Engine at ${where} is ${Version} (API ${ApiVersion}); 20.10 (API ${OLDEST_API}) or newer is needed`,
      )
    }
    return {
      version: Version,
      apiVersion: ApiVersion,
      os: Os,
      arch: Arch,
      isLocal: this.#connection.kind === "socket",
      ...howImagesAreKept(version, info),
    }
  }

  async *ensureImage(
    reference: string,
    options: { platform: Platform; pull?: boolean | undefined; signal?: AbortSignal | undefined },
  ): AsyncGenerator<BuildEvent> {
    const docker = await this.#client()
    const found = await this.inspect(reference, options.signal, options.platform)
    const isThere = found !== null && platformOf(found) === options.platform
    if (isThere && options.pull !== true) return
    const step = `pull ${reference}`
    yield { type: "step", step, name: step, state: "started" }
    const startedMs = performance.now()
    try {
      const { platform, signal } = options
      const registry = registryOf(reference) ?? "docker.io"
      // As in docker, a pull does without those that cannot be read: most base images are for everyone.
      const found = await findCredentials(registry, { env: this.#env, signal }).catch(() => null)
      const authconfig = found?.auth ?? undefined
      const pull = { platform, ...(authconfig !== undefined && { authconfig }), ...withSignal(signal) }
      const stream = await this.#ask(options.signal, () => docker.pull(reference, pull))
      for await (const message of messages(stream)) {
        if (message.error !== undefined) throw new Error(message.error)
        const { current, total } = message.progressDetail ?? {}
        if (message.id !== undefined && current !== undefined) {
          yield { type: "progress", step, name: message.id, current, total: total ?? 0 }
        }
      }
    } catch (error) {
      options.signal?.throwIfAborted()
      if (error instanceof BentoError) throw error
      if (isDiskFull(messageOf(error))) throw diskFull(step, error)
      throw baseImageUnavailable(
        reference,
        options.platform,
        { isThere, isForAnother: found !== null },
        error,
      )
    }
    yield { type: "step", step, name: step, state: "done", durationMs: performance.now() - startedMs }
  }

  async *build(context: BuildContext, options: BuildOptions): AsyncGenerator<BuildEvent, string> {
    const { signal } = options
    const docker = await this.#client()
    const trace = new BuildKitTrace()
    const text = new BuildText()
    const failure = (): BuildFailure =>
      [text.failure(), trace.failure()].find(({ step }) => step !== undefined) ?? trace.failure()
    const tar = context.tar()
    let broken: Error | undefined
    tar.once("error", (error) => {
      broken = error
    })
    let imageId: string | undefined
    try {
      const stream = await this.#ask(signal, () => docker.buildImage(tar, buildOptionsOf(options)))
      for await (const message of messages(stream)) {
        if (message.id === "moby.buildkit.trace" && typeof message.aux === "string") {
          yield* trace.read(Buffer.from(message.aux, "base64"))
        } else if (typeof message.aux === "object" && message.aux.ID !== undefined) {
          imageId = message.aux.ID
        } else if (message.stream !== undefined) {
          yield* text.read(message.stream)
        } else if (message.error !== undefined) {
          yield* text.end("failed")
          throw buildFailure(message.error, failure())
        }
      }
      yield* text.end("done")
    } catch (error) {
      signal?.throwIfAborted()
      // Reading the context failed: the engine only saw a connection that broke.
      if (broken instanceof BentoError) throw broken
      if (error instanceof BentoError) throw error
      if (isDiskFull(messageOf(error))) throw diskFull("sending the build context", error)
      throw buildFailure(broken?.message ?? withoutStatus(error), failure(), error)
    } finally {
      tar.destroy()
    }
    signal?.throwIfAborted()
    if (imageId === undefined) throw buildFailure("the engine ended the build without an image", failure())
    return imageId
  }

  async sizeOf(imageId: string, signal?: AbortSignal): Promise<number> {
    const docker = await this.#client()
    const image = await this.#answer(signal, () => docker.getImage(imageId).inspect())
    if ((await this.ping(signal)).store === "layers") return image.Size
    // containerd's image store counts layers as they are packed, newer ones both ways. What is for another platform
    // may lie there packed alone, and then has no size in the history.
    const sizes = (await this.history(imageId, signal))
      .map((line) => line.sizeBytes)
      .filter((size) => size > 0)
    const isUnpacked = sizes.length >= (image.RootFS.Layers?.length ?? 0)
    return isUnpacked ? sizes.reduce((sum, size) => sum + size, 0) : image.Size
  }

  async inspect(reference: string, signal?: AbortSignal, platform?: Platform): Promise<ImageInfo | null> {
    const ask = async (of?: Platform): Promise<ImageInfo | null> => {
      const path = `${encodeURI(reference)}/json`
      const found = await this.#answer(signal, () =>
        orNull(this.#askOfImage<ImageInspectInfo>(path, signal, of)),
      )
      return found === null ? null : infoOf(found)
    }
    const found = await ask()
    if (found === null || platform === undefined || platformOf(found) === platform) return found
    const other = await ask(platform)
    // Engines before 28 look past the question.
    return other !== null && platformOf(other) === platform ? { ...other, id: found.id } : found
  }

  async history(imageId: string, signal?: AbortSignal, platform?: Platform): Promise<HistoryEntry[]> {
    // Newest first.
    const lines = await this.#askOfImage<HistoryLine[]>(`${imageId}/history`, signal, platform)
    return lines
      .map(({ Created, CreatedBy, Comment, Size }) => {
        return { createdS: Created, createdBy: CreatedBy, comment: Comment, sizeBytes: Size }
      })
      .toReversed()
  }

  /** dockerode has no way to say the platform, of those that an image is kept for. */
  async #askOfImage<T>(
    path: string,
    signal: AbortSignal | undefined,
    platform: Platform | undefined,
  ): Promise<T> {
    const docker = await this.#client()
    const [os, architecture] = platform?.split("/") ?? []
    const request = {
      path: `/images/${path}?`,
      method: "GET",
      options: platform === undefined ? {} : { platform: JSON.stringify({ os, architecture }) },
      statusCodes: { 200: true },
    }
    return this.#ask(signal, async () => {
      const answer = Promise.withResolvers<T>()
      docker.modem.dial(request, (error, value) =>
        error === null ? answer.resolve(value as T) : answer.reject(error as Error),
      )
      return answer.promise
    })
  }

  async list(label: string, signal?: AbortSignal): Promise<ImageSummary[]> {
    const docker = await this.#client()
    const found = await this.#answer(signal, () => docker.listImages({ filters: { label: [label] } }))
    return found
      .toSorted((a, b) => b.Created - a.Created)
      .map(({ Id, RepoTags, Labels, Size }) => ({
        id: Id,
        // An engine of 20.10 says <none>:<none>, later ones say nothing.
        tags: ((RepoTags as string[] | null) ?? []).filter((tag) => tag !== "<none>:<none>"),
        labels: (Labels as ImageSummary["labels"] | null) ?? {},
        sizeBytes: Size,
      }))
  }

  async readPaths<T>(
    image: { readonly id: string; readonly platform: Platform },
    paths: readonly string[],
    read: (tar: Readable) => Promise<T>,
    signal?: AbortSignal,
  ): Promise<(T | null)[]> {
    const docker = await this.#client()
    const container = await this.#ask(signal, () =>
      docker.createContainer({
        Image: image.id,
        platform: image.platform,
        Entrypoint: ["never-started"],
        Cmd: [],
        // Not the image's own, which would be made where it is missing.
        WorkingDir: "/",
        Labels: { [PROBE_LABEL]: "" },
        ...withSignal(signal),
      }),
    )
    try {
      const found: (T | null)[] = []
      for (const wanted of paths) {
        const tar = await this.#ask(signal, () => orNull(container.getArchive({ path: wanted })))
        found.push(tar === null ? null : await read(tar as Readable))
      }
      return found
    } finally {
      await container.remove({ force: true, v: true })
    }
  }

  async layerBlobs(
    image: { readonly id: string; readonly platform: Platform },
    signal?: AbortSignal,
  ): Promise<readonly LayerBlob[] | null> {
    const docker = await this.#client()
    const archive = (await this.#ask(signal, () => docker.getImage(image.id).get())) as Readable
    try {
      return await readLayerBlobs(signal === undefined ? archive : addAbortSignal(signal, archive), image)
    } catch (error) {
      signal?.throwIfAborted()
      throw this.#connectionError(error)
    }
  }

  async *load(
    archive: Readable,
    { signal }: { signal?: AbortSignal | undefined },
  ): AsyncGenerator<{ name: string; current: number; total: number }, void> {
    const docker = await this.#client()
    let broken: Error | undefined
    let loaded: string | undefined
    archive.once("error", (error) => {
      broken = error
    })
    try {
      const stream = await this.#ask(signal, () =>
        docker.loadImage(archive, { quiet: 0, ...withSignal(signal) }),
      )
      for await (const message of messages(stream)) {
        if (message.error !== undefined) throw new LoadRefused(message.error)
        loaded ??= /^Loaded image ID: (\S+)/.exec(message.stream ?? "")?.[1]
        // containerd's image store: said as if it were good news.
        const unpacking = /^Error unpacking image \S+: (.*)/.exec(message.stream ?? "")?.[1]
        if (unpacking !== undefined) {
          if (loaded !== undefined) await this.#removeNameless(loaded)
          throw new LoadRefused(unpacking)
        }
        const { current, total } = message.progressDetail ?? {}
        if (message.id !== undefined && current !== undefined) {
          yield { name: message.id, current, total: total ?? 0 }
        }
      }
    } catch (error) {
      signal?.throwIfAborted()
      // Reading a file failed: the engine only saw a connection that broke.
      if (broken instanceof BentoError) throw broken
      if (error instanceof BentoError) throw error
      const message = withoutStatus(broken ?? error)
      if (isDiskFull(message)) throw diskFull("loading the image", error)
      if (error instanceof LoadRefused) throw error
      if (statusOf(error) !== undefined) throw new LoadRefused(message, { cause: error })
      throw new BuildError(`the image could not be handed to the engine: ${message}`, { cause: error })
    } finally {
      archive.destroy()
    }
  }

  /** An image that somebody gave a name stays. */
  async #removeNameless(imageId: string): Promise<void> {
    const docker = await this.#client()
    const image = docker.getImage(imageId)
    const found = await orNull(image.inspect())
    if (found?.RepoTags.length === 0) await orNull(image.remove())
  }

  async *push(
    reference: string,
    { auth, signal }: { auth: RegistryAuth | null; signal?: AbortSignal | undefined },
  ): AsyncGenerator<PushProgress, { digest: string }> {
    const docker = await this.#client()
    const { name, tag } = splitReference(reference)
    // Without credentials the engine wants to be told that there are none.
    const options = { tag, authconfig: auth ?? {}, ...withSignal(signal) }
    let digest: string | undefined
    try {
      const stream = await this.#ask(signal, () => docker.getImage(name).push(options))
      for await (const { error, id, status, progressDetail, aux } of messages(stream)) {
        if (error !== undefined) throw new PushRefused(error)
        // Podman tells it in words only.
        digest ??=
          typeof aux === "object" ? aux.Digest : /digest: (sha256:[0-9a-f]{64})/.exec(status ?? "")?.[1]
        if (id === undefined || status === undefined) continue
        const { current = 0, total = 0 } = progressDetail ?? {}
        yield { layer: id, status, current, total }
      }
    } catch (error) {
      signal?.throwIfAborted()
      if (error instanceof BentoError || error instanceof PushRefused) throw error
      throw new PushRefused(withoutStatus(error), { cause: error })
    }
    signal?.throwIfAborted()
    if (digest === undefined) throw new PushRefused("the engine ended the push without a digest")
    return { digest }
  }

  async tag(imageId: string, reference: string, signal?: AbortSignal): Promise<boolean> {
    const docker = await this.#client()
    const { name, tag } = splitReference(reference)
    const options = { repo: name, tag, ...withSignal(signal) }
    const tagged = await this.#answer(signal, () => orNull(docker.getImage(imageId).tag(options)))
    return tagged !== null
  }

  async remove(reference: string, signal?: AbortSignal): Promise<boolean> {
    const docker = await this.#client()
    return this.#answer(signal, async () => {
      try {
        await docker.getImage(reference).remove(withSignal(signal))
        return true
      } catch (error) {
        if (statusOf(error) === 404) return true
        if (statusOf(error) === 409) return false
        throw error
      }
    })
  }

  async probes(signal?: AbortSignal): Promise<string[]> {
    const docker = await this.#client()
    const filters = { label: [PROBE_LABEL], status: ["created"] }
    const found = await this.#answer(signal, () => docker.listContainers({ all: true, filters }))
    return found.map(({ Id }) => Id)
  }

  async removeProbe(id: string, signal?: AbortSignal): Promise<boolean> {
    const docker = await this.#client()
    await this.#answer(signal, () => orNull(docker.getContainer(id).remove({ v: true })))
    return true
  }

  /** As `#ask`, for calls of which a refusal has no meaning to us: it is told as it is. */
  async #answer<T>(signal: AbortSignal | undefined, call: () => Promise<T>): Promise<T> {
    try {
      return await this.#ask(signal, call)
    } catch (error) {
      if (statusOf(error) === undefined) throw error
      throw new BentoError("ENGINE_REFUSED", `the Docker Engine refuses: ${withoutStatus(error)}`, {
        cause: error,
      })
    }
  }

  /** A call to the engine, with errors of the connection in our words. */
  async #ask<T>(signal: AbortSignal | undefined, call: () => Promise<T>): Promise<T> {
    signal?.throwIfAborted()
    try {
      return await call()
    } catch (error) {
      signal?.throwIfAborted()
      throw this.#connectionError(error)
    }
  }

  #connectionError(error: unknown): unknown {
    const code = error instanceof Error && "code" in error ? error.code : undefined
    if (typeof code !== "string" || error instanceof BentoError) return error
    const { where } = this.#connection
    if (code === "EACCES" || code === "EPERM") {
      return new BentoError("ENGINE_DENIED", `the Docker Engine at ${where} refuses access to you`, {
        hint: 'Use sudo, or join its group: `sudo usermod -aG docker "$USER"`, then log in again.',
        cause: error,
      })
    }
    if (TLS_FAILURE.test(code))
      return tlsFailed(where, messageOf(error).replace(/^[\dA-F]{8,}:error:/, ""), error)
    if (!GONE.includes(code)) return error
    const hungUp = code === "ECONNRESET" || code === "EPIPE"
    if (hungUp && this.#connection.kind === "tcp" && this.#connection.tls !== null) {
      return tlsFailed(where, "it closed the connection, as when it does not accept cert.pem", error)
    }
    return unreachable(where, hungUp ? "it closed the connection" : code, error)
  }
}

/** Codes of Node's for a connection that could not be made, or broke. */
const GONE = [
  "ENOENT",
  "ECONNREFUSED",
  "ECONNRESET",
  "ENOTFOUND",
  "ENOTSOCK",
  "EAI_AGAIN",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "EPIPE",
  "ETIMEDOUT",
]
/** Codes of OpenSSL's, in Node's spelling. */
const TLS_FAILURE =
  /^(ERR_(SSL|TLS|OSSL)_|CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|HOSTNAME_MISMATCH|EPROTO$)/

/** On containers that are made only to look into an image; they are removed at once, or by `image prune`. */
const PROBE_LABEL = "bentoctl.probe"

interface HistoryLine {
  readonly Created: number
  readonly CreatedBy: string
  readonly Comment: string
  readonly Size: number
}

/** The type lacks what is there only at times, and promises what an answer of another engine may lack. */
function infoOf(found: ImageInspectInfo): ImageInfo {
  const { Variant, RootFS, RepoDigests } = found as {
    Variant?: string
    RootFS?: { Layers?: string[] }
    RepoDigests?: string[] | null
  }
  return {
    id: found.Id,
    os: found.Os,
    architecture: found.Architecture,
    variant: Variant === undefined || Variant === "" ? null : Variant,
    layers: RootFS?.Layers ?? [],
    config: { ...found.Config },
    repoDigests: RepoDigests ?? [],
    sizeBytes: found.Size,
  }
}

/** Null for what the engine does not have. */
async function orNull<T>(asked: Promise<T>): Promise<T | null> {
  try {
    return await asked
  } catch (error) {
    if (statusOf(error) === 404) return null
    throw error
  }
}

/** As an engine says of itself. */
function howImagesAreKept(version: unknown, info: unknown): Pick<EngineInfo, "store" | "noPartialLoads"> {
  const { Components } = version as { Components?: { Name?: string }[] | null }
  if (Components?.some(({ Name }) => Name !== undefined && /podman/i.test(Name)) === true) {
    return { store: "layers", noPartialLoads: "Podman takes whole images only" }
  }
  if (info === null) {
    return { store: "layers", noPartialLoads: "the engine does not tell how it keeps its images" }
  }
  const { DriverStatus } = info as { DriverStatus?: [string, string][] | null }
  const isContainerd = DriverStatus?.some(([, value]) => value.startsWith("io.containerd.snapshotter"))
  return { store: isContainerd === true ? "blobs" : "layers", noPartialLoads: null }
}

// Connection ----------------------------------------------------------------------------------------------------

function unreachable(where: string, reason: string, cause?: unknown): BentoError {
  return new BentoError("ENGINE_UNREACHABLE", `no Docker Engine answers at ${where} (${reason})`, {
    hint:
      "Install it (on Debian or Ubuntu: `apt-get install docker.io`) and start it, or name another: DOCKER_HOST, or " +
      "`docker context use`.",
    cause,
  })
}

function tlsFailed(where: string, reason: string, cause: unknown): BentoError {
  return new BentoError("ENGINE_TLS_FAILED", `no TLS with the Docker Engine at ${where}: ${reason}`, {
    cause,
  })
}

/** The types lack the agent; dockerode has it. */
function clientOptions(connection: Connection, env: Env): DockerOptions & { agent?: HttpAgent } {
  // Undefined, since dockerode would take the host of its own environment.
  if (connection.kind === "socket") return { host: undefined, socketPath: connection.path }
  if (connection.kind === "ssh") {
    return { host: "localhost", port: 80, protocol: "http", agent: sshAgent(connection, env) }
  }
  const { host, port, tls } = connection
  if (tls === null) return { host, port, protocol: "http" }
  return { host, port, protocol: "https", agent: new Agent({ keepAlive: true, ...tls }) }
}

/** The first that takes all that we ask for: Engine 20.10. */
const OLDEST_API = "1.41"

/** Of API versions: two numbers. */
function isAtLeast(version: string, oldest: string): boolean {
  const [[major = 0, minor = 0], [oldMajor = 0, oldMinor = 0]] = [version, oldest].map((text) =>
    text.split(".").map(Number),
  ) as [number[], number[]] // as many as went in
  return major > oldMajor || (major === oldMajor && minor >= oldMinor)
}

function buildOptionsOf(options: BuildOptions): ImageBuildOptions {
  const { tags, platform, labels, noCache, cacheFrom = [], buildArgs, network, signal } = options
  return {
    // BuildKit. As a number: for the text "2" dockerode opens a gRPC session beside the build, which is there for
    // registry credentials (base images are in the engine by now) and stays open when a build fails.
    version: 2 as unknown as "2",
    dockerfile: "Dockerfile",
    t: [...tags] as unknown as string, // the type says one, the query takes many
    platform,
    rm: true,
    ...(labels === undefined ? {} : { labels }),
    ...(noCache === true ? { nocache: true } : {}),
    // The type says text, which dockerode would send as it is.
    ...(cacheFrom.length === 0 ? {} : { cachefrom: [...cacheFrom] as unknown as string }),
    ...(buildArgs === undefined ? {} : { buildargs: buildArgs }),
    ...(network === undefined ? {} : { networkmode: network }),
    ...withSignal(signal),
  }
}

function withSignal(signal: AbortSignal | undefined): { abortSignal?: AbortSignal } {
  return signal === undefined ? {} : { abortSignal: signal }
}

// The engine's messages -----------------------------------------------------------------------------------------

interface Message {
  readonly id?: string
  readonly status?: string
  readonly aux?: string | { readonly ID?: string; readonly Digest?: string }
  readonly error?: string
  /** What builders other than BuildKit print. */
  readonly stream?: string
  readonly progressDetail?: { readonly current?: number; readonly total?: number }
}

/** One JSON value per line. */
async function* messages(stream: NodeJS.ReadableStream): AsyncGenerator<Message> {
  const decoder = new TextDecoder()
  let rest = ""
  for await (const chunk of stream as Readable) {
    const lines = (rest + decoder.decode(chunk as Uint8Array, { stream: true })).split("\n")
    rest = lines.pop() ?? ""
    for (const line of lines) if (line.trim() !== "") yield JSON.parse(line) as Message
  }
  if (rest.trim() !== "") yield JSON.parse(rest) as Message
}

// Failures ------------------------------------------------------------------------------------------------------

function buildFailure(message: string, failure: BuildFailure, cause?: unknown): BentoError {
  const { step, error, logTail } = failure
  if (isDiskFull(message) || isDiskFull(error)) return diskFull(step ?? "the build", cause ?? message)
  if (/Get "http:\/\/build-context-\w+"/.test(message)) {
    return new BentoError(
      "BUILD_FAILED",
      "this engine takes no build context while it keeps its images in containerd",
      {
        hint:
          "Docker 28 takes it. On an older one, switch that store off in daemon.json " +
          '(`{"features": {"containerd-snapshotter": false}}`), or build what has no step to run with `--builder assemble`.',
        cause: cause ?? message,
      },
    )
  }
  const reason = /exit (?:code:|status) (\d+)\s*$/.exec(error || message)?.[1]
  return new BuildError(
    step === undefined
      ? `the image build failed: ${message}`
      : `the image build failed at ${step}: ${reason === undefined ? error || message : `exit code ${reason}`}`,
    {
      ...(step === undefined ? {} : { step }),
      logTail,
      ...(isForeign([error, message, ...logTail].join("\n")) ? { hint: EMULATOR } : {}),
      cause: cause ?? message,
    },
  )
}

/** A program for another processor, and no emulator. */
function isForeign(text: string): boolean {
  return /exec format error/i.test(text)
}

const EMULATOR =
  "What runs there is for another processor than the engine's. Build on an engine of that platform (DOCKER_HOST), or give " +
  "this one an emulator: `apt-get install qemu-user-static` on its machine, or what Docker Desktop brings."

function isDiskFull(text: string): boolean {
  return /no space left on device/i.test(text)
}

function diskFull(step: string, cause: unknown): BentoError {
  return new BentoError("ENGINE_DISK_FULL", `the Docker Engine has no space left on its disk (at ${step})`, {
    hint: "Make room with `docker system prune`, or give the engine a larger disk.",
    cause,
  })
}

function baseImageUnavailable(
  reference: string,
  platform: Platform,
  { isThere, isForAnother }: { readonly isThere: boolean; readonly isForAnother: boolean },
  cause: unknown,
): BentoError {
  const reason = withoutStatus(cause)
  if (isThere) {
    const message = `the base image ${reference} is in the engine and cannot be pulled anew: ${reason}`
    const hint = "Build on the one that is there, without --pull."
    return new BentoError("BASE_IMAGE_UNAVAILABLE", message, { hint, cause })
  }
  const where = isForAnother
    ? `the engine has the base image ${reference}, but not for ${platform}, and cannot pull it`
    : `the base image ${reference} is not in the engine and cannot be pulled`
  return new BentoError("BASE_IMAGE_UNAVAILABLE", `${where}: ${reason}`, {
    hint:
      `Load it (\`docker load\`, or \`docker tag LOCAL ${reference}\`), or build on another image with Node 24: ` +
      "`docker.base_image` in bentofile.yaml, or the environment variable BENTOCTL_BASE_IMAGE; for a model alone `--base-image`.",
    cause,
  })
}

/** What the engine said, without what dockerode adds. */
function withoutStatus(error: unknown): string {
  return messageOf(error)
    .replace(/^\(HTTP code \d+\) .*? - /, "")
    .trim()
}

function statusOf(error: unknown): number | undefined {
  return error instanceof Error && "statusCode" in error ? (error.statusCode as number) : undefined
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
