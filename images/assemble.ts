/**
 * The first way to carry out a plan: what has to run becomes a *foundation* image, through its Dockerfile and only
 * once; all else is files, which we write as layers and load on top. The engine keeps a layer that it has, so only
 * layers that it lacks are sent.
 *
 * The image's id is the digest of a config that we write: a function of the Bento and of the foundation.
 */
import { createHash } from "node:crypto"
import type { Readable } from "node:stream"
import { extract } from "tar-stream"
import { PLATFORMS } from "../store/bento.ts"
import { BentoError, BuildError } from "../store/errors.ts"
import { LoadRefused, platformOf } from "./builder.ts"
import type {
  BuildEvent,
  HistoryEntry,
  ImageEngine,
  ImageInfo,
  ImageSummary,
  LayerBlob,
  StepOptions,
} from "./builder.ts"
import type { Cache } from "./cache.ts"
import { createContext } from "./context.ts"
import { containerConfig, imageConfig } from "./image-config.ts"
import { archiveEnd, digestsOf } from "./image-archive.ts"
import type { ArchiveEnd, Below, SentLayer } from "./image-archive.ts"
import type { Base, ImageConfig, WrittenLayer } from "./image-config.ts"
import {
  countLayer,
  isSmall,
  layerBytes,
  layerChunks,
  layerCounter,
  readLayer,
  rememberDigest,
  rememberedDigest,
} from "./layers.ts"
import type { FolderFact, FolderFacts, Layer } from "./layers.ts"
import { BENTO_PATH, MODELS_LABEL, RUNTIME_PATH } from "./plan.ts"
import type { ImagePlan, Platform } from "./plan.ts"
import { tarStream } from "./tar.ts"
import type { TarEntry } from "./tar.ts"

export interface Assembling extends StepOptions {
  readonly engine: ImageEngine
  readonly cache: Cache
  /** Ask the registry for a newer base. */
  readonly pull?: boolean | undefined
  readonly signal?: AbortSignal | undefined
  /** Milliseconds. */
  readonly clock: () => number
}

/** This image, or this engine, is not for us; the other way may do. */
export class CannotAssemble extends Error {
  override readonly name = "CannotAssemble"
}

/** On foundations: the digest of all that they depend on. */
export const FOUNDATION_LABEL = "bentoctl.foundation"

export const FOUNDATION_REPOSITORY = "bentoctl/foundation"

/** On images of Bentos, by the plan. */
export const BENTO_LABEL = "bentoctl.bento"

/** Makes the image of a plan and gives it its names. Ends with its id. */
export async function* assemble(plan: ImagePlan, options: Assembling): AsyncGenerator<BuildEvent, string> {
  const foundation = yield* ensureFoundation(plan, options)
  // Elsewhere another connection, which ssh logs in for, may take longer than what it saves.
  const begun = (await options.engine.ping(options.signal)).isLocal ? beginLoad(options) : undefined
  const neighbours = askNeighbours(plan.tags, options)
  let imageId: string
  try {
    const { folders, history } = await factsOf(foundation, plan, options)
    const layers = await Promise.all(plan.layers.map((layer) => readLayer(layer, folders)))
    const base: Base = { ...foundation, config: withoutFoundationLabel(foundation.config), history }
    const { dockerfile, createdAt } = plan
    const config = containerConfig(base.config, dockerfile.env, dockerfile.config)
    imageId = yield* loadImage(
      {
        layers,
        base: foundation,
        platform: plan.platform,
        neighbours,
        describe: (written) => imageConfig(base, { createdAt, config, layers: written }),
      },
      options,
      begun,
    )
  } finally {
    begun?.end()
  }
  // Last of all: whatever breaks before leaves an image that no name leads to.
  options.signal?.throwIfAborted()
  await tagImage(imageId, plan.tags, options)
  return imageId
}

export async function tagImage(
  imageId: string,
  tags: readonly string[],
  { engine, signal }: Assembling,
): Promise<void> {
  const tagged = await Promise.all(tags.map((tag) => engine.tag(imageId, tag, signal)))
  if (tagged.every(Boolean)) return
  throw new CannotAssemble("the engine gave the image another id than the digest of its config")
}

// Foundation ----------------------------------------------------------------------------------------------------

