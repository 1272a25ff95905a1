/** The bundle that serves, as a folder: which versions it is of, and what it is made of. */
import { readFileSync } from "node:fs"
import { readFile } from "node:fs/promises"
import { createRequire } from "node:module"
import path from "node:path"
import { BentoError } from "../store/errors.ts"

export interface NpmPackage {
  readonly name: string
  readonly version: string
  /** As its package.json has it; null where that says nothing. */
  readonly license: string | null
}

export interface RuntimeVersions {
  readonly bentoctl: string
  readonly onnxruntime: string
  /** Packages whose code is in the bundle, by name. */
  readonly bundled: readonly NpmPackage[]
}

export async function runtimeVersions(runtimeDir: string): Promise<RuntimeVersions> {
  const file = path.join(runtimeDir, "package.json")
  try {
    // Written by the same build as this file.
    const manifest = JSON.parse(await readFile(file, "utf8")) as {
      version: string
      dependencies: { "onnxruntime-node": string }
      bundled: NpmPackage[]
    }
    const { version, dependencies, bundled } = manifest
    return { bentoctl: version, onnxruntime: dependencies["onnxruntime-node"], bundled }
  } catch (error) {
    throw new BentoError("RUNTIME_MISSING", `the runtime bundle is not at ${runtimeDir}`, { cause: error })
  }
}

/** The packages that the bundle loads as they are: onnxruntime-node, then what that needs. */
export function onnxruntimePackages(runtimeDir: string): [node: InstalledPackage, common: InstalledPackage] {
  const resolve = (base: string, id: string): string => {
    try {
      return createRequire(base).resolve(id)
    } catch (error) {
      throw new BentoError("RUNTIME_MISSING", `the package ${id}, which the runtime needs, is missing`, {
        cause: error,
      })
    }
  }
  const node = path.dirname(resolve(path.join(runtimeDir, "package.json"), "onnxruntime-node/package.json"))
  // Its package.json is not exported; its main file is dist/cjs/index.js.
  const common = path.resolve(resolve(path.join(node, "package.json"), "onnxruntime-common"), "../../..")
  return [installed(node), installed(common)]
}

export interface InstalledPackage {
  readonly dir: string
  readonly manifest: NpmPackage
}

function installed(dir: string): InstalledPackage {
  const text = readFileSync(path.join(dir, "package.json"), "utf8")
  const { name, version, license } = JSON.parse(text) as { name: string; version: string; license?: string }
  return { dir, manifest: { name, version, license: license ?? null } }
}
