/** The real ONNX Runtime, in the test's own process. */
process.env["ORT_DISABLE_TELEMETRY"] = "1"

import type { InferenceSession, Tensor } from "onnxruntime-node"
import type { CheckResult } from "../../store/bento.ts"

const ort = await import("onnxruntime-node")

export function loadOnnx(model: string | Uint8Array): Promise<InferenceSession> {
  const options = { logSeverityLevel: 4 } as const
  return typeof model === "string"
    ? ort.InferenceSession.create(model, options)
    : ort.InferenceSession.create(model, options)
}

export function floats(rows: readonly (readonly number[])[]): Tensor {
  return new ort.Tensor("float32", Float32Array.from(rows.flat()), [rows.length, rows[0]?.length ?? 0])
}

/** What the command line does in another process. */
export async function checkModel(file: string): Promise<CheckResult> {
  try {
    const session = await loadOnnx(file)
    const result = { ok: true, inputs: session.inputNames, outputs: session.outputNames } as const
    await session.release()
    return result
  } catch (error) {
    return { ok: false, message: error instanceof Error ? error.message : String(error) }
  }
}
