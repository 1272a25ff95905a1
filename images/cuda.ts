/** Which CUDA images can exist: what was written against NVIDIA's images and ONNX Runtime's needs (`cuda-images.ts`). */
import { CUDA_IMAGES, DEFAULT_CUDA, ONNXRUNTIME_CUDA } from "./cuda-images.ts"
import type { CudaImage } from "./cuda-images.ts"

export type CudaChoice =
  { readonly ok: true; readonly version: string | null } | { readonly ok: false; readonly reason: string }

/** The full version for `docker.cuda_version`, or why there can be no such image. */
export function resolveCuda(written: string): CudaChoice {
  if (written === "" || written === "None") return { ok: true, version: null }
  const choices = CUDA_IMAGES.filter(works)
    .map(({ version }) => version)
    .join(", ")
  const image = meant(written)
  if (image === undefined) {
    return {
      ok: false,
      reason: `no CUDA image for version ${JSON.stringify(written)}; use one of ${choices}`,
    }
  }
  if (works(image)) return { ok: true, version: image.version }
  const { version, cudnn, ubuntu } = image
  return {
    ok: false,
    reason:
      `ONNX Runtime needs CUDA ${ONNXRUNTIME_CUDA.cuda} and cuDNN ${ONNXRUNTIME_CUDA.cudnn}, but NVIDIA's image of it holds ` +
      `CUDA ${version} and cuDNN ${cudnn} (Ubuntu ${ubuntu}); use one of ${choices}`,
  }
}

/** NVIDIA's image for a version that `resolveCuda` gave. */
export function cudaBaseImage(version: string): string {
  const image = CUDA_IMAGES.find((known) => known.version === version)
  if (image === undefined) throw new Error(`no CUDA image for ${version}`)
  return `nvidia/cuda:${version}-cudnn-runtime-ubuntu${image.ubuntu}`
}

/** `12.8` is the newest 12.8.x, `11` the newest 11.x; `12` and `default` are BentoML's choice. */
function meant(written: string): CudaImage | undefined {
  const version = written === "default" || written === "12" ? DEFAULT_CUDA : written
  return CUDA_IMAGES.find((image) => image.version === version || image.version.startsWith(`${version}.`))
}

function works({ version, cudnn }: CudaImage): boolean {
  return cudnn === ONNXRUNTIME_CUDA.cudnn && version.startsWith(`${ONNXRUNTIME_CUDA.cuda}.`)
}
