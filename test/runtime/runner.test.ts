import assert from "node:assert/strict"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { describe, test } from "node:test"
import { usableCpus } from "../../runtime/cpus.ts"
import { ServeError } from "../../runtime/errors.ts"
import type { WireTensor } from "../../runtime/protocol.ts"
import { type RunOptions, type RunnerConfig, findModelFile } from "../../runtime/runner.ts"
import type { Tensor, Tensors } from "../../runtime/tensor.ts"
import { settled } from "./manual-clock.ts"
import { BATCHABLE, RunnerWorld, type RunnerWorldOptions, scratch, spec } from "./runner-world.ts"

function float32(shape: readonly number[], ...values: number[]): Tensor<"float32"> {
  const size = shape.reduce((product, dimension) => product * dimension, 1)
  return {
    dtype: "float32",
    shape,
    data: Float32Array.from({ length: size }, (_, index) => values[index] ?? 0),
  }
}

async function started(options: RunnerWorldOptions = {}): Promise<RunnerWorld> {
  const world = new RunnerWorld(options)
  await world.start()
  return world
}

function numbersOf(wire: WireTensor | undefined): Float32Array {
  assert.ok(wire?.data instanceof Float32Array)
  return wire.data
}

interface Result {
  answer?: Tensors
  error?: unknown
  atMs?: number
}

function run(world: RunnerWorld, inputs: Tensors, options?: RunOptions, signature = "run"): Result {
  const result: Result = {}
  world.runner.run(signature, inputs, options).then(
    (answer) => Object.assign(result, { answer, atMs: world.clock.now() }),
    (error: unknown) => Object.assign(result, { error, atMs: world.clock.now() }),
  )
  return result
}

function serveError(result: Result): ServeError {
  assert.ok(result.error instanceof ServeError, `not a ServeError: ${String(result.error)}`)
  return result.error
}

describe("starting", () => {
  test("it is ready once a worker has the model, and tells its signatures", async () => {
    const world = new RunnerWorld()
    assert.equal(world.runner.ready, false)
    await world.start()
    assert.equal(world.runner.ready, true)
    assert.deepEqual(world.runner.signatures["run"], {
      inputs: [spec("x", ["N", 2])],
      outputs: [spec("y", ["N", 2])],
      batchable: true,
      batchDim: [0, 0],
    })
    assert.equal(world.counted.loaded, 1)
    assert.ok(world.logged.some((line) => line.includes("a note")))
  })

  for (const [what, load, reason] of [
    ["ONNX Runtime refuses it", () => new Error("no such op: Foo"), /no such op: Foo/],
    ["its thread ends", () => "exit" as const, /exit code 1/],
    ["its thread says nothing for too long", () => "never" as const, /not loaded after 300000 ms/],
  ] as const) {
    test(`a model that cannot load, because ${what}, is an error with the reason, and no thread is left`, async () => {
      const world = new RunnerWorld({ load })
      await assert.rejects(world.start(), (error: Error) => {
        assert.equal((error as ServeError).code, "MODEL_LOAD_FAILED")
        assert.match(error.message, /^m:v1 cannot be loaded/)
        assert.match(error.message, reason)
        return true
      })
      assert.equal(world.runner.ready, false)
      assert.ok(world.threads.every((thread) => thread.closed))
      await world.clock.advance(1_000_000)
      assert.equal(world.threads.length, 1)
    })
  }

  test("a folder without a model names itself", async () => {
    const dir = scratch()
    await assert.rejects(findModelFile(dir), /holds no \.onnx file/)
    writeFileSync(path.join(dir, "a.onnx"), "")
    assert.equal(await findModelFile(dir), path.join(dir, "a.onnx"))
    writeFileSync(path.join(dir, "b.onnx"), "")
    await assert.rejects(findModelFile(dir), /2 \.onnx files/)
    writeFileSync(path.join(dir, "saved_model.onnx"), "")
    assert.equal(await findModelFile(dir), path.join(dir, "saved_model.onnx"))
  })

  test("ONNX Runtime gets the CPUs of this process, shared among the workers, or as many threads as configured", async () => {
    const threadsOf = async (config: Partial<RunnerConfig>): Promise<number[]> => {
      const { threads } = await started({ config })
      return threads.map(({ settings }) => settings.intraOpThreads)
    }
    const cpus = usableCpus()
    assert.deepEqual(await threadsOf({}), [cpus])
    assert.deepEqual(await threadsOf({ workers: 3 }), Array<number>(3).fill(Math.ceil(cpus / 3)))
    assert.deepEqual(await threadsOf({ workers: 2, intraOpThreads: 5 }), [5, 5])
  })

  test("before it has started a call is a bug, not a hang", async () => {
    const world = new RunnerWorld()
    await assert.rejects(world.runner.run("run", {}), /not started/)
    await world.start()
    await assert.rejects(world.runner.run("walk", {}), /no method walk; it has run/)
  })
})

