/**
 * ImagePlan → files: those of the build context, and those of each layer; in which order, with which bytes.
 *
 * Entries are sorted, and times, owners and modes are fixed, so that the same plan gives the same bytes under any
 * umask, user, clock and folder. Models are streamed from the store; nothing is copied to a temporary folder.
 */
import { createHash } from "node:crypto"
import { constants } from "node:fs"
import type { BigIntStats } from "node:fs"
import { lstat, open, readdir, readlink } from "node:fs/promises"
import path from "node:path"
import type { Readable } from "node:stream"
import { BentoError, BuildError } from "../store/errors.ts"
import { compareText } from "../store/tag.ts"
import { TemplateError, renderDockerfile, shellAssignments } from "../templates/render.ts"
import type { Dockerfile, DockerfilePart } from "../templates/render.ts"
import { DESCRIBER } from "./describe.ts"
import type { FileSource, ImagePlan, Platform } from "./plan.ts"
import { onnxruntimePackages } from "./runtime-bundle.ts"
import { tarStream } from "./tar.ts"
import { isWhiteout } from "./walk.ts"
import type { TarEntry, TarHeader } from "./tar.ts"

export type ContextEntry =
  /** Root's and 0755, unless it says otherwise. */
  | {
      readonly kind: "folder"
      readonly path: string
      readonly mode?: number
      readonly uid?: number
      readonly gid?: number
    }
  | { readonly kind: "link"; readonly path: string; readonly target: string }
  | {
      readonly kind: "file"
      readonly path: string
      readonly executable: boolean
      readonly size: number
      readonly source: { readonly file: string; readonly stamp: FileStamp } | { readonly bytes: Buffer }
      /** What is made with it does not depend on it. */
      readonly immaterial?: true
      /** For the build alone, and for nobody else to read. */
      readonly secret?: true
    }

export type FileEntry = Extract<ContextEntry, { kind: "file" }>

/** Tells whether a file is still what it was: it changes with every write, and with most ways to hide one. */
export type FileStamp = string

export interface BuildContext {
  readonly dockerfile: Dockerfile
  /** Sorted by path; folders come before what is in them. */
  readonly entries: readonly ContextEntry[]
  /** Bytes of all files. */
  readonly sizeBytes: number
  /** SHA-256 over the entries and their bytes, without credentials; reads every file. */
  digest(): Promise<string>
  /** The context as a tar; may be asked for more than once. */
  tar(): Readable
}

/** The Dockerfile of a plan; a template that cannot be rendered is a TEMPLATE_INVALID with its line. */
export async function dockerfileOf(plan: ImagePlan, part: DockerfilePart = "whole"): Promise<Dockerfile> {
  const { template, ...vars } = plan.dockerfile
  try {
    if (template === null) return renderDockerfile(vars, part)
    const { renderUserDockerfile } = await import("../templates/user-template.ts")
    return renderUserDockerfile({ ...vars, template }, part)
  } catch (error) {
    if (!(error instanceof TemplateError)) throw error
    const line = error.line === undefined ? "" : `:${error.line}`
    const isTheirs = error.template === template?.file
    const file = isTheirs ? error.template : `templates/${error.template}.hbs`
    throw new BentoError("TEMPLATE_INVALID", `${file}${line}: ${error.message}`, {
      cause: error,
    })
  }
}

/** All that the engine needs to carry out the Dockerfile; of a foundation, only what its steps need. */
export async function createContext(plan: ImagePlan, part: DockerfilePart = "whole"): Promise<BuildContext> {
  const dockerfile = await dockerfileOf(plan, part)
  // What comes from another image is not sent.
  const layers = part === "whole" ? plan.layers.filter(({ image }) => image === undefined) : []
  const found = await readFiles([...plan.stepFiles, ...layers.flatMap(({ files }) => files)])
  const entries = sorted([textEntry("Dockerfile", dockerfile), ...found])
  return {
    dockerfile,
    entries,
    sizeBytes: entries.reduce((sum, entry) => sum + (entry.kind === "file" ? entry.size : 0), 0),
    digest: () => digestOf(entries),
    tar: () => tarStream(tarEntries(entries)),
  }
}

