/**
 * What an engine is sent for an image: layers that it lacks, and at the end what ties them and those that it has into
 * an image. Engines keep images in one of two ways. Each has its own end of an archive, and its own id of an image.
 */
import { createHash } from "node:crypto"
import { buffer } from "node:stream/consumers"
import type { Readable } from "node:stream"
import { extract } from "tar-stream"
import type { LayerBlob } from "./builder.ts"
import type { ImageConfig } from "./image-config.ts"
import type { Platform } from "./plan.ts"
import type { TarEntry } from "./tar.ts"

/** The layers that an image starts with, as its engine keeps them; `layers` are known by the digests of their tars. */
export type Below =
  | { readonly store: "layers"; readonly digests: readonly string[] }
  | { readonly store: "blobs"; readonly blobs: readonly LayerBlob[] }

export function digestsOf(below: Below): readonly string[] {
  return below.store === "layers" ? below.digests : below.blobs.map(({ digest }) => digest)
}

export interface SentLayer {
  /** Its name in the archive. */
  readonly file: string
  readonly digest: string
  readonly size: number
}

export interface ArchiveEnd {
  /** Of the image, as the engine will know it. */
  readonly id: string
  readonly entries: readonly TarEntry[]
  /** All layers, where the engine keeps blobs. */
  readonly blobs: readonly LayerBlob[]
}

/** `layers` lie on `below`; those that the engine has may be missing from the archive. */
export function archiveEnd(config: ImageConfig, below: Below, layers: readonly SentLayer[]): ArchiveEnd {
  if (below.store === "layers") {
    const Config = `${config.id.slice("sha256:".length)}.json`
    const Layers = [
      ...below.digests.map((_, index) => `below/${index}.tar`),
      ...layers.map(({ file }) => file),
    ]
    const manifest = JSON.stringify([{ Config, RepoTags: null, Layers }])
    return {
      id: config.id,
      entries: [fileOf(Config, config.bytes), fileOf("manifest.json", manifest)],
      blobs: [],
    }
  }
  // containerd counts the digest of every file itself, so that a layer may be sent before its digest is known.
  const blobs = [
    ...below.blobs,
    ...layers.map(({ digest, size }): LayerBlob => ({ mediaType: `${OCI}.layer.v1.tar`, digest, size })),
  ]
  const manifest = JSON.stringify({
    schemaVersion: 2,
    mediaType: `${OCI}.manifest.v1+json`,
    config: { mediaType: `${OCI}.config.v1+json`, digest: config.id, size: config.bytes.length },
    layers: blobs,
  })
  const id = sha256(manifest)
  const index = JSON.stringify({
    schemaVersion: 2,
    mediaType: `${OCI}.index.v1+json`,
    manifests: [{ mediaType: `${OCI}.manifest.v1+json`, digest: id, size: Buffer.byteLength(manifest) }],
  })
  const entries = [
    fileOf("oci-layout", '{"imageLayoutVersion":"1.0.0"}'),
    fileOf(blobPath(config.id), config.bytes),
    fileOf(blobPath(id), manifest),
    fileOf("index.json", index),
  ]
  return { id, entries, blobs }
}

const OCI = "application/vnd.oci.image"

function blobPath(digest: string): string {
  return `blobs/${digest.replace(":", "/")}`
}

function fileOf(name: string, content: Uint8Array | string): TarEntry {
  const bytes = Buffer.from(content)
  return { header: { type: "file", name, mode: 0o644, size: bytes.length }, body: [bytes] }
}

function sha256(text: string): string {
  return `sha256:${createHash("sha256").update(text).digest("hex")}`
}

interface Manifest {
  readonly layers?: readonly LayerBlob[]
  readonly manifests?: readonly {
    readonly digest: string
    readonly platform?: { readonly os: string; readonly architecture: string }
  }[]
}

/** Manifests are far smaller. */
const MOST_MANIFEST_BYTES = 4 << 20

/**
 * The layers of an image from its archive in OCI layout, which is read no further than it must. Null where its
 * manifest is not in it.
 */
export async function readLayerBlobs(
  archive: Readable,
  { id, platform }: { readonly id: string; readonly platform: Platform },
): Promise<readonly LayerBlob[] | null> {
  const reader = extract()
  archive.on("error", (error) => reader.destroy(error))
  archive.pipe(reader)
  const small = new Map<string, Buffer>()
  let wanted: string | undefined = id
  try {
    for await (const entry of reader) {
      const { name, size } = entry.header
      if (size > MOST_MANIFEST_BYTES) {
        entry.resume()
        continue
      }
      small.set(name, await buffer(entry))
      for (
        let found = small.get(blobPath(wanted));
        found !== undefined;
        found = small.get(blobPath(wanted))
      ) {
        const { layers, manifests = [] } = JSON.parse(String(found)) as Manifest
        if (layers !== undefined) return layers.map(asOci)
        wanted = manifests.find(
          (each) => `${each.platform?.os}/${each.platform?.architecture}` === platform,
        )?.digest
        if (wanted === undefined) return null
      }
    }
    return null
  } finally {
    archive.destroy()
  }
}

/** The same bytes under OCI's name for what they are, since a manifest should not mix the two families. */
function asOci({ mediaType, digest, size }: LayerBlob): LayerBlob {
  const packed = mediaType.endsWith(".gzip") ? "+gzip" : ""
  const isDockers = mediaType.startsWith("application/vnd.docker.image.rootfs.diff.tar")
  return { mediaType: isDockers ? `${OCI}.layer.v1.tar${packed}` : mediaType, digest, size }
}
