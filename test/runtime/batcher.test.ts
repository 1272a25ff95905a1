import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { Batcher, type JobRequest } from "../../runtime/batcher.ts"
import { type Outcome, type Rows, World, answerTo, follow, groupOf, rowsNamed } from "./batcher-world.ts"
import { settled } from "./manual-clock.ts"

const only = groupOf("only")

function submit(world: World, name: string, rows = 1, more: Partial<JobRequest<Rows>> = {}): Outcome {
  const request = { input: rowsNamed(name, rows), rows, bytes: 8 * rows, group: only, ...more }
  return follow(world.batcher.submit(request), world.clock)
}

const namesOf = (rows: readonly string[]): string[] => [
  ...new Set(rows.map((row) => row.split(".")[0] ?? "")),
]

describe("when a batch begins", () => {
  test("a lone job starts in the very moment it comes, and no timer is set for it", () => {
    const world = new World()
    submit(world, "a")
    assert.equal(world.seen.length, 1)
    assert.equal(world.seen[0]?.startMs, world.clock.now())
    // The model's own, nothing of the batcher's.
    assert.equal(world.clock.timers, 1)
  })

  test("jobs that come while the slot is busy run together in the next batch, in their order", async () => {
    const world = new World()
    const outcomes = ["a", "b", "c", "d"].map((name) => submit(world, name))
    await world.clock.advance(20)
    assert.deepEqual(
      world.seen.map((batch) => namesOf(batch.rows)),
      [["a"], ["b", "c", "d"]],
    )
    assert.deepEqual(
      outcomes.map((outcome) => outcome.rows),
      [["=a.0"], ["=b.0"], ["=c.0"], ["=d.0"]],
    )
  })

  test("with `defer` the jobs of one moment share a batch", async () => {
    const planned: (() => void)[] = []
    const batches: number[] = []
    const batcher = new Batcher<string, string>({
      clock: new World().clock,
      slots: 1,
      maxQueueRows: 100,
      maxQueueBytes: 100,
      execute: ({ parts }) => {
        batches.push(parts.length)
        return Promise.resolve({ outputs: parts.map((part) => part.input), inferMs: 0 })
      },
      join: ([first = ""]) => first,
      refuse: (refusal) => new Error(refusal.reason),
      isLost: () => false,
      defer: (callback) => planned.push(callback),
    })
    const jobs = ["a", "b", "c"].map((input) => batcher.submit({ input, rows: 1, bytes: 0, group: only }))
    assert.equal(planned.length, 1)
    planned.shift()?.()
    assert.deepEqual(await Promise.all(jobs), ["a", "b", "c"])
    assert.deepEqual(batches, [3])
  })

  for (const [what, waiting, started] of [
    ["a full batch that waits is handed over before the answers of the one before are written", 10, 2],
    ["less than a full one waits for what else has arrived", 9, 1],
  ] as const) {
    test(`with defer ${what}`, async () => {
      const planned: (() => void)[] = []
      const ends: (() => void)[] = []
      const batcher = new Batcher<string, string>({
        clock: new World().clock,
        slots: 1,
        maxQueueRows: 100,
        maxQueueBytes: 100,
        execute: ({ parts }) =>
          new Promise((resolve) => {
            ends.push(() => resolve({ outputs: parts.map((part) => part.input), inferMs: 0 }))
          }),
        join: ([first = ""]) => first,
        refuse: (refusal) => new Error(refusal.reason),
        isLost: () => false,
        defer: (callback) => planned.push(callback),
      })
      const submit = (input: string): Promise<string> =>
        batcher.submit({ input, rows: 1, bytes: 0, group: groupOf("only", 10) })
      const first = submit("first")
      planned.shift()?.()
      const others = Array.from({ length: waiting }, (_, index) => submit(String(index)))
      const startedWhenAnswered = first.then(() => ends.length)
      ends[0]?.()
      assert.equal(await startedWhenAnswered, started)
      planned.forEach((callback) => callback())
      assert.equal(ends.length, 2)
      ends[1]?.()
      assert.equal((await Promise.all(others)).length, waiting)
    })
  }

  test("several slots run as many batches at once, never more", async () => {
    const world = new World({ slots: 3 })
    for (const name of ["a", "b", "c", "d", "e"]) submit(world, name)
    assert.equal(world.seen.length, 3)
    await world.clock.advance(20)
    assert.deepEqual(
      world.seen.map((batch) => namesOf(batch.rows)),
      [["a"], ["b"], ["c"], ["d", "e"]],
    )
    assert.equal(world.mostRunning, 3)
  })

  test("without a slot jobs wait, and run when there is one", async () => {
    const world = new World({ slots: 0 })
    const outcome = submit(world, "a")
    await world.clock.advance(1000)
    assert.equal(outcome.state, "pending")
    world.batcher.slots = 1
    await world.clock.advance(10)
    assert.equal(outcome.state, "answered")
  })

  test("an idle batcher has no timer: nothing polls", async () => {
    const world = new World()
    submit(world, "a")
    await world.clock.advance(10)
    assert.equal(world.clock.timers, 0)
    await world.clock.advance(1_000_000)
    assert.equal(world.seen.length, 1)
  })

  test("after a burst a lone job takes what it took before", async () => {
    const world = new World({ durationMs: (rows) => 5 + rows })
    const before = submit(world, "before")
    const startMs = world.clock.now()
    await world.clock.advance(100)
    for (let index = 0; index < 300; index++) submit(world, `burst${index}`)
    await world.clock.advance(2000)
    const laterMs = world.clock.now()
    const after = submit(world, "after")
    await world.clock.advance(100)
    assert.equal((after.atMs ?? 0) - laterMs, (before.atMs ?? 0) - startMs)
  })
})

