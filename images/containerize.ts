/** A Bento of the store → an image: the plan, then one of two ways to carry it out. This is the walk. */
import { constants } from "node:fs"
import { access, readFile, writeFile } from "node:fs/promises"
import path from "node:path"
import type { Bento, JsonObject } from "../store/bento.ts"
import { BentoError } from "../store/errors.ts"
import type { Model } from "../store/model.ts"
import { openBentoStore, openModelStore } from "../store/store.ts"
import { formatTag } from "../store/tag.ts"
import type { TagRef } from "../store/tag.ts"
import { assemble, basesOf, CannotAssemble, stepOptions } from "./assemble.ts"
import type { Assembling } from "./assemble.ts"
import type { BuilderName, BuildEvent, ImageEngine, StepOptions } from "./builder.ts"
import { openCache } from "./cache.ts"
import { createContext, dockerfileOf } from "./context.ts"
import { writeContext } from "./context-folder.ts"
import { lockedPackages, openapiOf, preparedOf, runtimeFacts, storedSourceBytes, withFacts } from "./facts.ts"
import type { ModelFacts, RuntimeFacts } from "./facts.ts"
import { ensureModelImage, modelImage } from "./model-image.ts"
import type { StoredModel } from "./model-image.ts"
import { readPackageFiles } from "./node-packages.ts"
import { readNpmrc } from "./npmrc.ts"
import {
  DEFAULT_PLATFORM,
  defaultPlatform,
  imageNames,
  PACKAGES_DIR,
  planImage,
  SETUP_FILE,
  TEMPLATE_FILE,
  whyDockerfile,
  withModelImages,
} from "./plan.ts"
import type { ImagePlan, Platform } from "./plan.ts"

/** A Bento of the store, read. */
export interface StoredBento {
  readonly bento: Bento
  readonly openapi: JsonObject | null
  /** What it has prepared for its server, by file name. */
  readonly prepared: Readonly<Record<string, string>>
  readonly dir: string
  readonly models: readonly { readonly model: Model; readonly dir: string; readonly facts?: ModelFacts }[]
  /** See `sourceBytesOf`, if it is known. */
  readonly sourceBytes?: number
  /** Of the server for one platform, if it was just looked at. */
  readonly runtime?: { readonly platform: Platform; readonly facts: RuntimeFacts }
  /** Settings of npm registries with their credentials, from the project too; by default only the user's own. */
  readonly npmrc?: string
}

export interface PlanContainerOptions {
  readonly bento: TagRef
  /** BENTOML_HOME. */
  readonly home: string
  readonly runtimeDir: string
  /** What overrides `node:24-bookworm-slim` (BENTOCTL_BASE_IMAGE). */
  readonly baseImage?: string | undefined
  readonly platform?: Platform | undefined
  readonly tags?: readonly string[] | undefined
  /** Where values of build-time variables are looked up before the Bento's own. */
  readonly env?: Readonly<Record<string, string | undefined>> | undefined
  /** Values of build-time variables of the Bento, which win over `env`; and of ARGs of the Dockerfile. */
  readonly buildArgs?: Readonly<Record<string, string>> | undefined
  /** Over those of the Bento. */
  readonly labels?: Readonly<Record<string, string>> | undefined
  /** The Bento itself, from whoever has just built it: it is not read again. */
  readonly built?: StoredBento | undefined
}

interface EngineOptions extends StepOptions {
  readonly engine: ImageEngine
  /** Ask the registry for a newer base, whether the engine has one or not. */
  readonly pull?: boolean | undefined
  readonly signal?: AbortSignal | undefined
  /** Milliseconds, for the durations that are reported. */
  readonly clock?: () => number
}

export interface ContainerizeOptions extends PlanContainerOptions, EngineOptions {
  /** Default: assemble where that is possible. */
  readonly builder?: BuilderName | "auto" | undefined
  /** A file for the bill of materials of the image. */
  readonly sbom?: string | undefined
}

