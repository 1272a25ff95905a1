/**
 * What the runner costs: callers that each ask for one row at a time, in a closed loop, against bare `session.run` in a loop
 * at the batch size that the runner arrived at, with one thread of ONNX Runtime each, in turn. Both have the machine to
 * themselves. Small models with 64 callers; the perceptron at saturation, with enough callers to fill the batch after the next.
 */
import { copyFileSync, mkdirSync } from "node:fs"
import { createRequire } from "node:module"
import path from "node:path"
import type { InferenceSession, Tensor as OnnxTensor } from "onnxruntime-node"
import { type Clock, DEFAULT_RUNNER_CONFIG, createRunner } from "../runtime/runner.ts"
import type { Model } from "../store/model.ts"
import { RUNS, type Row, median, report, root, scratch } from "./harness.ts"
import { WIDE_INPUT, writeMlp } from "./mlp.ts"

process.env["ORT_DISABLE_TELEMETRY"] = "1"

const SECONDS = 2
const clock: Clock = {
  now: () => performance.now(),
  setTimer: (callback, ms) => {
    const timer = setTimeout(callback, ms)
    return () => clearTimeout(timer)
  },
}

/** Rows per second through a runner, and how many rows its batches had. */
async function throughRunner(
  file: string,
  width: number,
  callers: number,
): Promise<{ rows: number; batch: number }> {
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
  const calling = Array.from({ length: callers }, caller)
  await pause(200)
  batches = rows = 0
  const startedMs = performance.now()
  await pause(SECONDS * 1000)
  const seconds = (performance.now() - startedMs) / 1000
  const result = { rows: rows / seconds, batch: rows / batches }
  stopped = true
  await Promise.all(calling)
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

interface Case {
  readonly name: string
  readonly file: string
  readonly width: number
  readonly callers: number
  /** Rows per second, as a share of the bare loop's; absent where a row is so cheap that only its overhead can be judged. */
  readonly share?: number
}

const mlp = path.join(scratch(), "mlp.onnx")
writeMlp(mlp, WIDE_INPUT)
const cases: Case[] = [
  { name: "iris (forest)", file: path.join(root, "examples/iris/iris.onnx"), width: 4, callers: 64 },
  {
    name: "digits (logistic)",
    file: path.join(root, "examples/digits/digits.onnx"),
    width: 64,
    callers: 64,
  },
  { name: "MLP 784-1024-1024-10", file: mlp, width: 784, callers: 256, share: 0.9 },
]

const rows: Row[] = []
for (const { name, file, width, callers, share } of cases) {
  const ratios: number[] = []
  const added: number[] = []
  const rates: number[] = []
  const batches: number[] = []
  for (let run = 0; run < RUNS; run++) {
    const through = await throughRunner(file, width, callers)
    const alone = await bare(file, width, Math.max(1, Math.round(through.batch)))
    ratios.push(through.rows / alone)
    added.push(1e6 / through.rows - 1e6 / alone)
    rates.push(through.rows)
    batches.push(through.batch)
  }
  const ratio = median(ratios)
  const addedUs = median(added)
  rows.push({
    what: `${name}, ${callers} callers of one row`,
    measured: `${median(rates).toFixed(0)} rows/s at ${median(batches).toFixed(1)} a batch`,
    against: `session.run alone at that size: ${ratio.toFixed(2)}×, ${addedUs.toFixed(1)} µs more a row`,
    ...(share === undefined
      ? { goal: "≤ 4 µs more a row", met: addedUs <= 4 }
      : { goal: `≥ ${share.toFixed(2)}×`, met: ratio >= share }),
  })
}
report("Runner against bare ONNX Runtime", rows)