// What is in it -------------------------------------------------------------------------------------------------

/** Which entries the sources are; the bytes of files are read when a tar is made of them. */
export async function readFiles(sources: readonly FileSource[]): Promise<ContextEntry[]> {
  return sorted((await Promise.all(sources.map(read))).flat())
}

async function read(source: FileSource): Promise<ContextEntry[]> {
  switch (source.kind) {
    case "runtime":
      return readRuntime(source.from, source.to, source.platform)
    case "tree":
      return readTree(source.from, source.to, source.except)
    case "file":
      return [fileEntry(source.to, source.from, await stampedInfo(source.from), source.executable)]
    case "text":
      return [textEntry(source.to, source.text)]
    case "credentials":
      return [{ ...textEntry(source.to, source.text), immaterial: true, secret: true }]
    case "sbom": {
      const { formatSbom } = await import("./sbom.ts")
      return [textEntry(source.to, formatSbom(source.parts))]
    }
    case "secret":
      return [{ ...textEntry(source.to, shellAssignments(source.values)), secret: true }]
    case "folder":
      return [{ kind: "folder", path: source.to }]
  }
}

/** `root`: the folder that links stay in, where it is not `to` itself. */
async function readTree(
  from: string,
  to: string,
  except: readonly string[] = [],
  root = to,
): Promise<ContextEntry[]> {
  const entries: ContextEntry[] = []
  for (const child of await readdir(from, { withFileTypes: true })) {
    if (except.includes(child.name)) continue
    const file = path.join(from, child.name)
    const name = `${to}/${child.name}`
    if (isWhiteout(child.name)) {
      throw new BuildError(
        `${file} can be in no image: a layer takes its name for the order to delete another file`,
      )
    }
    if (child.isDirectory()) {
      entries.push({ kind: "folder", path: name }, ...(await readTree(file, name, [], root)))
    } else if (child.isSymbolicLink()) {
      entries.push({ kind: "link", path: name, target: insideTarget(root, name, await readlink(file)) })
    } else if (child.isFile()) {
      entries.push(fileEntry(name, file, await stampedInfo(file)))
    } else {
      throw new BuildError(`${file} is neither a file nor a folder nor a link`)
    }
  }
  return entries
}

/** Links in a Bento are relative and stay inside; a foreign one may not. */
function insideTarget(root: string, name: string, target: string): string {
  const resolved = path.posix.normalize(path.posix.join(path.posix.dirname(name), target))
  if (!path.posix.isAbsolute(target) && (resolved === root || resolved.startsWith(`${root}/`))) return target
  throw new BentoError("CONTEXT_ESCAPE", `the link ${name} leaves its folder: it leads to ${target}`)
}

