/** Interruption: every long wait of the store ends with CANCELLED when its signal is given. */
import { BentoError } from "./errors.ts"

export function cancelled(cause: unknown): BentoError {
  return new BentoError("CANCELLED", "interrupted; nothing was stored", { cause })
}

export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw cancelled(signal.reason)
}

/** Rejects as soon as the signal is given, though `work` may go on. */
export async function orAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return work
  const { promise, reject } = Promise.withResolvers<never>()
  const abort = (): void => reject(cancelled(signal.reason))
  if (signal.aborted) abort()
  signal.addEventListener("abort", abort, { once: true })
  try {
    return await Promise.race([work, promise])
  } finally {
    signal.removeEventListener("abort", abort)
  }
}
