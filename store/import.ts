/** `importModel`: from a file that somebody trained to a model of the store. */
import { constants, type Stats } from "node:fs"
import { copyFile, lstat, mkdir, open, readdir, readFile, realpath, stat, writeFile } from "node:fs/promises"
import { dirname, join, posix, sep } from "node:path"
import { pipeline } from "node:stream/promises"
import { cancelled, orAborted } from "./abort.ts"
import type { CheckResult, ExamplesRequest, ExamplesResult } from "./bento.ts"
import { BentoError, IssueError } from "./errors.ts"
import { MODEL_YAML, SAVED_MODEL, SELFTEST_JSON } from "./layout.ts"
import {
  BENTOML_VERSION,
  formatCreationTime,
  formatModelYaml,
  isAxis,
  type Model,
  parseModelYaml,
  type Signature,
} from "./model.ts"
import {
  type ExternalData,
  formatOnnxValue,
  type OnnxInfo,
  parseOnnx,
  readOnnx,
  removeZipMaps,
  specOf,
} from "./onnx.ts"
import { readYaml, YamlMap } from "./pyyaml.ts"
import type { Store } from "./store.ts"
import { checkName, checkVersion, makeVersion, type Tag } from "./tag.ts"

/** The Python module whose models these are. */
const ONNX_MODULE = "bentoml.onnx"

/** Where class labels go that a ZipMap held: output name → label of each column. */
export const CLASS_LABELS = "class_labels"

export interface ImportOptions {
  readonly store: Store<Model>
  /** An `.onnx` file, or a folder with `model.yaml`. */
  readonly path: string
  /** Needed for a file; a folder has its own, and this one goes before it. */
  readonly name?: string
  readonly version?: string
  readonly labels?: Readonly<Record<string, string>>
  readonly metadata?: Readonly<Record<string, unknown>>
  /** What is given here goes before what the graph or the folder says. */
  readonly signatures?: Readonly<Record<string, Partial<Signature>>>
  readonly now: Date
  readonly random: (n: number) => Uint8Array
  /** Loads a file in ONNX Runtime, in another process. */
  readonly check: (file: string, signal?: AbortSignal) => Promise<CheckResult>
  /** A file of examples that the model must answer, and then carries. */
  readonly examples?: string
  readonly checkExamples: ExamplesChecker
  readonly signal?: AbortSignal
}

/** Runs the examples of a model and writes them into its folder, in another process. */
export type ExamplesChecker = (request: ExamplesRequest, signal?: AbortSignal) => Promise<ExamplesResult>

/** `notes` tell the user what was changed or left out. The store is unchanged when this throws. */
export async function importModel(options: ImportOptions): Promise<{ model: Model; notes: string[] }> {
  try {
    return await importPath(options)
  } catch (error) {
    if (options.signal?.aborted === true) throw cancelled(error) // whatever noticed it first
    throw error
  }
}

async function importPath(options: ImportOptions): Promise<{ model: Model; notes: string[] }> {
  const { path } = options
  const found = await stat(path).catch((error: unknown) => {
    throw unreadable(path, error)
  })
  if (options.examples !== undefined) await checkReadable(options.examples)
  if (found.isDirectory()) return importFolder(options)
  if (found.isFile()) return importFile(options)
  throw new BentoError("IMPORT_FAILED", `${path} is neither a file nor a folder`)
}