describe("what a batch holds", () => {
  test("never jobs of two groups", async () => {
    const world = new World()
    const groups = [groupOf("x"), groupOf("y"), groupOf("z")]
    for (let index = 0; index < 30; index++) {
      const group = groups[index % 3] ?? only
      submit(world, `${group.key}-${index}`, 1, { group })
    }
    await world.clock.advance(1000)
    for (const batch of world.seen) {
      assert.deepEqual([...new Set(batch.rows.map((row) => row[0]))], [batch.group])
    }
  })

  test("rows count, not jobs: three jobs of four rows make two batches of at most ten", async () => {
    const world = new World()
    submit(world, "first")
    for (const name of ["a", "b", "c"]) submit(world, name, 4)
    await world.clock.advance(100)
    assert.deepEqual(
      world.seen.map((batch) => namesOf(batch.rows)),
      [["first"], ["a", "b"], ["c"]],
    )
  })

  test("a job larger than a batch runs in parts and is joined in the order of its rows", async () => {
    const world = new World()
    const outcome = submit(world, "long", 34)
    await world.clock.advance(100)
    assert.deepEqual(
      world.seen.map((batch) => batch.rows.length),
      [10, 10, 10, 4],
    )
    assert.deepEqual(outcome.rows, answerTo(rowsNamed("long", 34)))
  })

  test("parts that end in another order are joined in the order of the rows", async () => {
    const world = new World({ slots: 2, durationMs: (_rows, batch) => (batch === 0 ? 50 : 5) })
    const outcome = submit(world, "long", 20)
    await world.clock.advance(100)
    assert.deepEqual(outcome.rows, answerTo(rowsNamed("long", 20)))
  })

  test("the last part of a long job takes company along", async () => {
    const world = new World()
    submit(world, "first")
    submit(world, "long", 13)
    await world.clock.advance(10)
    submit(world, "a", 3)
    await world.clock.advance(100)
    assert.deepEqual(
      world.seen.map((batch) => [namesOf(batch.rows), batch.rows.length]),
      [
        [["first"], 1],
        [["long"], 10],
        [["a", "long"], 6],
      ],
    )
  })

  test("beside a long job, those that fit whole get half of every batch", async () => {
    const world = new World()
    const long = submit(world, "long", 500)
    const small: Outcome[] = []
    for (let index = 0; index < 20; index++) small.push(submit(world, `s${index}`))
    await world.clock.advance(50)
    assert.ok(small.every((outcome) => outcome.state === "answered"))
    assert.equal(long.state, "pending")
    assert.deepEqual(
      world.seen.slice(1, 5).map((batch) => batch.jobs),
      [6, 6, 6, 6],
    )
  })

  test("a job that is larger than half a batch is not kept out by a long one", async () => {
    const world = new World()
    submit(world, "long", 500)
    const big = submit(world, "big", 9)
    await world.clock.advance(40)
    assert.equal(big.state, "answered")
  })

  test("where one row is a batch, a long job and short ones take turns", async () => {
    const world = new World()
    const group = groupOf("one", 1)
    submit(world, "long", 50, { group })
    for (let index = 0; index < 5; index++) submit(world, `s${index}`, 1, { group })
    await world.clock.advance(110)
    const order = world.seen.map((batch) => (batch.rows[0]?.startsWith("long") === true ? "L" : "s")).join("")
    assert.equal(order.replaceAll("L", "").length, 5)
    assert.match(order, /^L+(sL|Ls)+/)
  })

  test("order is kept: jobs that fit whole start in the order they came, long ones too", async () => {
    const world = new World()
    submit(world, "first")
    const sizes = [3, 9, 25, 1, 10, 12, 4, 30, 2]
    sizes.forEach((rows, index) => submit(world, `j${index}`, rows))
    await world.clock.advance(1000)
    const started = namesOf(world.seen.flatMap((batch) => [...batch.rows])).filter((name) => name !== "first")
    const bySize = (long: boolean): string[] =>
      started.filter((name) => (sizes[Number(name.slice(1))] ?? 0) > 10 === long)
    assert.deepEqual(bySize(false), ["j0", "j1", "j3", "j4", "j6", "j8"])
    assert.deepEqual(bySize(true), ["j2", "j5", "j7"])
  })
})

describe("fairness between groups", () => {
  test("a flood in one group delays another by one batch only", async () => {
    const world = new World()
    const [flood, other] = [groupOf("flood"), groupOf("other")]
    for (let index = 0; index < 500; index++) submit(world, `f${index}`, 1, { group: flood })
    await world.clock.advance(100)
    const startMs = world.clock.now()
    const outcome = submit(world, "o", 1, { group: other })
    await world.clock.advance(1000)
    assert.ok((outcome.atMs ?? 0) - startMs <= 20, `waited ${(outcome.atMs ?? 0) - startMs} ms`)
  })

  test("no group starves: with k busy groups each is served at least once in k batches", async () => {
    const world = new World({ maxQueueRows: 100_000 })
    const groups = Array.from({ length: 7 }, (_, index) => groupOf(`g${index}`))
    // The first is as busy as all others together.
    for (let index = 0; index < 400; index++) {
      for (const group of groups)
        submit(world, `${group.key}x${index}`, group.key === "g0" ? 6 : 1, { group })
    }
    await world.clock.advance(2500)
    const order = world.seen.map((batch) => batch.group)
    for (const { key } of groups) {
      let last = -1
      order.forEach((group, index) => {
        if (group !== key) return
        assert.ok(index - last <= groups.length + 1, `${key} waited ${index - last} batches`)
        last = index
      })
      assert.notEqual(last, -1)
    }
  })

  test("they share time, not batches: a group with slow batches gets fewer of them", async () => {
    const slow = groupOf("slow")
    const fast = groupOf("fast")
    let current = ""
    const world = new World({ maxQueueRows: 100_000, durationMs: () => (current === "slow" ? 50 : 5) })
    const execute = world.seen.push.bind(world.seen)
    world.seen.push = (...batches) => {
      current = batches[0]?.group ?? ""
      return execute(...batches)
    }
    for (let index = 0; index < 2000; index++) {
      submit(world, `s${index}`, 1, { group: slow })
      submit(world, `f${index}`, 1, { group: fast })
    }
    await world.clock.advance(1500)
    const count = (key: string): number => world.seen.filter((batch) => batch.group === key).length
    assert.ok(count("fast") > 6 * count("slow"), `${count("fast")} fast, ${count("slow")} slow`)
  })

  test("what a batch took counts, not what it was expected to take", async () => {
    // In three of nine batches the moody group takes ten times as long, which the model takes for noise.
    let batches = 0
    const world = new World({
      maxQueueRows: 100_000,
      durationMs: () => (world.seen.at(-1)?.group === "moody" && batches++ % 9 < 3 ? 100 : 10),
    })
    for (let index = 0; index < 2000; index++) {
      submit(world, `m${index}`, 1, { group: groupOf("moody") })
      submit(world, `s${index}`, 1, { group: groupOf("steady") })
    }
    await world.clock.advance(1500)
    world.seen.length = 0
    await world.clock.advance(3000)
    const count = (key: string): number => world.seen.filter((batch) => batch.group === key).length
    assert.ok(count("steady") > 1.5 * count("moody"), `${count("steady")} steady, ${count("moody")} moody`)
  })

  test("a group that comes back from idleness has saved up nothing", async () => {
    const world = new World({ maxQueueRows: 100_000 })
    const [busy, back] = [groupOf("busy"), groupOf("back")]
    submit(world, "b", 1, { group: back })
    for (let index = 0; index < 1000; index++) submit(world, `a${index}`, 1, { group: busy })
    await world.clock.advance(500)
    for (let index = 0; index < 200; index++) submit(world, `b${index}`, 1, { group: back })
    const from = world.seen.length
    await world.clock.advance(200)
    const order = world.seen.slice(from).map((batch) => batch.group)
    assert.ok(!order.join(" ").includes("back back back"), order.join(" "))
  })

  test("idle groups are forgotten, so that odd shapes cannot fill the memory", async () => {
    const world = new World()
    for (let index = 0; index < 1000; index++) {
      submit(world, `j${index}`, 1, { group: groupOf(`shape${index}`) })
      await world.clock.advance(10)
    }
    assert.ok(world.batcher.stats().groups.length <= 66, `${world.batcher.stats().groups.length} groups`)
  })
})

