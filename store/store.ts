/**
 * Models and Bentos on disk, where and as BentoML keeps them: `HOME/models/NAME/VERSION/…`, `HOME/models/NAME/latest`.
 *
 * An item is written in `HOME/tmp` and renamed into place, so that a reader sees all of it or nothing, whenever a writer is
 * killed; a folder is renamed out again before it is deleted. `latest` follows its item; where it lags behind (a writer was
 * killed between the two), the newest item is looked for instead.
 */
import type { Stats } from "node:fs"
import {
  lstat,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  realpath,
  rename,
  rm,
  rmdir,
  stat,
} from "node:fs/promises"
import { unlink, writeFile } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { orAborted, throwIfAborted } from "./abort.ts"
import { type Bento, parseBentoYaml } from "./bento.ts"
import { AmbiguousTagError, BentoError, formatIssue, IssueError } from "./errors.ts"
import { BENTO_YAML, MODEL_YAML } from "./layout.ts"
import { microsecondsOf, type Model, parseModelYaml } from "./model.ts"
import { removeStale, tempPrefix } from "./owner.ts"
import {
  checkName,
  checkVersion,
  compareTags,
  compareText,
  formatTag,
  nearestNames,
  type Tag,
  type TagRef,
  tryParseTagRef,
} from "./tag.ts"

export interface StoreItem<T> {
  readonly tag: Tag
  readonly dir: string
  readonly info: T
}

/** A version that cannot be read, or a folder that is none. */
export interface BrokenItem {
  readonly path: string
  readonly reason: string
}

export interface Store<T> {
  readonly kind: "model" | "bento"
  /** `HOME/models` or `HOME/bentos`; it need not exist. */
  readonly root: string
  /** Where the item of this tag is, or would be. */
  dir(tag: Tag): string
  /**
   * All items, or those of a name, of a version prefix, or the latest; newest first. Broken items stand apart.
   * An unknown name is an error, an unknown version of a known name is an empty list.
   */
  list(ref?: TagRef): Promise<{ items: StoreItem<T>[]; broken: BrokenItem[] }>
  /** The exact tag that is meant. Throws *_NOT_FOUND with the nearest names, TAG_AMBIGUOUS with the candidates. */
  resolve(ref: TagRef): Promise<Tag>
  get(ref: TagRef): Promise<T>
  /** Lets `write` fill a folder, then puts it in its place, durably. STORE_EXISTS if the tag is taken: one writer wins. */
  add(tag: Tag, write: (dir: string) => Promise<void>, options?: { signal?: AbortSignal }): Promise<T>
  remove(tag: Tag): Promise<void>
  /** Bytes of all files of an item. */
  size(tag: Tag): Promise<number>
}

export function openModelStore(home: string): Store<Model> {
  return new FileStore(home, {
    kind: "model",
    folder: "models",
    manifest: MODEL_YAML,
    parse: parseModelYaml,
    notFound: "MODEL_NOT_FOUND",
    command: "bentoctl models",
  })
}

export function openBentoStore(home: string): Store<Bento> {
  return new FileStore(home, {
    kind: "bento",
    folder: "bentos",
    manifest: BENTO_YAML,
    parse: parseBentoYaml,
    notFound: "BENTO_NOT_FOUND",
    command: "bentoctl",
  })
}

interface Manifest {
  readonly tag: Tag
  readonly creationTime: string
}

interface Kind<T> {
  readonly kind: "model" | "bento"
  readonly folder: string
  readonly manifest: string
  readonly parse: (text: string, path: string) => T
  readonly notFound: "MODEL_NOT_FOUND" | "BENTO_NOT_FOUND"
  readonly command: string
}

const LATEST = "latest"
/** How often a step is tried again that others undid meanwhile; more would mean an endless quarrel. */
const MAX_ATTEMPTS = 50

class FileStore<T extends Manifest> implements Store<T> {
  readonly root: string
  readonly #kind: Kind<T>

  constructor(home: string, kind: Kind<T>) {
    this.root = join(home, kind.folder)
    this.#kind = kind
  }

  get kind(): "model" | "bento" {
    return this.#kind.kind
  }

  dir(tag: Tag): string {
    return this.#path({ name: checkName(tag.name), version: checkVersion(tag.version) }) // no tag may leave the store
  }

