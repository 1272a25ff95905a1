import assert from "node:assert/strict"
import { type ChildProcessByStdio, spawn } from "node:child_process"
import { randomInt } from "node:crypto"
import { once } from "node:events"
import { readdir, stat } from "node:fs/promises"
import { join } from "node:path"
import type { Readable } from "node:stream"
import { createInterface } from "node:readline"
import { test } from "node:test"
import { setTimeout } from "node:timers/promises"
import { microsecondsOf } from "../../store/model.ts"
import { openBentoStore, openModelStore, type Store, type StoreItem } from "../../store/store.ts"
import { formatTag, parseTag, type Tag } from "../../store/tag.ts"
import { tempFolder, writesBento, writesModel } from "./support.ts"

const KILLS = 200
const WAVES = 5
const AT_ONCE = 4
/** What a child has said last when it is killed: by what it does and not by the clock, so that a slow disk sees all of them. */
const MOMENTS = ["ready", "adds", "added", "removes", "removed"] as const

/** What the children said; each tag is added once, by one child. */
class Ledger {
  readonly added = new Set<string>()
  readonly removing = new Set<string>()
  readonly removed = new Set<string>()
  readonly known = new Set<string>()

  note(line: string): void {
    const [what = "", kind = "", tag = ""] = line.split(" ")
    const item = `${kind} ${tag}`
    if (what === "adds") this.known.add(item)
    else if (what === "added") this.added.add(item)
    else if (what === "removes") this.removing.add(item)
    else if (what === "removed") this.removed.add(item)
    else assert.equal(line, "ready")
  }
}

interface Info {
  readonly tag: Tag
  readonly creationTime: string
}

const FILES = {
  model: ["model.yaml", "saved_model.onnx", "weights.bin"],
  bento: ["bento.yaml", "src/0.ts", "src/1.ts", "src/2.ts", "src/3.ts"],
}

/** A child that shares compiled code with its siblings: they start in half the time. */
function start(
  home: string,
  cache: string,
  ...more: string[]
): ChildProcessByStdio<null, Readable, Readable> {
  return spawn(process.execPath, [join(import.meta.dirname, "kill-child.ts"), home, ...more], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, NODE_COMPILE_CACHE: cache },
  })
}

/** Starts a child, kills it a little after a moment of its work, and takes down all that it said. */
async function killOne(home: string, cache: string, ledger: Ledger): Promise<void> {
  const child = start(home, cache)
  const exited = once(child, "exit")
  let stderr = ""
  child.stderr.on("data", (data: Buffer) => (stderr += data.toString()))
  const lines = createInterface({ input: child.stdout })
  const closed = once(lines, "close")
  const moment = MOMENTS[randomInt(MOMENTS.length)] ?? "ready"
  const reached = new Promise<void>((resolve) => {
    lines.on("line", (line) => {
      ledger.note(line)
      if (line.split(" ")[0] === moment) resolve()
    })
  })
  await Promise.race([reached, exited])
  await setTimeout(randomInt(50))
  child.kill("SIGKILL")
  const [[, signal]] = await Promise.all([exited, closed])
  assert.equal(signal, "SIGKILL", `a child ended by itself: ${stderr}`)
}

/** Lists while the children work: nothing half-made may ever be seen. */
async function watch(stores: readonly Store<Info>[], signal: AbortSignal): Promise<number> {
  let lists = 0
  for (; !signal.aborted; lists++) {
    for (const store of stores) {
      const { items, broken } = await store.list()
      assert.deepEqual(broken, [])
      const item = items[randomInt(Math.max(items.length, 1))]
      if (item !== undefined) await assertWhole(store, item)
    }
    await setTimeout(50)
  }
  return lists
}

/** All files are there, or the item is gone by now. */
async function assertWhole(store: Store<Info>, item: StoreItem<Info>): Promise<void> {
  const found = await Promise.all(
    FILES[store.kind].map((file) =>
      stat(join(item.dir, file)).then(
        (stats) => stats.size > 0,
        () => false,
      ),
    ),
  )
  if (found.every((isThere) => isThere)) return
  await assert.rejects(stat(item.dir), { code: "ENOENT" }, `${item.dir} is half an item`)
}

