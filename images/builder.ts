/** The port to whatever makes images, and the events that it tells. */
import type { Readable } from "node:stream"
import type { BuildContext } from "./context.ts"
import type { RegistryAuth } from "./credentials.ts"
import type { Platform } from "./plan.ts"

/**
 * How a plan is carried out. `assemble`: files become layers that we write ourselves, on top of an image that has
 * run whatever must run. `dockerfile`: the engine carries out the Dockerfile.
 */
export type BuilderName = "assemble" | "dockerfile"

/** What happens while an image is made. `step` is an id that the events of one step share. */
export type BuildEvent =
  /** Which way is gone, and why not the other one. */
  | { readonly type: "builder"; readonly builder: BuilderName; readonly reason: string | null }
  | { readonly type: "step"; readonly step: string; readonly name: string; readonly state: "started" }
  | {
      readonly type: "step"
      readonly step: string
      readonly name: string
      readonly state: "cached" | "done" | "failed"
      readonly durationMs: number
    }
  /** One line that a step printed. */
  | {
      readonly type: "log"
      readonly step: string
      readonly stream: "stdout" | "stderr"
      readonly text: string
    }
  /** How far a part of a step is; `total` is 0 when it is not known. Units are bytes. */
  | {
      readonly type: "progress"
      readonly step: string
      readonly name: string
      readonly current: number
      readonly total: number
    }
  | { readonly type: "warning"; readonly message: string }
  /** The last event of a build that went well. */
  | {
      readonly type: "built"
      readonly builder: BuilderName
      /** Why it could not be the other one; null where nothing spoke against it, or this one was asked for. */
      readonly reason: string | null
      readonly imageId: string
      readonly tags: readonly string[]
      readonly sizeBytes: number
      readonly durationMs: number
    }
  /** An image is in its registry; follows `built`, once for each of its names. */
  | ({ readonly type: "pushed" } & Pushed)

/** What is known of an image after it was pushed. */
export interface Pushed {
  readonly reference: string
  /** Of its manifest; `NAME@DIGEST` is this image for ever. */
  readonly digest: string
  readonly repoDigest: string
  /** Null where the engine tells nothing of layers, as Podman. */
  readonly layers: {
    readonly sent: number
    /** The registry had them. */
    readonly present: number
    /** Of those that were sent, before compression. */
    readonly sentBytes: number
  } | null
  readonly durationMs: number
}

export interface EngineInfo {
  readonly version: string
  readonly apiVersion: string
  readonly os: string
  readonly arch: string
  /** Whether it is reached by a socket of this machine. */
  readonly isLocal: boolean
  /**
   * How it keeps images: `layers` as they were unpacked, an image known by its config; or `blobs` as registries have
   * them, an image known by its manifest (containerd's image store).
   */
  readonly store: "layers" | "blobs"
  /** Why it cannot take an image without the layers that it has already; null where nothing speaks against it. */
  readonly noPartialLoads: string | null
}

/** A layer as registries and containerd keep it: an entry of an image's manifest. */
export interface LayerBlob {
  readonly mediaType: string
  /** Of the blob, which may be compressed. */
  readonly digest: string
  readonly size: number
}

/** An image of the engine. */
export interface ImageInfo {
  readonly id: string
  readonly os: string
  readonly architecture: string
  readonly variant: string | null
  /** Digests of its layers, the base first: `rootfs.diff_ids` of its config. */
  readonly layers: readonly string[]
  /** `config` of its config, as the engine tells it. */
  readonly config: Readonly<Record<string, unknown>>
  /** Names with a digest that registries know it under, as far as the engine has seen. */
  readonly repoDigests: readonly string[]
  readonly sizeBytes: number
}

export function platformOf({ os, architecture }: Pick<ImageInfo, "os" | "architecture">): string {
  return `${os}/${architecture}`
}

export interface ImageSummary {
  readonly id: string
  /** Empty for an image that no name leads to. */
  readonly tags: readonly string[]
  readonly labels: Readonly<Record<string, string>>
  readonly sizeBytes: number
}

/** A line of an image's history, the oldest first. */
export interface HistoryEntry {
  readonly createdS: number
  readonly createdBy: string
  readonly comment: string
  readonly sizeBytes: number
}

