/**
 * ONNX Runtime's CUDA provider: libraries beside its own. A CPU image and an installation from npm do not have them; for the
 * image of a Bento with `docker.cuda_version` they are fetched.
 */
import { existsSync, readdirSync } from "node:fs"
import { createRequire } from "node:module"
import path from "node:path"
import type { Provider } from "./protocol.ts"

/** In the order in which they are loaded. */
export const CUDA_LIBRARIES = [
  "libonnxruntime_providers_shared.so",
  "libonnxruntime_providers_cuda.so",
] as const

/** The folder of ONNX Runtime's libraries for this machine. */
export function libraryFolder(): string {
  const root = path.dirname(createRequire(import.meta.url).resolve("onnxruntime-node/package.json"))
  const [abi = ""] = readdirSync(path.join(root, "bin"))
  return path.join(root, "bin", abi, process.platform, process.arch)
}

/** Where models are to run. CUDA_VISIBLE_DEVICES says which devices a process may use; "" and -1 mean none. */
export function providersFor(
  visibleDevices: string | undefined,
  folder: () => string = libraryFolder,
): { readonly providers: readonly Provider[]; readonly note: string | null } {
  const devices = visibleDevices?.trim() ?? ""
  if (devices === "" || devices === "-1") {
    return { providers: ["cpu"], note: null }
  }
  if (existsSync(path.join(folder(), CUDA_LIBRARIES[1]))) return { providers: ["cuda", "cpu"], note: null }
  const note = `CUDA_VISIBLE_DEVICES is ${JSON.stringify(devices)}, but ONNX Runtime is here without its CUDA libraries: models run on the CPU`
  return { providers: ["cpu"], note }
}