async function importFile(options: ImportOptions): Promise<{ model: Model; notes: string[] }> {
  const { path, store, signal } = options
  const notes: string[] = []
  if (options.name === undefined) {
    throw new BentoError("TAG_INVALID", `the model in ${path} needs a name`, {
      hint: "Give one with --name.",
    })
  }
  const tag = newTag(options, { name: options.name }, notes)
  const graph = await readGraph(path, options, notes)
  const external = await findExternal(path, graph.info.external)
  const model = describeModel(options, graph, {
    tag,
    module: ONNX_MODULE,
    labels: {},
    options: {},
    metadata: {},
    context: {
      frameworkName: "onnx",
      frameworkVersions: {},
      bentomlVersion: BENTOML_VERSION,
      pythonVersion: "",
    },
    signatures: {},
    apiVersion: "v2",
    creationTime: formatCreationTime(options.now),
  })
  await store.add(
    tag,
    async (dir) => {
      await writeFile(join(dir, SAVED_MODEL), graph.bytes, { signal })
      for (const file of external) await copyRegular(file.path, join(dir, file.name), file.size, signal)
      await checkGraph(join(dir, SAVED_MODEL), options)
      await writeFile(join(dir, MODEL_YAML), formatModelYaml(model))
      if (options.examples !== undefined) await takeExamples(dir, options.examples, dirname(path), options)
    },
    signal === undefined ? {} : { signal },
  )
  return { model, notes }
}

async function importFolder(options: ImportOptions): Promise<{ model: Model; notes: string[] }> {
  const { path, store, signal } = options
  const notes: string[] = []
  const manifest = join(path, MODEL_YAML)
  const found = await lstat(manifest).catch(async (error: unknown) => {
    throw isMissing(error) ? await noModelIn(path) : unreadable(manifest, error)
  })
  // Before anything is read: a named pipe would never end.
  if (!found.isFile()) throw notPlain(manifest, found)
  const files = await listFolder(path)
  const text = await readFile(manifest, "utf8").catch((error: unknown) => {
    throw unreadable(manifest, error)
  })
  const written = parseModelYaml(text, manifest)
  const saved = join(path, SAVED_MODEL)
  const graph = files.some((file) => file.path === saved) ? await readGraph(saved, options, notes) : null
  if (graph === null) notes.push(`it has no ${SAVED_MODEL}: it can be kept and packed, but not served`)
  else await findExternal(saved, graph.info.external)
  const own = join(path, SELFTEST_JSON)
  // What a model brings along is tested as it is; examples that are given take its place.
  const brings = files.some((file) => file.path === own)
  const ours = [manifest, ...(options.examples === undefined ? [] : [own])]
  const tagged = { ...written, tag: newTag(options, written.tag, notes) }
  const model = graph === null ? withExtras(options, tagged) : describeModel(options, graph, tagged)
  await store.add(
    model.tag,
    async (dir) => {
      for (const file of files) {
        const target = join(dir, file.path.slice(path.length))
        if (file.stats.isDirectory()) await mkdir(target)
        else if (file.path === saved && graph !== null) await writeFile(target, graph.bytes, { signal })
        else if (!ours.includes(file.path)) await copyRegular(file.path, target, file.stats.size, signal)
      }
      if (graph !== null) await checkGraph(join(dir, SAVED_MODEL), options)
      const unchanged = formatModelYaml(model) === formatModelYaml(written)
      await writeFile(join(dir, MODEL_YAML), unchanged ? text : formatModelYaml(model))
      const examples = options.examples ?? (brings ? join(dir, SELFTEST_JSON) : undefined)
      if (examples !== undefined) notes.push(...(await takeExamples(dir, examples, path, options)).notes)
    },
    signal === undefined ? {} : { signal },
  )
  return { model, notes }
}

/**
 * Signatures as a user writes them: `{"run": {"batchable": true, "batch_dim": 0}}`, `batch_dim` also as `[input, output]`.
 * What is not given is absent.
 */
