/** An engine in memory: it keeps images as the real one does, layer by layer, and believes nothing that it is told. */
import { createHash } from "node:crypto"
import { buffer } from "node:stream/consumers"
import type { Readable } from "node:stream"
import { extract } from "tar-stream"
import { LoadRefused } from "../../images/builder.ts"
import type {
  BuildEvent,
  BuildOptions,
  EngineInfo,
  HistoryEntry,
  ImageEngine,
  ImageInfo,
  ImageSummary,
  LayerBlob,
  PushProgress,
} from "../../images/builder.ts"
import type { BuildContext } from "../../images/context.ts"
import type { Platform } from "../../images/plan.ts"
import { tarStream } from "../../images/tar.ts"

export interface Config {
  readonly architecture: string
  readonly os: string
  readonly created: string
  readonly config: Readonly<Record<string, unknown>>
  readonly rootfs: { readonly type: "layers"; readonly diff_ids: readonly string[] }
  readonly history: readonly {
    readonly created: string
    readonly created_by: string
    readonly empty_layer?: boolean
  }[]
}

export interface Loaded {
  /** Names of the archive's entries. */
  readonly files: readonly string[]
  readonly bytes: number
}

const sha256 = (bytes: Uint8Array | string): string =>
  `sha256:${createHash("sha256").update(bytes).digest("hex")}`

export class MemoryEngine implements ImageEngine {
  readonly images = new Map<string, Config>()
  readonly tags = new Map<string, string>()
  /** Layers by the digests of all below them and their own; a null is a layer whose bytes are not known. */
  readonly chains = new Map<string, Buffer | null>()
  readonly loads: Loaded[] = []
  readonly builds: { readonly context: BuildContext; readonly options: BuildOptions }[] = []
  /** Folders of every image, beside what their layers hold. */
  folders: Readonly<Record<string, { mode: number; uid?: number; gid?: number } | "link">> = {
    "/home": { mode: 0o755 },
    "/opt": { mode: 0o755 },
  }
  info: EngineInfo = {
    version: "1",
    apiVersion: "1",
    os: "linux",
    arch: "amd64",
    isLocal: true,
    store: "layers",
    noPartialLoads: null,
  }