describe("warm-up", () => {
  test("one row and the largest batch run before it is ready, with zeros", async () => {
    const readyWhile: boolean[] = []
    const world: RunnerWorld = new RunnerWorld({
      config: { warmUp: true, maxBatchSize: 16 },
      model: (inputs) => {
        readyWhile.push(world.runner.ready)
        return inputs
      },
    })
    await world.start()
    const rows = world.batches.map(([input]) => input?.shape[0])
    assert.deepEqual([...new Set(rows)], [1, 16])
    assert.ok(!readyWhile.includes(true))
    assert.ok(world.batches.every(([input]) => numbersOf(input).every((value) => value === 0)))
  })

  test("what it measured is known to the cost model", async () => {
    const world = await started({ config: { warmUp: true, maxBatchSize: 16 } })
    assert.ok((world.runner.stats().groups[0]?.samples ?? 0) > 2)
  })

  test("free inner dimensions become 1", async () => {
    const world = await started({
      inputs: [spec("x", ["N", "M", 3])],
      config: { warmUp: true, maxBatchSize: 2 },
    })
    assert.deepEqual(world.batches[0]?.[0]?.shape, [1, 1, 3])
  })

  test("a model that objects to zeros starts all the same", async () => {
    const world = await started({ config: { warmUp: true }, model: () => new Error("zeros!") })
    assert.equal(world.runner.ready, true)
    assert.ok(world.logged.some((line) => line.includes("zeros!")))
  })

  test("a slow model does not warm up at the full size", async () => {
    const world = await started({ config: { warmUp: true }, durationMs: 700 })
    assert.ok(world.batches.every(([input]) => (input?.shape[0] ?? 0) <= 2))
  })

  test("it can be left out", async () => {
    const world = await started({ config: { warmUp: false } })
    assert.equal(world.batches.length, 0)
  })

  test("every worker warms up", async () => {
    const world = await started({ config: { warmUp: true, workers: 2, maxBatchSize: 1 } })
    assert.equal(world.batches.length, 4)
  })
})

describe("inputs are checked, and the message says what was expected and what came", () => {
  const inputs = [spec("a", ["N", 2]), spec("b", ["N", 3])]
  const good = { a: float32([1, 2]), b: float32([1, 3]) }
  const cases: readonly (readonly [what: string, given: Tensors, message: RegExp])[] = [
    ["an input is missing", { a: good.a }, /input "b" is missing; received: a/],
    ["none came", {}, /input "a" is missing; received: none/],
    ["an unknown one came", { ...good, c: good.a }, /run has no input "c"; it has: a, b/],
    [
      "another dtype",
      { ...good, a: { dtype: "int32", shape: [1, 2], data: new Int32Array(2) } },
      /input "a": expected float32 \[N, 2\], received int32 \[1, 2\]/,
    ],
    [
      "another size",
      { ...good, b: float32([1, 4]) },
      /input "b": expected float32 \[N, 3\], received float32 \[1, 4\]/,
    ],
    [
      "another rank",
      { ...good, b: float32([3]) },
      /input "b": expected float32 \[N, 3\], received float32 \[3\]/,
    ],
    [
      "a shape that does not fit the data",
      { ...good, b: { dtype: "float32", shape: [1, 3], data: new Float32Array(2) } },
      /input "b" has 2 elements, but its shape \[1, 3\] needs 3/,
    ],
    [
      "a shape of nonsense",
      { ...good, b: { dtype: "float32", shape: [-1, 3], data: new Float32Array(3) } },
      /impossible shape/,
    ],
    [
      "data of another kind",
      { ...good, b: { dtype: "float32", shape: [1, 3], data: [1, 2, 3] } as unknown as Tensor },
      /holds other data/,
    ],
    ["no rows", { a: float32([0, 2]), b: float32([0, 3]) }, /input "a" has no rows/],
    [
      "rows that differ",
      { a: float32([2, 2]), b: float32([1, 3]) },
      /inputs differ in their rows: "a" has 2, "b" has 1/,
    ],
    ["a name from the prototype", { a: good.a, b: good.b, toString: good.a }, /no input "toString"/],
  ]
  for (const [what, given, message] of cases) {
    test(what, async () => {
      const world = await started({ inputs })
      const result = run(world, given)
      await settled()
      const error = serveError(result)
      assert.equal(error.code, "BAD_INPUT")
      assert.equal(error.status, 400)
      assert.match(error.message, message)
      assert.equal(world.batches.length, 0)
    })
  }

  test("the details are there for machines too", async () => {
    const world = await started({ inputs })
    const result = run(world, { ...good, b: float32([1, 4]) })
    await settled()
    assert.deepEqual(serveError(result).detail, {
      input: "b",
      expected: { dtype: "float32", shape: ["N", 3] },
      received: { dtype: "float32", shape: [1, 4] },
    })
  })

  test("a NUL in a string is refused: ONNX Runtime's binding would cut the string there, silently", async () => {
    const world = await started({ inputs: [spec("s", ["N"], "string")] })
    const result = run(world, { s: { dtype: "string", shape: [1], data: ["a\0b"] } })
    await settled()
    assert.match(serveError(result).message, /NUL/)
  })

  test("an input of the graph's that is named like a method of Object is found", async () => {
    const world = await started({ inputs: [spec("constructor", ["N", 2])] })
    const missing = run(world, {})
    const given = run(world, { constructor: float32([1, 2], 1, 2) })
    await world.clock.advance(100)
    assert.match(serveError(missing).message, /"constructor" is missing/)
    assert.deepEqual([...(given.answer?.["y"]?.data ?? [])], [2, 4])
  })
})

