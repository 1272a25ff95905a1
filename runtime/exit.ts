/** Ending the process while threads of it are in native code. */
import type { Worker } from "node:worker_threads"

const threads = new Set<Worker>()
process.on("worker", (thread) => {
  threads.add(thread)
  thread.once("exit", () => threads.delete(thread))
})

/**
 * Ends the process at once. `process.exit` would end its threads first: it waits for one that is in native code (an inference,
 * a model being loaded) for as long as that takes, and then onnxruntime-node (1.30) aborts the process. So where a thread is
 * left, another program takes the place of this one, which does nothing but exit.
 */
export function exit(code: number): never {
  if (threads.size > 0 && process.execve !== undefined) {
    process.execve(process.execPath, [process.execPath, "-e", `process.exit(${code})`], {})
  }
  process.exit(code)
}