describe("a batch that fails", () => {
  test("two bad rows of twelve: ten right answers, two errors", async () => {
    const world = new World({ bad: (row) => row === "c3.0" || row === "c8.0" })
    const group = groupOf("g", 12)
    submit(world, "first", 1, { group })
    const clients = Array.from({ length: 12 }, (_, index) => submit(world, `c${index}`, 1, { group }))
    await world.clock.advance(1000)
    clients.forEach((client, index) => {
      if (index === 3 || index === 8) assert.equal((client.error as Error).message, `c${index}.0`)
      else assert.deepEqual(client.rows, [`=c${index}.0`])
    })
  })

  test("one bad job of n costs at most 2·log2(n) + 1 extra runs, wherever it stands", async () => {
    for (const jobs of [2, 3, 4, 5, 7, 8, 12, 31, 64, 100]) {
      for (let bad = 0; bad < jobs; bad++) {
        const world = new World({ bad: (row) => row === `c${bad}.0`, durationMs: () => 1 })
        const group = groupOf("g", jobs)
        submit(world, "first", 1, { group })
        const clients = Array.from({ length: jobs }, (_, index) => submit(world, `c${index}`, 1, { group }))
        await world.clock.advance(100)
        clients.forEach((client, index) => assert.equal(client.state, index === bad ? "failed" : "answered"))
        const extra = world.seen.length - 2
        assert.ok(extra <= 2 * Math.log2(jobs) + 1, `${extra} extra runs for job ${bad} of ${jobs}`)
      }
    }
  })

  /** c0 to c7 have failed because of c5; c0 to c3 run again, and a full batch of new jobs waits. */
  const halved = async (deadlineInMs: number): Promise<{ world: World; clients: Outcome[] }> => {
    const world = new World({ bad: (row) => row === "c5.0" })
    submit(world, "first")
    const clients = Array.from({ length: 8 }, (_, index) => submit(world, `c${index}`))
    await world.clock.advance(20)
    assert.deepEqual(namesOf(world.seen[2]?.rows ?? []), ["c0", "c1", "c2", "c3"])
    const deadlineMs = world.clock.now() + deadlineInMs
    for (let index = 0; index < 10; index++) submit(world, `new${index}`, 1, { deadlineMs })
    return { world, clients }
  }

  test("its other half runs before anything new, a full batch too", async () => {
    const { world, clients } = await halved(10_000)
    await world.clock.advance(1000)
    assert.deepEqual(namesOf(world.seen[3]?.rows ?? []), ["c4", "c5"])
    const last = world.seen.at(-1)
    assert.equal(last?.rows.length, 10)
    clients.forEach(({ state }, index) => assert.equal(state, index === 5 ? "failed" : "answered"))
  })

  test("closing waits for its other half, also where all that is new has expired", async () => {
    const { world, clients } = await halved(15)
    let empty = false
    void world.batcher.close({ drain: true }).then(() => (empty = true))
    // The batch ends and the deadlines pass, and this thread sees the batch first.
    world.clock.stall(20)
    await world.clock.advance(0)
    assert.equal(empty, false)
    await world.clock.advance(1000)
    assert.equal(empty, true)
    clients.forEach(({ state }, index) => assert.equal(state, index === 5 ? "failed" : "answered"))
  })

  test("the error of a bad job is the one it made alone", async () => {
    const world = new World({ bad: (row) => row.startsWith("bad") })
    for (const name of ["first", "a", "bad", "b"]) submit(world, name)
    const bad = submit(world, "bad2")
    await world.clock.advance(1000)
    assert.equal((bad.error as Error).message, "bad2.0")
  })

  test("all bad: each gets its own error", async () => {
    const world = new World({ bad: (row) => row !== "first.0" })
    submit(world, "first")
    const clients = Array.from({ length: 8 }, (_, index) => submit(world, `c${index}`))
    await world.clock.advance(1000)
    clients.forEach((client, index) => assert.equal((client.error as Error).message, `c${index}.0`))
  })

  test("a bad row of a long job fails that job and nobody beside it", async () => {
    const world = new World({ bad: (row) => row === "long.17" })
    const long = submit(world, "long", 40)
    const small = Array.from({ length: 12 }, (_, index) => submit(world, `s${index}`))
    await world.clock.advance(1000)
    assert.equal(long.state, "failed")
    assert.ok(small.every((outcome) => outcome.state === "answered"))
    assert.equal(world.batcher.stats().queueRows, 0)
  })

  test("a job that was aborted or expired meanwhile is not run again", async () => {
    const abort = new AbortController()
    const world = new World({ bad: (row) => row === "bad.0" })
    for (const name of ["first", "a"]) submit(world, name)
    const gone = submit(world, "gone", 1, { signal: abort.signal })
    const late = submit(world, "late", 1, { deadlineMs: world.clock.now() + 15 })
    submit(world, "bad")
    await world.clock.advance(12)
    abort.abort()
    await world.clock.advance(1000)
    assert.deepEqual([gone.refusal?.reason, late.refusal?.reason], ["aborted", "expired"])
    for (const batch of world.seen.slice(2)) {
      assert.ok(!batch.rows.includes("gone.0") && !batch.rows.includes("late.0"), batch.rows.join(" "))
    }
  })

  test("the retries of one group do not hold up another", async () => {
    const world = new World({ bad: (row) => row.startsWith("bad"), durationMs: () => 10 })
    const [bad, good] = [groupOf("bad", 64), groupOf("good", 64)]
    submit(world, "first", 1, { group: bad })
    for (let index = 0; index < 64; index++) submit(world, `bad${index}`, 1, { group: bad })
    await world.clock.advance(25)
    const startMs = world.clock.now()
    const outcome = submit(world, "good", 1, { group: good })
    await world.clock.advance(5000)
    assert.ok((outcome.atMs ?? 0) - startMs <= 30, `waited ${(outcome.atMs ?? 0) - startMs} ms`)
  })

  test("`execute` that throws at once is a failed batch like any other", async () => {
    const batcher = new Batcher<string, string>({
      clock: new World().clock,
      slots: 1,
      maxQueueRows: 100,
      maxQueueBytes: 100,
      execute: () => {
        throw new Error("at once")
      },
      join: ([first = ""]) => first,
      refuse: (refusal) => new Error(refusal.reason),
      isLost: () => false,
    })
    await assert.rejects(batcher.submit({ input: "a", rows: 1, bytes: 0, group: only }), /at once/)
    assert.equal(batcher.stats().runningBatches, 0)
  })

  test("too few outputs are an error, not somebody else's answer", async () => {
    const batcher = new Batcher<string, string>({
      clock: new World().clock,
      slots: 0,
      maxQueueRows: 100,
      maxQueueBytes: 100,
      execute: ({ parts }) =>
        Promise.resolve({
          outputs: parts.length === 1 ? [parts[0]?.input ?? ""] : ["one for all"],
          inferMs: 0,
        }),
      join: ([first = ""]) => first,
      refuse: (refusal) => new Error(refusal.reason),
      isLost: () => false,
    })
    const jobs = ["a", "b", "c"].map((input) => batcher.submit({ input, rows: 1, bytes: 0, group: only }))
    batcher.slots = 1
    assert.deepEqual(await Promise.all(jobs), ["a", "b", "c"])
  })
})