  /** Puts an image with one layer that holds nothing of interest. */
  addBase(reference: string, config: Record<string, unknown> = {}, architecture = "amd64"): string {
    const layer = sha256(`base ${reference} ${architecture}`)
    this.chains.set(layer, null)
    const id = this.#add({
      architecture,
      os: "linux",
      created: "2026-01-01T00:00:00Z",
      config: { Env: ["PATH=/bin"], Cmd: ["node"], ...config },
      rootfs: { type: "layers", diff_ids: [layer] },
      history: [{ created: "2026-01-01T00:00:00Z", created_by: "base" }],
    })
    this.tags.set(reference, id)
    return id
  }

  #add(config: Config): string {
    const id = sha256(JSON.stringify(config))
    this.images.set(id, config)
    return id
  }

  /** The config under a name or an id. */
  find(reference: string): Config | undefined {
    return this.images.get(this.tags.get(reference) ?? reference)
  }

  /** The entries of one layer of an image. */
  async entries(reference: string, digest: string): Promise<string[]> {
    const layers = this.find(reference)?.rootfs.diff_ids ?? []
    const tar = this.chains.get(layers.slice(0, layers.indexOf(digest) + 1).join(" "))
    const names: string[] = []
    const reader = extract()
    reader.end(tar ?? undefined)
    for await (const entry of reader) {
      names.push(entry.header.name)
      entry.resume()
    }
    return names
  }

  async ping(): Promise<EngineInfo> {
    return this.info
  }

  async *ensureImage(reference: string): AsyncGenerator<BuildEvent> {
    if (this.find(reference) === undefined) throw new Error(`${reference} is not here`)
    yield* []
  }

  /** Lays one layer, whose digest depends on the Dockerfile alone, on the base. */
  async *build(context: BuildContext, options: BuildOptions): AsyncGenerator<BuildEvent, string> {
    this.builds.push({ context, options })
    const [, base = ""] = /^FROM (\S+)$/m.exec(context.dockerfile) ?? []
    const below = this.find(base)
    if (below === undefined) throw new Error(`${base} is not here`)
    yield { type: "log", step: "build", stream: "stdout", text: "built" }
    const layer = sha256(context.dockerfile)
    const layers = [...below.rootfs.diff_ids, layer]
    this.chains.set(layers.join(" "), null)
    const { Labels = {} } = below.config as { Labels?: object }
    const id = this.#add({
      ...below,
      config: { ...below.config, Labels: { ...Labels, ...options.labels } },
      rootfs: { type: "layers", diff_ids: layers },
      history: [...below.history, { created: "2026-01-01T00:00:00Z", created_by: "RUN" }],
    })
    for (const tag of options.tags) this.tags.set(tag, id)
    return id
  }

  async sizeOf(): Promise<number> {
    return 42
  }

  /** Every image is there for every platform. */
  async inspect(reference: string, _signal?: AbortSignal, platform?: Platform): Promise<ImageInfo | null> {
    const id = this.tags.get(reference) ?? reference
    const found = this.images.get(id)
    if (found === undefined) return null
    const { config, rootfs } = found
    const [os = "", architecture = ""] = platform?.split("/") ?? [found.os, found.architecture]
    return {
      id,
      os,
      architecture,
      variant: null,
      layers: rootfs.diff_ids,
      config,
      repoDigests: [],
      sizeBytes: 42,
    }
  }

  async history(imageId: string): Promise<HistoryEntry[]> {
    return (this.find(imageId)?.history ?? []).map((entry) => ({
      createdS: Date.parse(entry.created) / 1000,
      createdBy: entry.created_by,
      comment: "",
      sizeBytes: entry.empty_layer === true ? 0 : 1,
    }))
  }

  async list(label: string): Promise<ImageSummary[]> {
    return [...this.images]
      .map(([id, { config }]) => ({ id, labels: (config["Labels"] ?? {}) as Record<string, string> }))
      .filter(({ labels }) => label in labels)
      .map(({ id, labels }) => {
        const tags = [...this.tags].filter(([, tagged]) => tagged === id).map(([tag]) => tag)
        return { id, labels, tags, sizeBytes: 42 }
      })
  }

  async readPaths<T>(
    _image: { id: string },
    paths: readonly string[],
    read: (tar: Readable) => Promise<T>,
  ): Promise<(T | null)[]> {
    return Promise.all(
      paths.map(async (path) => {
        const found = this.folders[path]
        if (found === undefined) return null
        const name = path.split("/").at(-1) ?? ""
        const header =
          found === "link"
            ? ({ type: "symlink", name, linkname: "elsewhere" } as const)
            : ({ type: "directory", name, uid: 0, gid: 0, ...found } as const)
        return read(tarStream([{ header }]))
      }),
    )
  }

  async layerBlobs(_image: { id: string }): Promise<readonly LayerBlob[] | null> {
    throw new Error("it keeps no blobs")
  }

  protected async readArchive(
    archive: Readable,
    signal: AbortSignal | undefined,
  ): Promise<ReadonlyMap<string, Buffer>> {
    const files = new Map<string, Buffer>()
    const reader = extract()
    archive.on("error", (error) => reader.destroy(error))
    archive.pipe(reader)
    for await (const entry of reader) {
      signal?.throwIfAborted()
      files.set(entry.header.name, await buffer(entry))
    }
    const bytes = [...files.values()].reduce((sum, file) => sum + file.length, 0)
    this.loads.push({ files: [...files.keys()], bytes })
    return files
  }

  async *load(
    archive: Readable,
    { signal }: { signal?: AbortSignal | undefined },
  ): AsyncGenerator<{ name: string; current: number; total: number }, void> {
    const files = await this.readArchive(archive, signal)
    const [manifest] = JSON.parse(String(files.get("manifest.json"))) as [
      { Config: string; Layers: string[] },
    ]
    const written = files.get(manifest.Config) ?? Buffer.alloc(0)
    const config = JSON.parse(String(written)) as Config
    if (manifest.Layers.length !== config.rootfs.diff_ids.length) throw new LoadRefused("invalid manifest")
    const chain: string[] = []
    for (const [index, digest] of config.rootfs.diff_ids.entries()) {
      chain.push(digest)
      if (this.chains.has(chain.join(" "))) continue
      const name = manifest.Layers[index] ?? ""
      const layer = files.get(name)
      if (layer === undefined)
        throw new LoadRefused(`open /tmp/docker-import-1/${name}: no such file or directory`)
      if (sha256(layer) !== digest) throw new LoadRefused(`invalid diffID for layer ${index}`)
      yield { name, current: layer.length, total: layer.length }
      this.chains.set(chain.join(" "), layer)
    }
    this.images.set(sha256(written), config)
  }

  async tag(imageId: string, reference: string): Promise<boolean> {
    if (!this.images.has(imageId)) return false
    this.tags.set(reference, imageId)
    return true
  }

  /** Its registries have nothing, and take everything. */
  async *push(reference: string): AsyncGenerator<PushProgress, { digest: string }> {
    const config = this.find(reference)
    for (const digest of config?.rootfs.diff_ids ?? []) {
      yield { layer: digest.slice(7, 19), status: "Pushed", current: 0, total: 0 }
    }
    return { digest: sha256(`manifest of ${JSON.stringify(config)}`) }
  }

  readonly leftProbes: string[] = []
  async probes(): Promise<string[]> {
    return [...this.leftProbes]
  }

  async removeProbe(id: string): Promise<boolean> {
    this.leftProbes.splice(this.leftProbes.indexOf(id), 1)
    return true
  }

  async remove(reference: string): Promise<boolean> {
    const id = this.tags.get(reference) ?? reference
    this.tags.delete(reference)
    if (![...this.tags.values()].includes(id)) this.images.delete(id)
    return true
  }
}

