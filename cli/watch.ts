/** Tells when something in a set of folders may have changed; the caller looks whether it matters. */
import { watch, type FSWatcher } from "node:fs"
import { readdir } from "node:fs/promises"
import path from "node:path"

/** Editors write a file in several steps; this much silence means that they are done. */
const SETTLE_MS = 100

/** Never part of a project's sources, and often huge. */
const NOT_ENTERED = new Set([".git", ".hg", ".svn", "node_modules", ".venv", "venv", "__pycache__"])

export interface Watcher {
  /** True at the next change, false when the signal aborts first. A change that nobody waited for is not lost. */
  changed: (signal: AbortSignal) => Promise<boolean>
  /** Watches folders that came since, and lets go of those that went. */
  refresh: () => Promise<void>
  close: () => void
}

/** A folder to watch, with the folders below it down to `depth`. */
export interface Root {
  readonly dir: string
  readonly depth: number
}

/**
 * Watches folders, each with its own watch: Node's recursive watch on Linux would enter node_modules. A root that does
 * not exist is left out until it does.
 */
export async function watchFolders(
  roots: readonly Root[],
  onError: (error: Error) => void,
): Promise<Watcher> {
  const watched = new Map<string, FSWatcher>()
  let pending = false
  let wake: (() => void) | undefined
  let timer: NodeJS.Timeout | undefined
  let complained = false

  const settle = (): void => {
    clearTimeout(timer)
    timer = setTimeout(() => {
      pending = true
      wake?.()
    }, SETTLE_MS)
  }
  const open = (folder: string): void => {
    try {
      const watcher = watch(folder, settle)
      watcher.on("error", settle)
      watched.set(folder, watcher)
    } catch (error) {
      // Gone between listing and watching is a change like any other; a limit of the system is not.
      if ((error as NodeJS.ErrnoException).code === "ENOENT" || complained) return
      complained = true
      onError(error as Error)
    }
  }
  const refresh = async (): Promise<void> => {
    const folders = new Set(
      (await Promise.all(roots.map(({ dir, depth }) => foldersBelow(dir, depth)))).flat(),
    )
    for (const [folder, watcher] of watched) {
      if (folders.has(folder)) continue
      watcher.close()
      watched.delete(folder)
    }
    for (const folder of folders) if (!watched.has(folder)) open(folder)
  }
  await refresh()
  return {
    refresh,
    changed: (signal) =>
      new Promise((resolve) => {
        const finish = (seen: boolean): void => {
          wake = undefined
          pending = false
          signal.removeEventListener("abort", stop)
          resolve(seen)
        }
        const stop = (): void => finish(false)
        wake = () => finish(true)
        if (signal.aborted) stop()
        else if (pending) wake()
        else signal.addEventListener("abort", stop, { once: true })
      }),
    close: () => {
      clearTimeout(timer)
      for (const watcher of watched.values()) watcher.close()
    },
  }
}

async function foldersBelow(root: string, depth: number): Promise<string[]> {
  const children = await readdir(root, { withFileTypes: true }).catch(() => null)
  if (children === null) return []
  if (depth === 0) return [root]
  const folders = children.filter((child) => child.isDirectory() && !NOT_ENTERED.has(child.name))
  const below = await Promise.all(
    folders.map((child) => foldersBelow(path.join(root, child.name), depth - 1)),
  )
  return [root, ...below.flat()]
}