describe("a worker that is lost", () => {
  test("its jobs run once more, each alone, and only the deadly one is refused", async () => {
    const world = new World({ deadly: (row) => row === "deadly.0" })
    submit(world, "first")
    const good = ["a", "b", "c"].map((name) => submit(world, name))
    const deadly = submit(world, "deadly")
    await world.clock.advance(1000)
    assert.ok(good.every((outcome) => outcome.state === "answered"))
    assert.equal(deadly.refusal?.reason, "lost")
    assert.ok((deadly.refusal?.retryAfterS ?? 0) >= 1)
    assert.equal(world.seen.filter((batch) => batch.rows.includes("deadly.0")).length, 2)
  })

  test("a worker killed from outside loses nobody", async () => {
    const world = new World({ deadly: (_row, batch) => batch === 1 })
    const outcomes = ["first", "a", "b", "c"].map((name) => submit(world, name))
    await world.clock.advance(1000)
    assert.ok(outcomes.every((outcome) => outcome.state === "answered"))
  })

  test("a long job survives the loss of one of its parts", async () => {
    const world = new World({ deadly: (_row, batch) => batch === 2 })
    const outcome = submit(world, "long", 45)
    await world.clock.advance(1000)
    assert.deepEqual(outcome.rows, answerTo(rowsNamed("long", 45)))
  })

  test("a long job survives a loss with two of its parts at the worker", async () => {
    const world = new World({
      ahead: true,
      durationMs: (rows) => 2 + rows,
      deadly: (row, batch) => row.startsWith("long") && batch < 2,
    })
    await world.teach(only, [1, 10, 10, 5])
    const outcome = submit(world, "long", 45)
    assert.equal(world.seen.length, 2)
    await settled()
    await world.clock.advance(1000)
    assert.deepEqual(outcome.rows, answerTo(rowsNamed("long", 45)))
  })

  test("a long job with a deadly part is refused when that has killed two", async () => {
    const world = new World({ deadly: (row) => row === "long.12" })
    const outcome = submit(world, "long", 45)
    await world.clock.advance(1000)
    assert.equal(outcome.refusal?.reason, "lost")
    assert.equal(world.seen.filter((batch) => batch.rows.includes("long.12")).length, 2)
    assert.equal(world.seen.length, 3)
  })

  test("the half of a failed batch that had still to run does so", async () => {
    // Batch 1 fails because of c5; its first half, run again as batch 2, is lost.
    const world = new World({ bad: (row) => row === "c5.0", deadly: (_row, batch) => batch === 2 })
    submit(world, "first")
    const clients = Array.from({ length: 8 }, (_, index) => submit(world, `c${index}`))
    await world.clock.advance(1000)
    clients.forEach((client, index) => assert.equal(client.state, index === 5 ? "failed" : "answered"))
  })
})

describe("the queue's bounds", () => {
  test("full of rows or of bytes: refused at once, with the time the queue takes at the measured rate", async () => {
    const world = new World({ maxQueueRows: 100, durationMs: (rows) => 100 * rows })
    await world.teach(only, [1, 10, 10, 5])
    submit(world, "running", 10)
    const waiting = Array.from({ length: 10 }, (_, index) => submit(world, `w${index}`, 10))
    const refused = submit(world, "one too many")
    await settled()
    assert.equal(refused.refusal?.reason, "full")
    // 100 rows at 100 ms a row.
    assert.equal(refused.refusal?.retryAfterS, 10)
    assert.equal(world.batcher.stats().queueRows, 100)
    await world.clock.advance(20_000)
    assert.ok(waiting.every((outcome) => outcome.state === "answered"))
  })

  test("bytes are bounded as rows are", async () => {
    const world = new World({ maxQueueBytes: 100 })
    submit(world, "running", 1, { bytes: 90 })
    submit(world, "waiting", 1, { bytes: 90 })
    const refused = submit(world, "refused", 1, { bytes: 20 })
    await settled()
    assert.equal(refused.refusal?.reason, "full")
    assert.equal(refused.refusal?.retryAfterS, 1)
  })

  test("a job that alone is larger than the queue is told so, because waiting would not help it", async () => {
    const world = new World({ maxQueueRows: 100 })
    const refused = submit(world, "huge", 101)
    await settled()
    assert.equal(refused.refusal?.reason, "too-large")
  })

  test("room comes back when a batch begins, when a client leaves, when a deadline passes", async () => {
    const world = new World({ maxQueueRows: 3 })
    const abort = new AbortController()
    submit(world, "running")
    submit(world, "leaves", 1, { signal: abort.signal })
    submit(world, "expires", 1, { deadlineMs: world.clock.now() + 3 })
    submit(world, "stays")
    const full = submit(world, "refused")
    abort.abort()
    await world.clock.advance(4)
    assert.equal(full.refusal?.reason, "full")
    assert.equal(world.batcher.stats().queueRows, 1)
    assert.equal(world.batcher.stats().queueBytes, 8)
    await world.clock.advance(100)
    assert.deepEqual(
      { ...world.batcher.stats(), groups: [] },
      {
        queueJobs: 0,
        queueRows: 0,
        queueBytes: 0,
        runningBatches: 0,
        backlogMs: 0,
        groups: [],
      },
    )
  })
})