/** The image that our layers lie on: the base itself where nothing has to run. */
async function* ensureFoundation(
  plan: ImagePlan,
  options: Assembling,
): AsyncGenerator<BuildEvent, ImageInfo> {
  const { engine, pull, noCache, signal } = options
  const { platform } = plan
  const bases: ImageInfo[] = []
  for (const base of await basesOf(plan, options)) {
    yield* engine.ensureImage(base.reference, { platform: base.platform, pull, signal })
    bases.push(await existing(base.reference, options, base.platform))
  }
  const base = bases.at(-1)
  if (base === undefined) throw new Error("a plan has a base image")
  const triggers = base.config["OnBuild"]
  if (Array.isArray(triggers) && triggers.length > 0) {
    throw new CannotAssemble("the base image has ONBUILD instructions, which only a Dockerfile carries out")
  }
  if (!plan.runs) return base
  const context = await createContext(plan, "foundation")
  const steps = stepOptions(options)
  const given = [steps.buildArgs, steps.network].some((each) => each !== undefined)
    ? [steps.buildArgs, steps.network]
    : []
  const dependsOn = JSON.stringify([
    "1",
    platform,
    bases.map(({ id }) => id),
    await context.digest(),
    ...given,
  ])
  const digest = createHash("sha256").update(dependsOn).digest("hex")
  const reference = `${FOUNDATION_REPOSITORY}:${digest.slice(0, 32)}`
  const found = noCache === true ? null : await engine.inspect(reference, signal, platform)
  if (found !== null) {
    const step = { type: "step", step: reference, name: `foundation ${reference}` } as const
    yield { ...step, state: "started" }
    yield { ...step, state: "cached", durationMs: 0 }
    return found
  }
  const labels = { [FOUNDATION_LABEL]: digest }
  yield* engine.build(context, { tags: [reference], platform, labels, ...steps, signal })
  return existing(reference, options, platform)
}

/** The images that a plan starts from, and for which platform: the stage that installs packages runs on the engine's own. */
export async function basesOf(
  { baseImages, dockerfile, platform }: ImagePlan,
  { engine, signal }: Pick<Assembling, "engine" | "signal">,
): Promise<{ readonly reference: string; readonly platform: Platform }[]> {
  const { packages, cuda, baseImage } = dockerfile
  const { os, arch } = await engine.ping(signal)
  const own = PLATFORMS.find((known) => known === `${os}/${arch}`) ?? platform
  return baseImages.map((reference) => {
    const isForPackages = reference === packages?.image && reference !== baseImage && cuda === null
    return { reference, platform: isForPackages ? own : platform }
  })
}

/** Those for steps alone. */
export function stepOptions({ noCache, cacheFrom, buildArgs, network }: StepOptions): StepOptions {
  return { noCache, cacheFrom, buildArgs, network }
}

async function existing(
  reference: string,
  { engine, signal }: Assembling,
  platform: Platform,
): Promise<ImageInfo> {
  const found = await engine.inspect(reference, signal, platform)
  if (found === null) {
    throw new BuildError(`the image ${reference} was in the engine a moment ago, and is gone`)
  }
  if (platformOf(found) === platform) return found
  throw new CannotAssemble(`of ${reference} the engine shows what is for ${platformOf(found)} alone`)
}

/** It is about the foundation, not about what lies on it. */
function withoutFoundationLabel(config: ImageInfo["config"]): ImageInfo["config"] {
  const { [FOUNDATION_LABEL]: _, ...labels } = labelsOf({ config })
  return { ...config, Labels: labels }
}

// What must be known of the foundation -----------------------------------------------------------------------------

interface Facts {
  readonly folders: FolderFacts
  readonly history: readonly HistoryEntry[]
}

type Found = Exclude<FolderFact, null> | "no folder" | null

/** Every folder above a file of ours, down to those that are ours alone. */
const FOLDERS = [RUNTIME_PATH, BENTO_PATH].flatMap((target) => {
  const parts = target.split("/").slice(1)
  return parts.map((_, index) => `/${parts.slice(0, index + 1).join("/")}`)
})

