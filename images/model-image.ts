/**
 * A model alone as an image: its files in `/models`, one layer, nothing to run. KServe (`oci://…`) and Kubernetes'
 * image volumes take it as it is, and a Dockerfile copies from it, so that a model never travels in a build context.
 */
import { formatTag } from "../store/tag.ts"
import type { Model } from "../store/model.ts"
import type { NamedValue } from "../templates/render.ts"
import { askNeighbours, loadImage, tagImage } from "./assemble.ts"
import type { Assembling } from "./assemble.ts"
import type { BuildEvent, ImageInfo } from "./builder.ts"
import { imageConfig, inherited, withLabels } from "./image-config.ts"
import type { Base } from "./image-config.ts"
import { countLayer, readLayer, rememberDigest, rememberedDigest } from "./layers.ts"
import { MODELS_PATH, rfc3339 } from "./plan.ts"
import type { LayerPlan, Platform } from "./plan.ts"

/** On images of models: the model's tag. */
export const MODEL_LABEL = "bentoctl.model"

/** On those that we made for ourselves, under this name. */
export const MODEL_REPOSITORY = "bentoctl/model"

export interface StoredModel {
  readonly model: Pick<Model, "tag" | "creationTime">
  /** Its folder in the store. */
  readonly dir: string
}

export interface ModelImageOptions extends Assembling {
  readonly platform: Platform
  /** What the model is laid on; nothing if it is absent. */
  readonly base?: ImageInfo | undefined
}

export interface ModelImage {
  readonly imageId: string
  /** Of its layer: a function of the model's files. */
  readonly digest: string
}

/** Makes the image of a model and gives it names. */
export async function* modelImage(
  stored: StoredModel,
  tags: readonly string[],
  options: ModelImageOptions,
): AsyncGenerator<BuildEvent, ModelImage> {
  const made = yield* loadModel(stored, tags, options)
  options.signal?.throwIfAborted()
  await tagImage(made.imageId, tags, options)
  return made
}

/** A reference to the model's image under a name that tells its content; made if the engine has none. */
export async function* ensureModelImage(
  stored: StoredModel,
  options: ModelImageOptions,
): AsyncGenerator<BuildEvent, string> {
  const { engine, cache, signal } = options
  const layer = await readLayer(layerPlan(stored), new Map())
  let digest = options.noCache === true ? null : await rememberedDigest(layer, cache)
  if (digest === null) {
    digest = await countLayer(layer, signal)
    await rememberDigest(layer, cache, digest)
  }
  const [, architecture] = options.platform.split("/")
  const reference = `${MODEL_REPOSITORY}:${digest.slice("sha256:".length, "sha256:".length + 32)}-${architecture}`
  if ((await engine.inspect(reference, signal)) === null) {
    const made = yield* loadModel(stored, [], options)
    await tagImage(made.imageId, [reference], options)
    return reference
  }
  const step = { type: "step", step: reference, name: `image of ${layer.name}` } as const
  yield { ...step, state: "started" }
  yield { ...step, state: "cached", durationMs: 0 }
  return reference
}

function layerPlan({ model, dir }: StoredModel): LayerPlan {
  const tag = formatTag(model.tag)
  const files = [{ kind: "tree", from: dir, to: "models" }] as const
  return { cause: "model", name: `model ${tag}`, model: tag, from: "models/", to: MODELS_PATH, files }
}

async function* loadModel(
  stored: StoredModel,
  replaced: readonly string[],
  options: ModelImageOptions,
): AsyncGenerator<BuildEvent, ModelImage> {
  const { base, engine, signal, platform } = options
  const { model } = stored
  const layer = await readLayer(layerPlan(stored), new Map())
  const [os = "", architecture = ""] = platform.split("/")
  const below: Base =
    base === undefined
      ? { os, architecture, variant: null, layers: [], config: {}, history: [] }
      : { ...base, history: await engine.history(base.id, signal, platform) }
  const createdAt = rfc3339(model.creationTime)
  let digest = ""
  const imageId = yield* loadImage(
    {
      layers: [layer],
      base: base ?? null,
      platform,
      neighbours: askNeighbours(replaced, options),
      describe: (written) => {
        digest = written[0]?.digest ?? ""
        const labels: NamedValue[] = [
          { name: MODEL_LABEL, value: formatTag(model.tag) },
          { name: `${MODEL_LABEL}.digest`, value: digest },
          { name: "org.opencontainers.image.created", value: createdAt },
          { name: "org.opencontainers.image.title", value: model.tag.name },
          { name: "org.opencontainers.image.version", value: model.tag.version },
        ]
        const config = { ...inherited(below.config), Labels: withLabels(below.config, labels) }
        return imageConfig(below, { createdAt, config, layers: written })
      },
    },
    options,
  )
  return { imageId, digest }
}