/** What the image of a Bento will be; asks the store, not the engine. */
export async function planContainer(options: PlanContainerOptions): Promise<ImagePlan> {
  return (await planWithModels(options)).plan
}

async function planWithModels(options: PlanContainerOptions): Promise<{
  plan: ImagePlan
  models: readonly StoredModel[]
  /** Those that the plan does not hold; undefined for none. */
  buildArgs: Readonly<Record<string, string>> | undefined
}> {
  const { home, runtimeDir } = options
  const stored = options.built ?? (await readBento(options))
  const { bento, openapi, prepared, dir, models, npmrc } = stored
  const { platform = defaultPlatform(bento.docker) } = options
  const cache = openCache(home)
  const runtime =
    stored.runtime?.platform === platform
      ? stored.runtime.facts
      : await runtimeFacts(runtimeDir, platform, cache)
  const plan = planImage({
    bento,
    dockerfileTemplate:
      bento.docker.dockerfileTemplate === null ? undefined : await readPart(dir, TEMPLATE_FILE),
    setupScript: bento.docker.setupScript === null ? undefined : await readPart(dir, SETUP_FILE),
    bentoDir: dir,
    models: await withFacts(models, cache),
    runtimeDir,
    runtime,
    sourceBytes: stored.sourceBytes ?? (await storedSourceBytes(dir)),
    openapi,
    prepared,
    locked:
      bento.node === undefined ? [] : lockedPackages(await readPackageFiles(path.join(dir, PACKAGES_DIR))),
    platform,
    baseImage: options.baseImage,
    tags: options.tags,
    labels: options.labels,
    buildEnv: { ...options.env, ...options.buildArgs },
    npmrc: bento.node === undefined ? undefined : (npmrc ?? (await readNpmrc(options.env ?? {}, null))),
  })
  const others = Object.entries(options.buildArgs ?? {}).filter(
    ([given]) => !bento.envs.some(({ name, stage }) => stage === "build" && name === given),
  )
  return { plan, models, buildArgs: others.length === 0 ? undefined : Object.fromEntries(others) }
}

/** What every Dockerfile takes without an ARG. */
const PREDEFINED_ARG = /^(?:(?:HTTPS?|FTP|NO|ALL)_PROXY|BUILDKIT_\w+|SOURCE_DATE_EPOCH)$/i

/** Names of arguments that no ARG of the Dockerfile takes. */
async function unusedArgs(
  plan: ImagePlan,
  buildArgs: Readonly<Record<string, string>> = {},
): Promise<string[]> {
  const others = Object.keys(buildArgs).filter((name) => !PREDEFINED_ARG.test(name))
  if (others.length === 0) return []
  const dockerfile = await dockerfileOf(plan)
  const lines = dockerfile.matchAll(/^\s*ARG\s+(.*)$/gim)
  const taken = new Set(
    [...lines].flatMap(([, line = ""]) => line.split(/\s+/).map((word) => word.split("=")[0])),
  )
  return others.filter((name) => !taken.has(name))
}

async function readBento({ bento: asked, home }: PlanContainerOptions): Promise<StoredBento> {
  const bentos = openBentoStore(home)
  const store = openModelStore(home)
  const tag = await bentos.resolve(asked)
  const bento = await bentos.get(tag)
  const models = await Promise.all(
    bento.models.map(async (model) => ({ model: await store.get(model.tag), dir: store.dir(model.tag) })),
  )
  const dir = bentos.dir(tag)
  return { bento, openapi: await openapiOf(dir), prepared: await preparedOf(dir), dir, models }
}

/** A file that bento.yaml says the Bento has. */
async function readPart(dir: string, file: string): Promise<string> {
  try {
    return await readFile(path.join(dir, file), "utf8")
  } catch (cause) {
    const hint = "Delete it (`bentoctl delete TAG`) and build it again."
    throw new BentoError("STORE_CORRUPT", `the Bento in ${dir} lacks its ${file}`, { hint, cause })
  }
}

