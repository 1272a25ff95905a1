/**
 * Data: NVIDIA's images for CUDA, and which of them ONNX Runtime can run on. To add a version, add a row; everything
 * else (short forms, messages, the table in docs/images.md) follows from here.
 *
 * Sources:
 * - NVIDIA's images, their tags and what is in them: https://hub.docker.com/r/nvidia/cuda/tags and
 *   https://gitlab.com/nvidia/container-images/cuda/-/tree/master/dist. Tags with `cudnn8` hold cuDNN 8; since CUDA 12.4 the
 *   tag says `cudnn`, and holds cuDNN 9.
 * - ONNX Runtime's needs: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#requirements. Built for
 *   CUDA 12 it runs on any 12.x; cuDNN 8 and 9 exclude each other; since 1.19 the packages are for CUDA 12 and cuDNN 9.
 * - What onnxruntime-node 1.30 fetches for linux/x64: `cuda12` alone, see script/install-metadata.js in its package.
 * - Which versions have a name: BentoML 1.4's closed table (`default`, `12`, `12.8`, …) and CUDA 12.9.
 */

export interface CudaImage {
  /** Of CUDA, in full. */
  readonly version: string
  /** Major version. */
  readonly cudnn: number
  /** Of the image's system. */
  readonly ubuntu: string
}

/** The newest version of a minor release stands first: short forms mean that one. */
export const CUDA_IMAGES: readonly CudaImage[] = [
  { version: "12.9.1", cudnn: 9, ubuntu: "24.04" },
  { version: "12.8.1", cudnn: 9, ubuntu: "24.04" },
  { version: "12.8.0", cudnn: 9, ubuntu: "24.04" },
  { version: "12.6.3", cudnn: 9, ubuntu: "24.04" },
  { version: "12.6.2", cudnn: 9, ubuntu: "24.04" },
  { version: "12.6.1", cudnn: 9, ubuntu: "24.04" },
  { version: "12.6.0", cudnn: 9, ubuntu: "24.04" },
  { version: "12.1.1", cudnn: 8, ubuntu: "22.04" },
  { version: "12.1.0", cudnn: 8, ubuntu: "22.04" },
  { version: "12.0.1", cudnn: 8, ubuntu: "22.04" },
  { version: "12.0.0", cudnn: 8, ubuntu: "22.04" },
  { version: "11.8.0", cudnn: 8, ubuntu: "22.04" },
  { version: "11.7.1", cudnn: 8, ubuntu: "22.04" },
  { version: "11.6.2", cudnn: 8, ubuntu: "20.04" },
  { version: "11.4.3", cudnn: 8, ubuntu: "20.04" },
  { version: "11.2.2", cudnn: 8, ubuntu: "20.04" },
]

/** BentoML's `default`, and its `12`. */
export const DEFAULT_CUDA = "12.8.1"

/** What the CUDA libraries of an ONNX Runtime (that of the server's bundle) were built for. */
export const ONNXRUNTIME_CUDA = { onnxruntime: "1.30", cuda: 12, cudnn: 9, platform: "linux/amd64" } as const
