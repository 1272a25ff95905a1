/** Tells when something in a set of folders may have changed; the caller looks whether it matters. */
import { watch, type FSWatcher } from "node:fs"
import { readdir, stat } from "node:fs/promises"
import path from "node:path"

/** Editors write a file in several steps; this much silence means that they are done. */
const SETTLE_MS = 100

/** Never part of a project's sources, and often huge. */
const NOT_ENTERED = new Set([".git", ".hg", ".svn", "node_modules", ".venv", "venv", "__pycache__"])

export interface Watcher {
  /** True at the next change, false when the signal aborts first. A change that nobody waited for is not lost. */
  changed: (signal: AbortSignal) => Promise<boolean>
  /** Watches folders that came since, also in the place of others, and lets go of those that went. */
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
  const watched = new Map<string, { readonly watcher: FSWatcher; readonly identity: string }>()
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
  const open = (folder: string, identity: string): void => {
    try {
      const watcher = watch(folder, settle)
      watcher.on("error", settle)
      watched.set(folder, { watcher, identity })
    } catch (error) {
      // Gone between listing and watching is a change like any other; a limit of the system is not.
      if ((error as NodeJS.ErrnoException).code === "ENOENT" || complained) return
      complained = true
      onError(error as Error)
    }
  }
  const refresh = async (): Promise<void> => {
    const folders = new Map(
      (await Promise.all(roots.map(({ dir, depth }) => foldersBelow(dir, depth)))).flat(),
    )
    for (const [folder, { watcher, identity }] of watched) {
      if (folders.get(folder) === identity) continue
      watcher.close()
      watched.delete(folder)
    }
    for (const [folder, identity] of folders) if (!watched.has(folder)) open(folder, identity)
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
      for (const { watcher } of watched.values()) watcher.close()
    },
  }
}

/**
 * Each folder with what it is told by: a watch follows the folder, not the name, which may be another one's after it was
 * moved away or removed. A number may come again, a number with a time of birth does not.
 */
async function foldersBelow(root: string, depth: number): Promise<[folder: string, identity: string][]> {
  const info = await stat(root, { bigint: true }).catch(() => null)
  const children = await readdir(root, { withFileTypes: true }).catch(() => null)
  if (info === null || children === null) return []
  const own: [string, string] = [root, `${info.dev} ${info.ino} ${info.birthtimeNs}`]
  if (depth === 0) return [own]
  const folders = children.filter((child) => child.isDirectory() && !NOT_ENTERED.has(child.name))
  const below = await Promise.all(
    folders.map((child) => foldersBelow(path.join(root, child.name), depth - 1)),
  )
  return [own, ...below.flat()]
}
