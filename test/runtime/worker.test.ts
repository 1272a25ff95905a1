/** Real threads, real models: what ONNX Runtime answers through a runner is what it answers alone. */
import assert from "node:assert/strict"
import { copyFileSync, cpSync, readFileSync, rmSync } from "node:fs"
import path from "node:path"
import { describe, test } from "node:test"
import { Worker } from "node:worker_threads"
import fc from "fast-check"
import type { BentoError } from "../../store/errors.ts"
import { ServeError } from "../../runtime/errors.ts"
import type { WorkerSettings } from "../../runtime/protocol.ts"
import {
  type Clock,
  DEFAULT_RUNNER_CONFIG,
  type ModelRunner,
  type RunnerConfig,
  type RunnerMetrics,
  type RunnerOptions,
  checkModel,
  createRunner,
} from "../../runtime/runner.ts"
import { type DType, type Tensor, type Tensors, emptyData, makeTensor } from "../../runtime/tensor.ts"
import type { Signature } from "../../store/model.ts"
import { KILLS_ONCE, armOnce } from "./faults/deadly-numbers.ts"
import type { Seen } from "./session-watch.ts"
import { BATCHABLE, modelDir, modelWith } from "./runner-world.ts"

// Read by the library when it loads, in whichever thread.
process.env["ORT_DISABLE_TELEMETRY"] = "1"

const root = path.resolve(import.meta.dirname, "../..")
const fixtures = path.join(root, "test/fixtures/models")
const clock: Clock = {
  now: () => performance.now(),
  setTimer: (callback, ms) => {
    const timer = setTimeout(callback, ms)
    return () => clearTimeout(timer)
  },
}

interface Watched {
  readonly runner: ModelRunner
  readonly batches: Parameters<RunnerMetrics["batch"]>[0][]
  readonly logged: string[]
  readonly dir: string
}

function watched(
  file: string,
  options: {
    readonly signatures?: Readonly<Record<string, Signature>>
    readonly config?: Partial<RunnerConfig>
    readonly spawn?: RunnerOptions["spawn"]
  } = {},
): Watched {
  const source = path.resolve(fixtures, file)
  const dir = modelDir((target) => {
    if (path.basename(source) === "model.onnx") cpSync(path.dirname(source), target, { recursive: true })
    else copyFileSync(source, path.join(target, "saved_model.onnx"))
  })
  const batches: Watched["batches"] = []
  const logged: string[] = []
  const log = (message: string): void => void logged.push(message)
  const runner = createRunner({
    name: "m",
    model: { model: modelWith(options.signatures ?? BATCHABLE), dir },
    config: { ...DEFAULT_RUNNER_CONFIG, intraOpThreads: 1, ...options.config },
    clock,
    log: { info: log, warn: log, error: log },
    metrics: {
      loaded: () => {},
      queued: () => {},
      refused: () => {},
      restarted: () => {},
      batch: (event) => batches.push(event),
    },
    ...(options.spawn === undefined ? {} : { spawn: options.spawn }),
  })
  return { runner, batches, logged, dir }
}

/** Starts it, uses it, and closes it whatever happens. */
async function using(world: Watched, body: (world: Watched) => Promise<void>): Promise<void> {
  try {
    await world.runner.start()
    await body(world)
  } finally {
    await world.runner.close({ drain: false })
  }
}

/** As `expected.json` writes tensors: what JSON's numbers cannot hold is a string, float16 are values. */
interface Written {
  readonly dtype: DType
  readonly shape: readonly number[]
  readonly data: readonly (number | string | boolean)[]
}

function read({ dtype, shape, data }: Written): Tensor {
  if (dtype === "string") return makeTensor(dtype, shape, data.map(String))
  if (dtype === "float16") {
    const bits = new Uint16Array(Float16Array.from(data, Number).buffer)
    return makeTensor(dtype, shape, bits)
  }
  const array = emptyData(dtype, data.length)
  data.forEach((value, index) => {
    if (array instanceof BigInt64Array || array instanceof BigUint64Array) array[index] = BigInt(value)
    else if (!Array.isArray(array)) array[index] = Number(value)
  })
  return makeTensor(dtype, shape, array)
}