/** An engine that keeps its images in containerd: blobs and manifests, whatever their files are called. */
export class BlobEngine extends MemoryEngine {
  override info: EngineInfo = { ...new MemoryEngine().info, store: "blobs" }
  readonly blobs = new Set<string>()
  readonly manifests = new Map<string, readonly LayerBlob[]>()
  /** Ids of images whose manifest was asked for. */
  readonly asked: string[] = []

  /** Its layer is packed, as those from registries are. */
  override addBase(...args: Parameters<MemoryEngine["addBase"]>): string {
    const id = super.addBase(...args)
    const digest = sha256(`packed ${id}`)
    this.blobs.add(digest)
    this.manifests.set(id, [{ mediaType: "application/vnd.oci.image.layer.v1.tar+gzip", digest, size: 7 }])
    return id
  }

  override async layerBlobs({ id }: { id: string }): Promise<readonly LayerBlob[] | null> {
    this.asked.push(id)
    return this.manifests.get(id) ?? null
  }

  override async *load(
    archive: Readable,
    { signal }: { signal?: AbortSignal | undefined },
  ): AsyncGenerator<{ name: string; current: number; total: number }, void> {
    const files = await this.readArchive(archive, signal)
    yield* []
    const sent = new Map([...files.values()].map((bytes) => [sha256(bytes), bytes]))
    if (!files.has("oci-layout")) throw new LoadRefused("unrecognized image format")
    const read = <T>(bytes: Buffer | undefined): T => JSON.parse(String(bytes)) as T
    const [target] = read<{ manifests: [{ digest: string }] }>(files.get("index.json")).manifests
    const manifest = read<{ config: { digest: string }; layers: LayerBlob[] }>(sent.get(target.digest))
    for (const { digest, size } of manifest.layers) {
      const bytes = sent.get(digest)
      if (bytes === undefined && !this.blobs.has(digest)) {
        throw new LoadRefused(`content digest ${digest}: not found`)
      }
      if (bytes !== undefined && bytes.length !== size) throw new LoadRefused(`${digest} has another size`)
    }
    for (const { digest } of manifest.layers) this.blobs.add(digest)
    this.manifests.set(target.digest, manifest.layers)
    this.images.set(target.digest, read<Config>(sent.get(manifest.config.digest)))
  }
}
