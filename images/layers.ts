/**
 * The layers of an image that we write ourselves: exactly the entries that the Dockerfile's COPY would make.
 *
 * A layer is known by the digest of its tar. That takes reading all of it, so the digests of large layers are
 * remembered under what `lstat` says of their files; whenever a layer is sent it is counted anew.
 */
import { createHash } from "node:crypto"
import path from "node:path"
import { buffer } from "node:stream/consumers"
import type { Cache } from "./cache.ts"
import { buffersInTurn, bytesOf, entryStamp, headerOf, readFiles, sorted, tarEntries } from "./context.ts"
import type { ContextEntry } from "./context.ts"
import type { LayerPlan } from "./plan.ts"
import { tarBytes, tarChunks, tarStream } from "./tar.ts"

/** Owner and mode of a folder that is in the base image; null where the base has none. */
export type FolderFact = { readonly mode: number; readonly uid: number; readonly gid: number } | null

/** By absolute path. A folder that is not named is not in the base. */
export type FolderFacts = ReadonlyMap<string, FolderFact>

export interface Layer extends Pick<LayerPlan, "cause" | "name" | "model"> {
  /** A line of `docker history`. */
  readonly createdBy: string
  /** Sorted by path, relative to the root of the image. */
  readonly entries: readonly ContextEntry[]
  /** All of it, where it is small: it is counted and sent, and reading it takes less time than remembering its digest is worth. */
  readonly tar: Uint8Array | null
}

const SMALL_BYTES = 1 << 20
const HEAD_BYTES = 1 << 10

export function isSmall({ tar }: Layer): boolean {
  return tar !== null
}

export async function readLayer(plan: LayerPlan, folders: FolderFacts): Promise<Layer> {
  const target = plan.to.replace(/^\/|\/$/g, "")
  const found = (await readFiles(plan.files)).flatMap((entry) => placed(entry, plan.from, target))
  // A folder that is in the base stays as it is, so the folders of the base come last.
  const entries = sorted([...found, ...foldersAbove(target, folders)])
  const bytes = entries.reduce((sum, entry) => sum + HEAD_BYTES + (entry.kind === "file" ? entry.size : 0), 0)
  return {
    cause: plan.cause,
    name: plan.name,
    ...(plan.model === undefined ? {} : { model: plan.model }),
    createdBy: `bentoctl: ${plan.name} in ${plan.to}`,
    entries,
    tar: bytes < SMALL_BYTES ? await buffer(tarStream(tarEntries(entries))) : null,
  }
}

/** The name of a layer of ours, read back from a line of the history; null for what others wrote. */
export function holdsOf(createdBy: string): string | null {
  return /^bentoctl: (.+) in \S+$/.exec(createdBy)?.[1] ?? null
}

/** `runtime/x` of the context as `opt/bentoctl/x` of the image; folders above `from` are no part of it. */
function placed(entry: ContextEntry, from: string, target: string): ContextEntry[] {
  if (!`${entry.path}/`.startsWith(from)) return []
  return [{ ...entry, path: path.posix.join(target, entry.path.slice(from.length)) }]
}

/** The target and all above it: as they are in the base, or as COPY makes them. */
function foldersAbove(target: string, folders: FolderFacts): ContextEntry[] {
  const parts = target.split("/")
  return parts.map((_, index) => {
    const folder = parts.slice(0, index + 1).join("/")
    return { kind: "folder", path: folder, ...folders.get(`/${folder}`) }
  })
}

/**
 * The layer's tar, made anew at each call. A chunk of 256 KiB is good until eight more of them have been taken: a
 * reader that holds on to more of them at once must copy.
 */
export function layerChunks(layer: Layer): AsyncIterable<Uint8Array> | Iterable<Uint8Array> {
  if (layer.tar !== null) return [layer.tar]
  const buffers = buffersInTurn(10)
  return tarChunks(tarEntries(layer.entries, (entry) => bytesOf(entry, buffers)))
}

/** How long that tar is. */
export async function layerBytes(layer: Layer): Promise<number> {
  return layer.tar?.length ?? tarBytes(layer.entries.map(headerOf))
}

/** Counts what flows through; `digest` is for the end. */
export function layerCounter(): { readonly add: (chunk: Uint8Array) => void; readonly digest: () => string } {
  const hash = createHash("sha256")
  return { add: (chunk) => void hash.update(chunk), digest: () => `sha256:${hash.digest("hex")}` }
}

export async function countLayer(layer: Layer, signal?: AbortSignal): Promise<string> {
  const counter = layerCounter()
  for await (const chunk of layerChunks(layer)) {
    signal?.throwIfAborted()
    counter.add(chunk)
  }
  return counter.digest()
}

export async function rememberedDigest(layer: Layer, cache: Cache): Promise<string | null> {
  return cache.read(cacheName(layer), cacheKey(layer))
}

export async function rememberDigest(layer: Layer, cache: Cache, digest: string): Promise<void> {
  if (!isSmall(layer)) await cache.write(cacheName(layer), cacheKey(layer), digest)
}

function cacheName({ createdBy }: Layer): string {
  return `layer ${createdBy}`
}

/** Changes whenever the tar may change. */
function cacheKey(layer: Layer): string {
  return JSON.stringify(["1", layer.entries.map(entryStamp)])
}