export function parseSignatures(text: string, path: string): Record<string, Partial<Signature>> {
  const signatures = Object.entries(parseMetadata(text, path)).map(([name, given]) => {
    const fail = (problem: string): BentoError =>
      new BentoError("IMPORT_FAILED", `${path}: signature ${JSON.stringify(name)}: ${problem}`, {
        hint: 'Write it as {"run": {"batchable": true, "batch_dim": 0}}.',
      })
    if (typeof given !== "object" || given === null || Array.isArray(given)) throw fail("must be a map")
    const { batchable, batch_dim: dim, ...others } = given as Record<string, unknown> // an object, by the line above
    const [unknown] = Object.keys(others)
    if (unknown !== undefined) throw fail(`unknown key ${JSON.stringify(unknown)}`)
    if (batchable !== undefined && typeof batchable !== "boolean")
      throw fail("batchable must be true or false")
    const [input, output, ...more]: readonly unknown[] = Array.isArray(dim) ? dim : [dim, dim]
    const signature: Partial<Signature> = batchable === undefined ? {} : { batchable }
    if (dim === undefined) return [name, signature] as const
    if (!isAxis(input, 0) || !isAxis(output, 0) || more.length > 0) {
      throw fail("batch_dim must be an axis, or a list of two: of the inputs, of the outputs")
    }
    return [name, { ...signature, batchDim: [input, output] as const }] as const
  })
  return Object.fromEntries(signatures)
}

/** A map from a JSON or YAML file. `1.0` stays a float when it is written to `model.yaml`, dates stay dates. */
export function parseMetadata(text: string, path: string): Record<string, unknown> {
  const { value } = readYaml(text, path, "IMPORT_FAILED")
  if (value instanceof YamlMap) return value.toJSON()
  if (typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype) {
    return value as Record<string, unknown> // readYaml makes such objects of maps only
  }
  throw new BentoError("IMPORT_FAILED", `${path} must hold a map`)
}

// ------------------------------------------------------------------------------------------------------- describing

interface Graph {
  readonly bytes: Uint8Array
  /** Of `bytes`: without ZipMap. */
  readonly info: OnnxInfo
  readonly classLabels: Readonly<Record<string, readonly (string | number)[]>>
}

async function readGraph(path: string, options: ImportOptions, notes: string[]): Promise<Graph> {
  const original = await readOnnx(path, options.signal).catch((error: unknown) => {
    throw unreadable(path, error)
  })
  const { bytes, removed } = removeZipMaps(original.bytes)
  for (const { output, labels } of removed) {
    notes.push(
      `ZipMap was taken out: output "${output}" is now a tensor [N, ${labels.length}]; ` +
        `the labels of its columns are in metadata, under ${CLASS_LABELS}`,
    )
  }
  return {
    bytes,
    info: removed.length === 0 ? original.info : parseOnnx(bytes, path),
    classLabels: Object.fromEntries(removed.map(({ output, labels }) => [output, labels])),
  }
}

function newTag(options: ImportOptions, known: { name: string; version?: string }, notes: string[]): Tag {
  const note = (message: string): void => void notes.push(message)
  const version = options.version ?? known.version
  return {
    name: checkName(options.name ?? known.name, note),
    version: version === undefined ? makeVersion(options.now, options.random) : checkVersion(version, note),
  }
}

/** The model with what its graph says. */
function describeModel(options: ImportOptions, { info, classLabels }: Graph, model: Model): Model {
  const known = model.metadata[CLASS_LABELS]
  const own = typeof known === "object" && known !== null ? known : {}
  for (const [name, { batchDim }] of Object.entries(options.signatures ?? {})) {
    if (batchDim !== undefined) checkAxes(name, batchDim, info)
  }
  return withExtras(options, {
    ...model,
    options: model.module === ONNX_MODULE ? describeOptions(info, model.options) : model.options,
    metadata: isEmpty(classLabels)
      ? model.metadata
      : { ...model.metadata, [CLASS_LABELS]: { ...own, ...classLabels } },
    signatures: {
      ...model.signatures,
      run: model.signatures["run"] ?? { batchable: isBatchable(info), batchDim: [0, 0] },
    },
  })
}

/** In the order in which BentoML writes them. */
function describeOptions(info: OnnxInfo, options: Model["options"]): Model["options"] {
  return {
    ...options,
    input_specs: { run: info.inputs.map(formatOnnxValue) },
    output_specs: { run: info.outputs.map(formatOnnxValue) },
    providers: options["providers"] ?? null,
    session_options: options["session_options"] ?? null,
  }
}

