/**
 * Preloaded into a server or a worker thread: some numbers in a batch are bad for the worker that runs it. It cannot be
 * killed from outside, as `terminate()` during inference aborts the process (runtime/runner.ts tells more).
 */
import { getEnvironmentData, isMainThread, parentPort, setEnvironmentData } from "node:worker_threads"

/** The thread ends when it has run the batch, before it answers. */
export const KILLS = 666
/** The same, but only for the first thread that meets it. */
export const KILLS_ONCE = 667
/** The thread never answers, nor to anything else. */
export const HANGS = 668

const KEY = "met KILLS_ONCE"

/** To be called before the first worker starts. */
export function armOnce(): void {
  setEnvironmentData(KEY, new Int32Array(new SharedArrayBuffer(4)))
}

if (isMainThread) armOnce()
else if (parentPort !== null) haunt(parentPort)

interface Message {
  readonly inputs?: readonly { readonly data: Iterable<unknown> }[]
}

function haunt(port: NonNullable<typeof parentPort>): void {
  let numbers: number[] = []
  const on = port.on.bind(port)
  // worker.ts listens to nothing but messages.
  port.on = ((_: "message", listener: (message: Message) => void) =>
    on("message", (message: Message) => {
      numbers = (message.inputs ?? []).flatMap(({ data }) => Array.from(data, Number))
      if (numbers.includes(HANGS)) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
      listener(message)
    })) as typeof port.on
  const post = port.postMessage.bind(port)
  port.postMessage = (message: { type?: unknown }, transfer) => {
    if (message.type === "done" && (numbers.includes(KILLS) || (numbers.includes(KILLS_ONCE) && isFirst()))) {
      process.exit(9)
    }
    post(message, transfer)
  }
}

function isFirst(): boolean {
  const met = getEnvironmentData(KEY) as unknown as Int32Array // what armOnce has put there
  return Atomics.exchange(met, 0, 1) === 0
}