interface Try {
  readonly inputs: Readonly<Record<string, Written>>
  readonly outputs?: Readonly<Record<string, Written>>
  readonly error?: string
}
// The file is ours.
const expected = JSON.parse(readFileSync(path.join(fixtures, "expected.json"), "utf8")) as Record<
  string,
  Try[]
>

function all(written: Readonly<Record<string, Written>>): Tensors {
  return Object.fromEntries(Object.entries(written).map(([name, value]) => [name, read(value)]))
}

function assertTensors(actual: Tensors, wanted: Tensors): void {
  assert.deepEqual(Object.keys(actual).toSorted(), Object.keys(wanted).toSorted())
  for (const [name, tensor] of Object.entries(wanted)) {
    const { dtype, shape, data } = actual[name] ?? {}
    assert.deepEqual([name, dtype, shape], [name, tensor.dtype, tensor.shape])
    if (dtype !== "float32" && dtype !== "float64") assert.deepEqual(data, tensor.data, name)
    else {
      tensor.data.forEach((value: unknown, index: number) => {
        const got = Number(data?.[index])
        const want = Number(value)
        assert.ok(
          Object.is(got, want) || Math.abs(got - want) <= 1e-5 * Math.abs(want),
          `${name}[${index}]: ${got}, not ${want}`,
        )
      })
    }
  }
}

describe("each fixture answers as ONNX Runtime under Python did", () => {
  for (const [file, tries] of Object.entries(expected)) {
    test(file, async () => {
      const axis1 = { run: { batchable: true, batchDim: [1, 1] } } as const
      await using(
        watched(file, file === "batch_axis1.onnx" ? { signatures: axis1 } : {}),
        async ({ runner }) => {
          for (const { inputs, outputs, error } of tries) {
            const result = runner.run("run", all(inputs))
            const rows = Object.values(inputs)[0]?.shape[0]
            const rowsOut = Object.values(outputs ?? {})[0]?.shape[0]
            if (error !== undefined) await assert.rejects(result, ServeError)
            else if (rows === 0) await assert.rejects(result, /has no rows/)
            else if (file === "filter_rows.onnx" && rows !== rowsOut)
              await assert.rejects(result, /failed on this input/)
            else assertTensors(await result, all(outputs ?? {}))
          }
        },
      )
    })
  }
})

describe("what the examples answer in batches is what scikit-learn answered", () => {
  for (const example of ["iris", "digits"]) {
    test(example, async () => {
      const folder = path.join(root, "examples", example)
      // The files are ours.
      const golden = JSON.parse(readFileSync(path.join(folder, "golden.json"), "utf8")) as {
        inputs: number[][]
        labels: number[]
        probabilities: number[][]
      }
      await using(watched(path.join(folder, `${example}.onnx`)), async ({ runner, batches }) => {
        const [input] = runner.signatures["run"]?.inputs ?? []
        assert.ok(input !== undefined)
        const row = (values: readonly number[]): Tensors => ({
          [input.name]: { dtype: "float32", shape: [1, values.length], data: Float32Array.from(values) },
        })
        const answers = await Promise.all(golden.inputs.map((values) => runner.run("run", row(values))))
        assert.ok(
          batches.some(({ rows }) => rows > 10),
          "they ran in batches",
        )
        const byShape = (answer: Tensors, rank: number): Tensor | undefined =>
          Object.values(answer).find(({ shape }) => shape.length === rank)
        for (const [index, answer] of answers.entries()) {
          assert.equal(Number(byShape(answer, 1)?.data[0]), golden.labels[index])
          golden.probabilities[index]?.forEach((probability, column) => {
            assert.ok(Math.abs(Number(byShape(answer, 2)?.data[column]) - probability) <= 1e-6)
          })
        }
        // Alone, one after the other: the same. A forest's kernel treats rows apart, so to the bit; a matrix product
        // adds in another order when there is one row only.
        for (const index of [0, 10, 20]) {
          const alone = await runner.run("run", row(golden.inputs[index] ?? []))
          if (example === "iris") assert.deepEqual(alone, answers[index])
          else assertTensors(alone, answers[index] ?? {})
        }
      })
    })
  }
})

