/**
 * What the runner costs: 64 callers that each ask for one row at a time, in a closed loop, against bare
 * `session.run` in a loop at the batch size that the runner arrived at. Both have the machine to themselves.
 */
import { copyFileSync, mkdirSync } from "node:fs"
import { createRequire } from "node:module"
import path from "node:path"
import type { InferenceSession, Tensor as OnnxTensor } from "onnxruntime-node"
import { type Clock, DEFAULT_RUNNER_CONFIG, createRunner } from "../runtime/runner.ts"
import type { Model } from "../store/model.ts"
import { median, report, root, scratch } from "./harness.ts"

process.env["ORT_DISABLE_TELEMETRY"] = "1"

const CALLERS = 64
const RUNS = 5
const SECONDS = Number(process.env["BENCH_SECONDS"] ?? 1)
const clock: Clock = {
  now: () => performance.now(),
  setTimer: (callback, ms) => {
    const timer = setTimeout(callback, ms)
    return () => clearTimeout(timer)
  },
}

/** Rows per second through a runner, and how many rows its batches had. */
async function throughRunner(file: string, width: number): Promise<{ rows: number; batch: number }> {
  const dir = path.join(scratch(), "model")
  mkdirSync(dir)
  copyFileSync(file, path.join(dir, "saved_model.onnx"))
  let batches = 0
  let rows = 0
  const runner = createRunner({
    name: "bench",
    model: { dir, model: modelWith({ run: { batchable: true, batchDim: [0, 0] } }) },
    config: { ...DEFAULT_RUNNER_CONFIG, intraOpThreads: 1 },
    clock,
    log: { info: () => {}, warn: () => {}, error: (message) => process.stderr.write(`${message}\n`) },
    metrics: {
      loaded: () => {},
      queued: () => {},
      refused: () => {},
      restarted: () => {},
      batch: (event) => {
        batches++
        rows += event.rows
      },
    },
  })
  await runner.start()
  const [input] = runner.signatures["run"]?.inputs ?? []
  if (input === undefined) throw new Error(`${file} takes nothing`)
  const row = {
    [input.name]: { dtype: "float32", shape: [1, width], data: new Float32Array(width).fill(0.5) },
  } as const
  let stopped = false
  const caller = async (): Promise<void> => {
    while (!stopped) await runner.run("run", row)
  }
  const callers = Array.from({ length: CALLERS }, caller)
  await pause(200)
  batches = rows = 0
  const startedMs = performance.now()
  await pause(SECONDS * 1000)
  const seconds = (performance.now() - startedMs) / 1000
  const result = { rows: rows / seconds, batch: rows / batches }
  stopped = true
  await Promise.all(callers)
  await runner.close()
  return result
}

/** Rows per second of `session.run` alone. */
async function bare(file: string, width: number, batch: number): Promise<number> {
  const ort = createRequire(import.meta.url)("onnxruntime-node") as {
    InferenceSession: {
      create(file: string, options: InferenceSession.SessionOptions): Promise<InferenceSession>
    }
    Tensor: new (dtype: "float32", data: Float32Array, shape: readonly number[]) => OnnxTensor
  }
  const session = await ort.InferenceSession.create(file, { intraOpNumThreads: 1, interOpNumThreads: 1 })
  const outputs = session.outputMetadata.filter((output) => output.isTensor).map((output) => output.name)
  const [name = ""] = session.inputNames
  const tensor = new ort.Tensor("float32", new Float32Array(width * batch).fill(0.5), [batch, width])
  const run = async (ms: number): Promise<number> => {
    const untilMs = performance.now() + ms
    let runs = 0
    for (; performance.now() < untilMs; runs++) await session.run({ [name]: tensor }, outputs)
    return runs
  }
  await run(200)
  const startedMs = performance.now()
  const runs = await run(SECONDS * 1000)
  const perSecond = (runs * batch) / ((performance.now() - startedMs) / 1000)
  await session.release()
  return perSecond
}

function modelWith(signatures: Model["signatures"]): Model {
  return {
    tag: { name: "bench", version: "1" },
    module: "bentoml.onnx",
    labels: {},
    options: {},
    metadata: {},
    context: {
      frameworkName: "onnx",
      frameworkVersions: {},
      bentomlVersion: "1.4.38",
      pythonVersion: "3.11.7",
    },
    signatures,
    apiVersion: "v1",
    creationTime: "2026-01-01T00:00:00.000000+00:00",
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}

const cases = [
  { name: "iris (forest)", file: path.join(root, "examples/iris/iris.onnx"), width: 4 },
  { name: "digits (logistic)", file: path.join(root, "examples/digits/digits.onnx"), width: 64 },
]
const extra = process.env["BENCH_MODEL"]
if (extra !== undefined)
  cases.push({ name: path.basename(extra), file: extra, width: Number(process.env["BENCH_WIDTH"]) })

const rows = []
for (const { name, file, width } of cases) {
  const ratios: number[] = []
  const added: number[] = []
  let last = { rows: 0, batch: 0 }
  let alone = 0
  for (let run = 0; run < RUNS; run++) {
    last = await throughRunner(file, width)
    alone = await bare(file, width, Math.max(1, Math.round(last.batch)))
    ratios.push(last.rows / alone)
    added.push(1e6 / last.rows - 1e6 / alone)
  }
  const ratio = median(ratios)
  const addedUs = median(added)
  rows.push({
    what: `${name}, ${CALLERS} callers of one row`,
    measured: `${Math.round(last.rows)} rows/s at ${last.batch.toFixed(1)} a batch`,
    against: `session.run alone: ${Math.round(alone)} rows/s (${ratio.toFixed(2)}×, ${addedUs.toFixed(1)} µs more a row)`,
    goal: "≤ 4 µs more a row",
    met: addedUs <= 4,
  })
}
report("Runner against bare ONNX Runtime", rows)
