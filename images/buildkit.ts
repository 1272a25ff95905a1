/**
 * What BuildKit tells about a build, over the engine's API: protobuf messages (`moby.buildkit.v1.StatusResponse`),
 * of which this reads the few fields that people want to see.
 */
import { Message, VARINT } from "../store/protobuf.ts"
import type { BuildEvent } from "./builder.ts"

export interface Vertex {
  readonly digest: string
  readonly name: string
  readonly cached: boolean
  readonly startedMs: number | null
  readonly completedMs: number | null
  readonly error: string
}

export interface StatusResponse {
  readonly vertexes: readonly Vertex[]
  readonly statuses: readonly {
    readonly id: string
    readonly vertex: string
    readonly current: number
    readonly total: number
  }[]
  readonly logs: readonly { readonly vertex: string; readonly stream: number; readonly bytes: Uint8Array }[]
}

export function decodeStatusResponse(bytes: Uint8Array): StatusResponse {
  const message = new Message(bytes)
  return {
    vertexes: [...message.all(1)].map((vertex) => ({
      digest: text(vertex, 1),
      name: readable(text(vertex, 3)),
      cached: number(vertex, 4) !== 0,
      startedMs: timestampMs(vertex, 5),
      completedMs: timestampMs(vertex, 6),
      error: text(vertex, 7),
    })),
    statuses: [...message.all(2)].map((status) => ({
      id: text(status, 1),
      vertex: text(status, 2),
      current: number(status, 4),
      total: number(status, 5),
    })),
    logs: [...message.all(3)].map((log) => ({
      vertex: text(log, 1),
      stream: number(log, 3),
      bytes: bytesOf(log, 4),
    })),
  }
}

/** What explains why a build failed: the step, its error, the last lines that it printed. */
export interface BuildFailure {
  readonly step: string | undefined
  readonly error: string
  readonly logTail: readonly string[]
}

/** A step's name in one line, without the mounts, which say nothing about what it does. */
export function readable(name: string): string {
  return name
    .replace(/--mount=\S+\s+/g, "")
    .replace(/\s+/g, " ")
    .trim()
}

const STREAMS = ["stdout", "stderr"] as const
type Stream = (typeof STREAMS)[number]

/** What a step printed: its last lines, and of each stream the line that has no end yet. */
interface StepLog {
  tail: string[]
  readonly open: Record<Stream, { rest: string; readonly decoder: InstanceType<typeof TextDecoder> }>
}

function emptyLog(): StepLog {
  const opened = () => ({ rest: "", decoder: new TextDecoder() })
  return { tail: [], open: { stdout: opened(), stderr: opened() } }
}

/** Turns the messages of one build into events, each step told once per state; remembers what explains a failure. */
export class BuildKitTrace {
  readonly #vertexes = new Map<string, { name: string; started: boolean; ended: boolean; error: string }>()
  readonly #logs = new Map<string, StepLog>()

  failure(): BuildFailure {
    const failed = [...this.#vertexes].filter(
      ([, { error }]) => error !== "" && !error.endsWith("context canceled"),
    )
    const [digest, vertex] = failed[0] ?? []
    const log = digest === undefined ? undefined : this.#logs.get(digest)
    const rest = STREAMS.flatMap((stream) => log?.open[stream].rest || [])
    return {
      step: vertex?.name,
      error: vertex?.error ?? "",
      logTail: [...(log?.tail ?? []), ...rest].slice(-20),
    }
  }

  /** The events of one message. */
  *read(message: Uint8Array): Generator<BuildEvent> {
    const { vertexes, statuses, logs } = decodeStatusResponse(message)
    for (const vertex of vertexes) if (vertex.startedMs !== null) yield* this.#start(vertex)
    for (const { vertex, stream, bytes } of logs)
      yield* this.#log(vertex, stream === 2 ? "stderr" : "stdout", bytes)
    for (const { id, vertex, current, total } of statuses) {
      if (current > 0) yield { type: "progress", step: vertex, name: id, current, total }
    }
    for (const vertex of vertexes) if (vertex.completedMs !== null) yield* this.#end(vertex)
  }

  *#start({ digest, name }: Vertex): Generator<BuildEvent> {
    if (this.#vertexes.get(digest)?.started === true) return
    this.#vertexes.set(digest, { name, started: true, ended: false, error: "" })
    yield { type: "step", step: digest, name, state: "started" }
  }

  *#end({ digest, name, cached, error, startedMs, completedMs }: Vertex): Generator<BuildEvent> {
    const known = this.#vertexes.get(digest)
    if (known?.ended === true && known.error === error) return
    this.#vertexes.set(digest, { name, started: true, ended: true, error })
    const log = this.#logs.get(digest)
    for (const stream of STREAMS) {
      const text = log?.open[stream].rest
      if (log === undefined || !text) continue
      log.tail.push(text)
      log.open[stream].rest = ""
      yield { type: "log", step: digest, stream, text }
    }
    const durationMs = Math.max(0, (completedMs ?? 0) - (startedMs ?? completedMs ?? 0))
    yield {
      type: "step",
      step: digest,
      name,
      state: error !== "" ? "failed" : cached ? "cached" : "done",
      durationMs,
    }
  }

  *#log(digest: string, stream: Stream, bytes: Uint8Array): Generator<BuildEvent> {
    const log = this.#logs.get(digest) ?? emptyLog()
    this.#logs.set(digest, log)
    const open = log.open[stream]
    const lines = (open.rest + open.decoder.decode(bytes, { stream: true })).split("\n")
    open.rest = lines.pop() ?? ""
    for (const line of lines) {
      const written = line.endsWith("\r") ? line.slice(0, -1) : line
      log.tail = [...log.tail.slice(-19), written]
      yield { type: "log", step: digest, stream, text: written }
    }
  }
}

// Fields of a message, the last one of a number, as protobuf has it ---------------------------------------------

function text(message: Message, field: number): string {
  return [...message.all(field)].at(-1)?.text() ?? ""
}

function bytesOf(message: Message, field: number): Uint8Array {
  const last = [...message.all(field)].at(-1)
  return last === undefined ? new Uint8Array() : last.bytes.subarray(last.start, last.end)
}

function number(message: Message, field: number): number {
  const last = [...message.fields()].findLast((each) => each.number === field && each.wire === VARINT)
  return last === undefined ? 0 : Number(message.int(last))
}

function timestampMs(message: Message, field: number): number | null {
  const last = [...message.all(field)].at(-1)
  return last === undefined ? null : number(last, 1) * 1000 + number(last, 2) / 1e6
}