/** The bundle, and of ONNX Runtime's two packages what this platform loads: 46 MB of 288. */
async function readRuntime(from: string, to: string, platform: Platform): Promise<ContextEntry[]> {
  const missing = (what: string, cause?: unknown): BentoError =>
    new BentoError("RUNTIME_MISSING", `${what} is missing`, { cause })
  const bundle = await readdir(from).catch((error: unknown) => {
    throw missing(`the runtime bundle (${from})`, error)
  })
  const scripts = bundle.filter(
    (name) => (name.endsWith(".js") && name !== DESCRIBER) || name === "package.json",
  )
  if (!scripts.includes("serve.js")) throw missing(`the runtime bundle (${from}/serve.js)`)
  const [{ dir: node }, { dir: common }] = onnxruntimePackages(from)
  const binaries = `bin/napi-v6/linux/${platform === "linux/amd64" ? "x64" : "arm64"}`
  const wanted: readonly [folder: string, into: string, take: (name: string) => boolean][] = [
    [node, "onnxruntime-node", (name) => name === "package.json"],
    [path.join(node, "dist"), "onnxruntime-node/dist", (name) => name.endsWith(".js")],
    // The CUDA image fetches its providers in a step of its own; a CPU image must not carry 300 MB of them.
    [path.join(node, binaries), `onnxruntime-node/${binaries}`, (name) => !name.includes("_providers_")],
    [common, "onnxruntime-common", (name) => name === "package.json"],
    [
      path.join(common, "dist/cjs"),
      "onnxruntime-common/dist/cjs",
      (name) => name.endsWith(".js") || name === "package.json",
    ],
  ]
  const take = async (folder: string, into: string, names: readonly string[]): Promise<ContextEntry[]> => {
    const infos = await Promise.all(names.map((name) => stampedInfo(path.join(folder, name))))
    return names.flatMap((name, index) => {
      const info = infos[index]
      return info === undefined ? [] : [fileEntry(`${into}/${name}`, path.join(folder, name), info)]
    })
  }
  const packages = wanted.map(async ([folder, into, filter]) => {
    const names = await readdir(folder).catch((error: unknown) => {
      throw missing(`ONNX Runtime for ${platform} (${folder})`, error)
    })
    return take(folder, `${to}/node_modules/${into}`, names.filter(filter))
  })
  return (await Promise.all([take(from, to, scripts), ...packages])).flat()
}

function stampedInfo(file: string): Promise<BigIntStats> {
  return lstat(file, { bigint: true })
}

function stampOf({ ino, size, mtimeNs, ctimeNs }: BigIntStats): FileStamp {
  return [ino, size, mtimeNs, ctimeNs].join(" ")
}

/** Whether a file has the content it was listed with. Another hard link to it, as pnpm makes them, is a new ctime and no more. */
function isAsListed({ ino, size, mtimeNs }: BigIntStats, stamp: FileStamp): boolean {
  return stamp.startsWith(`${[ino, size, mtimeNs].join(" ")} `)
}

/** Changes whenever the entry, or what is in it, may have changed. */
export function entryStamp(entry: ContextEntry): unknown {
  if (entry.kind !== "file") return entry
  const { path: name, executable, source } = entry
  return [name, executable, "stamp" in source ? source.stamp : source.bytes.toString("base64")]
}

function fileEntry(name: string, file: string, info: BigIntStats, executable?: boolean): ContextEntry {
  if (!info.isFile()) throw new BuildError(`${file} is not a regular file`)
  return {
    kind: "file",
    path: name,
    executable: executable ?? (info.mode & 0o111n) !== 0n,
    size: Number(info.size),
    source: { file, stamp: stampOf(info) },
  }
}

function textEntry(name: string, text: string): FileEntry {
  const bytes = Buffer.from(text)
  return { kind: "file", path: name, executable: false, size: bytes.length, source: { bytes } }
}

/** Sorted, each path once, with the folders above each entry. */
export function sorted(entries: readonly ContextEntry[]): ContextEntry[] {
  const byPath = new Map<string, ContextEntry>()
  for (const entry of entries) {
    const parts = entry.path.split("/")
    for (let length = 1; length < parts.length; length++) {
      const folder = parts.slice(0, length).join("/")
      if (!byPath.has(folder)) byPath.set(folder, { kind: "folder", path: folder })
    }
    byPath.set(entry.path, entry)
  }
  return [...byPath.values()].toSorted((a, b) => compareText(a.path, b.path))
}

// Its bytes -----------------------------------------------------------------------------------------------------