/** Asked once for each image: it takes a container that is made and never started. */
async function factsOf(image: ImageInfo, plan: ImagePlan, options: Assembling): Promise<Facts> {
  const name = `base ${image.id} ${plan.platform}`
  const kept = await options.cache.read(name, "1")
  const facts = kept === null ? await askFacts(image, plan, options) : (JSON.parse(kept) as RawFacts) // as written below
  if (kept === null) await options.cache.write(name, "1", JSON.stringify(facts))
  const folders = facts.folders.map(([folder, found]): [string, FolderFact] => {
    if (found === "no folder") throw new CannotAssemble(`${folder} is no folder in the base image`)
    // CUDA's libraries are put there by the foundation itself.
    const expected = folder === RUNTIME_PATH && plan.dockerfile.cuda !== null
    if (found !== null && (folder === RUNTIME_PATH || folder === BENTO_PATH) && !expected) {
      throw new CannotAssemble(`the base image has a folder ${folder} already`)
    }
    return [folder, found]
  })
  return { folders: new Map(folders), history: facts.history }
}

interface RawFacts {
  readonly folders: readonly (readonly [string, Found])[]
  readonly history: readonly HistoryEntry[]
}

async function askFacts(
  image: ImageInfo,
  { platform }: ImagePlan,
  { engine, signal }: Assembling,
): Promise<RawFacts> {
  try {
    const found = await engine.readPaths({ id: image.id, platform }, FOLDERS, readFolder, signal)
    // Afterwards: what is for another platform may only now be unpacked, and its sizes known.
    const history = await engine.history(image.id, signal, platform)
    return { folders: FOLDERS.map((folder, index) => [folder, found[index] ?? null]), history }
  } catch (error) {
    throw unreadableBase(error, signal)
  }
}

function unreadableBase(error: unknown, signal: AbortSignal | undefined): Error {
  signal?.throwIfAborted()
  if (error instanceof BentoError) return error
  const reason = error instanceof Error ? error.message : String(error)
  return new CannotAssemble(`the base image cannot be looked into: ${reason}`, { cause: error })
}

/** The first entry is the path itself; what is in it does not matter. */
async function readFolder(tar: Readable): Promise<Found> {
  const reader = extract()
  tar.on("error", (error) => reader.destroy(error))
  tar.pipe(reader)
  try {
    for await (const { header } of reader) {
      if (header.type !== "directory") return "no folder"
      return { mode: (header.mode ?? 0o755) & 0o7777, uid: header.uid ?? 0, gid: header.gid ?? 0 }
    }
    return null
  } finally {
    tar.destroy()
  }
}

// What the engine has, and what it is sent -------------------------------------------------------------------------

export interface Loading {
  readonly layers: readonly Layer[]
  /** The image that ours lie on; null for none. */
  readonly base: Pick<ImageInfo, "id" | "layers" | "sizeBytes"> | null
  readonly platform: Platform
  readonly neighbours: Neighbours
  readonly describe: (written: readonly WrittenLayer[]) => ImageConfig
}

/** Images of the engine that may have layers of a new one. */
export interface Neighbours {
  /** Those whose names it takes over, which are the likeliest. */
  readonly replaced: Promise<readonly ImageInfo[]>
  /** All others of ours. */
  readonly others: () => Promise<readonly ImageSummary[]>
}

/** Asks at once for what is certain to be needed: an engine with a hundred images lists them in 60 ms. */
export function askNeighbours(names: readonly string[], { engine, signal }: Assembling): Neighbours {
  const asked = Promise.all(names.map((name) => engine.inspect(name, signal)))
  const replaced = asked.then((found) => found.filter((image) => image !== null))
  let listed: Promise<readonly ImageSummary[]> | undefined
  const others = (): Promise<readonly ImageSummary[]> => (listed ??= engine.list(BENTO_LABEL, signal))
  const lookFurther = replaced.then((images) => (names.length > 0 && images.length === 0 ? others() : []))
  lookFurther.catch(() => {}) // told where it is awaited
  return { replaced, others }
}

/** A load whose archive begins before it is known what is in it. */
interface BegunLoad {
  /** Sends the rest; once. */
  readonly send: (entries: AsyncIterable<TarEntry>) => ReturnType<ImageEngine["load"]>
  /** Breaks it off, unless it has ended. */
  readonly end: () => void
  /** Whether it failed before there was anything to send, as where somebody between cuts off a connection that idles. */
  readonly isBroken: () => boolean
}