describe("deadlines", () => {
  test("a job whose deadline passes in the queue is told then, and never reaches the model", async () => {
    const world = new World({ durationMs: () => 100 })
    const startMs = world.clock.now()
    submit(world, "running")
    const late = submit(world, "late", 1, { deadlineMs: startMs + 40 })
    await world.clock.advance(1000)
    assert.equal(late.refusal?.reason, "expired")
    assert.equal(late.atMs, startMs + 40)
    assert.ok(world.seen.every((batch) => !batch.rows.includes("late.0")))
  })

  test("a job that is in a batch when its deadline passes is told then, too", async () => {
    const world = new World({ durationMs: () => 100 })
    const startMs = world.clock.now()
    const late = submit(world, "late", 1, { deadlineMs: startMs + 40 })
    await world.clock.advance(1000)
    assert.equal(late.refusal?.reason, "expired")
    assert.equal(late.atMs, startMs + 40)
  })

  test("a deadline that is already past is refused without a run", async () => {
    const world = new World()
    const late = submit(world, "late", 1, { deadlineMs: world.clock.now() })
    await settled()
    assert.equal(late.refusal?.reason, "expired")
    assert.equal(world.seen.length, 0)
  })

  test("early refusal: what cannot be in time by the measured rate is refused at once", async () => {
    const world = new World({ durationMs: (rows) => 100 * rows })
    await world.teach(only, [1, 10, 10, 5])
    submit(world, "running", 10)
    for (let index = 0; index < 5; index++) submit(world, `w${index}`, 10)
    // 1 s runs, 5 s wait, 1 s for its own batch, which others will fill: 7 s, and a margin of a tenth.
    const hopeless = submit(world, "hopeless", 1, { deadlineMs: world.clock.now() + 3000 })
    const hopeful = submit(world, "hopeful", 1, { deadlineMs: world.clock.now() + 8000 })
    await settled()
    assert.equal(hopeless.refusal?.reason, "too-late")
    assert.equal(hopeless.refusal?.retryAfterS, 5)
    await world.clock.advance(10_000)
    assert.equal(hopeful.state, "answered")
  })

  test("without evidence nobody is refused early", async () => {
    const world = new World({ durationMs: (rows) => 100 * rows })
    submit(world, "running", 10)
    const unsure = submit(world, "unsure", 1, { deadlineMs: world.clock.now() + 500 })
    await settled()
    assert.equal(unsure.state, "pending")
  })

  test("one slow batch, the first say, is not evidence enough", async () => {
    const world = new World({ durationMs: (_rows, batch) => (batch === 0 ? 5000 : 10) })
    submit(world, "first")
    await world.clock.advance(5000)
    submit(world, "running")
    const outcome = submit(world, "a", 1, { deadlineMs: world.clock.now() + 100 })
    await world.clock.advance(100)
    assert.equal(outcome.state, "answered")
  })

  test("batches that fail teach nothing", async () => {
    const world = new World({
      bad: (row) => row.startsWith("bad"),
      durationMs: (rows) => (rows > 1 ? 10 : 5000),
    })
    const group = groupOf("g", 1)
    for (let index = 0; index < 9; index++) submit(world, `bad${index}`, 1, { group })
    await world.clock.advance(100_000)
    assert.deepEqual(world.batcher.stats().groups[0]?.samples, 0)
  })

  test("what turns hopeless while it waits is refused when its turn comes, and costs no run", async () => {
    let slow = 1
    const world = new World({ durationMs: (rows) => slow * 10 * rows })
    await world.teach(only, [1, 10, 10, 5])
    slow = 20
    submit(world, "running")
    const late = submit(world, "late", 10, { deadlineMs: world.clock.now() + 250 })
    submit(world, "other", 1)
    await world.clock.advance(5000)
    assert.equal(late.refusal?.reason, "too-late")
    assert.ok(world.seen.every((batch) => !batch.rows.includes("late.0")))
  })

  test("a wrong model cannot refuse for ever: an idle batcher tries", async () => {
    let slow = 100
    const world = new World({ durationMs: (rows) => slow * rows })
    await world.teach(only, [1, 10, 10, 5, 1, 1])
    slow = 1
    const outcome = submit(world, "a", 1, { deadlineMs: world.clock.now() + 50 })
    await world.clock.advance(100)
    assert.equal(outcome.state, "answered")
  })

  test("a batch does not grow beyond what its tightest deadline allows, while all that waits fits into one", async () => {
    const world = new World({ durationMs: (rows) => 10 + 2 * rows })
    await world.teach(only, [1, 10, 10, 5])
    submit(world, "running")
    submit(world, "lax", 1, { deadlineMs: world.clock.now() + 10_000 })
    const tight = submit(world, "tight", 1, { deadlineMs: world.clock.now() + 12 + 20 })
    const others = Array.from({ length: 6 }, (_, index) => submit(world, `o${index}`))
    await world.clock.advance(1000)
    // 20 ms are enough for four rows and a margin.
    assert.deepEqual(namesOf(world.seen[1]?.rows ?? []), ["lax", "tight", "o0", "o1"])
    assert.equal(tight.state, "answered")
    assert.ok(others.every((outcome) => outcome.state === "answered"))
  })

  test("where more waits than fits into one, a job that a full batch would make late is refused, and batches stay full", async () => {
    const world = new World({ durationMs: (rows) => 10 + 2 * rows })
    await world.teach(only, [1, 10, 10, 5])
    submit(world, "running")
    submit(world, "lax", 1, { deadlineMs: world.clock.now() + 10_000 })
    const tight = submit(world, "tight", 1, { deadlineMs: world.clock.now() + 12 + 20 })
    for (let index = 0; index < 30; index++) submit(world, `o${index}`)
    await world.clock.advance(1000)
    assert.equal(tight.refusal?.reason, "too-late")
    assert.equal(world.seen[1]?.rows.length, 10)
    assert.ok(world.seen.every((batch) => !batch.rows.includes("tight.0")))
  })

  test("a job with more rows than its deadline makes advisable still runs, if it can be in time", async () => {
    const world = new World({ durationMs: (rows) => 10 + 10 * rows })
    await world.teach(only, [1, 10, 10, 5])
    // Half of 100 ms is enough for four rows.
    const outcome = submit(world, "a", 8, { deadlineMs: world.clock.now() + 100 })
    await world.clock.advance(1000)
    assert.equal(outcome.state, "answered")
  })

  test("the wait that is predicted counts other groups only as far as they share the slot", async () => {
    const [a, b] = [groupOf("a"), groupOf("b")]
    const world = new World({ durationMs: () => 100 })
    await world.teach(a, [1, 10, 10, 5])
    await world.teach(b, [1, 10, 10, 5])
    submit(world, "running", 1, { group: b })
    for (let index = 0; index < 50; index++) submit(world, `b${index}`, 1, { group: b })
    // 100 ms run, 100 ms of b's five batches come in between, 100 ms are its own: 300 ms.
    const hopeful = submit(world, "hopeful", 1, { group: a, deadlineMs: world.clock.now() + 340 })
    const hopeless = submit(world, "hopeless", 1, { group: a, deadlineMs: world.clock.now() + 280 })
    await settled()
    assert.equal(hopeless.refusal?.reason, "too-late")
    await world.clock.advance(2000)
    assert.equal(hopeful.state, "answered")
  })

  test("with two slots the wait is half as long", async () => {
    const world = new World({ slots: 2, durationMs: () => 100 })
    await world.teach(only, [1, 10, 10, 5])
    for (let index = 0; index < 62; index++) submit(world, `w${index}`)
    // Two run, six batches wait: 100 + 300 ms, and 100 ms of its own.
    const hopeful = submit(world, "hopeful", 1, { deadlineMs: world.clock.now() + 560 })
    const hopeless = submit(world, "hopeless", 1, { deadlineMs: world.clock.now() + 380 })
    await settled()
    assert.equal(hopeless.refusal?.reason, "too-late")
    await world.clock.advance(2000)
    assert.equal(hopeful.state, "answered")
  })

  test("after the process stood still deadlines hold: what is past is told, the rest is served", async () => {
    const world = new World({ durationMs: () => 10 })
    submit(world, "running")
    const late = submit(world, "late", 1, { deadlineMs: world.clock.now() + 1000 })
    const fine = submit(world, "fine", 1, { deadlineMs: world.clock.now() + 10_000 })
    world.clock.stall(2000)
    await world.clock.advance(50)
    assert.equal(late.refusal?.reason, "expired")
    assert.equal(fine.state, "answered")
    assert.ok(world.seen.every((batch) => !batch.rows.includes("late.0")))
  })

  test("there is one timer however many jobs wait", () => {
    const world = new World()
    for (let index = 0; index < 50; index++) {
      submit(world, `j${index}`, 1, { deadlineMs: world.clock.now() + 5000 - index })
    }
    // One of the batcher's, one of the model's.
    assert.equal(world.clock.timers, 2)
  })

  test("between events nothing wakes, however long a job waits", async () => {
    const world = new World({ durationMs: () => 10_000 })
    const set = world.clock.setTimer.bind(world.clock)
    let timers = 0
    world.clock.setTimer = (callback, ms) => {
      timers++
      return set(callback, ms)
    }
    submit(world, "running")
    const waiting = submit(world, "waiting", 1, { deadlineMs: world.clock.now() + 5000 })
    await world.clock.advance(4999)
    assert.equal(timers, 2, "one for the batch, one for the deadline")
    await world.clock.advance(1)
    assert.equal(waiting.refusal?.reason, "expired")
  })
})

