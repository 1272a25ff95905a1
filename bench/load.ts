/**
 * An HTTP/1.1 load generator for the benches: small enough to be pinned to one core beside the server's.
 *
 * Closed loop: each connection sends its next request when the last answer is there: measures throughput.
 * Open loop: requests are due at the times of a Poisson process and their latency counts from when they were *due*,
 * whether or not a connection was free (no coordinated omission): measures latency at a given rate.
 *
 * As a program it reads its options from stdin, as they may be long, and prints one JSON line:
 * `echo '{"port":3000,"path":"/classify","bodies":["[[1,2,3,4]]"],"connections":64,"seconds":5}' | node bench/load.ts`
 */
import net from "node:net"
import { text } from "node:stream/consumers"

export interface LoadOptions {
  readonly host?: string
  readonly port: number
  readonly path: string
  readonly method?: string
  /** Bodies, taken in turn. */
  readonly bodies: readonly string[]
  readonly contentType?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly connections: number
  readonly seconds: number
  /** Answers of the first seconds are not counted. */
  readonly warmUpSeconds?: number
  /** Requests per second for the open loop; absent = closed loop. */
  readonly ratePerSecond?: number
  readonly seed?: number
}

export interface LoadResult {
  readonly requests: number
  readonly perSecond: number
  /** Status → how many; 0 = the connection broke. */
  readonly statuses: Readonly<Record<string, number>>
  readonly latencyMs: {
    readonly p50: number
    readonly p90: number
    readonly p99: number
    readonly max: number
  }
  /** The same of answers that were not 2xx. */
  readonly refusedLatencyMs: { readonly p50: number; readonly p99: number }
  /** Requests of the open loop that were due and had no answer some seconds after the end: not counted above. */
  readonly unanswered: number
}

/** What is not answered so long after the end of an open loop never is. */
const GIVE_UP_MS = 5000

/** Runs the load and resolves when the last answer is in, or is given up. */
export async function load(options: LoadOptions): Promise<LoadResult> {
  const requests = options.bodies.map((body) => encodeRequest(options, body))
  const warmUpMs = (options.warmUpSeconds ?? 0) * 1000
  const startMs = performance.now()
  const endMs = startMs + warmUpMs + options.seconds * 1000
  const good: number[] = []
  const refused: number[] = []
  const statuses: Record<string, number> = {}
  let next = 0
  let unanswered = 0

  const note = (dueMs: number, status: number): void => {
    const now = performance.now()
    if (dueMs < startMs + warmUpMs || (options.ratePerSecond === undefined && now > endMs)) return
    statuses[status] = (statuses[status] ?? 0) + 1
    ;(status >= 200 && status < 300 ? good : refused).push(now - dueMs)
  }
  const nextRequest = (): Buffer => requests[next++ % requests.length] ?? Buffer.alloc(0)

  if (options.ratePerSecond === undefined) {
    await Promise.all(
      Array.from({ length: options.connections }, async () => {
        const connection = new Connection(options)
        while (performance.now() < endMs) {
          const sentMs = performance.now()
          note(sentMs, await connection.request(nextRequest()))
        }
        connection.close()
      }),
    )
  } else {
    unanswered = await openLoop(options, options.ratePerSecond, endMs, nextRequest, note)
  }
  const counted = good.length + refused.length
  return {
    requests: counted,
    perSecond: counted / options.seconds,
    statuses,
    latencyMs: {
      p50: quantile(good, 0.5),
      p90: quantile(good, 0.9),
      p99: quantile(good, 0.99),
      max: quantile(good, 1),
    },
    refusedLatencyMs: { p50: quantile(refused, 0.5), p99: quantile(refused, 0.99) },
    unanswered,
  }
}