/**
 * The engine starts a program of its own to read an archive, which takes it 50 ms; so it is asked to as soon as it is
 * likely that there will be one.
 */
function beginLoad({ engine, signal }: Assembling): BegunLoad {
  const leave = new AbortController()
  const either = signal === undefined ? leave.signal : AbortSignal.any([signal, leave.signal])
  const rest = Promise.withResolvers<AsyncIterable<TarEntry>>()
  rest.promise.catch(() => {}) // told by `progress`, if that is awaited
  async function* entries(): AsyncGenerator<TarEntry> {
    yield { header: { type: "directory", name: LAYERS_FOLDER, mode: 0o755, uid: 0, gid: 0 } }
    yield* await rest.promise
  }
  const progress = engine.load(tarStream(entries()), { signal: either })
  const first = progress.next()
  let isBroken = false
  first.catch(() => void (isBroken = true)) // told by `send`, if that is called
  return {
    isBroken: () => isBroken,
    async *send(given) {
      rest.resolve(given)
      for (let next = await first; next.done !== true; next = await progress.next()) yield next.value
    },
    end: () => {
      leave.abort()
      rest.reject(leave.signal.reason)
    },
  }
}

/** Hands the image to the engine, without a name. Ends with its id. */
export async function* loadImage(
  job: Loading,
  options: Assembling,
  begun?: BegunLoad,
): AsyncGenerator<BuildEvent, string> {
  const below = yield* layersBelow(job, options)
  const known = await knownDigests(job.layers, options)
  const present = await presentLayers(job, below, known, options)
  const all = known.filter((digest) => digest !== null)
  if (present === job.layers.length) {
    const { id } = await endOf(job, below, all)
    if ((await options.engine.inspect(id, options.signal)) !== null) {
      yield* cachedSteps(job.layers)
      return id
    }
  }
  try {
    yield* cachedSteps(job.layers.slice(0, present))
    return yield* send(job, below, known, present, options, begun)
  } catch (error) {
    if (!(error instanceof LoadRefused)) throw error
    if (present === 0) throw new CannotAssemble(error.message, { cause: error })
  }
  // A layer that an image of the engine is made of was not to be had after all.
  try {
    return yield* send(job, below, known, 0, options)
  } catch (error) {
    if (error instanceof LoadRefused) throw new CannotAssemble(error.message, { cause: error })
    throw error
  }
}

/** An engine that keeps blobs tells which only in an archive of the image, so it is asked once for each base. */
async function* layersBelow(
  { base, platform }: Loading,
  options: Assembling,
): AsyncGenerator<BuildEvent, Below> {
  const { engine, signal, clock } = options
  const { store } = await engine.ping(signal)
  if (store === "layers") return { store, digests: base?.layers ?? [] }
  if (base === null) return { store, blobs: [] }
  const kept = await knownBlobs(base.id, platform, options)
  if (kept !== null) return { store, blobs: kept }
  if (base.sizeBytes > MOST_BASE_BYTES) {
    throw new CannotAssemble("the engine would have to hand out the whole base image once, which is large")
  }
  const step = {
    type: "step",
    step: `manifest ${base.id}`,
    name: "read the manifest of the base image",
  } as const
  yield { ...step, state: "started" }
  const startedMs = clock()
  let blobs: readonly LayerBlob[] | null
  try {
    blobs = await engine.layerBlobs({ id: base.id, platform }, signal)
  } catch (error) {
    throw unreadableBase(error, signal)
  }
  if (blobs?.length !== base.layers.length) {
    throw new CannotAssemble("the engine does not tell the layers of the base image")
  }
  await rememberBlobs(base.id, platform, blobs, options)
  yield { ...step, state: "done", durationMs: clock() - startedMs }
  return { store, blobs }
}

/** An engine was seen to hand out 40 MB/s, and the manifest is anywhere in it. */
const MOST_BASE_BYTES = 1 << 30

/** Null for an image whose manifest nobody has seen here. One id may stand for several platforms. */
async function knownBlobs(
  id: string,
  platform: Platform,
  { cache }: Assembling,
): Promise<readonly LayerBlob[] | null> {
  const kept = await cache.read(`blobs ${id} ${platform}`, "1")
  return kept === null ? null : (JSON.parse(kept) as readonly LayerBlob[]) // as written below
}