describe("overload", () => {
  /** Jobs of one row at ten times what the model can do, for three seconds; each is worth something for `worthMs`. */
  async function overload(
    model: (rows: number) => number,
    maxRows: number,
    worthMs: number,
    factor: (batch: number) => number = () => 1,
  ) {
    const group = groupOf("g", maxRows)
    const durationMs = (rows: number, batch: number): number => model(rows) * factor(batch)
    const world = new World({ durationMs, maxQueueRows: 100_000 })
    await world.teach(group, [1, maxRows, Math.ceil(maxRows / 2), maxRows, 1, maxRows])
    const jobs: { outcome: Outcome; atMs: number }[] = []
    const perSecond = (10 * maxRows * 1000) / model(maxRows)
    for (let index = 0; index < 3 * perSecond; index++) {
      const atMs = world.clock.now()
      jobs.push({ outcome: submit(world, `j${index}`, 1, { group, deadlineMs: atMs + worthMs }), atMs })
      await world.clock.advance(1000 / perSecond)
    }
    await world.clock.advance(10_000)
    const answered = jobs.filter(({ outcome }) => outcome.state === "answered")
    const refusedAfter = jobs
      .filter(({ outcome }) => outcome.state === "refused")
      .map(({ outcome, atMs }) => (outcome.atMs ?? 0) - atMs)
      .toSorted((a, b) => a - b)
    return {
      goodput: answered.length / 3 / (perSecond / 10),
      late: jobs.filter(({ outcome }) => outcome.refusal?.reason === "expired").length / answered.length,
      refusedAfterMs: refusedAfter[Math.floor(0.99 * refusedAfter.length)] ?? 0,
    }
  }

  test("at ten times the capacity, nine tenths of it are answered in time, and refusals come at once", async () => {
    const { goodput, refusedAfterMs } = await overload((rows) => 5 + 0.4 * rows, 50, 300)
    assert.ok(goodput >= 0.9, `goodput ${goodput}`)
    assert.ok(refusedAfterMs < 1, `refused after ${refusedAfterMs} ms`)
  })

  test("the same where a full batch takes longer than clients wait: batches are made smaller", async () => {
    const { goodput, refusedAfterMs } = await overload((rows) => 20 + 10 * rows, 100, 300)
    // Of 300 ms half for the batch that one just misses, half for one's own: 13 rows in 150 ms, not 100 in 1,020 ms.
    assert.ok(goodput >= 0.9 * (13 / 150 / (100 / 1020)), `goodput ${goodput}`)
    assert.ok(refusedAfterMs < 150, `refused after ${refusedAfterMs} ms`)
  })

  test("where others slow the machine down now and then, hardly anybody is let in who does not make it", async () => {
    // Each batch takes one and a half times as long as it could, give or take half of that.
    const wavering = (batch: number): number => 1 + ((batch * 7) % 11) / 10
    const { goodput, late } = await overload((rows) => 5 + 0.4 * rows, 50, 100, wavering)
    assert.ok(goodput >= 0.9 / 1.5, `goodput ${goodput}`)
    assert.ok(late < 0.1, `${late} too late for each in time`)
  })
})

