/** A server keeps descriptors back for itself: without one it could not load a model again, nor start a thread, nor write a log. */
import { readFileSync } from "node:fs"
import type { Server } from "node:http"
import type { Clock } from "./batcher.ts"
import type { Log } from "./log.ts"

/** A server at rest has 30. */
const RESERVED = 100
const TELL_EVERY_MS = 60_000

/** Closes connections beyond what the process's limit of descriptors allows one of `shares` servers, and says so now and then. */
export function limitConnections(server: Server, shares: number, clock: Clock, log: Log): void {
  const limit = descriptorLimit()
  if (limit === null) return
  const most = Math.max(1, Math.floor((limit - RESERVED) / shares))
  server.maxConnections = most
  let toldMs = Number.NEGATIVE_INFINITY
  server.on("drop", () => {
    if (clock.now() - toldMs < TELL_EVERY_MS) return
    toldMs = clock.now()
    log.error(
      `${most} connections are open: more are closed at once, as this process may have ${limit} descriptors (ulimit -n)`,
    )
  })
}

function descriptorLimit(): number | null {
  try {
    const limits = readFileSync("/proc/self/limits", "utf8")
    const [, soft] = /^Max open files\s+(\d+)/m.exec(limits) ?? []
    return soft === undefined ? null : Number(soft)
  } catch {
    return null
  }
}