test("whatever the sizes and shapes, every caller gets its own rows", async () => {
  await using(watched("inner_dim_free.onnx", { config: { maxBatchSize: 8 } }), async ({ runner }) => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 3 })), {
          minLength: 1,
          maxLength: 30,
        }),
        async (shapes) => {
          let next = 0
          const inputs = shapes.map((shape): Tensor<"float32"> => ({
            dtype: "float32",
            shape,
            data: Float32Array.from({ length: shape[0] * shape[1] }, () => next++),
          }))
          const answers = await Promise.all(inputs.map((X) => runner.run("run", { X })))
          answers.forEach((answer, index) => {
            const { shape, data } = inputs[index] ?? { shape: [], data: new Float32Array() }
            assert.deepEqual(answer["Y"], { dtype: "float32", shape, data: data.map((value) => value + 1) })
          })
        },
      ),
      { numRuns: 50 },
    )
  })
})

test("two poisoned rows of twelve: ten right answers and two errors", async () => {
  await using(watched("fail_on_negative.onnx"), async ({ runner, batches }) => {
    const values = [1, 2, 3, 1000, 5, 6, 7, 8, 2000, 9, 0, 4]
    const results = await Promise.allSettled(
      values.map((value) =>
        runner.run("run", { X: { dtype: "int64", shape: [1], data: BigInt64Array.of(BigInt(value)) } }),
      ),
    )
    assert.ok(
      batches.some(({ jobs }) => jobs === 12),
      "they met in one batch",
    )
    results.forEach((result, index) => {
      const value = values[index] ?? 0
      if (value > 9) assert.equal(result.status, "rejected")
      else if (result.status === "fulfilled")
        assert.deepEqual([...(result.value["Y"]?.data ?? [])], [value, value * value])
      else assert.fail(String(result.reason))
    })
  })
})

describe("models that do not load say why", () => {
  for (const [file, reason] of [
    ["text.onnx", /Protobuf parsing failed/],
    ["truncated.onnx", /Protobuf parsing failed|ModelProto does not have a graph/],
    ["unknown_op.onnx", /NoSuchOp/],
    ["external_escape_dotdot.onnx", /external|outside|escape/i],
    ["external_escape_absolute.onnx", /external|outside|escape|absolute/i],
  ] as const) {
    test(file, async () => {
      const { runner } = watched(file)
      await assert.rejects(runner.start(), (error: BentoError) => {
        assert.equal(error.code, "MODEL_LOAD_FAILED")
        assert.match(error.message, reason)
        return true
      })
      const check = await checkModel(path.join(fixtures, file), clock)
      assert.ok(!check.ok)
      assert.match(check.message, reason)
    })
  }

  test("a model that loads tells its tensors, ZipMaps as the tensors they become", async () => {
    assert.deepEqual(await checkModel(path.join(fixtures, "zipmap_strings.onnx"), clock), {
      ok: true,
      inputs: ["X"],
      outputs: ["output_label", "output_probability"],
    })
  })

  test("CUDA that is asked for and not there is an error that names the library", async () => {
    const { runner } = watched("row_id.onnx", { config: { providers: ["cuda", "cpu"] } })
    await assert.rejects(
      runner.start(),
      /CUDA cannot be used: lib\S+ is not in|CUDA cannot be used: lib\S+, which/,
    )
  })

  test("falling back to the CPU is allowed only where it is said, and the log tells", async () => {
    const config = { providers: ["cuda", "cpu"], allowCpuFallback: true } as const
    await using(watched("row_id.onnx", { config }), async ({ runner, logged }) => {
      assert.equal(runner.ready, true)
      assert.ok(logged.some((line) => line.includes("the model runs on the CPU")))
    })
  })
})