describe("a client that leaves", () => {
  test("takes its job out of the queue", async () => {
    const abort = new AbortController()
    const world = new World()
    submit(world, "running")
    const gone = submit(world, "gone", 1, { signal: abort.signal })
    const stays = submit(world, "stays")
    abort.abort()
    await settled()
    assert.equal(gone.refusal?.reason, "aborted")
    await world.clock.advance(100)
    assert.equal(stays.state, "answered")
    assert.ok(world.seen.every((batch) => !batch.rows.includes("gone.0")))
  })

  test("is told from one whose deadline somebody else watches over, too: that job has expired", async () => {
    const abort = new AbortController()
    const world = new World()
    submit(world, "running")
    const late = submit(world, "late", 1, { signal: abort.signal, deadlineMs: world.clock.now() + 4.6 })
    // Timers know whole milliseconds only.
    await world.clock.advance(4)
    abort.abort()
    await settled()
    assert.equal(late.refusal?.reason, "expired")
  })

  test("while its batch runs: it is told at once and the others get their answers", async () => {
    const abort = new AbortController()
    const world = new World()
    submit(world, "running")
    const gone = submit(world, "gone", 1, { signal: abort.signal })
    const stays = submit(world, "stays")
    await world.clock.advance(15)
    abort.abort()
    await settled()
    assert.equal(gone.refusal?.reason, "aborted")
    await world.clock.advance(100)
    assert.equal(stays.state, "answered")
  })

  test("in the middle of a long job: the parts that are left do not run", async () => {
    const abort = new AbortController()
    const world = new World()
    submit(world, "long", 100, { signal: abort.signal })
    await world.clock.advance(25)
    abort.abort()
    await world.clock.advance(1000)
    assert.equal(world.seen.length, 3)
    assert.equal(world.batcher.stats().queueRows, 0)
  })

  test("before it was even submitted: nothing runs", async () => {
    const world = new World()
    const gone = submit(world, "gone", 1, { signal: AbortSignal.abort() })
    await settled()
    assert.equal(gone.refusal?.reason, "aborted")
    assert.equal(world.seen.length, 0)
  })

  test("a job that is done listens to its signal no more", async () => {
    const abort = new AbortController()
    let listeners = 0
    const { signal } = abort
    const add = signal.addEventListener.bind(signal)
    const remove = signal.removeEventListener.bind(signal)
    signal.addEventListener = (...args: Parameters<typeof add>) => (listeners++, add(...args))
    signal.removeEventListener = (...args: Parameters<typeof remove>) => (listeners--, remove(...args))
    const world = new World()
    submit(world, "a", 1, { signal })
    assert.equal(listeners, 1)
    await world.clock.advance(10)
    assert.equal(listeners, 0)
  })
})

describe("waiting for company (batch_wait_ms)", () => {
  const patient = groupOf("patient", 10, 50)
  /** A batch costs 40 ms and 1 ms a row; jobs have been coming every 2 ms, and now all is quiet. */
  const taught = async (): Promise<World> => {
    const world = new World({ durationMs: (rows) => 40 + rows })
    await world.teach(patient, [1, 10, 10, 5])
    for (let index = 0; index < 60; index++) {
      submit(world, `t${index}`, 1, { group: patient })
      await world.clock.advance(2)
    }
    await world.clock.advance(500)
    world.seen.length = 0
    return world
  }

  test("is off by default: a free slot and a job are a batch", async () => {
    const world = new World({ durationMs: (rows) => 40 + rows })
    for (let index = 0; index < 30; index++) {
      submit(world, `t${index}`)
      await world.clock.advance(2)
    }
    await world.clock.advance(500)
    world.seen.length = 0
    submit(world, "a")
    assert.equal(world.seen.length, 1)
  })

  test("a full batch starts at once", async () => {
    const world = await taught()
    submit(world, "a", 10, { group: patient })
    assert.equal(world.seen.length, 1)
  })

  test("where others are expected, the first waits for them, together no longer than a batch's fixed cost", async () => {
    const world = await taught()
    const startMs = world.clock.now()
    for (const name of ["a", "b", "c"]) {
      submit(world, name, 1, { group: patient })
      assert.equal(world.seen.length, 0)
      await world.clock.advance(2)
    }
    await world.clock.advance(200)
    const [batch] = world.seen
    assert.equal(world.seen.length, 1)
    assert.deepEqual(batch?.rows, ["a.0", "b.0", "c.0"])
    const waitedMs = (batch?.startMs ?? 0) - startMs
    // a, b and c came 2 ms apart.
    assert.ok(Math.abs(waitedMs + (waitedMs - 2) + (waitedMs - 4) - 40) < 2, `waited ${waitedMs} ms`)
  })

  test("and never longer than batch_wait_ms", async () => {
    const group = groupOf("impatient", 10, 8)
    const world = new World({ durationMs: (rows) => 40 + rows })
    await world.teach(group, [1, 10, 10, 5])
    for (let index = 0; index < 60; index++) {
      submit(world, `t${index}`, 1, { group })
      await world.clock.advance(2)
    }
    await world.clock.advance(500)
    world.seen.length = 0
    const startMs = world.clock.now()
    submit(world, "a", 1, { group })
    await world.clock.advance(100)
    assert.equal((world.seen[0]?.startMs ?? 0) - startMs, 8)
  })

  test("it never makes the oldest job late", async () => {
    const world = await taught()
    const outcome = submit(world, "a", 1, { group: patient, deadlineMs: world.clock.now() + 55 })
    await world.clock.advance(200)
    assert.equal(outcome.state, "answered")
  })

  test("nobody waits where the next arrival is far", async () => {
    const world = new World({ durationMs: (rows) => 40 + rows })
    await world.teach(patient, [1, 10, 10, 5])
    for (let index = 0; index < 30; index++) {
      submit(world, `t${index}`, 1, { group: patient })
      await world.clock.advance(300)
    }
    world.seen.length = 0
    submit(world, "a", 1, { group: patient })
    assert.equal(world.seen.length, 1)
  })
})

