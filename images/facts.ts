/**
 * What is told of the files of an image in its labels and its bill of materials: their digests, who made a model,
 * which packages the server is made of. A large file is read once for it, and not again before it changes.
 */
import { createHash } from "node:crypto"
import { readFile, readdir } from "node:fs/promises"
import path from "node:path"
import { parse } from "yaml"
import type { JsonObject } from "../store/bento.ts"
import type { Model } from "../store/model.ts"
import { readOnnxOrigin } from "../store/onnx.ts"
import type { OnnxOrigin } from "../store/onnx.ts"
import { compareText, formatTag } from "../store/tag.ts"
import type { Cache } from "./cache.ts"
import { buffersInTurn, bytesOf, entryStamp, readFiles } from "./context.ts"
import type { ContextEntry } from "./context.ts"
import { BENTOFILE } from "./plan.ts"
import type { Platform } from "./plan.ts"
import { onnxruntimePackages, runtimeVersions } from "./runtime-bundle.ts"
import type { NpmPackage } from "./runtime-bundle.ts"
import { MODEL_YAML, PREPARED_DIR, SAVED_MODEL } from "../store/layout.ts"

export interface FileFact {
  /** Relative to whatever the file is a part of. */
  readonly path: string
  /** Hexadecimal. */
  readonly sha256: string
}

export interface ModelFacts {
  /** All files but `model.yaml`. */
  readonly files: readonly FileFact[]
  /** SHA-256 of `model.yaml`. */
  readonly manifest: string
  /** Null for a model that is no ONNX file. */
  readonly origin: OnnxOrigin | null
}

export interface RuntimeFacts {
  /** The version of bentoctl that the server is of. */
  readonly version: string
  readonly onnxruntimeVersion: string
  /** What the server's bundle is made of. */
  readonly bundled: readonly NpmPackage[]
  /** Packages that lie beside the bundle, in `node_modules`. */
  readonly installed: readonly NpmPackage[]
  /** ONNX Runtime itself, relative to the server's folder. */
  readonly binaries: readonly FileFact[]
}

export interface ModelWithFacts {
  readonly model: Model
  /** Its folder in the store. */
  readonly dir: string
  readonly facts: ModelFacts
}

/** Models whose facts are known keep them. */
export async function withFacts(
  models: readonly (Omit<ModelWithFacts, "facts"> & Partial<ModelWithFacts>)[],
  cache: Cache,
): Promise<ModelWithFacts[]> {
  return Promise.all(
    models.map(async ({ model, dir, facts }) => {
      return { model, dir, facts: facts ?? (await modelFacts(model, dir, cache)) }
    }),
  )
}

async function modelFacts({ tag }: Model, dir: string, cache: Cache): Promise<ModelFacts> {
  const entries = await readFiles([{ kind: "tree", from: dir, to: "model" }])
  return remembered(`facts of the model ${formatTag(tag)}`, entries, cache, async () => {
    const files = (await digests(entries)).map((file) => ({
      ...file,
      path: file.path.slice("model/".length),
    }))
    const isManifest = (file: FileFact): boolean => file.path === MODEL_YAML
    const saved = files.some((file) => file.path === SAVED_MODEL)
    return {
      files: files.filter((file) => !isManifest(file)),
      manifest: files.find(isManifest)?.sha256 ?? "",
      origin: saved ? await readOnnxOrigin(path.join(dir, SAVED_MODEL)) : null,
    }
  })
}

export async function runtimeFacts(
  runtimeDir: string,
  platform: Platform,
  cache: Cache,
): Promise<RuntimeFacts> {
  const [{ bentoctl, onnxruntime, bundled }, all] = await Promise.all([
    runtimeVersions(runtimeDir),
    readFiles([{ kind: "runtime", from: runtimeDir, to: "runtime", platform }]),
  ])
  const binaries = all.filter(({ path: name }) => /\.(node|so(\.\d+)*)$/.test(name))
  return {
    version: bentoctl,
    onnxruntimeVersion: onnxruntime,
    bundled,
    installed: onnxruntimePackages(runtimeDir).map(({ manifest }) => manifest),
    binaries: await remembered(`digests of ONNX Runtime for ${platform}`, binaries, cache, async () =>
      (await digests(binaries)).map((file) => ({ ...file, path: file.path.slice("runtime/".length) })),
    ),
  }
}

/** About what these files and links take in a layer, which is a function of the Bento alone. */
export function sourceBytesOf(entries: readonly { readonly path: string; readonly size?: number }[]): number {
  const taken = entries.filter(({ path: name }) => name !== BENTOFILE)
  return taken.reduce((sum, { size = 0 }) => sum + size + 1024, 0)
}

