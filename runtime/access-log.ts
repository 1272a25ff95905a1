/**
 * The access log: one JSON line for each request on stdout. Loaded only where it is on, since pino takes 20 ms and a line some
 * microseconds (bench/sight.ts). Lines are written by threads of Node's, so a reader that stalls does not stop the server.
 */
import { pino } from "pino"
import type { ServerConfig } from "./config.ts"
import type { Exchange } from "./exchange.ts"

export interface AccessLog {
  /** A request has been answered, or its client has left. */
  request(exchange: Exchange, status: number, ms: number): void
}

export interface AccessLogOptions {
  readonly config: ServerConfig["accessLog"]
  readonly write: (line: string) => void
  readonly now: () => Date
  /** From 0 up to 1, for the share of requests that get a line. */
  readonly random: () => number
}

/** A pipe takes so much at once or not at all: lines of several threads do not get mixed. */
const MAX_WRITE = 4096
/** Lines that wait for a reader which stalls; more are lost. */
const MAX_WAITING = 16 * 2 ** 20

/** Lines that are left when the process ends are written then. */
export function stdoutWriter(): (line: string) => void {
  const destination = pino.destination({
    dest: 1,
    sync: false,
    maxWrite: MAX_WRITE,
    maxLength: MAX_WAITING,
  })
  // A reader that is gone (pino heeds it), or a disk that is full: the server goes on without the log.
  destination.on("error", () => {})
  return (line) => void destination.write(line)
}

export function createAccessLog({ config, write, now, random }: AccessLogOptions): AccessLog {
  const { sampleRate, skipPaths } = config
  let secondMs = -1
  let second = ""
  /** A date as text costs 0.3 µs: it is made once a second. */
  const time = (): string => {
    const ms = now().getTime()
    const rest = ms % 1000
    if (ms - rest !== secondMs) {
      secondMs = ms - rest
      second = new Date(secondMs).toISOString().slice(0, 20)
    }
    return `,"time":"${second}${String(rest).padStart(3, "0")}Z"`
  }
  const logger = pino(
    { base: null, timestamp: time, formatters: { level: () => ({ type: "access" }) } },
    { write },
  )
  return {
    request(exchange, status, ms) {
      if (sampleRate < 1 && status < 500 && random() >= sampleRate) return
      const { path } = exchange
      if (skipPaths.some((prefix) => path.startsWith(prefix))) return
      logger.info({
        requestId: exchange.requestId,
        traceId: exchange.traceId,
        method: exchange.method,
        route: exchange.route?.endpoint,
        status,
        bytesIn: exchange.bytesIn,
        bytesOut: exchange.bytesOut,
        ms: Math.round(ms * 1000) / 1000,
        batchRows: exchange.batchRows === 0 ? undefined : exchange.batchRows,
      })
    },
  }
}