describe("batches", () => {
  test("jobs that wait together go as one message, and each gets its rows", async () => {
    const world = await started()
    const results = [1, 2, 3, 4].map((value) => run(world, { x: float32([1, 2], value, -value) }))
    await world.clock.advance(100)
    assert.deepEqual(
      world.batches.map(([input]) => input?.shape),
      [
        [1, 2],
        [3, 2],
      ],
    )
    assert.deepEqual(
      results.map(({ answer }) => [...(answer?.["y"]?.data ?? [])]),
      [
        [2, -2],
        [4, -4],
        [6, -6],
        [8, -8],
      ],
    )
  })

  test("the caller keeps its tensors: what goes to the worker is a buffer of the batch's own", async () => {
    const world = await started()
    const x = float32([1, 2], 1, 2)
    const alone = run(world, { x })
    const together = [run(world, { x }), run(world, { x })]
    await world.clock.advance(100)
    assert.deepEqual([...x.data], [1, 2])
    assert.deepEqual(
      world.handedOver.map((buffers) => buffers.length),
      [1, 1],
      "without another copy",
    )
    for (const result of [alone, ...together])
      assert.deepEqual([...(result.answer?.["y"]?.data ?? [])], [2, 4])
  })

  test("a job larger than max_batch_size is cut and joined", async () => {
    const world = await started({ config: { maxBatchSize: 4 } })
    const values = Array.from({ length: 20 }, (_, index) => index)
    const result = run(world, { x: float32([10, 2], ...values) })
    await world.clock.advance(100)
    assert.deepEqual(
      world.batches.map(([input]) => input?.shape[0]),
      [4, 4, 2],
    )
    assert.deepEqual(result.answer?.["y"]?.shape, [10, 2])
    assert.deepEqual(
      [...(result.answer?.["y"]?.data ?? [])],
      values.map((value) => 2 * value),
    )
  })

  test("the batch axis of inputs and of outputs may be any, and differ", async () => {
    // x [2, N] → y [N], the sum of both.
    const world = await started({
      inputs: [spec("x", [2, "N"])],
      outputs: [spec("y", ["N"])],
      signatures: { run: { batchable: true, batchDim: [1, 0] } },
      model: ([x]) => {
        const rows = x?.shape[1] ?? 0
        const data = numbersOf(x)
        return [
          {
            shape: [rows],
            data: Float32Array.from({ length: rows }, (_, row) => (data[row] ?? 0) + (data[rows + row] ?? 0)),
          },
        ]
      },
    })
    const first = run(world, { x: float32([2, 1], 1, 2) })
    const others = [
      run(world, { x: float32([2, 2], 1, 2, 10, 20) }),
      run(world, { x: float32([2, 1], 5, 6) }),
    ]
    await world.clock.advance(100)
    assert.deepEqual(world.batches[1]?.[0]?.shape, [2, 3])
    assert.deepEqual(
      [first, ...others].map(({ answer }) => [...(answer?.["y"]?.data ?? [])]),
      [[3], [11, 22], [11]],
    )
  })

  test("inner shapes that differ never meet in a batch", async () => {
    const world = await started({ inputs: [spec("x", ["N", "M"])], outputs: [spec("y", ["N", "M"])] })
    run(world, { x: float32([1, 7]) })
    const results = [2, 3, 2, 3, 2].map((width) => run(world, { x: float32([1, width]) }))
    await world.clock.advance(100)
    assert.deepEqual(
      world.batches.map(([input]) => input?.shape).toSorted((a, b) => (a?.[1] ?? 0) - (b?.[1] ?? 0)),
      [
        [3, 2],
        [2, 3],
        [1, 7],
      ],
    )
    assert.ok(results.every(({ answer }) => answer !== undefined))
  })

  test("signatures never meet in a batch", async () => {
    const world = await started({ signatures: { run: BATCHABLE.run, score: BATCHABLE.run } })
    for (const name of ["run", "score", "run", "score", "run"]) run(world, { x: float32([1, 2]) }, {}, name)
    await world.clock.advance(100)
    assert.deepEqual(
      world.batches.map(([input]) => input?.shape[0]),
      [1, 2, 2],
    )
  })

  for (const [what, options] of [
    ["a signature that is not batchable", { signatures: { run: { batchable: false, batchDim: [0, 0] } } }],
    ["batching switched off", { config: { batching: false } }],
  ] as const) {
    test(`${what}: jobs run one by one, whole, however many rows they have`, async () => {
      const world = await started(options)
      const results = [300, 1, 2].map((rows) => run(world, { x: float32([rows, 2]) }))
      await world.clock.advance(100)
      assert.deepEqual(
        world.batches.map(([input]) => input?.shape[0]),
        [300, 1, 2],
      )
      assert.deepEqual(
        results.map(({ answer }) => answer?.["y"]?.shape[0]),
        [300, 1, 2],
      )
    })
  }

  test("a tensor in a Buffer is copied, since its memory goes with the message and is not the caller's alone", async () => {
    const world = await started({
      config: { batching: false },
      inputs: [{ ...spec("x", ["N", 2]), dtype: "uint8" }],
      model: (inputs) => inputs,
    })
    const data = Buffer.from([1, 2])
    run(world, { x: { dtype: "uint8", shape: [1, 2], data } })
    await world.clock.advance(100)
    const sent = world.batches[0]?.[0]?.data
    assert.deepEqual([...(sent as Uint8Array)], [1, 2])
    assert.notEqual((sent as Uint8Array).buffer, data.buffer)
  })

  test("a graph made for one row takes many, one after the other", async () => {
    const world = await started({ inputs: [spec("x", [1, 2])], outputs: [spec("y", [1, 2])] })
    const result = run(world, { x: float32([3, 2], 1, 2, 3, 4, 5, 6) })
    await world.clock.advance(100)
    assert.equal(world.batches.length, 3)
    assert.deepEqual([...(result.answer?.["y"]?.data ?? [])], [2, 4, 6, 8, 10, 12])
  })

  for (const [what, inputs, outputs] of [
    ["a fixed batch axis of four", [spec("x", [4, 2])], [spec("y", [4, 2])]],
    ["an output of one row for many", [spec("x", ["N", 2])], [spec("y", [1, 2])]],
    ["an output without the axis", [spec("x", ["N", 2])], [spec("y", [])]],
  ] as const) {
    test(`${what} is not batched although the signature says so, and the log tells`, async () => {
      const world = await started({
        inputs,
        outputs,
        model: () => [{ shape: [], data: new Float32Array(1) }],
      })
      assert.equal(world.runner.signatures["run"]?.batchable, false)
      assert.ok(world.logged.some((line) => line.includes("not batched")))
      const results = [run(world, { x: float32([4, 2]) }), run(world, { x: float32([4, 2]) })]
      await world.clock.advance(100)
      assert.equal(world.batches.length, 2)
      assert.ok(results.every(({ answer }) => answer !== undefined))
    })
  }

  test("an output whose rows do not match is an error, never a wrong slice", async () => {
    // Drops rows whose first value is negative.
    const world = await started({
      model: ([x]) => {
        const rows: number[][] = []
        const data = numbersOf(x)
        for (let row = 0; row < (x?.shape[0] ?? 0); row++) {
          if ((data[2 * row] ?? 0) >= 0) rows.push([...data.subarray(2 * row, 2 * row + 2)])
        }
        return [{ shape: [rows.length, 2], data: Float32Array.from(rows.flat()) }]
      },
    })
    const results = [1, 2, -3, 4, 5].map((value) => run(world, { x: float32([1, 2], value, value) }))
    await world.clock.advance(1000)
    results.forEach((result, index) => {
      if (index === 2) {
        assert.equal(serveError(result).code, "INFERENCE_FAILED")
        assert.match(
          String(serveError(result).cause),
          /run: output y has the shape \[0, 2\] for 1 rows; axis 0 must have one entry for each/,
        )
      } else assert.deepEqual([...(result.answer?.["y"]?.data ?? [])], [index + 1, index + 1])
    })
  })

  test("the timing is filled", async () => {
    const world = await started()
    const timing = { queueMs: 0, inferMs: 0, batchRows: 0 }
    run(world, { x: float32([1, 2]) })
    run(world, { x: float32([2, 2]) })
    run(world, { x: float32([1, 2]) }, { timing })
    await world.clock.advance(100)
    assert.deepEqual(timing, { queueMs: 10, inferMs: 1, batchRows: 3 })
  })

  test("a worker under load has its next batch before it is through with the one before", async () => {
    const world = await started({ config: { warmUp: true, maxBatchSize: 2 } })
    world.batches.length = 0
    const results = Array.from({ length: 9 }, (_, index) => run(world, { x: float32([1, 2], index, index) }))
    assert.deepEqual(
      world.batches.map(([input]) => input?.shape[0]),
      [1, 2],
    )
    await world.clock.advance(1000)
    results.forEach(({ answer }, index) =>
      assert.deepEqual([...(answer?.["y"]?.data ?? [])], [2 * index, 2 * index]),
    )
  })

  test("a worker that is lost with two batches loses none of their jobs", async () => {
    const world = await started({
      config: { warmUp: true, maxBatchSize: 2, timeoutMs: 5000 },
      model: (inputs, batch) => (batch === 5 ? "never" : inputs),
    })
    const results = Array.from({ length: 9 }, (_, index) => run(world, { x: float32([1, 2], index, index) }))
    await world.clock.advance(60_000)
    results.forEach(({ answer }, index) => assert.deepEqual([...(answer?.["y"]?.data ?? [])], [index, index]))
    assert.deepEqual(world.counted.restarted, ["timeout"])
  })

  test("workers run side by side", async () => {
    const world = await started({ config: { workers: 3 } })
    const results = [1, 2, 3].map(() => run(world, { x: float32([1, 2]) }))
    const startMs = world.clock.now()
    await world.clock.advance(100)
    assert.ok(results.every(({ atMs }) => atMs === startMs + 10))
    assert.equal(world.runner.stats().workersUp, 3)
  })
})

