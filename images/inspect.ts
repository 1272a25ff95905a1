/** What is in an image of ours, and what makes two of them differ: from the engine's answers alone, nothing runs. */
import { createHash } from "node:crypto"
import type { Readable } from "node:stream"
import { extract } from "tar-stream"
import { BentoError } from "../store/errors.ts"
import type { Signature, TensorSpec } from "../store/model.ts"
import { compareText } from "../store/tag.ts"
import { BENTO_LABEL } from "./assemble.ts"
import { platformOf } from "./builder.ts"
import type { HistoryEntry, ImageEngine, ImageInfo } from "./builder.ts"
import { BENTO_PATH, MODELS_LABEL, RUNTIME_PATH } from "./plan.ts"
import type { LayerPlan, Platform } from "./plan.ts"

/** `step`: something ran for it. `base`: of the image that ours lies on. */
export type LayerCause = LayerPlan["cause"] | "packages" | "step" | "base"

export interface LayerReport {
  readonly cause: LayerCause
  /** For people: what is in it, or which instruction made it. */
  readonly name: string
  /** Of the uncompressed layer; null where the engine does not tell which layer a line of its history made. */
  readonly digest: string | null
  readonly sizeBytes: number
}

/** As the image's label has it; what a short label leaves out is absent. */
export interface ModelReport {
  readonly tag: string
  readonly alias?: string
  readonly files?: Readonly<Record<string, string>>
  readonly producer?: string
  readonly opsets?: Readonly<Record<string, number>>
  readonly signatures?: Readonly<
    Record<
      string,
      Pick<Signature, "batchable"> & {
        readonly inputs?: readonly TensorSpec[]
        readonly outputs?: readonly TensorSpec[]
      }
    >
  >
}

export interface ImageReport {
  readonly reference: string
  readonly id: string
  readonly bento: string
  readonly platform: string
  /** RFC 3339 */
  readonly createdAt: string | null
  readonly git: { readonly revision: string | null; readonly url: string | null }
  readonly versions: { readonly bentoctl: string | null; readonly onnxruntime: string | null }
  readonly base: { readonly name: string | null; readonly digest: string | null }
  readonly sizeBytes: number
  /** The base first. */
  readonly layers: readonly LayerReport[]
  readonly models: readonly ModelReport[]
  readonly env: Readonly<Record<string, string>>
  readonly labels: Readonly<Record<string, string>>
}

/** What is asked of an engine here. */
export type Answers = Pick<ImageEngine, "inspect" | "history" | "readPaths">

/** Throws IMAGE_NOT_FOUND, and IMAGE_FOREIGN for an image that we did not make. */
export async function inspectImage(
  reference: string,
  engine: Answers,
  signal?: AbortSignal,
): Promise<ImageReport> {
  const image = await engine.inspect(reference, signal)
  if (image === null) {
    throw new BentoError("IMAGE_NOT_FOUND", `the engine has no image ${reference}`)
  }
  const labels = textsOf(image.config["Labels"])
  const label = (name: string): string | null => labels[name] ?? null
  const bento = label(BENTO_LABEL)
  if (bento === null) {
    throw new BentoError(
      "IMAGE_FOREIGN",
      `${reference} is no image of a Bento: it has no label ${BENTO_LABEL}`,
      { hint: `\`docker image inspect ${reference}\` tells what is known of it.` },
    )
  }
  const oci = (name: string): string | null => label(`org.opencontainers.image.${name}`)
  const layers = layersOf(image, await engine.history(image.id, signal))
  return {
    reference,
    id: image.id,
    bento,
    platform: platformOf(image),
    createdAt: oci("created"),
    git: { revision: oci("revision"), url: oci("source") },
    versions: { bentoctl: label("bentoctl.version"), onnxruntime: label("bentoctl.onnxruntime") },
    base: { name: oci("base.name"), digest: oci("base.digest") },
    sizeBytes: layers.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
    layers,
    models: modelsOf(label(MODELS_LABEL)),
    env: variablesOf(image.config["Env"]),
    labels,
  }
}