async function rememberBlobs(
  id: string,
  platform: Platform,
  blobs: readonly LayerBlob[],
  { cache }: Assembling,
): Promise<void> {
  await cache.write(`blobs ${id} ${platform}`, "1", JSON.stringify(blobs))
}

async function endOf(
  { layers, describe }: Loading,
  below: Below,
  digests: readonly string[],
): Promise<ArchiveEnd> {
  const digestAt = (index: number): string => digests[index] ?? ""
  const config = describe(layers.map(({ createdBy }, index) => ({ createdBy, digest: digestAt(index) })))
  const sent = layers.map(async (layer, index): Promise<SentLayer> => {
    return { file: layerFile(index), digest: digestAt(index), size: await layerBytes(layer) }
  })
  return archiveEnd(config, below, await Promise.all(sent))
}

function* cachedSteps(layers: readonly Layer[]): Generator<BuildEvent> {
  for (const { name } of layers) {
    yield { type: "step", step: `layer ${name}`, name: `layer ${name}`, state: "started" }
    yield { type: "step", step: `layer ${name}`, name: `layer ${name}`, state: "cached", durationMs: 0 }
  }
}

/** Null for a large layer that nobody has counted since it changed. */
async function knownDigests(
  layers: readonly Layer[],
  { cache, noCache, signal }: Assembling,
): Promise<(string | null)[]> {
  return Promise.all(
    layers.map(async (layer) => {
      if (isSmall(layer)) return countLayer(layer, signal)
      return noCache === true ? null : rememberedDigest(layer, cache)
    }),
  )
}

/**
 * How many of the layers, from below, the engine has: an image of it begins with the same ones. A large layer that
 * was never counted is counted here if that may spare sending it; `known` learns it.
 */
async function presentLayers(
  { layers, platform, neighbours }: Loading,
  below: Below,
  known: (string | null)[],
  options: Assembling,
): Promise<number> {
  const { engine, cache, signal } = options
  const keptOf = async (image: ImageInfo): Promise<Kept> => {
    // The same layer can be another blob in an image from elsewhere: only of our own it is known which one.
    const blobs = below.store === "layers" ? null : ((await knownBlobs(image.id, platform, options)) ?? [])
    return { labels: labelsOf(image), layers: blobs?.map(({ digest }) => digest) ?? image.layers }
  }
  let count = 0
  /** Goes on counting with these images. */
  const countWith = async (found: readonly (ImageInfo | null)[]): Promise<void> => {
    const images = await Promise.all(found.filter((image) => image !== null).map(keptOf))
    for (; count < layers.length; count++) {
      const layer = layers[count]
      const start = [...digestsOf(below), ...known.slice(0, count)]
      const alike = images.filter((image) => start.every((digest, index) => image.layers[index] === digest))
      if (layer === undefined) return
      const worth = alike.filter(
        (image) => image.layers.length > start.length && mayHold(image.labels, layer),
      )
      if (worth.length === 0) return
      if (known[count] === null) {
        const digest = await countLayer(layer, signal)
        known[count] = digest
        await rememberDigest(layer, cache, digest)
      }
      if (!worth.some((image) => image.layers[start.length] === known[count])) return
    }
  }
  await countWith(await neighbours.replaced)
  if (layers.slice(count).every(isSmall)) return count
  const others = await neighbours.others()
  const sharedModels = ({ labels }: ImageSummary): number =>
    layers.filter((layer) => layer.model !== undefined && mayHold(labels, layer)).length
  const likely = others.toSorted((a, b) => sharedModels(b) - sharedModels(a)).slice(0, MOST_IMAGES)
  for (const some of [likely.slice(0, LIKELIEST_IMAGES), likely.slice(LIKELIEST_IMAGES)]) {
    await countWith(await Promise.all(some.map(({ id }) => engine.inspect(id, signal))))
    if (layers.slice(count).every(isSmall)) break
  }
  return count
}

/** An image of the engine, and its layers by the digests under which they are kept. */
interface Kept {
  readonly labels: Readonly<Record<string, string>>
  readonly layers: readonly string[]
}

/** More are not asked for their layers; asking takes a millisecond each. */
const MOST_IMAGES = 32

/** They are asked first, and often alone. */
const LIKELIEST_IMAGES = 4

