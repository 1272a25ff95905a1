/** The bundle that serves, as a folder: which versions it is of. */
import { readFile } from "node:fs/promises"
import path from "node:path"
import { BentoError } from "../store/errors.ts"

export interface RuntimeVersions {
  readonly bentoctl: string
  readonly onnxruntime: string
}

export async function runtimeVersions(runtimeDir: string): Promise<RuntimeVersions> {
  const file = path.join(runtimeDir, "package.json")
  try {
    // Written by the same build as this file.
    const manifest = JSON.parse(await readFile(file, "utf8")) as {
      version: string
      dependencies: { "onnxruntime-node": string }
    }
    return { bentoctl: manifest.version, onnxruntime: manifest.dependencies["onnxruntime-node"] }
  } catch (error) {
    throw new BentoError("RUNTIME_MISSING", `the runtime bundle is not at ${runtimeDir}`, { cause: error })
  }
}