describe("errors", () => {
  test("what the model throws is a 500 whose text stays in the log", async () => {
    const world = await started({ model: () => new Error("idx=1000 /secret/path") })
    const result = run(world, { x: float32([1, 2]) })
    await world.clock.advance(100)
    const error = serveError(result)
    assert.deepEqual(
      [error.code, error.status, error.message],
      ["INFERENCE_FAILED", 500, "m.run failed on this input"],
    )
    assert.match((error.cause as Error).message, /idx=1000/)
  })

  test("one bad row of a batch fails alone", async () => {
    const world = await started({
      model: ([x], batch) =>
        numbersOf(x).includes(666)
          ? new Error("bad")
          : [{ shape: x?.shape ?? [], data: new Float32Array(2 * (x?.shape[0] ?? 0)).fill(batch) }],
    })
    const results = [0, 1, 666, 3, 4, 5].map((value) => run(world, { x: float32([1, 2], value) }))
    await world.clock.advance(1000)
    assert.deepEqual(
      results.map(({ error }) => error !== undefined),
      [false, false, true, false, false, false],
    )
  })

  test("a full queue: 429 with Retry-After", async () => {
    const world = await started({ config: { maxQueueRows: 2 } })
    for (let index = 0; index < 3; index++) run(world, { x: float32([1, 2]) })
    const result = run(world, { x: float32([1, 2]) })
    await settled()
    const error = serveError(result)
    assert.deepEqual([error.code, error.status, error.retryAfterS], ["OVERLOADED", 429, 1])
    assert.deepEqual(world.counted.refused, ["full"])
  })

  test("more rows than the queue ever takes: 413, without Retry-After", async () => {
    const world = await started({ config: { maxQueueRows: 2 } })
    const result = run(world, { x: float32([3, 2]) })
    await settled()
    assert.deepEqual([serveError(result).status, serveError(result).retryAfterS], [413, undefined])
  })

  test("the deadline is the smaller of max_latency_ms and the client's: 504", async () => {
    const world = await started({ config: { maxLatencyMs: 500 }, durationMs: 10_000 })
    const startMs = world.clock.now()
    const [own, smaller, larger] = [undefined, startMs + 100, startMs + 900].map((deadlineMs) =>
      run(world, { x: float32([1, 2]) }, deadlineMs === undefined ? {} : { deadlineMs }),
    )
    await world.clock.advance(1000)
    for (const [result, ms] of [
      [own, 500],
      [smaller, 100],
      [larger, 500],
    ] as const) {
      assert.ok(result !== undefined)
      assert.deepEqual([serveError(result).code, serveError(result).status], ["DEADLINE_EXCEEDED", 504])
      assert.equal(result.atMs, startMs + ms)
    }
  })

  test("a client that leaves: 499, and the model does not see its row", async () => {
    const world = await started()
    const abort = new AbortController()
    run(world, { x: float32([1, 2]) })
    const result = run(world, { x: float32([1, 2]) }, { signal: abort.signal })
    abort.abort()
    await world.clock.advance(100)
    assert.deepEqual([serveError(result).code, serveError(result).status], ["CLIENT_GONE", 499])
    assert.equal(world.batches.length, 1)
  })
})

