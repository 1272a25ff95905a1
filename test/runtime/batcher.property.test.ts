/**
 * Whatever comes, in whatever order: each job is settled exactly once, with the answer that it alone would have had or
 * with a reason that is true; no bound is broken, no group is mixed, and the order is kept.
 */
import assert from "node:assert/strict"
import { test } from "node:test"
import fc from "fast-check"
import { type Outcome, World, answerTo, follow, groupOf, rowsNamed } from "./batcher-world.ts"

const MAX_ROWS = 8
const GROUPS = [groupOf("a", MAX_ROWS), groupOf("b", MAX_ROWS, 20), groupOf("c", 3), groupOf("alone", 1)]

interface JobPlan {
  readonly group: number
  readonly rows: number
  readonly bytes: number
  /** Row that makes its batch fail, if any. */
  readonly badRow: number | null
  readonly deadlineMs: number | null
  readonly abortAfterMs: number | null
  readonly pauseMs: number
}

const jobPlan: fc.Arbitrary<JobPlan> = fc.record({
  group: fc.nat(GROUPS.length - 1),
  rows: fc.oneof(
    { weight: 6, arbitrary: fc.constant(1) },
    { weight: 3, arbitrary: fc.integer({ min: 1, max: 8 }) },
    fc.integer({ min: 9, max: 30 }),
  ),
  bytes: fc.integer({ min: 0, max: 200 }),
  badRow: fc.option(fc.nat(29), { freq: 7 }),
  deadlineMs: fc.option(fc.integer({ min: 1, max: 400 }), { freq: 2 }),
  abortAfterMs: fc.option(fc.nat(200), { freq: 5 }),
  pauseMs: fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, fc.nat(60)),
})

const plan = fc.record({
  jobs: fc.array(jobPlan, { minLength: 1, maxLength: 60 }),
  slots: fc.integer({ min: 1, max: 3 }),
  ahead: fc.boolean(),
  maxQueueRows: fc.integer({ min: 5, max: 60 }),
  maxQueueBytes: fc.integer({ min: 100, max: 3000 }),
  durations: fc.array(fc.nat(40), { minLength: 1, maxLength: 20 }),
  lostBatches: fc.array(fc.nat(60), { maxLength: 3 }),
  stallMs: fc.nat(100),
})

interface Tracked extends JobPlan {
  readonly name: string
  readonly outcome: Outcome
  readonly submittedMs: number
  abortedMs: number | null
}

test("every job gets its own right answer or a true reason, once, and all bounds hold", async () => {
  await fc.assert(
    fc.asyncProperty(
      plan,
      async ({ jobs, slots, ahead, maxQueueRows, maxQueueBytes, durations, lostBatches, stallMs }) => {
        const bad = new Set<string>()
        const world = new World({
          slots,
          ahead,
          maxQueueRows,
          maxQueueBytes,
          durationMs: (rows, batch) => (durations[batch % durations.length] ?? 0) + rows,
          bad: (row) => bad.has(row),
          deadly: (_row, batch) => lostBatches.includes(batch),
        })
        const { clock, batcher } = world
        const checkBounds = (): void => {
          const stats = batcher.stats()
          assert.ok(stats.queueRows <= maxQueueRows && stats.queueBytes <= maxQueueBytes, "queue bounds")
          assert.ok(stats.queueRows >= 0 && stats.queueBytes >= 0 && stats.queueJobs >= 0, "counts")
          assert.ok(stats.backlogMs >= -1e-6, `backlog ${stats.backlogMs}`)
          assert.ok(world.mostRunning <= (ahead ? 2 : 1) * slots, "slots")
        }
        const tracked: Tracked[] = []
        let index = 0
        for (const job of jobs) {
          const group = GROUPS[job.group] ?? groupOf("none")
          const rows = group.maxRows === 1 ? 1 : job.rows
          const name = `j${index++}`
          if (job.badRow !== null && job.badRow < rows) bad.add(`${name}.${job.badRow}`)
          const abort = new AbortController()
          const submittedMs = clock.now()
          const outcome = follow(
            batcher.submit({
              input: rowsNamed(name, rows),
              rows,
              bytes: job.bytes,
              group,
              signal: abort.signal,
              ...(job.deadlineMs === null ? {} : { deadlineMs: submittedMs + job.deadlineMs }),
            }),
            clock,
          )
          const entry: Tracked = { ...job, rows, name, outcome, submittedMs, abortedMs: null }
          tracked.push(entry)
          if (job.abortAfterMs !== null) {
            clock.setTimer(() => {
              entry.abortedMs = clock.now()
              abort.abort()
            }, job.abortAfterMs)
          }
          checkBounds()
          if (index === 10) clock.stall(stallMs)
          await clock.advance(job.pauseMs)
          checkBounds()
        }
        await clock.advance(100_000)

        for (const job of tracked) checkOutcome(job, bad, lostBatches, stallMs)
        checkBatches(world, tracked)
        const { queueJobs, queueRows, queueBytes, runningBatches } = batcher.stats()
        assert.deepEqual(
          [queueJobs, queueRows, queueBytes, runningBatches],
          [0, 0, 0, 0],
          "nothing is left behind",
        )
        let closed = false
        void batcher.close({ drain: true }).then(() => (closed = true))
        await clock.advance(0)
        assert.ok(closed)
        assert.equal(clock.timers, 0)
      },
    ),
    { numRuns: Number(process.env["FC_RUNS"] ?? 400) },
  )
})

