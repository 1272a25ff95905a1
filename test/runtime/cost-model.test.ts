import assert from "node:assert/strict"
import { test } from "node:test"
import fc from "fast-check"
import { CostModel } from "../../runtime/cost-model.ts"

/** Feeds batches, one each `everyMs`; answers the time after the last. */
function feed(
  model: CostModel,
  rows: readonly number[],
  ms: (rows: number) => number,
  fromMs = 0,
  everyMs = 10,
): number {
  let nowMs = fromMs
  for (const count of rows) {
    nowMs += everyMs
    model.add(count, ms(count), nowMs)
  }
  return nowMs
}

function near(actual: number | null, expected: number, tolerance = 0.02): void {
  assert.ok(
    actual !== null && Math.abs(actual - expected) <= tolerance * expected,
    `${actual} is not ${expected}`,
  )
}

const SIZES = [1, 32, 7, 64, 2, 15, 100, 1, 50, 3]

test("it knows nothing before the first batch, and says so", () => {
  const model = new CostModel()
  assert.equal(model.predictMs(1), null)
  assert.equal(model.trusted(0), false)
})

test("a line is found exactly", () => {
  const model = new CostModel()
  feed(model, SIZES, (rows) => 3 + 0.25 * rows)
  const { fixedMs, perRowMs } = model.fit(100)
  near(fixedMs, 3)
  near(perRowMs, 0.25)
})

test("one size only: that size is predicted", () => {
  const model = new CostModel()
  feed(model, [1, 1, 1, 1], () => 5)
  near(model.predictMs(1), 5)
})

test("one slow batch moves nothing: a first one, a paused process", () => {
  const model = new CostModel()
  model.add(1, 5000, 0)
  let nowMs = feed(model, SIZES, (rows) => 2 + 0.1 * rows)
  nowMs = feed(model, [...SIZES, ...SIZES], (rows) => 2 + 0.1 * rows, nowMs)
  model.add(32, 60_000, nowMs)
  near(model.predictMs(1), 2.1, 0.05)
  near(model.predictMs(100), 12, 0.05)
})

test("three slow batches of nine do not move it either", () => {
  const model = new CostModel()
  for (let index = 0; index < 36; index++)
    model.add([1, 8, 32, 64][index % 4] ?? 1, index % 12 < 4 ? 900 : 4, index)
  near(model.predictMs(8), 4, 0.05)
})

test("of two samples the faster counts: noise only makes a batch slower", () => {
  const model = new CostModel()
  model.add(1, 500, 0)
  model.add(1, 5, 10)
  near(model.predictMs(1), 5)
})

test("a flood of batches of one size does not erase what is known of the others", () => {
  const model = new CostModel()
  const nowMs = feed(model, [100, 100, 100, 100, 100], (rows) => 1 + rows)
  feed(
    model,
    Array.from({ length: 1000 }, () => 1),
    (rows) => 1 + rows,
    nowMs,
    1,
  )
  near(model.predictMs(100), 101, 0.05)
})

test("a machine that has become slower is followed within a handful of batches", () => {
  const model = new CostModel()
  const nowMs = feed(model, [...SIZES, ...SIZES, ...SIZES], (rows) => 2 + 0.1 * rows)
  feed(model, [...SIZES, ...SIZES, ...SIZES, ...SIZES, ...SIZES, ...SIZES], (rows) => 6 + 0.3 * rows, nowMs)
  near(model.predictMs(32), 6 + 0.3 * 32, 0.1)
})

test("it forgets with time, not only with samples: old evidence loses against new, and in the end is no evidence", () => {
  const model = new CostModel()
  let nowMs = feed(model, [64, 64, 64, 64, 64, 64, 64, 64, 64], () => 640)
  nowMs += 10 * 60_000
  assert.equal(model.trusted(nowMs), false)
  // Ten minutes later the machine is ten times as fast; only small batches come.
  feed(model, [1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8], (rows) => rows, nowMs)
  near(model.predictMs(64), 64, 0.1)
})