/** The model with the labels, metadata and signatures that the user gave. */
function withExtras(options: ImportOptions, model: Model): Model {
  const { labels = {}, metadata = {}, signatures = {} } = options
  const known = Object.entries(signatures).map(([name, given]) => {
    const before = Object.hasOwn(model.signatures, name) ? model.signatures[name] : undefined
    if (before !== undefined) return [name, { ...before, ...given }] as const
    throw new BentoError("IMPORT_FAILED", `an ONNX model has no signature "${name}"`, {
      hint: `Its signatures: ${Object.keys(model.signatures).join(", ") || "none"}.`,
    })
  })
  return {
    ...model,
    labels: isEmpty(labels) ? model.labels : { ...model.labels, ...labels },
    metadata: isEmpty(metadata) ? model.metadata : { ...model.metadata, ...metadata },
    signatures: { ...model.signatures, ...Object.fromEntries(known) },
  }
}

/** An axis that the user gave must be one of every tensor whose rank the graph tells. */
function checkAxes(signature: string, [input, output]: Signature["batchDim"], info: OnnxInfo): void {
  for (const [what, axis, values] of [
    ["input", input, info.inputs],
    ["output", output, info.outputs],
  ] as const) {
    for (const value of values) {
      const rank = specOf(value)?.shape?.length ?? Infinity
      if (axis < rank) continue
      throw new BentoError(
        "IMPORT_FAILED",
        `signature "${signature}": batch_dim is ${axis}, but ${what} "${value.name}" has ${rank} ${rank === 1 ? "dimension" : "dimensions"}`,
        { hint: "Axes are counted from 0." },
      )
    }
  }
}

function isEmpty(record: object): boolean {
  return Object.keys(record).length === 0
}

/** Rows can be joined where the first dimension of every input and output is free. */
function isBatchable(info: OnnxInfo): boolean {
  const values = [...info.inputs, ...info.outputs]
  return (
    info.inputs.length > 0 &&
    values.every((value) => {
      const shape = specOf(value)?.shape ?? []
      return shape.length > 0 && typeof shape[0] !== "number"
    })
  )
}

async function checkGraph(file: string, { check, path, signal }: ImportOptions): Promise<void> {
  const result = await orAborted(check(file, signal), signal)
  if (result.ok) return
  const message = result.message
    .replace(`Load model from ${file} failed:`, "")
    .replaceAll(file, path)
    .replaceAll(dirname(file), dirname(path))
  throw new BentoError("IMPORT_FAILED", `${path} cannot be loaded by ONNX Runtime: ${message}`, {
    hint: "Mend the graph, or export it again with operators that ONNX Runtime has; the store is unchanged.",
  })
}

/** Examples that the model answers as they say; those in `file` are written into its folder, those there are only tested. */
async function takeExamples(
  dir: string,
  file: string,
  source: string,
  options: Pick<ImportOptions, "checkExamples" | "signal">,
  record = false,
): Promise<Extract<ExamplesResult, { ok: true }>> {
  const { checkExamples, signal } = options
  const result = await orAborted(checkExamples({ dir, file, record }, signal), signal)
  if (result.ok) return result
  // The user knows where the model came from, not where it lies meanwhile.
  const issues = result.issues.map(({ file: found, ...issue }) =>
    found === undefined ? issue : { ...issue, file: found.replace(dir, source) },
  )
  throw new IssueError("EXAMPLES_INVALID", result.message.replaceAll(dir, source), issues, {
    hint: "The store is unchanged.",
  })
}

/** Before a large model is copied for nothing. */
async function checkReadable(path: string): Promise<void> {
  const file = await open(path).catch((error: unknown) => {
    throw unreadable(path, error)
  })
  const isFolder = await file.stat().then((stats) => stats.isDirectory())
  await file.close()
  if (isFolder) throw new BentoError("IMPORT_FAILED", `${path} is a folder, and must be a file of examples`)
}

// -------------------------------------------------------------------------------------------------------- recording

export interface RecordOptions extends Pick<
  ImportOptions,
  "store" | "version" | "now" | "random" | "checkExamples" | "signal"
