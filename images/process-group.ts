/** Programs that start programs: ended together. */
import type { ChildProcess } from "node:child_process"

/**
 * What ends a child that was started `detached`, in a group of its own, and all that it started; nothing happens where
 * it has ended. What it leaves behind when it ends by itself is ended too: it may hold the pipes open.
 */
export function groupStopper(child: ChildProcess): () => void {
  let isOver = false
  const stop = (): void => {
    // Its number may be another group's by now.
    if (isOver || child.pid === undefined) return
    try {
      process.kill(-child.pid, "SIGKILL")
    } catch {
      // It has ended already.
    }
  }
  child.on("exit", () => {
    stop()
    isOver = true
  })
  return stop
}