/** A build context that lies in a folder. */
export interface WrittenContext {
  readonly platform: Platform
  /** Names that the image is to get. */
  readonly tags: readonly string[]
  readonly fileCount: number
  readonly sizeBytes: number
  /** Its files that nobody else should see: values of build-time variables, credentials of registries. */
  readonly secrets: readonly string[]
  /** Names of build arguments that are still to be given where it is built. */
  readonly buildArgs: readonly string[]
}

/** Writes all that the image of a Bento is built from, models too, into a folder; asks no engine. */
export async function containerizeInto(
  folder: string,
  options: PlanContainerOptions & { readonly signal?: AbortSignal | undefined },
): Promise<WrittenContext> {
  const { plan, buildArgs = {} } = await planWithModels(options)
  const context = await createContext(plan)
  await writeContext(context, folder, options.signal)
  const files = context.entries.filter((entry) => entry.kind === "file")
  return {
    platform: plan.platform,
    tags: plan.tags,
    fileCount: files.length,
    sizeBytes: context.sizeBytes,
    secrets: files.filter(({ secret, size }) => secret === true && size > 0).map(({ path }) => path),
    buildArgs: Object.keys(buildArgs),
  }
}

/** Whoever asks for a file in a folder that is not there need not wait for an image first. */
async function checkFolder(file: string): Promise<void> {
  await access(path.dirname(file), constants.W_OK).catch((error: unknown) => {
    throw unwritable(file, error)
  })
}

function unwritable(file: string, cause: unknown): BentoError {
  const reason = cause instanceof Error ? cause.message : String(cause)
  return new BentoError("SBOM_UNWRITABLE", `the bill of materials cannot be written to ${file}: ${reason}`, {
    cause,
  })
}

/** The one of the image, with what the engine knows of it. */
async function writeSbom(
  file: string,
  plan: ImagePlan,
  imageId: string,
  { engine, signal }: Assembling,
): Promise<void> {
  const { formatSbom } = await import("./sbom.ts")
  const base = await engine.inspect(plan.dockerfile.baseImage, signal)
  const text = formatSbom(plan.sbom, { id: imageId, tags: plan.tags, base })
  await writeFile(file, text).catch((error: unknown) => {
    throw unwritable(file, error)
  })
}

/** Builds the image of a Bento. The last event is `built`, or it throws. */
export async function* containerize(options: ContainerizeOptions): AsyncGenerator<BuildEvent> {
  const { engine, signal, builder: asked = "auto" } = options
  const { clock = () => performance.now() } = options
  const startedMs = clock()
  if (options.sbom !== undefined) await checkFolder(options.sbom)
  const { plan, models, buildArgs } = await planWithModels(options)
  const planned = whyDockerfile(plan)
  if (asked === "assemble" && planned !== null) throw cannotAssemble(plan, planned)
  const how = assembling({ ...options, buildArgs })
  for (const name of await unusedArgs(plan, buildArgs)) {
    yield { type: "warning", message: `nothing uses the build argument ${name}` }
  }
  signal?.throwIfAborted()
  const { noPartialLoads } = await engine.ping(signal)
  let imageId: string | undefined
  let reason = asked === "dockerfile" ? null : (planned ?? noPartialLoads)
  if (asked !== "dockerfile" && reason === null) {
    yield { type: "builder", builder: "assemble", reason: null }
    try {
      imageId = yield* assemble(plan, how)
    } catch (error) {
      if (!(error instanceof CannotAssemble)) throw error
      reason = error.message
      if (asked === "auto") {
        yield { type: "warning", message: `not assembled (${reason}); the Dockerfile is carried out instead` }
      }
    }
  }
  const builder = imageId === undefined ? "dockerfile" : "assemble"
  if (imageId === undefined) {
    if (asked === "assemble") throw cannotAssemble(plan, reason)
    yield { type: "builder", builder: "dockerfile", reason }
    imageId = yield* carryOut(plan, models, how)
  }
  if (options.sbom !== undefined) await writeSbom(options.sbom, plan, imageId, how)
  const sizeBytes = await engine.sizeOf(imageId, signal)
  const { tags } = plan
  yield { type: "built", builder, reason, imageId, tags, sizeBytes, durationMs: clock() - startedMs }
}

