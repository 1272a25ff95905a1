/** A clock that stands still until a test moves it. */
import type { Clock } from "../../runtime/batcher.ts"

export class ManualClock implements Clock {
  #nowMs: number
  #timers: { atMs: number; order: number; callback: () => void }[] = []
  #order = 0

  constructor(startMs = 1000) {
    this.#nowMs = startMs
  }

  /** How many timers are set. */
  get timers(): number {
    return this.#timers.length
  }

  now(): number {
    return this.#nowMs
  }

  setTimer(callback: () => void, ms: number): () => void {
    const timer = { atMs: this.#nowMs + ms, order: this.#order++, callback }
    this.#timers.push(timer)
    return () => {
      this.#timers = this.#timers.filter((other) => other !== timer)
    }
  }

  /** Moves time on, runs what falls due in its order, and lets promises settle after each. */
  async advance(ms: number): Promise<void> {
    const endMs = this.#nowMs + ms
    for (let next = this.#next(endMs); next !== undefined; next = this.#next(endMs)) {
      this.#timers = this.#timers.filter((timer) => timer !== next)
      this.#nowMs = Math.max(this.#nowMs, next.atMs)
      next.callback()
      await settled()
    }
    this.#nowMs = endMs
    await settled()
  }

  /** Time passes and nobody looks at it: the process is stopped. Timers fire, late, with the next `advance`. */
  stall(ms: number): void {
    this.#nowMs += ms
  }

  #next(endMs: number): { atMs: number; order: number; callback: () => void } | undefined {
    let next: { atMs: number; order: number; callback: () => void } | undefined
    for (const timer of this.#timers) {
      if (timer.atMs > endMs) continue
      if (
        next === undefined ||
        timer.atMs < next.atMs ||
        (timer.atMs === next.atMs && timer.order < next.order)
      ) {
        next = timer
      }
    }
    return next
  }
}

/** Every promise that can settle has done so. */
export function settled(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