> {
  readonly tag: Tag
  /** A file with the inputs of examples, or with the body of one request. */
  readonly input: string
}

/**
 * A new version of a model that differs in its examples alone: what the model answers to the inputs joins those that it has.
 * Bentos and images name exact versions and count on what is in them, so the old one stays as it is. The version is written
 * as every other is: of a killed or a second writer nothing is seen.
 */
export async function recordExamples(
  options: RecordOptions,
): Promise<{ model: Model; examples: readonly string[]; notes: string[] }> {
  const { store, signal } = options
  const notes: string[] = []
  await checkReadable(options.input)
  const from = store.dir(options.tag)
  const old = await store.get(options.tag)
  const version =
    options.version === undefined
      ? makeVersion(options.now, options.random)
      : checkVersion(options.version, (message) => void notes.push(message))
  const tag = { name: old.tag.name, version }
  const model: Model = { ...old, tag, creationTime: formatCreationTime(options.now) }
  let examples: readonly string[] = []
  try {
    await store.add(
      tag,
      async (dir) => {
        for (const { path, stats } of await listFolder(from)) {
          const target = join(dir, path.slice(from.length))
          if (stats.isDirectory()) await mkdir(target)
          else await copyRegular(path, target, stats.size, signal)
        }
        await writeFile(join(dir, MODEL_YAML), formatModelYaml(model))
        ;({ examples } = await takeExamples(dir, options.input, from, options, true))
      },
      signal === undefined ? {} : { signal },
    )
  } catch (error) {
    if (signal?.aborted === true) throw cancelled(error)
    throw error
  }
  return { model, examples, notes }
}

// ------------------------------------------------------------------------------------------------------------ files

interface ExternalFile {
  /** Relative to the model's folder, as the graph has it. */
  readonly name: string
  readonly path: string
  readonly size: number
}

/** The files that tensors lie in: each must be a plain file inside the model's folder and large enough. */
async function findExternal(modelPath: string, external: readonly ExternalData[]): Promise<ExternalFile[]> {
  const files = new Map<string, ExternalFile>()
  for (const data of external) {
    const name = posix.normalize(data.location)
    const file = files.get(name) ?? (await checkExternal(modelPath, data, name))
    files.set(name, file)
    const end = data.offset + (data.length ?? 0n)
    if (end > BigInt(file.size)) {
      throw refusal(modelPath, data, `it ends at byte ${end} of a file of ${file.size} bytes`)
    }
  }
  return [...files.values()]
}

async function checkExternal(modelPath: string, data: ExternalData, name: string): Promise<ExternalFile> {
  const { location } = data
  const segments = location.split("/")
  if (location.startsWith("*/_ORT_MEM_ADDR_")) throw refusal(modelPath, data, "it names an address in memory")
  if (location.startsWith("/") || /^[a-zA-Z]:/.test(location))
    throw refusal(modelPath, data, "the path is absolute")
  if (segments.includes("..")) throw refusal(modelPath, data, "the path leaves the model's folder by `..`")
  if (location === "" || /\\|\p{Cc}/u.test(location) || segments.includes("")) {
    throw refusal(modelPath, data, "the path is not a plain one")
  }
  if ([SAVED_MODEL, MODEL_YAML, SELFTEST_JSON].includes(name.toLowerCase()) || name === ".") {
    throw refusal(modelPath, data, "the name is taken in the store")
  }
  const folder = dirname(modelPath)
  const path = join(folder, ...name.split("/"))
  const stats = await lstat(path).catch((error: unknown) => {
    throw refusal(modelPath, data, isMissing(error) ? "there is no such file" : String(error))
  })
  if (stats.isSymbolicLink()) throw refusal(modelPath, data, "it is a link")
  if (!stats.isFile()) throw refusal(modelPath, data, "it is not a plain file")
  const [root, real] = await Promise.all([realpath(folder), realpath(path)])
  if (!real.startsWith(root.endsWith(sep) ? root : root + sep)) {
    throw refusal(modelPath, data, "a link leads it out of the model's folder")
  }
  return { name, path: real, size: stats.size }
}

