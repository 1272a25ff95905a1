/** A build context as a folder, for whoever builds it elsewhere: the whole of it, or nothing. */
import { constants } from "node:fs"
import { chmod, lutimes, mkdir, mkdtemp, open, readdir, rename, rm, symlink, utimes } from "node:fs/promises"
import path from "node:path"
import { BentoError } from "../store/errors.ts"
import { bytesOf, headerOf } from "./context.ts"
import type { BuildContext, ContextEntry, FileEntry } from "./context.ts"

/**
 * Writes a context into a folder that is empty or not there. Times and modes are those that the engine would be sent,
 * so that two runs give equal trees under any umask; only files with secrets are for their owner alone.
 */
export async function writeContext(
  { entries }: BuildContext,
  folder: string,
  signal?: AbortSignal,
): Promise<void> {
  let draft: string | undefined
  try {
    const isThere = await isEmptyFolder(folder)
    const parent = path.dirname(folder)
    if (!isThere) await mkdir(parent, { recursive: true })
    // A folder that is there may be a mount point, or someone's working directory: it is filled and not replaced.
    draft = await mkdtemp(
      isThere ? path.join(folder, ".bentoctl-") : path.join(parent, `.${path.basename(folder)}-`),
    )
    for (const entry of entries) {
      signal?.throwIfAborted()
      await writeEntry(entry, path.join(draft, entry.path), signal)
    }
    // What is written into a folder changes its time.
    for (const { path: name } of entries.toReversed()) await lutimes(path.join(draft, name), 0, 0)
    signal?.throwIfAborted()
    if (isThere) await moveInto(folder, draft)
    else {
      await chmod(draft, 0o755)
      await utimes(draft, 0, 0)
      await rename(draft, folder)
    }
  } catch (error) {
    if (draft !== undefined) await rm(draft, { recursive: true, force: true }).catch(() => {})
    signal?.throwIfAborted()
    if (error instanceof BentoError || !(error instanceof Error && "code" in error)) throw error
    throw unusable(folder, `cannot be written: ${error.message}`, error)
  }
}

/** False where there is nothing. */
async function isEmptyFolder(folder: string): Promise<boolean> {
  try {
    const found = await readdir(folder)
    if (found.length === 0) return true
    throw unusable(folder, `is not empty: it holds ${found.toSorted().slice(0, 3).join(", ")}`)
  } catch (error) {
    const code = error instanceof Error && "code" in error ? error.code : undefined
    if (code === "ENOENT") return false
    if (code === "ENOTDIR") throw unusable(folder, "is no folder", error)
    throw error
  }
}

function unusable(folder: string, reason: string, cause?: unknown): BentoError {
  return new BentoError("OUTPUT_UNUSABLE", `${folder} ${reason}`, { cause })
}

async function writeEntry(entry: ContextEntry, to: string, signal: AbortSignal | undefined): Promise<void> {
  const header = headerOf(entry)
  switch (header.type) {
    case "directory":
      await mkdir(to)
      return chmod(to, header.mode)
    case "symlink":
      return symlink(header.linkname, to)
    case "file":
      return entry.kind === "file"
        ? writeFile(entry, to, entry.secret === true ? 0o600 : header.mode, signal)
        : undefined
  }
}

async function writeFile(
  entry: FileEntry,
  to: string,
  mode: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  const handle = await open(to, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, mode)
  try {
    for await (const chunk of bytesOf(entry)) {
      signal?.throwIfAborted()
      await handle.writeFile(chunk)
    }
    await handle.chmod(mode)
  } finally {
    await handle.close()
  }
}

/** The Dockerfile last: without it, it is no context yet. */
async function moveInto(folder: string, draft: string): Promise<void> {
  const names = (await readdir(draft)).toSorted(
    (a, b) => Number(a === "Dockerfile") - Number(b === "Dockerfile"),
  )
  for (const name of names) await rename(path.join(draft, name), path.join(folder, name))
  await rm(draft, { recursive: true })
}