describe("workers that fail", () => {
  test("one that ends in a batch is replaced, and the batch's jobs run again", async () => {
    const world = await started({ model: (inputs, batch) => (batch === 0 ? "exit" : inputs) })
    const results = [1, 2, 3].map((value) => run(world, { x: float32([1, 2], value, value) }))
    await world.clock.advance(11)
    assert.equal(world.runner.ready, false)
    await world.clock.advance(1000)
    assert.equal(world.runner.ready, true)
    assert.equal(world.threads.length, 2)
    assert.ok(results.every(({ answer }) => answer !== undefined))
    assert.deepEqual(world.counted.restarted, ["exit"])
    assert.equal(world.runner.stats().restarts, 1)
  })

  describe("its replacement", () => {
    const numbers = ([input]: readonly WireTensor[]): number[] => [...numbersOf(input)]

    test("is warmed up before it is ready and takes batches", async () => {
      const world = await started({
        config: { warmUp: true, maxBatchSize: 4 },
        model: (inputs) => (world.threads.length === 1 && numbers(inputs)[0] === 7 ? "exit" : inputs),
      })
      const result = run(world, { x: float32([1, 2], 7, 7) })
      await world.clock.advance(11)
      world.batches.length = 0
      await world.clock.advance(100 + 25)
      assert.deepEqual(
        [world.threads.length, world.runner.ready, world.runner.stats().workersUp],
        [2, false, 0],
      )
      await world.clock.advance(1000)
      assert.deepEqual([world.runner.ready, world.runner.stats().workersUp], [true, 1])
      assert.ok(result.answer !== undefined)
      const rows = world.batches.map((inputs) => [inputs[0]?.shape[0], numbers(inputs)[0]])
      assert.deepEqual(rows.at(-1), [1, 7])
      assert.deepEqual([...new Set(rows.slice(0, -1).map(String))], ["1,0", "4,0"])
    })

    test("that dies as it warms up is replaced like any other", async () => {
      const world = await started({
        config: { warmUp: true, maxBatchSize: 4 },
        model: (inputs) =>
          world.threads.length === 2 || (world.threads.length === 1 && numbers(inputs)[0] === 7)
            ? "exit"
            : inputs,
      })
      const result = run(world, { x: float32([1, 2], 7, 7) })
      await world.clock.advance(10_000)
      assert.ok(result.answer !== undefined)
      assert.deepEqual([world.threads.length, world.runner.ready], [3, true])
      assert.deepEqual(world.counted.restarted, ["exit", "exit"])
    })
  })

  test("a row that kills its worker twice is refused with 503; its neighbours are answered", async () => {
    const world = await started({
      model: (inputs) => (numbersOf(inputs[0]).includes(666) ? "exit" : inputs),
    })
    const results = [0, 1, 666, 3].map((value) => run(world, { x: float32([1, 2], value) }))
    await world.clock.advance(10_000)
    assert.deepEqual(
      results.map(({ error }) => error !== undefined),
      [false, false, true, false],
    )
    const [, , deadly] = results
    assert.ok(deadly !== undefined)
    assert.deepEqual([serveError(deadly).code, serveError(deadly).status], ["UNAVAILABLE", 503])
    assert.ok((serveError(deadly).retryAfterS ?? 0) >= 1)
  })

  test("one that does not answer for `timeout` is replaced, and ends when it comes back", async () => {
    const world = await started({
      config: { timeoutMs: 5000 },
      model: (inputs, batch) => (batch === 0 ? "never" : inputs),
    })
    const result = run(world, { x: float32([1, 2]) })
    await world.clock.advance(4999)
    assert.equal(world.threads[0]?.closed, false)
    await world.clock.advance(1000)
    assert.equal(world.threads[0]?.closed, true)
    assert.ok(result.answer !== undefined)
    assert.deepEqual(world.counted.restarted, ["timeout"])
  })

  test("an answer that is here by then, held up with this thread, is seen before the watchdog acts", async () => {
    const world = await started({ config: { timeoutMs: 5000 }, model: () => "never" })
    const result = run(world, { x: float32([1, 2]) })
    await world.clock.advance(5000)
    world.threads[0]?.emit("message", {
      type: "done",
      id: 1,
      outputs: [{ shape: [1, 2], data: Float32Array.of(3, 4) }],
      inferMs: 1,
    })
    await world.clock.advance(1000)
    assert.deepEqual([...(result.answer?.["y"]?.data ?? [])], [3, 4])
    assert.deepEqual([world.threads.length, world.counted.restarted], [1, []])
  })

  test("no third is started while two that were given up are still busy", async () => {
    let back = false
    const world = await started({
      config: { timeoutMs: 5000 },
      model: (inputs) => (back ? inputs : "never"),
      load: (thread) => (thread === -1 ? "never" : "ready"),
    })
    const first = run(world, { x: float32([1, 2]) })
    await world.clock.advance(60_000)
    assert.equal(serveError(first).status, 503)
    assert.equal(world.threads.length, 2)
    const second = run(world, { x: float32([1, 2], 7, 7) })
    await world.clock.advance(1000)
    assert.deepEqual([world.runner.ready, second.answer, second.error], [false, undefined, undefined])
    back = true
    world.threads[0]?.emit("exit", 0)
    await settled()
    await world.clock.advance(1000)
    assert.deepEqual([world.threads.length, world.runner.ready], [3, true])
    assert.deepEqual([...(second.answer?.["y"]?.data ?? [])], [7, 7])
  })

  test("an answer that comes after its worker was given up is not taken for another's", async () => {
    const world = await started({
      config: { timeoutMs: 5000 },
      model: (inputs, batch) => (batch === 0 ? "never" : inputs),
    })
    const result = run(world, { x: float32([1, 2], 7, 7) })
    await world.clock.advance(5150)
    const [old] = world.threads
    old?.emit("message", {
      type: "done",
      id: 1,
      outputs: [{ shape: [1, 2], data: Float32Array.of(0, 0) }],
      inferMs: 1,
    })
    old?.emit("message", {
      type: "done",
      id: 2,
      outputs: [{ shape: [1, 2], data: Float32Array.of(0, 0) }],
      inferMs: 1,
    })
    await world.clock.advance(1000)
    assert.deepEqual([...(result.answer?.["y"]?.data ?? [])], [7, 7])
  })

  test("a new worker that cannot load is tried again, ever more slowly, while jobs wait for their deadline", async () => {
    const world = await started({
      config: { maxLatencyMs: 2000 },
      model: () => "exit",
      load: (thread) => (thread > 0 && thread < 6 ? new Error("the file is gone") : "ready"),
    })
    const result = run(world, { x: float32([1, 2]) })
    await world.clock.advance(1990)
    assert.equal(result.error, undefined)
    const early = world.threads.length
    await world.clock.advance(2000)
    assert.equal(serveError(result).status, 504)
    assert.ok(early >= 4 && world.threads.length - early <= 2, `${early}, then ${world.threads.length}`)
    await world.clock.advance(100_000)
    assert.equal(world.runner.ready, true)
  })

  test("one that the system gives no thread for is tried again, and nothing of the attempt is left", async () => {
    const world = await started({
      config: { loadTimeoutMs: 1000 },
      model: (inputs, batch) => (batch === 0 ? "exit" : inputs),
      denied: (thread) => thread === 1,
    })
    const result = run(world, { x: float32([1, 2], 7, 7) })
    // Long enough for a timer of the attempt.
    await world.clock.advance(5000)
    assert.deepEqual([...(result.answer?.["y"]?.data ?? [])], [7, 7])
    assert.equal(world.asked, 3)
    assert.equal(world.runner.ready, true)
    assert.ok(world.logged.some((line) => line.includes("the new worker did not start: Worker init")))
  })

  test("where the first gets no thread, the model cannot be loaded, and no timer is left", async () => {
    const world = new RunnerWorld({ denied: () => true })
    await assert.rejects(world.start(), { code: "MODEL_LOAD_FAILED", message: /EAGAIN/ })
    assert.equal(world.clock.timers, 0)
  })

  test("the other workers go on", async () => {
    const world = await started({
      config: { workers: 2 },
      model: (inputs, batch) => (batch === 0 ? "never" : inputs),
    })
    run(world, { x: float32([1, 2]) })
    const results = Array.from({ length: 10 }, () => run(world, { x: float32([1, 2]) }))
    await world.clock.advance(100)
    assert.ok(results.every(({ answer }) => answer !== undefined))
    assert.equal(world.runner.ready, true)
  })
})