describe("batches handed over ahead of a free slot", () => {
  const short = (rows: number): number => 2 + rows
  const taught = async (options: ConstructorParameters<typeof World>[0] = {}): Promise<World> => {
    const world = new World({ ahead: true, durationMs: short, ...options })
    await world.teach(only, [1, 10, 10, 5])
    return world
  }
  const sizes = (world: World): number[] => world.seen.map((batch) => batch.rows.length)

  test("a full one is, so that the slot need not wait for this thread; one, and not a second", async () => {
    const world = await taught()
    for (let index = 0; index < 40; index++) submit(world, `j${index}`)
    assert.deepEqual(sizes(world), [1, 10])
    await settled()
    await world.clock.advance(3)
    assert.deepEqual(sizes(world), [1, 10, 10])
    await world.clock.advance(1000)
    assert.deepEqual(sizes(world), [1, 10, 10, 10, 9])
  })

  test("one that could still grow is not", async () => {
    const world = await taught()
    for (let index = 0; index < 10; index++) submit(world, `j${index}`)
    assert.deepEqual(sizes(world), [1])
  })

  test("none is where another group would have to wait for it", async () => {
    const world = await taught()
    submit(world, "running")
    submit(world, "other", 1, { group: groupOf("other") })
    for (let index = 0; index < 30; index++) submit(world, `j${index}`)
    assert.deepEqual(sizes(world), [1])
  })

  test("none is where it could come to stand behind a slow batch of another group while a slot is free", async () => {
    const world = await taught({ slots: 2, durationMs: (rows) => (rows === 7 ? 1000 : short(rows)) })
    const slow = submit(world, "slow", 7, { group: groupOf("slow") })
    const startMs = world.clock.now()
    const quick = Array.from({ length: 31 }, (_, index) => submit(world, `j${index}`))
    assert.deepEqual(sizes(world), [7, 1])
    await world.clock.advance(500)
    assert.deepEqual(sizes(world), [7, 1, 10, 10, 10])
    assert.equal(world.mostRunning, 2)
    assert.ok(quick.every(({ atMs }) => (atMs ?? Infinity) - startMs <= short(1) + 3 * short(10)))
    await world.clock.advance(1000)
    assert.equal(slow.state, "answered")
  })

  test("a job of another group waits for what was handed over, and no longer", async () => {
    const world = await taught()
    for (let index = 0; index < 100; index++) submit(world, `j${index}`)
    await settled()
    await world.clock.advance(3)
    const other = submit(world, "other", 1, { group: groupOf("other") })
    const startMs = world.clock.now()
    await world.clock.advance(1000)
    assert.ok((other.atMs ?? 0) - startMs <= 2 * short(10) + short(1))
  })

  test("none is of batches that take long, of a group not known yet, or while a failed batch is halved", async () => {
    const slow = await taught({ durationMs: (rows) => 10 * rows })
    for (let index = 0; index < 40; index++) submit(slow, `j${index}`)
    assert.deepEqual(sizes(slow), [1])

    const unknown = new World({ ahead: true, durationMs: short })
    for (let index = 0; index < 40; index++) submit(unknown, `j${index}`)
    assert.deepEqual(sizes(unknown), [1])

    const bad = await taught({ bad: (row) => row === "j3.0" })
    for (let index = 0; index < 40; index++) submit(bad, `j${index}`)
    await bad.clock.advance(1000)
    bad.events.forEach(({ outcome }, index) => {
      if (outcome === "failed") assert.notEqual(bad.events[index + 1]?.outcome, "failed")
    })
    assert.equal(bad.seen.filter((batch) => batch.rows.includes("j3.0")).length <= 6, true)
  })

  test("what it takes is counted from when its slot took it up", async () => {
    const world = await taught()
    for (let index = 0; index < 200; index++) submit(world, `j${index}`)
    await settled()
    await world.clock.advance(1000)
    for (const { rows, ms } of world.events) assert.equal(ms, short(rows))
    const fit = world.batcher.stats().groups[0]
    assert.ok(Math.abs((fit?.fixedMs ?? 0) + 10 * (fit?.perRowMs ?? 0) - short(10)) < 0.1)
  })

  test("the wait that is predicted counts it", async () => {
    const world = await taught()
    for (let index = 0; index < 22; index++) submit(world, `j${index}`)
    // 3 ms run, 12 ms are handed over, 12 ms and then 3 ms more wait.
    const hopeless = submit(world, "hopeless", 1, { deadlineMs: world.clock.now() + 35 })
    const hopeful = submit(world, "hopeful", 1, { deadlineMs: world.clock.now() + 45 })
    await settled()
    await world.clock.advance(1000)
    assert.equal(hopeless.refusal?.reason, "too-late")
    assert.equal(hopeful.state, "answered")
  })
})

describe("closing", () => {
  test("draining: those accepted get their answers, new ones are refused with 1 s", async () => {
    const world = new World()
    const accepted = Array.from({ length: 25 }, (_, index) => submit(world, `a${index}`))
    let empty = false
    void world.batcher.close({ drain: true }).then(() => (empty = true))
    const refused = submit(world, "late")
    await world.clock.advance(20)
    assert.equal(empty, false)
    await world.clock.advance(1000)
    assert.equal(empty, true)
    assert.ok(accepted.every((outcome) => outcome.state === "answered"))
    assert.deepEqual(refused.refusal, { reason: "draining", retryAfterS: 1, rows: 1 })
  })

  test("without draining all are refused at once", async () => {
    const world = new World()
    const accepted = Array.from({ length: 25 }, (_, index) => submit(world, `a${index}`))
    void world.batcher.close({ drain: false })
    await settled()
    assert.ok(accepted.every((outcome) => outcome.refusal?.reason === "draining"))
  })

  test("an empty batcher closes at once and leaves no timer", async () => {
    const world = new World()
    submit(world, "a", 1, { deadlineMs: world.clock.now() + 60_000 })
    await world.clock.advance(100)
    await world.batcher.close({ drain: true })
    assert.equal(world.clock.timers, 0)
  })
})

test("timing tells where a job's time went", async () => {
  const world = new World({ durationMs: (rows) => 10 + rows })
  submit(world, "running")
  const timing = { queueMs: 0, inferMs: 0, batchRows: 0 }
  submit(world, "a", 1, { timing })
  submit(world, "b", 2)
  await world.clock.advance(100)
  assert.deepEqual(timing, { queueMs: 11, inferMs: 13, batchRows: 3 })
})

test("each batch is reported once: rows, jobs, duration and what became of it", async () => {
  const world = new World({ bad: (row) => row === "bad.0" })
  for (const name of ["first", "a", "bad"]) submit(world, name)
  await world.clock.advance(1000)
  assert.deepEqual(
    world.events.map(({ rows, jobs, outcome, retry }) => [rows, jobs, outcome, retry]),
    [
      [1, 1, "done", false],
      [2, 2, "failed", false],
      [1, 1, "done", true],
      [1, 1, "failed", true],
    ],
  )
})
