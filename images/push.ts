/** Images of the engine → their registries, layer by layer, and what to do when one does not arrive. */
import { BentoError } from "../store/errors.ts"
import { PushRefused } from "./builder.ts"
import type { BuildEvent, ImageEngine, Pushed, PushProgress } from "./builder.ts"
import { findCredentials } from "./credentials.ts"
import type { Credentials } from "./credentials.ts"
import { imageNames } from "./plan.ts"
import { holdsOf } from "./layers.ts"
import { registryOf } from "./reference.ts"

/** One name of an image, and what its registry will be told. */
export interface PushTarget {
  readonly reference: string
  readonly registry: string
  readonly credentials: Credentials
}

/** Looks at everything that can be known before there is an image: a long build must not end in a wrong name. */
export async function preparePush(
  references: readonly string[],
  options: {
    readonly env: Readonly<Record<string, string | undefined>>
    readonly signal?: AbortSignal | undefined
  },
): Promise<PushTarget[]> {
  if (references.length === 0) throw registryMissing("nothing names a registry to push to")
  const named = imageNames(references).map((reference) => {
    const registry = registryOf(reference)
    if (registry === null) throw registryMissing(`${reference} names no registry to push to`)
    return { reference, registry }
  })
  const found = new Map<string, Credentials>()
  for (const registry of new Set(named.map((name) => name.registry))) {
    found.set(registry, await findCredentials(registry, options))
  }
  return named.flatMap((name) => {
    const credentials = found.get(name.registry)
    return credentials === undefined ? [] : [{ ...name, credentials }]
  })
}

/** Docker would take Docker Hub, for everyone to see. */
function registryMissing(message: string): BentoError {
  return new BentoError("REGISTRY_MISSING", message, {
    hint: "Name it in full: `-t registry.example.com/team/NAME:TAG`; for Docker Hub `-t docker.io/USER/NAME:TAG`.",
  })
}

type Engine = Pick<ImageEngine, "push" | "inspect" | "history">

/** Pushes one after the other; the engine sends several layers at a time, and tries again by itself. */
export async function* pushImages(
  engine: Engine,
  targets: readonly PushTarget[],
  options: { readonly signal?: AbortSignal | undefined; readonly clock: () => number },
): AsyncGenerator<BuildEvent> {
  for (const target of targets) yield* pushImage(engine, target, options)
}

async function* pushImage(
  engine: Engine,
  target: PushTarget,
  { signal, clock }: { readonly signal?: AbortSignal | undefined; readonly clock: () => number },
): AsyncGenerator<BuildEvent> {
  const { reference } = target
  const step = { type: "step", step: `push ${reference}`, name: `push ${reference}` } as const
  const startedMs = clock()
  yield { ...step, state: "started" }
  const layers = new LayerSteps(step.step, await layerNames(engine, reference, signal), clock)
  try {
    const said = engine.push(reference, { auth: target.credentials.auth, signal })
    for (;;) {
      const next = await said.next()
      if (next.done !== true) {
        yield* layers.read(next.value)
        continue
      }
      const { digest } = next.value
      const durationMs = clock() - startedMs
      yield { ...step, state: "done", durationMs }
      const repoDigest = `${reference.replace(/:[^:/]*$/, "")}@${digest}`
      yield { type: "pushed", reference, digest, repoDigest, layers: layers.sum(), durationMs }
      return
    }
  } catch (error) {
    signal?.throwIfAborted()
    yield* layers.fail()
    yield { ...step, state: "failed", durationMs: clock() - startedMs }
    throw error instanceof PushRefused ? explainRefusal(error, target) : error
  }
}

/** What our layers hold, by the ids under which the engine pushes them. Layers of others have no names. */
async function layerNames(
  engine: Engine,
  reference: string,
  signal: AbortSignal | undefined,
): Promise<ReadonlyMap<string, Held>> {
  const [image, history] = await Promise.all([
    engine.inspect(reference, signal),
    engine.history(reference, signal),
  ])
  const held = history.map(({ createdBy }) => holdsOf(createdBy))
  const end = held.findLastIndex((name) => name !== null) + 1
  // What lies below may be an image of ours as well, whose last line names no layer.
  const names = held.slice(held.lastIndexOf(null, end - 1) + 1, end)
  const ids = (image?.layers ?? []).slice(-names.length).map((digest) => digest.slice(7, 7 + 12))
  const sizes = history.slice(end - names.length, end).map(({ sizeBytes }) => sizeBytes)
  return new Map(
    names.map((name, index) => [ids[index] ?? "", { name: name ?? "", sizeBytes: sizes[index] ?? 0 }]),
  )
}

/** What a layer of ours holds. */
interface Held {
  readonly name: string
  readonly sizeBytes: number
}

interface Layer {
  readonly sinceMs: number
  bytes: number
  state: "waiting" | "running" | "sent" | "present"
  /** Of the engine's countdown before it tries again. */
  secondsLeft: number
}

/** The layers of one image as steps. */
class LayerSteps {
  readonly #layers = new Map<string, Layer>()
  readonly #prefix: string
  readonly #ours: ReadonlyMap<string, Held>
  readonly #clock: () => number

  constructor(prefix: string, ours: ReadonlyMap<string, Held>, clock: () => number) {
    this.#prefix = prefix
    this.#ours = ours
    this.#clock = clock
  }