/** The same, of a Bento in the store. */
export async function storedSourceBytes(bentoDir: string): Promise<number> {
  const entries = await readFiles([
    { kind: "tree", from: path.join(bentoDir, "src"), to: "src", except: [BENTOFILE] },
  ])
  return sourceBytesOf(entries.filter(({ kind }) => kind !== "folder"))
}

/** What the service of a Bento in the store says of its APIs; null for a Bento that does not tell. */
export async function openapiOf(bentoDir: string): Promise<JsonObject | null> {
  try {
    const found: unknown = parse(await readFile(path.join(bentoDir, "apis/openapi.yaml"), "utf8"))
    return typeof found === "object" && !Array.isArray(found) ? (found as JsonObject | null) : null
  } catch {
    return null
  }
}

/** What a Bento in the store has prepared for its server, by file name; nothing where it has not the folder. */
export async function preparedOf(bentoDir: string): Promise<Readonly<Record<string, string>>> {
  const dir = path.join(bentoDir, PREPARED_DIR)
  const names = await readdir(dir).catch(() => [])
  const files = names.map(async (name) => [name, await readFile(path.join(dir, name), "utf8")] as const)
  return Object.fromEntries(await Promise.all(files))
}

/**
 * The packages of a lock file, by what a Bento keeps of them. pnpm's and Yarn's do not say which ones are for
 * development only, nor under which licence they are.
 */
export function lockedPackages(files: Readonly<Record<string, string>>): NpmPackage[] {
  const { "pnpm-lock.yaml": pnpm, "yarn.lock": yarn } = files
  const npm = files["npm-shrinkwrap.json"] ?? files["package-lock.json"]
  const all =
    npm !== undefined ? npmLocked(npm) : pnpm !== undefined ? pnpmLocked(pnpm) : yarnLocked(yarn ?? "")
  const byName = new Map(all.map((one) => [`${one.name}@${one.version}`, one]))
  return [...byName.values()].toSorted(
    (a, b) => compareText(a.name, b.name) || compareText(a.version, b.version),
  )
}

interface NpmLocked {
  readonly name?: string
  readonly version?: string
  readonly license?: string
  readonly dev?: boolean
  readonly link?: boolean
}

// Whoever made the Bento has read these files: they are what their names say.
function npmLocked(text: string): NpmPackage[] {
  const { packages = {} } = JSON.parse(text) as { readonly packages?: Readonly<Record<string, NpmLocked>> }
  return Object.entries(packages).flatMap(([place, { name, version, license, dev, link }]) => {
    const [, last] = /(?:^|\/)node_modules\/((?:@[^/]+\/)?[^/]+)$/.exec(place) ?? []
    if (last === undefined || version === undefined || dev === true || link === true) return []
    return [{ name: name ?? last, version, license: license ?? null }]
  })
}

function pnpmLocked(text: string): NpmPackage[] {
  const { packages } = parse(text) as { readonly packages?: object }
  return Object.keys(packages ?? {}).flatMap((key) => named(/^\/?(@?[^@]+)@([^(:]+)/.exec(key)))
}

/** Both kinds: the first has `version "1.2.3"`, later ones `version: 1.2.3`, and a quote around each key. */
function yarnLocked(text: string): NpmPackage[] {
  const entries = text.matchAll(/^"?(@?[^@\s"]+)@.*:\n {2}version:? "?([^"\n]+)"?$/gm)
  return [...entries].filter(([line]) => !line.includes("@workspace:")).flatMap(named)
}

function named(match: readonly string[] | null): NpmPackage[] {
  const [, name, version] = match ?? []
  return name === undefined || version === undefined ? [] : [{ name, version, license: null }]
}

/** The answer to a question about files, asked again only after one of them has changed. */
async function remembered<T>(
  name: string,
  entries: readonly ContextEntry[],
  cache: Cache,
  ask: () => Promise<T>,
): Promise<T> {
  const key = JSON.stringify(["2", entries.map(entryStamp)])
  const kept = await cache.read(name, key)
  if (kept !== null) return JSON.parse(kept) as T // as written below
  const answer = await ask()
  await cache.write(name, key, JSON.stringify(answer))
  return answer
}

async function digests(entries: readonly ContextEntry[]): Promise<FileFact[]> {
  const facts: FileFact[] = []
  for (const entry of entries) {
    if (entry.kind !== "file") continue
    const hash = createHash("sha256")
    for await (const chunk of bytesOf(entry, buffersInTurn(3))) hash.update(chunk)
    facts.push({ path: entry.path, sha256: hash.digest("hex") })
  }
  return facts
}