/** What the steps of a Dockerfile that run something are given; the files that are added do not depend on it. */
export interface StepOptions {
  readonly noCache?: boolean | undefined
  /** Images whose layers may be taken instead of running a step again. */
  readonly cacheFrom?: readonly string[] | undefined
  /** Values for the ARGs of the Dockerfile. */
  readonly buildArgs?: Readonly<Record<string, string>> | undefined
  /** The network that steps run in: `none`, `host`, or what else the engine knows. */
  readonly network?: string | undefined
}

export interface BuildOptions extends StepOptions {
  readonly tags: readonly string[]
  readonly platform: Platform
  /** Beside those of the Dockerfile. */
  readonly labels?: Readonly<Record<string, string>> | undefined
  readonly signal?: AbortSignal | undefined
}

/**
 * Makes images. Every method throws ENGINE_UNREACHABLE or ENGINE_DENIED when there is no talking to the engine, and
 * the signal's reason when it was aborted; then nothing is tagged.
 */
export interface ImageBuilder {
  ping(signal?: AbortSignal): Promise<EngineInfo>
  /**
   * Makes sure that an image is in the engine, pulling it if it must, or in any case with `pull`. Throws
   * BASE_IMAGE_UNAVAILABLE.
   */
  ensureImage(
    reference: string,
    options: { platform: Platform; pull?: boolean | undefined; signal?: AbortSignal | undefined },
  ): AsyncIterable<BuildEvent>
  /** Ends with the image's id, or throws BuildError or ENGINE_DISK_FULL. */
  build(context: BuildContext, options: BuildOptions): AsyncGenerator<BuildEvent, string>
  sizeOf(imageId: string, signal?: AbortSignal): Promise<number>
}

/** A builder that also lets us see and change what images it has. All methods fail as those of `ImageBuilder`. */
export interface ImageEngine extends ImageBuilder {
  /**
   * Null when there is no such image. Of an image that is kept for several platforms under one id, the one of
   * `platform` is told if the engine has it.
   */
  inspect(reference: string, signal?: AbortSignal, platform?: Platform): Promise<ImageInfo | null>
  history(imageId: string, signal?: AbortSignal, platform?: Platform): Promise<HistoryEntry[]>
  /** The images that carry a label, the newest first. */
  list(label: string, signal?: AbortSignal): Promise<ImageSummary[]>
  /**
   * Paths of an image's file system, each as a tar that begins with the path itself; null for what is not there.
   * Nothing of the image runs.
   */
  readPaths<T>(
    image: { readonly id: string; readonly platform: Platform },
    paths: readonly string[],
    read: (tar: Readable) => Promise<T>,
    signal?: AbortSignal,
  ): Promise<(T | null)[]>
  /** The layers of an image as its manifest names them, the base first; null where the engine does not tell. */
  layerBlobs(
    image: { readonly id: string; readonly platform: Platform },
    signal?: AbortSignal,
  ): Promise<readonly LayerBlob[] | null>
  /**
   * Takes an archive as `docker save` writes it; layers that the engine has may be missing from it. Tells how far the
   * engine is. Throws LoadRefused when the engine does not want this archive; then no image of it stays.
   */
  load(
    archive: Readable,
    options: { signal?: AbortSignal | undefined },
  ): AsyncGenerator<{ readonly name: string; readonly current: number; readonly total: number }, void>
  /** False when there is no such image. */
  tag(imageId: string, reference: string, signal?: AbortSignal): Promise<boolean>
  /**
   * Sends an image to the registry that its name tells. Throws PushRefused with the words of the engine or of the
   * registry.
   */
  push(
    reference: string,
    options: { auth: RegistryAuth | null; signal?: AbortSignal | undefined },
  ): AsyncGenerator<PushProgress, { readonly digest: string }>
  /** Containers that `readPaths` made and could not remove, as when it was killed. */
  probes(signal?: AbortSignal): Promise<string[]>
  removeProbe(id: string, signal?: AbortSignal): Promise<boolean>
  /** Removes a name, and with the last name the image. False when something still uses it. */
  remove(reference: string, signal?: AbortSignal): Promise<boolean>
}

/** What the engine says of a layer that it pushes. */
export interface PushProgress {
  readonly layer: string
  /** `Preparing`, `Waiting`, `Pushing`, `Pushed`, `Layer already exists`, `Mounted from …`, `Retrying in …`. */
  readonly status: string
  readonly current: number
  readonly total: number
}

/** A push ended without the image in the registry. */
export class PushRefused extends Error {
  override readonly name = "PushRefused"
}

/** The engine read an archive and said no. */
export class LoadRefused extends Error {
  override readonly name = "LoadRefused"
}