function refusal(modelPath: string, data: ExternalData, reason: string): BentoError {
  const where = `external data ${JSON.stringify(data.location)} of tensor ${JSON.stringify(data.tensor)}`
  return new BentoError("IMPORT_FAILED", `${modelPath}: ${where} is refused: ${reason}`, {
    hint: "Save the model with its data in plain files beside it.",
  })
}

interface FolderEntry {
  readonly path: string
  readonly stats: Stats
}

/** Files and folders below `root`, parents first; links and devices are refused. */
async function listFolder(root: string): Promise<FolderEntry[]> {
  const found: FolderEntry[] = []
  const names = await readdir(root).catch((error: unknown) => {
    throw unreadable(root, error)
  })
  for (const name of names) {
    const path = join(root, name)
    // Node replaces bytes that are no UTF-8; such a name cannot be opened.
    if (name.includes("\uFFFD")) {
      throw new BentoError("IMPORT_FAILED", `the name ${JSON.stringify(name)} in ${root} is not UTF-8`)
    }
    const stats = await lstat(path).catch((error: unknown) => {
      throw unreadable(path, error)
    })
    if (!stats.isFile() && !stats.isDirectory()) throw notPlain(path, stats)
    found.push({ path, stats })
    if (stats.isDirectory()) found.push(...(await listFolder(path)))
  }
  return found
}

function notPlain(path: string, stats: Stats): BentoError {
  const what = stats.isSymbolicLink() ? "a link" : "no plain file"
  return new BentoError("IMPORT_FAILED", `${path} is ${what}; a model folder holds plain files only`)
}

/**
 * Copies a file that was a plain one when it was looked at, and refuses it if it is another by now. Where the file system
 * can share blocks nothing is copied; else in pieces, so that a signal stops it.
 */
async function copyRegular(
  from: string,
  to: string,
  size: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  await mkdir(dirname(to), { recursive: true })
  const source = await open(from, constants.O_RDONLY | constants.O_NOFOLLOW).catch((error: unknown) => {
    throw unreadable(from, error)
  })
  try {
    const stats = await source.stat()
    if (!stats.isFile() || stats.size !== size) {
      throw new BentoError("IMPORT_FAILED", `${from} changed while it was read`)
    }
    if (process.platform === "linux" && (await cloned(`/proc/self/fd/${source.fd}`, to))) return
    const target = await open(to, "wx")
    await pipeline(
      source.createReadStream({ autoClose: false, highWaterMark: 1 << 20, end: Math.max(size - 1, 0) }),
      target.createWriteStream(),
      signal === undefined ? {} : { signal },
    )
  } finally {
    await source.close()
  }
}

async function cloned(from: string, to: string): Promise<boolean> {
  try {
    await copyFile(from, to, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE_FORCE)
    return true
  } catch {
    return false // most file systems cannot
  }
}

async function noModelIn(path: string): Promise<BentoError> {
  const names = (await readdir(path)).filter((name) => name.endsWith(".onnx")).toSorted()
  const hint =
    names.length > 0
      ? `Give the file itself: ${names.map((name) => join(path, name)).join(" or ")}`
      : "Give an .onnx file, or a folder that BentoML saved."
  return new BentoError("IMPORT_FAILED", `${path} is a folder without a model: it has no ${MODEL_YAML}`, {
    hint,
  })
}

/** A file of the user's that cannot be read. */
function unreadable(path: string, error: unknown): unknown {
  if (!(error instanceof Error) || !("syscall" in error)) return error
  if (isMissing(error)) {
    const hint = "Check the path; the store is unchanged."
    return new BentoError("IMPORT_FAILED", `${path}: no such file`, { hint, cause: error })
  }
  return new BentoError("IMPORT_FAILED", `${path} cannot be read: ${error.message}`, { cause: error })
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ENOTDIR")
}
