/** Which CUDA images can exist: BentoML's table of versions against what ONNX Runtime was built for. */

/** What was written → the version meant (BentoML 1.4's closed table). */
const VERSIONS: Readonly<Record<string, string>> = {
  default: "12.8.1",
  "12": "12.8.1",
  "12.8": "12.8.1",
  "12.8.1": "12.8.1",
  "12.8.0": "12.8.0",
  "12.6": "12.6.3",
  "12.6.3": "12.6.3",
  "12.6.2": "12.6.2",
  "12.6.1": "12.6.1",
  "12.6.0": "12.6.0",
  "12.1": "12.1.1",
  "12.1.1": "12.1.1",
  "12.1.0": "12.1.0",
  "12.0": "12.0.1",
  "12.0.1": "12.0.1",
  "12.0.0": "12.0.0",
  "11": "11.8.0",
  "11.8": "11.8.0",
  "11.8.0": "11.8.0",
  "11.7": "11.7.1",
  "11.7.1": "11.7.1",
  "11.6": "11.6.2",
  "11.6.2": "11.6.2",
  "11.4": "11.4.3",
  "11.4.3": "11.4.3",
  "11.2": "11.2.2",
  "11.2.2": "11.2.2",
}

/** Versions whose `cudnn` runtime image holds CUDA 12 and cuDNN 9, on Ubuntu 24.04. */
const WORKING = new Set(["12.8.1", "12.8.0", "12.6.3", "12.6.2", "12.6.1", "12.6.0"])

export type CudaChoice =
  { readonly ok: true; readonly version: string | null } | { readonly ok: false; readonly reason: string }

/**
 * The full version for `docker.cuda_version`, or why there can be no such image.
 *
 * ONNX Runtime's CUDA provider (NuGet `Microsoft.ML.OnnxRuntime.Gpu.Linux`, the one that onnxruntime-node's own
 * installer fetches) is built for CUDA 12 and cuDNN 9; NVIDIA's images for CUDA 12.0, 12.1 and 11 hold cuDNN 8.
 */
export function resolveCuda(written: string): CudaChoice {
  if (written === "" || written === "None") return { ok: true, version: null }
  const version = Object.hasOwn(VERSIONS, written) ? VERSIONS[written] : undefined
  const choices = [...WORKING].join(", ")
  if (version === undefined) {
    return {
      ok: false,
      reason: `no CUDA image for version ${JSON.stringify(written)}; use one of ${choices}`,
    }
  }
  if (WORKING.has(version)) return { ok: true, version }
  const holds = version.startsWith("11.") ? `CUDA ${version}` : `cuDNN 8 (CUDA ${version})`
  return {
    ok: false,
    reason: `ONNX Runtime needs CUDA 12 and cuDNN 9, but that image holds ${holds}; use one of ${choices}`,
  }
}

/** NVIDIA's image for a version that `resolveCuda` gave. */
export function cudaBaseImage(version: string): string {
  return `nvidia/cuda:${version}-cudnn-runtime-ubuntu24.04`
}
