/**
 * onnxruntime-node alone: one session, one intra-op thread, the same batch again and again.
 * `node bench/bare.ts '{"model":"m.onnx","input":"x","columns":784,"rows":32,"seconds":3}'` prints rows per second and the
 * time of one call.
 */
import { InferenceSession, Tensor } from "onnxruntime-node"
import { quantile } from "./load.ts"

export interface BareOptions {
  readonly model: string
  readonly input: string
  readonly columns: number
  readonly rows: number
  readonly seconds: number
}

export interface BareResult {
  readonly rowsPerSecond: number
  readonly callMs: { readonly p50: number; readonly p99: number }
}

const { model, input, columns, rows, seconds } = JSON.parse(process.argv[2] ?? "{}") as BareOptions
const session = await InferenceSession.create(model, { intraOpNumThreads: 1, interOpNumThreads: 1 })
const outputs = session.outputMetadata.filter((output) => output.isTensor).map((output) => output.name)
const random = Float32Array.from({ length: rows * columns }, (_, index) => ((index * 31) % 97) / 97)
const feeds = { [input]: new Tensor("float32", random, [rows, columns]) }
for (let warmUp = 0; warmUp < 20; warmUp++) await session.run(feeds, outputs)
const calls: number[] = []
const endMs = performance.now() + seconds * 1000
const startedMs = performance.now()
while (performance.now() < endMs) {
  const callMs = performance.now()
  await session.run(feeds, outputs)
  calls.push(performance.now() - callMs)
}
const elapsedS = (performance.now() - startedMs) / 1000
const result: BareResult = {
  rowsPerSecond: (calls.length * rows) / elapsedS,
  callMs: { p50: quantile(calls, 0.5), p99: quantile(calls, 0.99) },
}
process.stdout.write(`${JSON.stringify(result)}\n`)