test("within one size, what is older than a minute counts only where there is nothing younger", () => {
  const model = new CostModel()
  const nowMs = feed(
    model,
    Array.from({ length: 9 }, () => 1),
    () => 100,
  )
  near(model.predictMs(1), 100)
  model.add(1, 10, nowMs + 120_000)
  near(model.predictMs(1), 10)
})

test("evidence is needed before anybody is refused because of it", () => {
  const model = new CostModel()
  model.add(1, 5000, 0)
  assert.equal(model.trusted(0), false)
  model.add(1, 5, 1)
  model.add(1, 5, 2)
  assert.equal(model.trusted(2), true)
})

test("neither coefficient is ever negative, and a prediction never falls with the rows", () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.tuple(
          fc.integer({ min: 1, max: 4096 }),
          fc.double({ min: 0, max: 1e6, noNaN: true }),
          fc.nat(100_000),
        ),
        {
          minLength: 1,
          maxLength: 60,
        },
      ),
      (samples) => {
        const model = new CostModel()
        let nowMs = 0
        for (const [rows, ms, pauseMs] of samples) model.add(rows, ms, (nowMs += pauseMs))
        const { fixedMs, perRowMs, samples: evidence } = model.fit(nowMs)
        assert.ok(
          fixedMs >= 0 && perRowMs >= 0 && Number.isFinite(fixedMs + perRowMs),
          `${fixedMs} + ${perRowMs}·n`,
        )
        assert.ok(evidence > 0)
        assert.ok((model.predictMs(1) ?? -1) <= (model.predictMs(100) ?? -1))
      },
    ),
  )
})

test("a prediction is off by less than the noise of a single batch", () => {
  fc.assert(
    fc.property(fc.integer(), (seed) => {
      const model = new CostModel()
      let state = seed | 0
      const random = (): number => {
        state = (Math.imul(state, 1103515245) + 12345) | 0
        return ((state >>> 8) & 0xffff) / 0xffff
      }
      for (let index = 0; index < 200; index++) {
        const rows = 1 + Math.floor(random() * 100)
        model.add(rows, (5 + 0.5 * rows) * (0.7 + 0.6 * random()), index * 20)
      }
      near(model.predictMs(50), 30, 0.3)
    }),
    { numRuns: 200 },
  )
})

test("nonsense is not evidence", () => {
  const model = new CostModel()
  model.add(0, 5, 0)
  model.add(1, Number.NaN, 0)
  model.add(1, -1, 0)
  assert.equal(model.predictMs(1), null)
})

test("the margin is a tenth while batches take what is expected, and one slow batch moves it little", () => {
  const model = new CostModel()
  const nowMs = feed(model, [...SIZES, ...SIZES], (rows) => 3 + 0.25 * rows)
  near(model.margin(nowMs), 0.1)
  model.add(32, 60_000, nowMs)
  assert.ok(model.margin(nowMs) < 0.3, `${model.margin(nowMs)}`)
  near(model.margin(nowMs + 600_000), 0.1)
})

test("where durations waver the margin covers nearly all batches, and comes back when they settle", () => {
  const model = new CostModel()
  let slow = 0
  let batches = 0
  let nowMs = 0
  for (const size of Array.from({ length: 20 }, () => SIZES).flat()) {
    nowMs += 10
    // From as expected to twice that, evenly.
    const ms = (3 + 0.25 * size) * (1 + ((batches * 7) % 11) / 10)
    if (batches > 50 && ms > (1 + model.margin(nowMs)) * (model.predictMs(size) ?? 0)) slow++
    batches++
    model.add(size, ms, nowMs)
  }
  assert.ok(slow / batches < 0.1, `${slow} of ${batches}`)
  nowMs = feed(model, Array.from({ length: 20 }, () => SIZES).flat(), (rows) => 3 + 0.25 * rows, nowMs)
  near(model.margin(nowMs), 0.1)
})