/** Sends what is due until the end; how many requests were given up. */
async function openLoop(
  options: LoadOptions,
  ratePerSecond: number,
  endMs: number,
  nextRequest: () => Buffer,
  note: (dueMs: number, status: number) => void,
): Promise<number> {
  const random = mulberry32(options.seed ?? 1)
  const connections: Connection[] = []
  const idle: Connection[] = []
  /** Due, while no connection is free; those before `sent` are on their way. (`shift` would move all the others.) */
  let waiting: number[] = []
  let sent = 0
  let pending = 0
  let over = false
  const take = (): number | undefined => {
    if (over) return undefined
    if (sent < waiting.length) return waiting[sent++]
    waiting = []
    sent = 0
    return undefined
  }
  const run = async (connection: Connection, firstDueMs: number): Promise<void> => {
    for (let dueMs: number | undefined = firstDueMs; dueMs !== undefined; dueMs = take()) {
      const status = await connection.request(nextRequest())
      if (over) return
      note(dueMs, status)
      pending--
    }
    idle.push(connection)
  }
  let dueMs = performance.now()
  while (dueMs < endMs) {
    const now = performance.now()
    while (dueMs <= now && dueMs < endMs) {
      pending++
      let connection = idle.pop()
      if (connection === undefined && connections.length < options.connections) {
        connection = new Connection(options)
        connections.push(connection)
      }
      if (connection === undefined) waiting.push(dueMs)
      else void run(connection, dueMs)
      dueMs += (-Math.log(1 - random()) / ratePerSecond) * 1000
    }
    await new Promise((resolve) =>
      dueMs - performance.now() > 2 ? setTimeout(resolve, 1) : setImmediate(resolve),
    )
  }
  const giveUpMs = performance.now() + GIVE_UP_MS
  while (pending > 0 && performance.now() < giveUpMs) await new Promise((resolve) => setTimeout(resolve, 5))
  over = true
  for (const connection of connections) connection.close()
  return pending
}

/** One keep-alive connection with one request at a time; opens itself again when the server closed it. */
class Connection {
  readonly #options: LoadOptions
  #socket: net.Socket | undefined
  #text = ""
  #done: ((status: number) => void) | undefined

  constructor(options: LoadOptions) {
    this.#options = options
  }

  /** Status of the answer, 0 when the connection broke. */
  request(bytes: Buffer): Promise<number> {
    return new Promise((resolve) => {
      this.#done = resolve
      this.#open().write(bytes)
    })
  }

  close(): void {
    this.#socket?.destroy()
  }

  #open(): net.Socket {
    if (this.#socket !== undefined && !this.#socket.destroyed && this.#socket.writable) return this.#socket
    const socket = net.connect({
      host: this.#options.host ?? "127.0.0.1",
      port: this.#options.port,
      noDelay: true,
    })
    this.#text = ""
    socket.setEncoding("latin1")
    socket.on("data", (chunk: string) => this.#read(chunk))
    socket.on("error", () => this.#finish(0))
    socket.on("close", () => {
      if (this.#socket === socket) this.#finish(0)
    })
    this.#socket = socket
    return socket
  }

  #read(chunk: string): void {
    this.#text = this.#text === "" ? chunk : this.#text + chunk
    const head = this.#text.indexOf("\r\n\r\n")
    if (head === -1) return
    const length = /content-length: (\d+)/i.exec(this.#text.slice(0, head))
    const complete =
      length === null ? this.#text.endsWith("0\r\n\r\n") : this.#text.length >= head + 4 + Number(length[1])
    if (!complete) return
    const status = Number(this.#text.slice(9, 12))
    this.#text = ""
    this.#finish(status)
  }

  #finish(status: number): void {
    const done = this.#done
    this.#done = undefined
    done?.(status)
  }
}

function encodeRequest(options: LoadOptions, body: string): Buffer {
  const method = options.method ?? "POST"
  const headers = {
    host: `${options.host ?? "127.0.0.1"}:${options.port}`,
    ...(method === "GET"
      ? {}
      : {
          "content-type": options.contentType ?? "application/json",
          "content-length": Buffer.byteLength(body),
        }),
    ...options.headers,
  }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  return Buffer.from(
    `${method} ${options.path} HTTP/1.1\r\n${lines.join("")}\r\n${method === "GET" ? "" : body}`,
  )
}

/** The value below which the given share of the values lies; NaN of nothing. */
export function quantile(values: readonly number[], share: number): number {
  if (values.length === 0) return Number.NaN
  const sorted = Float64Array.from(values).sort()
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN
}

/** A seeded generator of numbers in [0, 1): mulberry32 (Tommy Ettinger, public domain). */
export function mulberry32(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296
  }
}

if (import.meta.main) {
  const options = JSON.parse(await text(process.stdin)) as LoadOptions
  process.stdout.write(`${JSON.stringify(await load(options))}\n`)
}
