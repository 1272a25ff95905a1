/**
 * The messages between a runner (main thread) and its worker threads. Tensors travel by position, in the order of the
 * model's inputs and outputs as `ready` named them; their buffers are transferred, strings are cloned.
 */
import type { DType, TensorData } from "./tensor.ts"

/** An input or output as the model declares it. A free dimension is its symbolic name, or null without one. */
export interface ValueSpec {
  readonly name: string
  readonly dtype: DType
  readonly shape: readonly (number | string | null)[]
}

/** Everything that a worker thread needs to load its model. */
export interface WorkerSettings {
  readonly file: string
  readonly intraOpThreads: number
  readonly providers: readonly Provider[]
  /** With a provider other than cpu: load on cpu where it fails. Off, loading fails. */
  readonly allowCpuFallback: boolean
}

export type Provider = "cpu" | "cuda"

/** A tensor without its dtype, which the model's declaration fixes. */
export interface WireTensor {
  readonly shape: readonly number[]
  readonly data: TensorData[DType]
}

/** The first message to a worker, then what the runner wants of it. */
export type ToWorker = { readonly type: "load"; readonly settings: WorkerSettings } | ToLoadedWorker

export type ToLoadedWorker =
  | { readonly type: "run"; readonly id: number; readonly inputs: readonly WireTensor[] }
  | { readonly type: "close" }

export type FromWorker =
  | {
      readonly type: "ready"
      readonly inputs: readonly ValueSpec[]
      readonly outputs: readonly ValueSpec[]
      readonly loadMs: number
      /** What happened on the way that a person should know: outputs left out, ZipMap removed, cpu instead of cuda. */
      readonly notes: readonly string[]
    }
  | { readonly type: "failed"; readonly message: string }
  | {
      readonly type: "done"
      readonly id: number
      readonly outputs: readonly WireTensor[]
      readonly inferMs: number
    }
  | { readonly type: "error"; readonly id: number; readonly message: string }

/** The buffers of a message that change hands instead of being copied. */
export function transferList(tensors: readonly WireTensor[]): ArrayBuffer[] {
  const buffers: ArrayBuffer[] = []
  for (const { data } of tensors) {
    if (!Array.isArray(data) && data.buffer instanceof ArrayBuffer && !buffers.includes(data.buffer)) {
      buffers.push(data.buffer)
    }
  }
  return buffers
}
