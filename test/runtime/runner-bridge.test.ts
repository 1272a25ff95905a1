/** Runners across threads, with a real message channel between the two sides. */
import assert from "node:assert/strict"
import { after, test } from "node:test"
import { MessageChannel } from "node:worker_threads"
import { ServeError } from "../../runtime/errors.ts"
import type { FromHttpThread, ToHttpThread } from "../../runtime/http-protocol.ts"
import { RemoteRunners, RunnerDesk } from "../../runtime/runner-bridge.ts"
import type { ModelRunner, RunOptions } from "../../runtime/runner.ts"
import { type Tensors, tensorProblem } from "../../runtime/tensor.ts"

const closers: (() => void)[] = []
after(() => closers.forEach((close) => close()))

/** A runner in "the main thread" and what "an HTTP thread" has of it; counts the messages that go over. */
function bridge(run: ModelRunner["run"]): { runner: ModelRunner; desk: RunnerDesk; messages: () => number } {
  const { port1, port2 } = new MessageChannel()
  closers.push(() => port1.close())
  let messages = 0
  const defer = (callback: () => void): void => void setImmediate(callback)
  const model = { name: "m", run } as unknown as ModelRunner // the desk calls nothing else
  const desk = new RunnerDesk(
    (name) => (name === "m" ? model : undefined),
    (message, transfer) => port1.postMessage(message, transfer),
    defer,
  )
  const remote = new RemoteRunners((message, transfer) => port2.postMessage(message, transfer), defer)
  port1.on("message", (message: FromHttpThread) => {
    messages++
    if (message.type === "calls") desk.receive(message)
  })
  port2.on("message", (message: ToHttpThread) => {
    messages++
    if (message.type === "results") remote.receive(message.results)
  })
  return { runner: remote.get("m"), desk, messages: () => messages }
}

const echo = (_: string, inputs: Tensors): Promise<Tensors> => Promise.resolve(inputs)

test("tensors of every dtype come over as they are, and stay the handler's own", async () => {
  const big = Float32Array.from({ length: 10_000 }, (_, index) => index)
  const inputs: Tensors = {
    float16: { dtype: "float16", shape: [1], data: new Uint16Array([0x3c00]) },
    float32: { dtype: "float32", shape: [2], data: new Float32Array([1.5, Number.NaN]) },
    float64: { dtype: "float64", shape: [1], data: new Float64Array([0.1]) },
    int8: { dtype: "int8", shape: [3], data: new Int8Array([-1, 0, 1]) },
    int16: { dtype: "int16", shape: [1], data: new Int16Array([-300]) },
    int32: { dtype: "int32", shape: [1], data: new Int32Array([1 << 30]) },
    int64: { dtype: "int64", shape: [1], data: new BigInt64Array([-(2n ** 63n)]) },
    uint8: { dtype: "uint8", shape: [3], data: Buffer.from("abc") },
    uint16: { dtype: "uint16", shape: [1], data: new Uint16Array([65_535]) },
    uint32: { dtype: "uint32", shape: [1], data: new Uint32Array([4_294_967_295]) },
    uint64: { dtype: "uint64", shape: [1], data: new BigUint64Array([2n ** 64n - 1n]) },
    bool: { dtype: "bool", shape: [1, 2], data: new Uint8Array([1, 0]) },
    string: { dtype: "string", shape: [2], data: ["", "ä"] },
    empty: { dtype: "float32", shape: [0, 4], data: new Float32Array(0) },
    part: { dtype: "float32", shape: [2], data: big.subarray(7, 9) },
    big: { dtype: "float32", shape: [100, 100], data: big },
    __proto__x: { dtype: "float32", shape: [], data: new Float32Array([4]) },
  }
  const copy = structuredClone(inputs)
  const { runner } = bridge(echo)
  const outputs = await runner.run("run", inputs)
  assert.deepEqual(Object.keys(outputs), Object.keys(inputs))
  for (const [name, tensor] of Object.entries(outputs)) {
    assert.equal(tensorProblem(tensor), null)
    assert.deepEqual([...tensor.data], [...(copy[name]?.data ?? [])], name)
    assert.deepEqual([...(inputs[name]?.data ?? [])], [...tensor.data], name)
  }
})