/** Its own rows, or a reason that is true. */
function checkOutcome(
  job: Tracked,
  bad: ReadonlySet<string>,
  lostBatches: readonly number[],
  stallMs: number,
): void {
  const { outcome, name, rows } = job
  const hasBad = rowsNamed(name, rows).some((row) => bad.has(row))
  const dueMs = job.deadlineMs === null ? Number.POSITIVE_INFINITY : job.submittedMs + job.deadlineMs
  switch (outcome.state) {
    case "answered":
      assert.deepEqual(outcome.rows, answerTo(rowsNamed(name, rows)), "its own rows, all of them, in order")
      assert.ok(!hasBad, "a bad row has no answer")
      break
    case "failed":
      assert.ok(hasBad, `${name} failed for another's row: ${String(outcome.error)}`)
      break
    case "refused": {
      const { refusal } = outcome
      assert.ok(refusal !== undefined)
      assert.ok(Number.isInteger(refusal.retryAfterS) && refusal.retryAfterS >= 1)
      if (refusal.reason === "aborted") assert.ok(job.abortedMs !== null)
      if (refusal.reason === "expired") {
        assert.ok((outcome.atMs ?? 0) >= dueMs, "expired before its deadline")
        assert.ok((outcome.atMs ?? 0) <= dueMs + 1 + stallMs, "told late")
      }
      if (refusal.reason === "too-late") assert.notEqual(job.deadlineMs, null)
      if (refusal.reason === "lost") assert.ok(lostBatches.length >= 2)
      assert.notEqual(refusal.reason, "draining")
      break
    }
    case "pending":
      assert.fail(`${name} was forgotten`)
  }
}

function checkBatches({ seen }: World, tracked: readonly Tracked[]): void {
  const byName = new Map(tracked.map((job) => [job.name, job]))
  const answered = new Set<string>()
  const firstStart = new Map<string, number>()
  seen.forEach((batch, index) => {
    const group = GROUPS.find(({ key }) => key === batch.group)
    assert.ok(group !== undefined && batch.rows.length <= group.maxRows, "rows in a batch")
    assert.equal(new Set(batch.rows).size, batch.rows.length, "no row twice in a batch")
    for (const row of batch.rows) {
      const [name = ""] = row.split(".")
      const job = byName.get(name)
      assert.ok(job !== undefined)
      assert.equal(GROUPS[job.group]?.key, batch.group, "groups never mix")
      // Who has been told no before does not run after.
      if (job.outcome.state === "refused") {
        assert.ok((job.outcome.atMs ?? 0) >= batch.startMs, `${name} ran after it was refused`)
      }
      if (!firstStart.has(name)) firstStart.set(name, index)
      if (batch.done) {
        assert.ok(!answered.has(row), `${row} was answered twice`)
        answered.add(row)
      }
    }
  })
  // Within a group, of those that fit whole, nobody starts before one that came earlier; long ones likewise.
  for (const [index, group] of GROUPS.entries()) {
    for (const long of [false, true]) {
      const starts = tracked
        .filter((job) => job.group === index && job.rows > group.maxRows === long)
        .map((job) => firstStart.get(job.name))
        .filter((start) => start !== undefined)
      assert.deepEqual(
        starts,
        starts.toSorted((a, b) => a - b),
        `order in ${group.key}`,
      )
    }
  }
}
