/** The time, for those by whom it comes in. */
import type { Clock } from "./batcher.ts"

export const clock: Clock = {
  now: () => performance.now(),
  setTimer(callback, ms) {
    const timer = setTimeout(callback, ms)
    return () => clearTimeout(timer)
  },
}