async function assertRight(store: Store<Info>, ledger: Ledger): Promise<void> {
  const { items, broken } = await store.list()
  assert.deepEqual(broken, [])
  const listed = new Set(items.map((item) => `${store.kind} ${formatTag(item.tag)}`))
  const ours = [...ledger.added].filter((item) => item.startsWith(store.kind))
  const lost = ours.filter((item) => !listed.has(item) && !ledger.removing.has(item))
  assert.deepEqual(lost, [], "reported as added, and lost")
  assert.deepEqual(
    [...listed].filter((item) => ledger.removed.has(item)),
    [],
    "reported as removed, and there",
  )
  assert.deepEqual(
    [...listed].filter((item) => !ledger.known.has(item)),
    [],
    "never added, and there",
  )
  for (const item of items) await assertWhole(store, item)
  for (const name of new Set(items.map((item) => item.tag.name))) {
    const versions = items.filter((item) => item.tag.name === name)
    const latest = await store.get({ name })
    const newest = Math.max(...versions.map((item) => microsecondsOf(item.info.creationTime)))
    assert.equal(microsecondsOf(latest.creationTime), newest, `latest of ${name}`)
  }
}

test(
  `${KILLS} writers killed at random moments lose nothing and leave nothing half-made`,
  { timeout: 240_000 },
  async (t) => {
    const home = await tempFolder(t)
    const models = openModelStore(home)
    const bentos = openBentoStore(home)
    const cache = await tempFolder(t)
    await once(start(await tempFolder(t), cache, "1"), "exit") // compiled code is written when a process ends by itself
    const ledger = new Ledger()
    let lists = 0
    for (let wave = 0; wave < WAVES; wave++) {
      const over = new AbortController()
      const watching = watch([models, bentos], over.signal)
      let left = KILLS / WAVES
      const slot = async (): Promise<void> => {
        while (left-- > 0) await killOne(home, cache, ledger)
      }
      try {
        await Promise.all(Array.from({ length: AT_ONCE }, slot))
      } finally {
        over.abort()
      }
      lists += await watching
      await assertRight(models, ledger)
      await assertRight(bentos, ledger)
      const tag = parseTag("after:kill")
      await models.add(tag, writesModel(tag))
      await models.remove(tag)
      await bentos.add(tag, writesBento(tag))
      await bentos.remove(tag)
      assert.deepEqual(await readdir(join(home, "tmp")), [], "the next writer cleans up")
      await assertRight(models, ledger)
      await assertRight(bentos, ledger)
    }
    const { added, removed, known } = ledger
    t.diagnostic(
      `${known.size} adds begun, ${added.size} done, ${removed.size} deletes done, ${lists} lists meanwhile`,
    )
    assert(added.size > 0 && removed.size > 0, "the children did nothing")
  },
)

/** Starts siblings that begin at once, and gives back all that they said. */
async function race(home: string, rounds: number, mode: string): Promise<string[]> {
  const script = join(import.meta.dirname, "race-child.ts")
  const children = Array.from({ length: 4 }, () =>
    spawn(process.execPath, [script, home, String(rounds), mode], { stdio: ["pipe", "pipe", "inherit"] }),
  )
  let ready = 0
  const outputs = children.map(async (child) => {
    const lines: string[] = []
    for await (const line of createInterface({ input: child.stdout })) {
      lines.push(line)
      if (line === "ready" && ++ready === children.length) for (const each of children) each.stdin.end("go\n")
    }
    return lines
  })
  const ends = await Promise.all(children.map((child) => once(child, "exit")))
  assert.deepEqual(
    ends,
    children.map(() => [0, null]),
  )
  return (await Promise.all(outputs)).flat()
}

test("of several processes that add one tag exactly one wins, each time", { timeout: 60_000 }, async (t) => {
  const home = await tempFolder(t)
  const rounds = 20
  const won = (await race(home, rounds, "race")).filter((line) => line.startsWith("won"))
  assert.deepEqual(won.toSorted(), Array.from({ length: rounds }, (_, i) => `won iris:v${i}`).toSorted())
  const { items, broken } = await openModelStore(home).list()
  assert.deepEqual(broken, [])
  assert.equal(items.length, rounds)
  assert.equal((await openModelStore(home).resolve({ name: "iris" })).version, `v${rounds - 1}`)
})

test(
  "a name that comes and goes in several processes breaks none of them",
  { timeout: 60_000 },
  async (t) => {
    const home = await tempFolder(t)
    await race(home, 40, "come and go")
    assert.deepEqual(await readdir(join(home, "models")), [])
    assert.deepEqual(await readdir(join(home, "tmp")), [])
  },
)