  async list(ref?: TagRef): Promise<{ items: StoreItem<T>[]; broken: BrokenItem[] }> {
    return this.#guard(async () => {
      const broken: BrokenItem[] = []
      const names = ref === undefined ? await this.#names(broken) : [checkName(ref.name)]
      const items: StoreItem<T>[] = []
      for (const name of names) items.push(...(await this.#itemsOf(name, broken)))
      if (ref === undefined) return { items: items.toSorted(newestFirst), broken }
      if (items.length + broken.length === 0) throw await this.#notFound({ name: ref.name })
      return this.#narrow(ref, items, broken)
    })
  }

  async resolve(ref: TagRef): Promise<Tag> {
    return this.#guard(async () => {
      checkName(ref.name)
      if (ref.version === undefined || ref.version === LATEST) return this.#latest(ref)
      const versions = await this.#versions(ref.name)
      const wanted = ref.version
      if (versions.includes(wanted)) return { name: ref.name, version: wanted }
      const [first, ...others] = versions.filter((version) => version.startsWith(wanted))
      if (first === undefined) throw await this.#notFound(ref)
      if (others.length > 0) {
        throw new AmbiguousTagError(
          formatTag(ref),
          [first, ...others].map((version) => formatTag({ name: ref.name, version })),
        )
      }
      return { name: ref.name, version: first }
    })
  }

  async get(ref: TagRef): Promise<T> {
    return this.#guard(async () => {
      const tag = await this.resolve(ref)
      const info = await this.#read(tag)
      if (info === null) throw await this.#notFound(tag)
      return info
    })
  }

  async add(
    tag: Tag,
    write: (dir: string) => Promise<void>,
    { signal }: { signal?: AbortSignal } = {},
  ): Promise<T> {
    return this.#withTemp(async (temp) => {
      const place = this.dir(tag)
      if ((await statOrNull(place)) !== null) throw this.#exists(tag)
      throwIfAborted(signal)
      const draft = join(temp, tag.version)
      await mkdir(draft)
      await outside(() => write(draft), signal)
      const info = await this.#readDraft(draft, tag)
      await orAborted(syncTree(draft), signal) // a large file may take its disk many seconds
      throwIfAborted(signal)
      await this.#putInPlace(draft, tag)
      await this.#settle(tag.name, temp)
      return info
    })
  }

  async remove(tag: Tag): Promise<void> {
    await this.#guard(async () => {
      if ((await statOrNull(this.dir(tag))) === null) throw await this.#notFound(tag)
    })
    await this.#withTemp(async (temp) => {
      try {
        await rename(this.dir(tag), join(temp, tag.version))
      } catch (error) {
        if (codeOf(error) === "ENOENT") throw await this.#notFound(tag)
        throw error
      }
      await this.#settle(tag.name, temp)
    })
  }

  async size(tag: Tag): Promise<number> {
    return this.#guard(async () => {
      const dir = this.dir(tag)
      if ((await statOrNull(dir)) === null) throw await this.#notFound(tag)
      const entries = await readdir(dir, { recursive: true, withFileTypes: true })
      const files = entries.filter((entry) => entry.isFile())
      const sizes = await Promise.all(files.map((file) => lstat(join(file.parentPath, file.name))))
      return sizes.reduce((sum, file) => sum + file.size, 0)
    })
  }

  // ------------------------------------------------------------------------------------------------------- reading

  #path(tag: Tag): string {
    return join(this.root, tag.name, tag.version)
  }

  async #names(broken: BrokenItem[]): Promise<string[]> {
    const folders = (await this.#folders(this.root)).filter((name) => !name.startsWith("."))
    const illegal = folders.filter((name) => !isLegal(name))
    broken.push(
      ...illegal.map((name) => ({ path: join(this.root, name), reason: "the name is not a legal one" })),
    )
    return folders.filter(isLegal)
  }

  async #versions(name: string): Promise<string[]> {
    return (await this.#folders(join(this.root, name))).filter(isLegal)
  }

  /** Sub-folders, sorted; links to folders count. Empty where `path` does not exist. */
  async #folders(path: string): Promise<string[]> {
    const entries = (await orNull(readdir(path, { withFileTypes: true }))) ?? []
    const folders: string[] = []
    for (const entry of entries) {
      const isFolder = entry.isSymbolicLink()
        ? (await statOrNull(join(path, entry.name)))?.isDirectory() === true
        : entry.isDirectory()
      if (isFolder) folders.push(entry.name)
    }
    return folders.toSorted(compareText)
  }

  async #itemsOf(name: string, broken: BrokenItem[]): Promise<StoreItem<T>[]> {
    const items: StoreItem<T>[] = []
    for (const version of await this.#folders(join(this.root, name))) {
      const tag = { name, version }
      const dir = this.#path(tag)
      try {
        if (!isLegal(version)) throw this.#corrupt(dir, "the version is not a legal one")
        const info = await this.#read(tag)
        if (info !== null) items.push({ tag, dir, info })
      } catch (error) {
        if (!(error instanceof BentoError)) throw error
        broken.push({ path: dir, reason: reasonOfBroken(error) })
      }
    }
    return items
  }

  /** Null if the item is not there (any more). */
  async #read(tag: Tag): Promise<T | null> {
    const dir = this.#path(tag)
    const path = join(dir, this.#kind.manifest)
    let text: string | null
    try {
      text = await orNull(readFile(path, "utf8"))
    } catch (error) {
      throw this.#corrupt(dir, `${this.#kind.manifest} cannot be read: ${reasonOf(error)}`, error)
    }
    if (text === null) {
      if ((await statOrNull(dir)) === null) return null
      throw this.#corrupt(dir, `it has no ${this.#kind.manifest}; its writer was stopped, or is at work`)
    }
    const info = this.#kind.parse(text, path)
    if (compareTags(info.tag, tag) === 0) return info
    throw this.#corrupt(dir, `its ${this.#kind.manifest} says ${formatTag(info.tag)}`)
  }

  #narrow(
    ref: TagRef,
    items: readonly StoreItem<T>[],
    broken: readonly BrokenItem[],
  ): ReturnType<Store<T>["list"]> {
    const sorted = items.toSorted(newestFirst)
    const wanted = ref.version
    if (wanted === undefined) return Promise.resolve({ items: sorted, broken: [...broken] })
    if (wanted === LATEST) return this.#listLatest(ref, sorted)
    const exact = sorted.filter((item) => item.tag.version === wanted)
    const matches = (version: string): boolean => version.startsWith(wanted)
    return Promise.resolve({
      items: exact.length > 0 ? exact : sorted.filter((item) => matches(item.tag.version)),
      broken: exact.length > 0 ? [] : broken.filter((item) => matches(basename(item.path))),
    })
  }

  async #listLatest(ref: TagRef, items: readonly StoreItem<T>[]): ReturnType<Store<T>["list"]> {
    if (items.length === 0) return { items: [], broken: [] }
    const latest = await this.#latest(ref)
    return { items: items.filter((item) => item.tag.version === latest.version), broken: [] }
  }

  async #latest(ref: TagRef): Promise<Tag> {
    const { name } = ref
    const pointed = await this.#pointed(name)
    if (pointed !== null) return { name, version: pointed }
    const newest = await this.#newest(name)
    if (newest !== null) return newest.tag
    const broken: BrokenItem[] = []
    await this.#itemsOf(name, broken)
    const [first] = broken
    if (first !== undefined) throw this.#corrupt(first.path, first.reason)
    throw await this.#notFound(ref)
  }

  /**
   * The version that `latest` names, if it can be trusted: a folder changes when an item comes or goes, so a `latest` that
   * is not newer than its folder's last change may lag behind. BentoML's own, and one edited by hand, are newer; ours comes
   * by a rename, in the same tick of the clock as the change: then all versions are read, which costs no more than a list.
   */
  async #pointed(name: string): Promise<string | null> {
    const folder = join(this.root, name)
    const path = join(folder, LATEST)
    const [pointer, parent] = await Promise.all([statOrNull(path), statOrNull(folder)])
    if (pointer === null || parent === null || pointer.ctimeMs <= parent.mtimeMs) return null
    const version = await this.#readPointer(name)
    return version !== null && (await this.#itemOrNull({ name, version })) !== null ? version : null
  }

  async #readPointer(name: string): Promise<string | null> {
    try {
      const version = (await readFile(join(this.root, name, LATEST), "utf8")).trim()
      return isLegal(version) ? version : null
    } catch {
      return null // missing or unreadable: the newest item is looked for
    }
  }

  // ------------------------------------------------------------------------------------------------------- writing

  /** Runs `work` with a folder of its own on the store's file system; afterwards it is gone. */
  async #withTemp<R>(work: (temp: string) => Promise<R>): Promise<R> {
    return this.#guard(async () => {
      const made: string[] = []
      try {
        const temp = await this.#makeTemp(made)
        try {
          await removeStale(dirname(temp), temp)
          return await work(temp)
        } finally {
          // What cannot be deleted now is tried again by the next writer.
          await rm(temp, { recursive: true, force: true }).catch(() => undefined)
        }
      } catch (error) {
        await removeMade(made)
        throw error
      }
    })
  }

  /** Folders made on the way go to `made`: a store that did not exist must not be left behind by a failure. */
  async #makeTemp(made: string[]): Promise<string> {
    for (let attempt = 1; ; attempt++) {
      try {
        await makeFolder(this.root, made)
        const tmp = join(dirname(await realpath(this.root)), "tmp") // `models` may be a link to a larger disk
        await makeFolder(tmp, made)
        return await mkdtemp(join(tmp, tempPrefix()))
      } catch (error) {
        if (codeOf(error) !== "ENOENT" || attempt === MAX_ATTEMPTS) throw error // another writer failed and took its folders away
      }
    }
  }

  async #readDraft(draft: string, tag: Tag): Promise<T> {
    const path = join(draft, this.#kind.manifest)
    const info = this.#kind.parse(await readFile(path, "utf8"), path)
    if (compareTags(info.tag, tag) !== 0)
      throw new Error(`${path} says ${formatTag(info.tag)}, not ${formatTag(tag)}`)
    return info
  }

  /**
   * The rename fails when the place holds a non-empty folder, so of two writers exactly one wins. An empty folder (BentoML
   * makes it before it copies) would be replaced: it is looked for right before.
   */
  async #putInPlace(draft: string, tag: Tag): Promise<void> {
    const place = this.dir(tag)
    const folder = dirname(place)
    for (let attempt = 1; ; attempt++) {
      try {
        await mkdir(folder, { recursive: true })
        if ((await statOrNull(place)) !== null) throw this.#exists(tag)
        return await rename(draft, place)
      } catch (error) {
        if (isRefusedRename(error)) throw this.#exists(tag)
        // Others take the folder away with the last version of this name, even while `mkdir` looks at it.
        if (codeOf(error) === "ENOENT" && attempt < MAX_ATTEMPTS) continue
        await removeEmpty(folder)
        throw error
      }
    }
  }

  /**
   * Makes `latest` name the newest item, or takes the name's folder away with the last one; then the change is made durable.
   * Others may change the same name at the same time; each looks again after it has written, so who writes last saw all.
   * Where `latest` cannot be written, on a full disk say, the item has come or gone all the same: readers then look for the
   * newest, and the next writer tries again.
   */
  async #settle(name: string, temp: string): Promise<void> {
    const folder = join(this.root, name)
    const times = new Map<string, number>()
    for (let round = 0; round < MAX_ATTEMPTS; round++) {
      const newest = await this.#newest(name, times)
      if (newest === null) {
        await orNull(unlink(join(folder, LATEST)))
        if (await removeEmpty(folder)) break
        if ((await this.#newest(name, times)) === null) break // broken items and stray files stay
      } else {
        if ((await this.#readPointer(name)) === newest.tag.version) break
        try {
          // Not synced: where a power cut leaves it empty, the newest item is looked for.
          await writeFile(join(temp, LATEST), newest.tag.version)
          await orNull(rename(join(temp, LATEST), join(folder, LATEST)))
        } catch (error) {
          if (codeOf(error) === undefined) throw error
          break
        }
      }
    }
    await Promise.all([folder, this.root].map(syncFolder))
  }

  /**
   * The newest item that can be read, null for none. Manifests are searched for their times and only the likely ones read:
   * a name may have a thousand versions. `times` keeps what was found, for whoever asks again.
   */
  async #newest(name: string, times = new Map<string, number>()): Promise<StoreItem<T> | null> {
    const left = new Map<string, number>()
    for (const version of await this.#versions(name)) {
      const time = times.get(version) ?? (await this.#likelyTime({ name, version }))
      times.set(version, time)
      left.set(version, time)
    }
    for (;;) {
      const latest = Math.max(...left.values())
      const [version] = [...left]
        .filter(([, time]) => time === latest)
        .map(([each]) => each)
        .toSorted(compareText)
      if (version === undefined) return null
      const item = await this.#itemOrNull({ name, version })
      const time = item === null ? NaN : microsecondsOf(item.info.creationTime)
      if (item === null) left.delete(version)
      else if (time === latest || latest === -Infinity) return item
      else left.set(version, Number.isNaN(time) ? -Infinity : time) // some have none
    }
  }

  /** When an item was made, in microseconds; Infinity where only reading its manifest tells. */
  async #likelyTime(tag: Tag): Promise<number> {
    const text = await readFile(join(this.#path(tag), this.#kind.manifest), "utf8").catch(() => "")
    // At the beginning of a line no value of YAML's block style can stand.
    const written = /^creation_time: *['"]?([^'"\n]+)['"]? *$/m.exec(text)?.[1]
    const time = written === undefined ? NaN : microsecondsOf(written)
    return Number.isNaN(time) ? Infinity : time
  }

  async #itemOrNull(tag: Tag): Promise<StoreItem<T> | null> {
    try {
      const info = await this.#read(tag)
      return info === null ? null : { tag, dir: this.#path(tag), info }
    } catch (error) {
      if (error instanceof BentoError) return null
      throw error
    }
  }

  // -------------------------------------------------------------------------------------------------------- errors

  #exists(tag: Tag): BentoError {
    return new BentoError("STORE_EXISTS", `${this.#kind.kind} ${formatTag(tag)} exists already`, {
      hint: `Choose another version, or delete it first: ${this.#kind.command} delete ${formatTag(tag)}`,
    })
  }

  async #notFound(ref: TagRef): Promise<BentoError> {
    const { kind, notFound, command } = this.#kind
    const versions =
      ref.version === undefined ? [] : ((await this.list({ name: ref.name }).catch(() => null))?.items ?? [])
    const message = `no ${kind} ${formatTag(ref)} in ${this.root}`
    if (versions.length > 0) {
      const newest = versions.slice(0, 3).map((item) => formatTag(item.tag))
      const more = versions.length > 3 ? ` and ${versions.length - 3} more` : ""
      return new BentoError(notFound, message, { hint: `There is ${newest.join(", ")}${more}.` })
    }
    const nearest = nearestNames(ref.name, (await this.#folders(this.root)).filter(isLegal))
    const hint =
      nearest.length > 0 ? `Did you mean ${nearest.join(" or ")}?` : `See what there is: ${command} list`
    return new BentoError(notFound, message, { hint })
  }

  #corrupt(dir: string, reason: string, cause?: unknown): CorruptError {
    return new CorruptError(dir, reason, cause)
  }

  /** What the file system refuses becomes STORE_UNUSABLE. */
  async #guard<R>(work: () => Promise<R>): Promise<R> {
    try {
      return await work()
    } catch (error) {
      if (error instanceof OutsideError) throw error.cause
      if (error instanceof BentoError || codeOf(error) === undefined) throw error
      throw new BentoError(
        "STORE_UNUSABLE",
        `the store ${dirname(this.root)} cannot be used: ${reasonOf(error)}`,
        {
          cause: error,
          hint: hintOf(error),
        },
      )
    }
  }
}

class CorruptError extends BentoError {
  readonly reason: string

  constructor(dir: string, reason: string, cause: unknown) {
    super("STORE_CORRUPT", `${dir} is broken: ${reason}`, { cause })
    this.reason = reason
  }
}

/** The reason alone: its reader sees the path beside it. */
function reasonOfBroken(error: BentoError): string {
  if (error instanceof CorruptError) return error.reason
  return error instanceof IssueError ? error.issues.map(formatIssue).join("; ") : error.message
}

/** An error of the caller's own code, which is none of the store. */
class OutsideError extends Error {}

async function outside(work: () => Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  try {
    await work()
  } catch (error) {
    throwIfAborted(signal)
    if (["ENOSPC", "EDQUOT"].includes(codeOf(error) ?? "")) throw error // of the store's disk, whoever writes
    throw new OutsideError("the caller failed", { cause: error })
  }
}

/** As `mkdir -p`. Node's own tries for ever where a folder that is there denies being there, as those of /proc do. */
async function makeFolder(path: string, made: string[]): Promise<void> {
  const missing: string[] = []
  for (let at = path; (await statOrNull(at)) === null; at = dirname(at)) missing.push(at)
  for (const folder of missing.toReversed()) {
    try {
      await mkdir(folder)
      made.push(folder)
    } catch (error) {
      // Another writer was faster; a link that leads nowhere is there too, and is no folder.
      if (codeOf(error) !== "EEXIST" || (await statOrNull(folder)) === null) throw error
    }
  }
}

function newestFirst<T extends Manifest>(a: StoreItem<T>, b: StoreItem<T>): number {
  const order = microsecondsOf(b.info.creationTime) - microsecondsOf(a.info.creationTime)
  return order === 0 ? compareTags(a.tag, b.tag) : order
}

function isLegal(part: string): boolean {
  const ref = tryParseTagRef(part)
  return ref !== null && ref.name === part && part !== LATEST
}

/** Takes the folders that `mkdir` made for a writer that failed away again, as far as they are empty. */
async function removeMade(made: readonly string[]): Promise<void> {
  for (const folder of made.toReversed()) await rmdir(folder).catch(() => undefined)
}

async function removeEmpty(folder: string): Promise<boolean> {
  try {
    await rmdir(folder)
    return true
  } catch (error) {
    if (codeOf(error) === "ENOENT") return true
    if (codeOf(error) === "ENOTEMPTY" || codeOf(error) === "EEXIST") return false
    throw error
  }
}

/** Files first, then the folders that name them. */
async function syncTree(root: string): Promise<void> {
  const entries = await readdir(root, { recursive: true, withFileTypes: true })
  const pathOf = (entry: (typeof entries)[number]): string => join(entry.parentPath, entry.name)
  const files = entries.filter((entry) => entry.isFile()).map(pathOf)
  await syncAll(files, syncPath)
  await syncAll([...entries.filter((entry) => entry.isDirectory()).map(pathOf), root], syncFolder)
}

/** Some at a time: a process may have only so many files open. */
async function syncAll(paths: readonly string[], sync: (path: string) => Promise<void>): Promise<void> {
  for (let at = 0; at < paths.length; at += 16) await Promise.all(paths.slice(at, at + 16).map(sync))
}

async function syncPath(path: string): Promise<void> {
  const file = await open(path, "r")
  try {
    await file.sync()
  } finally {
    await file.close()
  }
}

/** Some file systems cannot sync a folder; they say EINVAL, EPERM or EISDIR. A folder that is gone needs none. */
async function syncFolder(path: string): Promise<void> {
  try {
    await syncPath(path)
  } catch (error) {
    if (!["EINVAL", "EPERM", "EISDIR", "ENOTSUP", "ENOENT"].includes(codeOf(error) ?? "")) throw error
  }
}

/** Null for what is not there. */
async function orNull<R>(work: Promise<R>): Promise<R | null> {
  try {
    return await work
  } catch (error) {
    if (codeOf(error) === "ENOENT") return null
    throw error
  }
}

async function statOrNull(path: string): Promise<Stats | null> {
  return orNull(stat(path))
}

/** The place is taken: by a folder that is not empty, or by a file. */
function isRefusedRename(error: unknown): boolean {
  const isRename = error instanceof Error && "syscall" in error && error.syscall === "rename"
  return isRename && ["ENOTEMPTY", "EEXIST", "ENOTDIR"].includes(codeOf(error) ?? "")
}

function codeOf(error: unknown): string | undefined {
  if (!(error instanceof Error) || !("code" in error) || !("syscall" in error)) return undefined
  return typeof error.code === "string" ? error.code : undefined
}

const REASONS: Readonly<Record<string, string>> = {
  EACCES: "permission denied",
  EPERM: "not permitted",
  EROFS: "the file system is read-only",
  ENOENT: "no folder can be made there",
  ENOTDIR: "a file, or a link that leads nowhere, stands where a folder should be",
  EEXIST: "a file, or a link that leads nowhere, stands where a folder should be",
  EISDIR: "a folder stands where a file should be",
  ENOSPC: "no space left on the disk",
  EDQUOT: "the disk quota is used up",
  EXDEV: "it spans two file systems, so items cannot be renamed into place",
  ELOOP: "too many links",
}

function reasonOf(error: unknown): string {
  const reason = REASONS[codeOf(error) ?? ""]
  const path =
    error instanceof Error && "path" in error && typeof error.path === "string" ? ` (${error.path})` : ""
  return reason === undefined ? String(error) : `${reason}${path}`
}

function hintOf(error: unknown): string {
  const code = codeOf(error)
  if (code === "ENOSPC" || code === "EDQUOT")
    return "Free some space, or point BENTOML_HOME to a larger disk."
  if (code === "EXDEV") return "Keep models, bentos and tmp of BENTOML_HOME on one file system."
  return "Check BENTOML_HOME and its permissions."
}