async function digestOf(entries: readonly ContextEntry[]): Promise<string> {
  const digest = createHash("sha256")
  for (const entry of entries) {
    const { kind, path: name } = entry
    if (kind === "file" && entry.immaterial === true) continue
    if (kind === "folder") digest.update(`${JSON.stringify([kind, name])}\n`)
    else if (kind === "link") digest.update(`${JSON.stringify([kind, name, entry.target])}\n`)
    else {
      const content = createHash("sha256")
      for await (const chunk of bytesOf(entry)) content.update(chunk)
      digest.update(`${JSON.stringify([kind, name, entry.executable, entry.size, content.digest("hex")])}\n`)
    }
  }
  return `sha256:${digest.digest("hex")}`
}

/** The entries for a tar; reading a body fails with an error that names the file. */
export function* tarEntries(
  entries: readonly ContextEntry[],
  read: (entry: FileEntry) => AsyncIterable<Uint8Array> = bytesOf,
): Generator<TarEntry> {
  for (const entry of entries) {
    const header = headerOf(entry)
    yield entry.kind === "file" ? { header, body: read(entry) } : { header }
  }
}

export function headerOf(entry: ContextEntry): TarHeader {
  const { path: name } = entry
  switch (entry.kind) {
    case "folder": {
      const { mode = 0o755, uid = 0, gid = 0 } = entry
      return { type: "directory", name, mode, uid, gid }
    }
    case "link":
      return { type: "symlink", name, linkname: entry.target }
    case "file":
      return { type: "file", name, mode: entry.executable ? 0o755 : 0o644, size: entry.size }
  }
}

/** Where the bytes of a file come to lie while they are on their way; made anew for each chunk, or used again. */
export type Buffers = (size: number) => Buffer

const CHUNK_BYTES = 1 << 18

/**
 * Buffers that are used again in turn, for whoever never has more than `count` whole chunks at once: a gigabyte of new
 * ones keeps the garbage collector busy for a second. Smaller ones are new: a stream takes as many of them as fill its
 * own buffer, and so holds on to any number.
 */
export function buffersInTurn(count: number): Buffers {
  const all: Buffer[] = []
  let next = 0
  return (size) => {
    if (size < CHUNK_BYTES) return Buffer.allocUnsafe(size)
    const buffer = (all[next] ??= Buffer.allocUnsafeSlow(CHUNK_BYTES))
    next = (next + 1) % count
    return buffer
  }
}

/** Exactly the bytes that the entry promises, or an error that names the file. The next chunk is read ahead. */
export async function* bytesOf(
  entry: FileEntry,
  buffers: Buffers = (size) => Buffer.allocUnsafe(size),
): AsyncGenerator<Uint8Array> {
  if ("bytes" in entry.source) {
    if (entry.size > 0) yield entry.source.bytes
    return
  }
  const { file, stamp } = entry.source
  const changed = (): BuildError => new BuildError(`${file} changed while the image was built`)
  // A link that took the file's place since it was listed is not followed.
  const handle = await open(file, constants.O_RDONLY | constants.O_NOFOLLOW).catch((error: unknown) => {
    throw error instanceof Error && "code" in error && error.code === "ELOOP" ? changed() : error
  })
  const readAt = (position: number): Promise<Buffer> => {
    const buffer = buffers(Math.min(CHUNK_BYTES, entry.size - position))
    return handle
      .read(buffer, 0, buffer.length, position)
      .then(({ bytesRead }) => buffer.subarray(0, bytesRead))
  }
  let ahead: Promise<Buffer> | undefined
  try {
    if (!isAsListed(await handle.stat({ bigint: true }), stamp)) throw changed()
    // It may fail before anybody waits for it; who does is told.
    const readAhead = (position: number): void => {
      ahead = position < entry.size ? readAt(position) : undefined
      ahead?.catch(() => {})
    }
    readAhead(0)
    for (let position = 0; ahead !== undefined;) {
      const chunk = await ahead
      if (chunk.length === 0) throw changed()
      position += chunk.length
      readAhead(position)
      yield chunk
    }
    if (!isAsListed(await handle.stat({ bigint: true }), stamp)) throw changed()
  } finally {
    // It may still be read into a buffer.
    await ahead?.catch(() => {})
    await handle.close()
  }
}
