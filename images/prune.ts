/** What making images leaves in the engine, and what of it nobody needs any more. */
import { BENTO_LABEL, FOUNDATION_LABEL, FOUNDATION_REPOSITORY } from "./assemble.ts"
import type { ImageEngine, ImageInfo, ImageSummary } from "./builder.ts"
import { MODEL_LABEL, MODEL_REPOSITORY } from "./model-image.ts"
import { MODELS_LABEL } from "./plan.ts"

export interface Leftover {
  /** `untagged`: an image of a Bento that lost its names, or never got any. `container`: made to look into an image. */
  readonly kind: "foundation" | "model" | "untagged" | "container"
  /** The name under which we keep it, or its id. */
  readonly reference: string
}

export interface Pruned extends Leftover {
  /** False when a container still uses it. */
  readonly removed: boolean
}

/** Images and containers of ours that no image of a Bento needs; what users named themselves is none of them. */
export async function findLeftovers(engine: ImageEngine, signal?: AbortSignal): Promise<Leftover[]> {
  const [bentos, foundations, models, containers] = await Promise.all([
    engine.list(BENTO_LABEL, signal),
    engine.list(FOUNDATION_LABEL, signal),
    engine.list(MODEL_LABEL, signal),
    engine.probes(signal),
  ])
  // One with a digest alone counts as untagged, as for `docker image prune`: each push leaves it one, also when its tag moves on.
  const kept = bentos.filter(({ tags }) => tags.length > 0)
  const usedLayers = foundations.length === 0 ? [] : await layersOf(engine, kept, signal)
  const isUsed = (foundation: ImageInfo | null): boolean =>
    foundation !== null &&
    usedLayers.some((layers) => foundation.layers.every((digest, at) => layers[at] === digest))
  const idle = await Promise.all(
    foundations.map(async (image) => !isUsed(await engine.inspect(image.id, signal))),
  )
  const usedModels = kept.map(({ labels }) => labels[MODELS_LABEL] ?? "").join()
  return [
    ...containers.map((reference): Leftover => ({ kind: "container", reference })),
    ...bentos
      .filter(({ tags }) => tags.length === 0)
      .map(({ id }): Leftover => ({ kind: "untagged", reference: id })),
    ...foundations
      .filter((_, index) => idle[index])
      .flatMap((image) => named(image, "foundation", FOUNDATION_REPOSITORY)),
    ...models
      .filter(({ labels }) => !usedModels.includes(JSON.stringify(labels[MODEL_LABEL] ?? "")))
      .flatMap((image) => named(image, "model", MODEL_REPOSITORY)),
  ]
}

async function layersOf(
  engine: ImageEngine,
  images: readonly ImageSummary[],
  signal: AbortSignal | undefined,
): Promise<(readonly string[])[]> {
  const found = await Promise.all(images.map(({ id }) => engine.inspect(id, signal)))
  return found.flatMap((image) => (image === null ? [] : [image.layers]))
}

/** Its names that we gave it; itself when it has no name at all. */
function named({ id, tags }: ImageSummary, kind: Leftover["kind"], repository: string): Leftover[] {
  if (tags.length === 0) return [{ kind, reference: id }]
  return tags.filter((tag) => tag.startsWith(`${repository}:`)).map((reference) => ({ kind, reference }))
}

/** Removes them one after the other, and tells what became of each. */
export async function* removeLeftovers(
  engine: ImageEngine,
  leftovers: readonly Leftover[],
  signal?: AbortSignal,
): AsyncGenerator<Pruned> {
  for (const { kind, reference } of leftovers) {
    signal?.throwIfAborted()
    const removed =
      kind === "container"
        ? await engine.removeProbe(reference, signal)
        : await engine.remove(reference, signal)
    yield { kind, reference, removed }
  }
}