/** An image that says which models it holds need not be compared with others. */
function mayHold(labels: Readonly<Record<string, string>>, { model }: Layer): boolean {
  const models = labels[MODELS_LABEL]
  return model === undefined || models === undefined || models.includes(JSON.stringify(model))
}

function labelsOf({ config }: Pick<ImageInfo, "config">): Record<string, string> {
  return (config["Labels"] ?? {}) as Record<string, string>
}

/** Sends the layers above the first `present` ones, and the config. */
async function* send(
  job: Loading,
  below: Below,
  known: readonly (string | null)[],
  present: number,
  options: Assembling,
  given?: BegunLoad,
): AsyncGenerator<BuildEvent, string> {
  const { cache, clock } = options
  const begun = given === undefined || given.isBroken() ? beginLoad(options) : given
  const { layers } = job
  const events = new Channel<BuildEvent>()
  let end: ArchiveEnd | undefined
  let sentMs = 0
  const loadStep = { type: "step", step: "load", name: "load into the engine" } as const
  async function* archiveEntries(): AsyncGenerator<TarEntry> {
    const digests = known.slice(0, present)
    for (const [index, layer] of layers.entries()) {
      if (index < present) continue
      const step = { type: "step", step: `layer ${layer.name}`, name: `layer ${layer.name}` } as const
      events.push({ ...step, state: "started" })
      const startedMs = clock()
      const counter = layerCounter()
      const size = await layerBytes(layer)
      let toldBytes = 0
      const body = watched(layerChunks(layer), (chunk, current) => {
        counter.add(chunk)
        if (isSmall(layer) || (current - toldBytes < size / 100 && current < size)) return
        toldBytes = current
        events.push({ type: "progress", step: step.step, name: layer.name, current, total: size })
      })
      yield { header: { type: "file", name: layerFile(index), mode: 0o644, size }, body }
      const digest = counter.digest()
      if (digest !== known[index]) await rememberDigest(layer, cache, digest)
      digests.push(digest)
      events.push({ ...step, state: "done", durationMs: clock() - startedMs })
    }
    // At the end, since only now all digests are known for certain.
    end = await endOf(job, below, digests.map(String))
    yield* end.entries
    sentMs = clock()
    events.push({ ...loadStep, state: "started" })
  }
  const load = async (): Promise<void> => {
    for await (const { current, total } of begun.send(archiveEntries())) {
      events.push({ type: "progress", step: loadStep.step, name: loadStep.name, current, total })
    }
    events.push({ ...loadStep, state: "done", durationMs: clock() - sentMs })
  }
  const loaded = load().then(
    () => events.end(),
    (error: unknown) => events.end({ error }),
  )
  try {
    yield* events
  } finally {
    // Whoever reads the events may have left.
    if (!events.ended) begun.end()
    await loaded
  }
  if (end === undefined) throw new Error("an archive is sent to its end")
  if (below.store === "blobs") await rememberBlobs(end.id, job.platform, end.blobs, options)
  return end.id
}

const LAYERS_FOLDER = "layers"

function layerFile(index: number): string {
  return `${LAYERS_FOLDER}/${index}.tar`
}

/** Passes chunks on, and tells of each, with how many bytes came so far. */
async function* watched(
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  see: (chunk: Uint8Array, bytes: number) => void,
): AsyncGenerator<Uint8Array> {
  let bytes = 0
  for await (const chunk of chunks) {
    bytes += chunk.length
    see(chunk, bytes)
    yield chunk
  }
}

/** Events of a work that goes on by itself; one reader. */
class Channel<T> implements AsyncIterable<T> {
  ended = false
  #items: T[] = []
  #failure: { readonly error: unknown } | undefined
  #wake = Promise.withResolvers<void>()

  push(item: T): void {
    this.#items.push(item)
    this.#wake.resolve()
  }

  end(failure?: { readonly error: unknown }): void {
    this.ended = true
    this.#failure = failure
    this.#wake.resolve()
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T> {
    for (;;) {
      const items = this.#items
      this.#items = []
      yield* items
      if (this.#items.length > 0) continue
      if (this.ended) break
      await this.#wake.promise
      this.#wake = Promise.withResolvers()
    }
    // oxlint-disable-next-line only-throw-error -- it is passed on as it came
    if (this.#failure !== undefined) throw this.#failure.error
  }
}