/** Threads of the real kind, which a test can get at. */
function threads(preload = "faults/deadly-numbers.ts"): {
  readonly started: Worker[]
  readonly spawn: (settings: WorkerSettings) => Worker
} {
  const started: Worker[] = []
  return {
    started,
    spawn: (settings) => {
      const worker = new Worker(path.join(root, "runtime/worker.ts"), {
        execArgv: ["--import", path.join(import.meta.dirname, preload)],
      })
      worker.postMessage({ type: "load", settings })
      started.push(worker)
      return worker
    },
  }
}

const row = (value: number): Tensors => ({
  X: { dtype: "float32", shape: [1, 4], data: Float32Array.of(value, value, value, value) },
})

test("a thread that ends with a batch in it: the jobs are answered by the next", async () => {
  const { started, spawn } = threads()
  armOnce()
  await using(watched("row_id.onnx", { spawn }), async ({ runner }) => {
    const values = [1, KILLS_ONCE, 2, 3]
    const answers = await Promise.all(values.map((value) => runner.run("run", row(value))))
    assert.deepEqual(
      answers.map((answer) => [...(answer["sum"]?.data ?? [])]),
      values.map((value) => [4 * value]),
    )
    assert.equal(started.length, 2)
    assert.equal(runner.ready, true)
  })
})

test("the file may be removed once the model is loaded", async () => {
  await using(watched("row_id.onnx"), async ({ runner, dir }) => {
    rmSync(dir, { recursive: true })
    assert.deepEqual([...((await runner.run("run", row(1)))["sum"]?.data ?? [])], [4])
  })
})

test("while a long inference runs the main thread goes on", async () => {
  const digits = path.join(root, "examples/digits/digits.onnx")
  await using(
    watched(digits, { config: { maxBatchSize: 200_000, maxQueueRows: 200_000, warmUp: false } }),
    async ({ runner }) => {
      const [input] = runner.signatures["run"]?.inputs ?? []
      const timing = { queueMs: 0, inferMs: 0, batchRows: 0 }
      const rows = 50_000
      let answered = false
      const answer = runner
        .run(
          "run",
          { [input?.name ?? ""]: { dtype: "float32", shape: [rows, 64], data: new Float32Array(64 * rows) } },
          { timing },
        )
        .then(() => (answered = true))
      let turns = 0
      while (!answered) {
        await new Promise((resolve) => setImmediate(resolve))
        turns++
      }
      await answer
      assert.ok(timing.inferMs > 5, `it took ${timing.inferMs} ms`)
      // Were it blocked, there would be one or two.
      assert.ok(turns > 10, `${turns} turns in ${timing.inferMs} ms`)
    },
  )
})

test("one session for all requests, with the threads it was given and no arena; tensors are handed over; it is released at the end", async () => {
  const { started, spawn } = threads("session-watch.ts")
  const { runner } = watched("row_id.onnx", { spawn, config: { intraOpThreads: 2 } })
  const seen: Seen[] = []
  const starting = runner.start()
  while (started.length === 0) await new Promise((resolve) => setImmediate(resolve))
  started[0]?.on("message", (message: Seen) => seen.push(message))
  await starting
  const exited = new Promise((resolve) => started[0]?.on("exit", resolve))
  await runner.run("run", row(1))
  await Promise.all([runner.run("run", row(2)), runner.close()])
  assert.equal(await exited, 0)
  const created = seen.filter((it) => it.type === "created")
  assert.deepEqual(
    created.map(({ options }) => [
      options.intraOpNumThreads,
      options.interOpNumThreads,
      options.enableCpuMemArena,
    ]),
    [[2, 1, false]],
  )
  const handedOver = seen.filter((it) => it.type === "handed over")
  assert.ok(
    handedOver.length > 2 && handedOver.every(({ buffers, bytesLeft }) => buffers > 0 && bytesLeft === 0),
  )
  assert.equal(seen.filter((it) => it.type === "released").length, 1)
})