  *read({ layer: id, status, current, total }: PushProgress): Generator<BuildEvent> {
    const layer = this.#layers.get(id) ?? {
      sinceMs: this.#clock(),
      bytes: 0,
      state: "waiting",
      secondsLeft: 0,
    }
    this.#layers.set(id, layer)
    if (status === "Preparing" || status === "Waiting" || isOver(layer)) return
    const step = this.#step(id)
    if (layer.state === "waiting") {
      layer.state = "running"
      yield { ...step, state: "started" }
    }
    const log = (text: string) => ({ type: "log", step: step.step, stream: "stdout", text }) as const
    const secondsLeft = Number(/^Retrying in (\d+)/.exec(status)?.[1] ?? 0)
    if (secondsLeft > layer.secondsLeft) yield log(status)
    layer.secondsLeft = secondsLeft
    if (status === "Pushed") {
      layer.state = "sent"
      // Of a small one some engines tell nothing before.
      if (layer.bytes === 0) layer.bytes = this.#ours.get(id)?.sizeBytes ?? 0
      yield { ...step, state: "done", durationMs: this.#clock() - layer.sinceMs }
    } else if (status === "Layer already exists" || status.startsWith("Mounted from ")) {
      layer.state = "present"
      yield log(status)
      yield { ...step, state: "cached", durationMs: this.#clock() - layer.sinceMs }
    } else if (current > 0) {
      // It counts the layer as a tar, and its total without the tar's headers.
      layer.bytes = Math.max(current, total)
      yield { type: "progress", step: step.step, name: id, current, total: layer.bytes }
    }
  }

  *fail(): Generator<BuildEvent> {
    for (const [id, layer] of this.#layers) {
      if (layer.state !== "running") continue
      yield { ...this.#step(id), state: "failed", durationMs: this.#clock() - layer.sinceMs }
    }
  }

  sum(): Pushed["layers"] {
    const layers = [...this.#layers.values()]
    if (layers.length === 0) return null
    const sent = layers.filter(({ state }) => state === "sent")
    return {
      sent: sent.length,
      present: layers.length - sent.length,
      sentBytes: sent.reduce((sum, { bytes }) => sum + bytes, 0),
    }
  }

  #step(id: string) {
    const name = this.#ours.get(id)?.name
    const shown = name === undefined ? `layer ${id}` : `layer ${id} (${name})`
    return { type: "step", step: `${this.#prefix} ${id}`, name: shown } as const
  }
}

function isOver({ state }: Layer): boolean {
  return state === "sent" || state === "present"
}

/** The engine passes on what the registry, the network or Go said; this makes of it what a user can act on. */
function explainRefusal(refusal: PushRefused, { reference, registry, credentials }: PushTarget): BentoError {
  const said = refusal.message.trim()
  const error = (
    code: "REGISTRY_DENIED" | "REGISTRY_UNREACHABLE" | "PUSH_FAILED",
    message: string,
    hint: string,
  ): BentoError => new BentoError(code, message, { hint, cause: refusal })
  const again = `The image is in the engine: run this again, or \`docker push ${reference}\`. Layers that arrived are not sent again.`
  if (/unauthorized|denied|forbidden|no basic auth|authentication required|incorrect username/i.test(said)) {
    const login = `\`docker login ${registry}\``
    return credentials.auth === null
      ? error(
          "REGISTRY_DENIED",
          `${registry} wants credentials for ${reference}, and ${credentials.source} has none: ${said}`,
          `Log in: ${login}. DOCKER_CONFIG names another folder for config.json.`,
        )
      : error(
          "REGISTRY_DENIED",
          `${registry} does not let you push ${reference} with the credentials of ${credentials.source}: ${said}`,
          `Log in again, as a user who may push there: ${login}.`,
        )
  }
  if (/server gave HTTP response to HTTPS client/i.test(said)) {
    return error(
      "REGISTRY_UNREACHABLE",
      `${registry} speaks no TLS, so ${reference} was not pushed: ${said}`,
      `The engine takes plain HTTP on this machine only (127.0.0.0/8), or from registries that its daemon.json lists: {"insecure-registries": ["${registry}"]}.`,
    )
  }
  if (/x509|certificate/i.test(said)) {
    return error(
      "REGISTRY_UNREACHABLE",
      `the engine does not trust the certificate of ${registry}, so ${reference} was not pushed: ${said}`,
      `Give its authority to the engine: /etc/docker/certs.d/${registry}/ca.crt.`,
    )
  }
  if (
    /dial tcp|no such host|connection refused|i\/o timeout|TLS handshake timeout|Client\.Timeout/i.test(said)
  ) {
    return error(
      "REGISTRY_UNREACHABLE",
      `the Docker Engine cannot connect to ${registry}, so ${reference} was not pushed: ${said}`,
      `Check that the registry runs and that the machine of the engine reaches it. ${again}`,
    )
  }
  if (/\bEOF\b|connection reset|broken pipe|connection closed|stream error|unexpected end/i.test(said)) {
    return error(
      "PUSH_FAILED",
      `the connection to ${registry} broke off while ${reference} was pushed: ${said}`,
      `${again} A proxy in between may limit size or time.`,
    )
  }
  if (/\bstatus(?: code)?:? 5\d\d\b|internal server error|bad gateway|no space left/i.test(said)) {
    return error(
      "PUSH_FAILED",
      `${registry} failed while ${reference} was pushed: ${said}`,
      `Its log says why; often its disk is full. ${again}`,
    )
  }
  return error("PUSH_FAILED", `${reference} was not pushed to ${registry}: ${said}`, again)
}