function assembling(options: EngineOptions & { readonly home: string }): Assembling {
  const { engine, pull, signal, clock = () => performance.now() } = options
  return { engine, pull, ...stepOptions(options), signal, clock, cache: openCache(options.home) }
}

function cannotAssemble(plan: ImagePlan, reason: string | null): BentoError {
  return new BentoError("ASSEMBLE_IMPOSSIBLE", `the image of ${plan.bento} cannot be assembled: ${reason}`)
}

/** The second way: the engine carries out the Dockerfile. Models come from images of their own. */
async function* carryOut(
  plan: ImagePlan,
  models: readonly StoredModel[],
  how: Assembling,
): AsyncGenerator<BuildEvent, string> {
  const { engine, signal, pull } = how
  const { platform } = plan
  for (const base of await basesOf(plan, how)) {
    yield* engine.ensureImage(base.reference, { platform: base.platform, pull, signal })
  }
  const images = new Map<string, string>()
  try {
    for (const stored of models) {
      const tag = formatTag(stored.model.tag)
      if (!images.has(tag)) images.set(tag, yield* ensureModelImage(stored, { ...how, platform }))
    }
  } catch (error) {
    if (!(error instanceof CannotAssemble)) throw error
    yield { type: "warning", message: `models are sent with the build context (${error.message})` }
    images.clear()
  }
  const context = await createContext(withModelImages(plan, images))
  signal?.throwIfAborted()
  return yield* engine.build(context, { tags: plan.tags, platform, ...stepOptions(how), signal })
}

export interface ModelContainerOptions extends EngineOptions {
  readonly model: TagRef
  readonly home: string
  readonly tags?: readonly string[] | undefined
  /** What the model is laid on; nothing if it is absent. */
  readonly baseImage?: string | undefined
  readonly platform?: Platform | undefined
}

/** Makes an image of a model alone. The last event is `built`, or it throws. */
export async function* containerizeModel(options: ModelContainerOptions): AsyncGenerator<BuildEvent> {
  const { engine, signal, platform = DEFAULT_PLATFORM, baseImage } = options
  const how = assembling(options)
  const startedMs = how.clock()
  const store = openModelStore(options.home)
  const model = await store.get(options.model)
  const tags = imageNames(options.tags ?? [formatTag(model.tag)])
  const { noPartialLoads } = await engine.ping(signal)
  const impossible = (reason: string, cause?: unknown): BentoError => {
    const on = baseImage === undefined ? "" : ` on ${baseImage}`
    const hint =
      baseImage === undefined ? "Use another engine." : "Leave out --base-image, or use another engine."
    const message = `the image of the model ${formatTag(model.tag)} cannot be assembled${on}: ${reason}`
    return new BentoError("ASSEMBLE_IMPOSSIBLE", message, { hint, cause })
  }
  if (baseImage !== undefined && noPartialLoads !== null) throw impossible(noPartialLoads)
  if (baseImage !== undefined) yield* engine.ensureImage(baseImage, { platform, signal })
  const base = baseImage === undefined ? null : await engine.inspect(baseImage, signal, platform)
  const stored = { model, dir: store.dir(model.tag) }
  let imageId: string
  try {
    imageId = (yield* modelImage(stored, tags, { ...how, platform, base: base ?? undefined })).imageId
  } catch (error) {
    throw error instanceof CannotAssemble ? impossible(error.message, error) : error
  }
  const sizeBytes = await engine.sizeOf(imageId, signal)
  const durationMs = how.clock() - startedMs
  yield { type: "built", builder: "assemble", reason: null, imageId, tags, sizeBytes, durationMs }
}