test("calls of one turn travel in one message, and so do their answers", async () => {
  const { runner, messages } = bridge(echo)
  const call = (value: number): Promise<Tensors> =>
    runner.run("run", { x: { dtype: "float64", shape: [1], data: new Float64Array([value]) } })
  const answers = await Promise.all(Array.from({ length: 50 }, (_, value) => call(value)))
  assert.deepEqual(
    answers.map((answer) => answer["x"]?.data[0]),
    Array.from({ length: 50 }, (_, value) => value),
  )
  assert.equal(messages(), 2)
})

test("an error comes over with all that it tells client and log", async () => {
  const refused = new ServeError("OVERLOADED", 429, "full", { retryAfterS: 7, detail: { rows: 3 } })
  await assert.rejects(bridge(() => Promise.reject(refused)).runner.run("run", {}), (error) => {
    assert.ok(error instanceof ServeError)
    assert.deepEqual(
      [error.code, error.status, error.message, error.retryAfterS, error.detail, error.cause],
      ["OVERLOADED", 429, "full", 7, { rows: 3 }, undefined],
    )
    return true
  })
  const cause = new RangeError("deep inside")
  const failed = new ServeError("INFERENCE_FAILED", 500, "m failed", { cause })
  await assert.rejects(bridge(() => Promise.reject(failed)).runner.run("run", {}), (error) => {
    assert.ok(error instanceof ServeError && error.cause instanceof Error)
    assert.equal(error.cause.stack, cause.stack)
    return true
  })
  await assert.rejects(bridge(() => Promise.reject(cause)).runner.run("run", {}), (error) => {
    assert.ok(!(error instanceof ServeError) && error instanceof Error)
    assert.equal(error.message, "deep inside")
    return true
  })
})

test("the deadline goes over and the timing comes back", async () => {
  let seen: RunOptions | undefined
  const { runner } = bridge((_, inputs, options = {}) => {
    seen = options
    if (options.timing !== undefined) Object.assign(options.timing, { queueMs: 1, inferMs: 2, batchRows: 3 })
    return Promise.resolve(inputs)
  })
  const timing = { queueMs: 0, inferMs: 0, batchRows: 0 }
  await runner.run("run", {}, { deadlineMs: 12.5, timing })
  assert.equal(seen?.deadlineMs, 12.5)
  assert.deepEqual({ ...timing }, { queueMs: 1, inferMs: 2, batchRows: 3 })
})

test("a client that leaves, or a thread that ends, sets off the call's signal", async () => {
  const signals: AbortSignal[] = []
  const run: ModelRunner["run"] = (_, __, { signal } = {}) =>
    new Promise((_resolve, reject) => {
      if (signal === undefined) return
      signals.push(signal)
      signal.addEventListener("abort", () => reject(new ServeError("CLIENT_GONE", 499, "gone")))
    })
  const { runner, desk } = bridge(run)
  const abort = new AbortController()
  const call = runner.run("run", {}, { signal: abort.signal })
  abort.abort()
  await assert.rejects(call, { code: "CLIENT_GONE" })
  await assert.rejects(runner.run("run", {}, { signal: abort.signal }), { code: "CLIENT_GONE" })
  assert.equal(signals.length, 1)
  void runner.run("run", {}).catch(() => {})
  while (signals.length < 2) await new Promise((resolve) => setImmediate(resolve))
  desk.close()
  assert.deepEqual(
    signals.map((signal) => signal.aborted),
    [true, true],
  )
})

test("what is no tensor is refused before it is sent", async () => {
  const { runner, messages } = bridge(echo)
  const x = { dtype: "float32", shape: [3], data: new Float32Array(2) } as const
  await assert.rejects(runner.run("run", { x }), { code: "BAD_INPUT", status: 400 })
  assert.equal(messages(), 0)
})