describe("closing", () => {
  test("accepted jobs are answered, new ones refused, the thread ends", async () => {
    const world = await started({ config: { maxBatchSize: 1 } })
    const accepted = [1, 2, 3].map(() => run(world, { x: float32([1, 2]) }))
    let closed = false
    void world.runner.close().then(() => (closed = true))
    const late = run(world, { x: float32([1, 2]) })
    await world.clock.advance(15)
    assert.equal(closed, false)
    await world.clock.advance(100)
    assert.equal(closed, true)
    assert.ok(accepted.every(({ answer }) => answer !== undefined))
    assert.deepEqual([serveError(late).status, serveError(late).retryAfterS], [503, 1])
    assert.equal(world.threads[0]?.closed, true)
    assert.equal(world.runner.ready, false)
    assert.equal(world.clock.timers, 0)
  })

  test("without draining accepted jobs are refused at once", async () => {
    const world = await started({ config: { maxBatchSize: 1 } })
    const accepted = [1, 2, 3].map(() => run(world, { x: float32([1, 2]) }))
    void world.runner.close({ drain: false })
    await settled()
    assert.ok(accepted.every((result) => serveError(result).status === 503))
  })

  test("a thread that does not end within two seconds is not waited for", async () => {
    const world = await started({ load: (thread) => (thread === -1 ? "never" : "ready") })
    let closed = false
    void world.runner.close().then(() => (closed = true))
    await settled()
    await world.clock.advance(1999)
    assert.equal(closed, false)
    await world.clock.advance(1)
    assert.equal(closed, true)
  })

  test("a worker that is lost while draining is replaced, so that its jobs are answered", async () => {
    const world = await started({ model: (inputs, batch) => (batch === 0 ? "exit" : inputs) })
    const result = run(world, { x: float32([1, 2]) })
    let closed = false
    void world.runner.close().then(() => (closed = true))
    await world.clock.advance(5000)
    assert.ok(result.answer !== undefined)
    assert.equal(closed, true)
  })

  for (const [when, threads] of [
    ["while it looks for the file", 0],
    ["while it loads", 1],
  ] as const) {
    test(`${when}: starting is given up, nothing hangs, no thread is left`, async () => {
      const world = new RunnerWorld({ load: () => "never" })
      const start = assert.rejects(
        world.runner.start(),
        (error: ServeError) => error.code === "MODEL_LOAD_FAILED",
      )
      while (world.threads.length < threads) await settled()
      await world.runner.close()
      await start
      await world.clock.advance(10_000)
      assert.equal(world.threads.length, threads)
      assert.ok(world.threads.every((thread) => thread.closed))
    })
  }

  test("twice is once", async () => {
    const world = await started()
    const both = Promise.all([world.runner.close(), world.runner.close({ drain: false })])
    await world.clock.advance(3000)
    await both
  })
})
