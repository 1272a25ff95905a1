/** Temporary folders carry their owner in their name, so that those of killed processes can be told from live ones. */
import { createHash } from "node:crypto"
import { readFileSync, readlinkSync } from "node:fs"
import { readdir, rm, stat } from "node:fs/promises"
import { hostname } from "node:os"
import { join } from "node:path"

const PREFIX = "bentoctl"
/** A folder of another machine or container is taken for abandoned after this. */
const FOREIGN_AGE_MS = 24 * 60 * 60 * 1000

/**
 * `bentoctl-SPACE-PID-START-`: SPACE stands for boot and process namespace, where process ids mean something; START is when
 * the process began, since ids come again.
 */
export function tempPrefix(): string {
  return `${PREFIX}-${space()}-${process.pid}-${startOf(process.pid) ?? 0}-`
}

/** Removes what killed processes left behind in `folder`. `own` is new in it, so its time is the present of this file system. */
export async function removeStale(folder: string, own: string): Promise<void> {
  const { mtimeMs: now } = await stat(own)
  for (const name of (await readdir(folder)).filter(isTempName)) {
    const path = join(folder, name)
    const entry = await stat(path).catch(() => null)
    if (entry === null || !isStale(name, now - entry.mtimeMs)) continue
    await rm(path, { recursive: true, force: true }).catch(() => undefined) // perhaps another user's
  }
}

function isTempName(name: string): boolean {
  return /^bentoctl-[0-9a-f]{8}-\d+-\d+-/.test(name)
}

/** Whether the owner of a temporary folder is dead; `ageMs` decides where that cannot be seen from here. */
function isStale(name: string, ageMs: number): boolean {
  const [, where, pid, start] = name.split("-")
  return where === space() ? !isAlive(Number(pid), Number(start)) : ageMs > FOREIGN_AGE_MS
}

function isAlive(pid: number, start: number): boolean {
  try {
    process.kill(pid, 0)
  } catch (error) {
    // EPERM: it lives, under another user.
    return error instanceof Error && "code" in error && error.code === "EPERM"
  }
  const began = startOf(pid)
  return began === null || start === 0 || began === start
}

/** Clock ticks from boot to the start of a process, -1 for a zombie; null where there is no /proc. */
function startOf(pid: number): number | null {
  const text = readOrNull(() => readFileSync(`/proc/${pid}/stat`, "utf8"))
  if (text === null) return null
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ") // the name before it may hold anything
  return fields[0] === "Z" || fields[0] === "X" ? -1 : Number(fields[19] ?? 0)
}

let known: string | undefined

function space(): string {
  known ??= createHash("sha256")
    .update(readOrNull(() => readFileSync("/proc/sys/kernel/random/boot_id", "utf8")) ?? hostname())
    .update(readOrNull(() => readlinkSync("/proc/self/ns/pid")) ?? "")
    .digest("hex")
    .slice(0, 8)
  return known
}

function readOrNull(read: () => string): string | null {
  try {
    return read()
  } catch {
    return null
  }
}
