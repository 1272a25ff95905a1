/** What `containerize` and `build --containerize` share: one image build, shown and summed up. */
import type { BuildEvent, ImageEngine, Pushed } from "../images/builder.ts"
import type { StoredBento } from "../images/containerize.ts"
import type { PushTarget } from "../images/push.ts"
import { formatTag, type Tag } from "../store/tag.ts"
import type { Context } from "./context.ts"
import type { ImageChoices } from "./image-command.ts"
import { formatDuration, formatSize } from "./output.ts"
import {
  isLive,
  jsonReporter,
  liveReporter,
  plainReporter,
  pushedJson,
  stderrScreen,
  warningReporter,
  type Reporter,
} from "./report.ts"

/** An image, and where it was pushed to if that was asked for. */
export type Built = BuildEvent & { readonly type: "built" } & { readonly pushed?: readonly Pushed[] }

export interface ImageRequest extends ImageChoices {
  readonly bento: Tag
  readonly tags?: readonly string[]
  /** Over those of the Bento. */
  readonly labels?: Readonly<Record<string, string>>
  /** The Bento, if it was built just now and need not be read. */
  readonly built?: StoredBento
  /** No progress unless it was asked for. */
  readonly quiet: boolean
  /** From `pushTargets`. */
  readonly push?: readonly PushTarget[] | undefined
}

/** What `--push` asks for; to be called before anything is built, since all that can be wrong with it is found here. */
export async function pushTargets(
  { env, signal }: Context,
  push: boolean,
  tags: readonly string[] = [],
): Promise<PushTarget[] | undefined> {
  if (!push) return undefined
  const { preparePush } = await import("../images/push.ts")
  return preparePush(tags, { env, signal })
}

/** Builds the image of a Bento, shown. */
export async function makeImage(
  context: Context,
  request: ImageRequest,
  warm?: Promise<ImageEngine>,
): Promise<Built> {
  const { containerize } = await import("../images/containerize.ts")
  const { builder, pull, noCache, cacheFrom, network, built, sbom } = request
  const steps = { noCache, cacheFrom, network }
  const options = { ...imageOptions(context, request), ...steps, builder, pull, built, sbom }
  return showBuild(context, request, (common) => containerize({ ...options, ...common }), warm)
}

/** Loads what an image build will need; for when there is nothing else to do. */
export async function warmUp(context: Context): Promise<ImageEngine> {
  const [{ createDockerBuilder }] = await Promise.all([
    import("../images/docker.ts"),
    import("../images/containerize.ts"),
  ])
  return createDockerBuilder(context.env)
}

/** What every way to make an image is given. */
export interface BuildEnvironment {
  readonly engine: ImageEngine
  readonly signal: AbortSignal
  readonly clock: () => number
}

/** Shows the events of a build; the reporter has let go of the terminal before this returns or throws. */
export async function showBuild(
  context: Context,
  request: Pick<ImageRequest, "progress" | "quiet" | "push">,
  build: (environment: BuildEnvironment) => AsyncIterable<BuildEvent>,
  warm: Promise<ImageEngine> = warmUp(context),
): Promise<Built> {
  const engine = await warm
  const { signal } = context
  const reporter = chooseReporter(context, request)
  const letGo = (): void => reporter.close()
  signal.addEventListener("abort", letGo, { once: true })
  try {
    const clock = (): number => context.now().getTime()
    let built: Built | undefined
    for await (const event of build({ engine, signal, clock })) {
      signal.throwIfAborted()
      reporter.event(event)
      if (event.type === "built") built = event
    }
    signal.throwIfAborted()
    if (built === undefined) throw new Error("the build ended without an image and without an error")
    if (request.push === undefined) return built
    const { pushImages } = await import("../images/push.ts")
    const pushed: Pushed[] = []
    for await (const event of pushImages(engine, request.push, { signal, clock })) {
      reporter.event(event)
      if (event.type === "pushed") pushed.push(event)
    }
    return { ...built, pushed }
  } finally {
    signal.removeEventListener("abort", letGo)
    reporter.close()
  }
}

/** What decides how the image will be, as far as the command line knows it. */
export function imageOptions(
  context: Context,
  request: Pick<ImageRequest, "bento" | "tags" | "labels" | "platform" | "buildArgs">,
) {
  return {
    bento: request.bento,
    home: context.home,
    runtimeDir: context.runtimeDir,
    baseImage: baseImageOf(context),
    tags: request.tags,
    labels: request.labels,
    platform: request.platform,
    buildArgs: request.buildArgs,
    env: context.env,
  }
}

/** What is used instead of the default base, where a bentofile names none. */
export function baseImageOf(context: Context): string | undefined {
  return context.env["BENTOCTL_BASE_IMAGE"] || undefined
}

function chooseReporter(context: Context, request: Pick<ImageRequest, "progress" | "quiet">): Reporter {
  const screen = stderrScreen(context)
  if (request.progress === "json") return jsonReporter(screen)
  if (request.progress === undefined && request.quiet) return warningReporter(screen)
  return isLive(context) && request.progress !== "plain" ? liveReporter(screen) : plainReporter(screen)
}

/** What people read when it is done. */
export function imageText(bento: Tag, built: Built): string {
  const [first = ""] = built.tags
  return [
    `Successfully built the image of Bento(tag="${formatTag(bento)}").`,
    ...built.tags.map((tag) => `  ${tag}`),
    `  ${formatSize(built.sizeBytes)}, in ${formatDuration(built.durationMs)}`,
    ...pushedText(built),
    "",
    `Run it:\n  docker run --rm -p 3000:3000 ${first}`,
  ].join("\n")
}

/** Where the image is in registries, under which digest. */
export function pushedText({ pushed = [] }: Built): string[] {
  return pushed.flatMap(({ repoDigest, layers, durationMs }) => [
    `Pushed ${repoDigest}`,
    `  ${layers === null ? "" : `${layersText(layers)}, `}in ${formatDuration(durationMs)}`,
  ])
}

function layersText({ sent, present, sentBytes }: NonNullable<Pushed["layers"]>): string {
  const size = sent === 0 ? "" : ` (${formatSize(sentBytes)} before compression)`
  return `${sent} ${sent === 1 ? "layer" : "layers"} sent${size}, ${present} there already`
}

/** What programs read. */
export function imageJson(built: Built): Record<string, unknown> {
  return {
    image_id: built.imageId,
    builder: built.builder,
    builder_reason: built.reason,
    tags: built.tags,
    size_bytes: built.sizeBytes,
    duration_ms: Math.round(built.durationMs),
    ...(built.pushed !== undefined && { pushed: built.pushed.map((pushed) => pushedJson(pushed)) }),
  }
}