/** The label is ours, and whoever makes an image may write another one into it. */
function modelsOf(label: string | null): ModelReport[] {
  try {
    const found: unknown = JSON.parse(label ?? "[]")
    return Array.isArray(found) ? (found as ModelReport[]) : []
  } catch {
    return []
  }
}

function textsOf(value: unknown): Record<string, string> {
  return typeof value === "object" && value !== null ? { ...(value as Record<string, string>) } : {}
}

function variablesOf(value: unknown): Record<string, string> {
  const pairs = Array.isArray(value) ? value.map(String) : []
  return Object.fromEntries(
    pairs.map((pair) => [pair.slice(0, pair.indexOf("=")), pair.slice(pair.indexOf("=") + 1)]),
  )
}

// Layers ---------------------------------------------------------------------------------------------------------

/** Lines of a history that make a layer though nothing is in it. */
const MAKES_LAYER = /^(bentoctl: |(COPY|ADD|RUN|WORKDIR) )/

function layersOf(image: ImageInfo, history: readonly HistoryEntry[]): LayerReport[] {
  // Our part begins where we become root; where nothing had to run, with the first layer of ours.
  const root = history.findLastIndex(({ createdBy }) =>
    /^(\/bin\/sh -c #\(nop\) +)?USER 0:0$/.test(createdBy),
  )
  const written = history.findIndex(({ createdBy }) => createdBy.startsWith("bentoctl: "))
  const ours = root === -1 ? written : root
  const lines = history
    .map((line, index) => ({ ...line, isOurs: ours !== -1 && index >= ours }))
    .filter(({ createdBy, sizeBytes }) => sizeBytes > 0 || MAKES_LAYER.test(createdBy))
  const known = lines.length === image.layers.length
  return lines.map(({ createdBy, sizeBytes, isOurs }, index) => ({
    ...(isOurs ? causeOf(createdBy) : { cause: "base" as const, name: oneLine(createdBy) || "base image" }),
    digest: known ? (image.layers[index] ?? null) : null,
    sizeBytes,
  }))
}

/** Both builders say where the files went: `bentoctl: … in PATH`, `COPY … PATH # buildkit`. */
function causeOf(createdBy: string): Pick<LayerReport, "cause" | "name"> {
  const [, target = ""] = /(\/\S*\/)(?: # buildkit)?$/.exec(createdBy) ?? []
  const [, name] = /^bentoctl: (.*) in \S+$/.exec(createdBy) ?? []
  const [, model, version] = /^\/home\/bentoml\/bento\/models\/([^/]+)\/([^/]+)\/$/.exec(target) ?? []
  if (model !== undefined) return { cause: "model", name: `model ${model}:${version}` }
  if (target.startsWith(`${RUNTIME_PATH}/`)) return { cause: "runtime", name: name ?? "runtime" }
  if (target === `${BENTO_PATH}/src/`) return { cause: "source", name: "source" }
  if (target === `${BENTO_PATH}/`) {
    const isAll = name === undefined ? createdBy.startsWith("COPY bento/ ") : name.startsWith("source")
    return { cause: "bento", name: isAll ? "source and metadata" : "metadata" }
  }
  if (target.endsWith("/node_modules/")) return { cause: "packages", name: "npm packages" }
  return { cause: "step", name: oneLine(createdBy) }
}

function oneLine(text: string): string {
  return text.replace(/\s+/g, " ").trim()
}

// Two images -----------------------------------------------------------------------------------------------------

/** null: the image has no such thing. */
export interface Change {
  readonly name: string
  readonly before: string | null
  readonly after: string | null
}

export interface ImageDiff {
  readonly before: ImageReport
  readonly after: ImageReport
  readonly base: readonly Change[]
  readonly runtime: readonly Change[]
  readonly models: readonly Change[]
  /** Files below `src/`, by their digests. */
  readonly source: readonly Change[]
  readonly env: readonly Change[]
  readonly labels: readonly Change[]
  /** Layers of the second image; which of them whoever has the first one must fetch. */
  readonly layers: readonly (LayerReport & { readonly isFetched: boolean })[]
  /** Before compression; null where the engine does not tell layers apart. */
  readonly fetchBytes: number | null
}

export async function diffImages(
  references: readonly [before: string, after: string],
  engine: Answers,
  signal?: AbortSignal,
): Promise<ImageDiff> {
  const before = await inspectImage(references[0], engine, signal)
  const after = await inspectImage(references[1], engine, signal)
  const present = new Set(before.layers.map(({ digest }) => digest))
  const layers = after.layers.map((layer) => ({
    ...layer,
    isFetched: layer.digest === null || !present.has(layer.digest),
  }))
  const isKnown = [...before.layers, ...after.layers].every(({ digest }) => digest !== null)
  const of = (report: ImageReport, cause: LayerCause): string =>
    report.layers
      // An instruction such as WORKDIR leaves a layer behind with nothing in it.
      .filter((layer) => layer.cause === cause && (cause !== "step" || layer.sizeBytes > 0))
      .map(({ digest, name }) => digest ?? name)
      .join(" ")
  const sourceLayer = (report: ImageReport): string => of(report, "source") || of(report, "bento")
  const sources = await Promise.all(
    sourceLayer(before) === sourceLayer(after)
      ? []
      : [before, after].map((report) => sourceFiles(report, engine, signal)),
  )
  const facts = (report: ImageReport): Record<string, string | null> => ({
    name: report.base.name,
    digest: report.base.digest,
    layers: of(report, "base"),
  })
  const runtime = (report: ImageReport): Record<string, string | null> => ({
    ...report.versions,
    platform: report.platform,
    layer: of(report, "runtime"),
    packages: of(report, "packages"),
    steps: of(report, "step"),
  })
  return {
    before,
    after,
    base: changes(facts(before), facts(after)),
    runtime: changes(runtime(before), runtime(after)),
    models: changes(modelDigests(before), modelDigests(after)),
    source: changes(sources[0] ?? {}, sources[1] ?? {}),
    env: changes(before.env, after.env),
    labels: changes(before.labels, after.labels),
    layers,
    fetchBytes: isKnown
      ? layers.reduce((sum, { isFetched, sizeBytes }) => sum + (isFetched ? sizeBytes : 0), 0)
      : null,
  }
}

function changes(
  before: Readonly<Record<string, string | null>>,
  after: Readonly<Record<string, string | null>>,
): Change[] {
  return [...new Set([...Object.keys(before), ...Object.keys(after)])]
    .toSorted(compareText)
    .map((name) => ({ name, before: before[name] ?? null, after: after[name] ?? null }))
    .filter((change) => change.before !== change.after)
}

/** By tag, what of a model tells it from another one of that tag: the digests of its files, or of its layer. */
function modelDigests({ models, layers }: ImageReport): Record<string, string> {
  return Object.fromEntries(
    models.map(({ tag, files }) => {
      const layer = layers.find(({ name }) => name === `model ${tag}`)
      return [tag, files === undefined ? (layer?.digest ?? "") : Object.entries(files).join(" ")]
    }),
  )
}

async function sourceFiles(
  report: ImageReport,
  engine: Answers,
  signal: AbortSignal | undefined,
): Promise<Record<string, string>> {
  const image = { id: report.id, platform: report.platform as Platform }
  const [found] = await engine.readPaths(image, [`${BENTO_PATH}/src`], readDigests, signal)
  return found ?? {}
}

async function readDigests(tar: Readable): Promise<Record<string, string>> {
  const reader = extract()
  tar.on("error", (error) => reader.destroy(error))
  tar.pipe(reader)
  const digests: Record<string, string> = {}
  for await (const entry of reader) {
    const hash = createHash("sha256")
    for await (const chunk of entry) hash.update(chunk as Uint8Array)
    const { name, type, linkname } = entry.header
    if (type === "file") digests[name] = `sha256:${hash.digest("hex")}`
    else if (type === "symlink") digests[name] = `link to ${linkname}`
  }
  return digests
}
