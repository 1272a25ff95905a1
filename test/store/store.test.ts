import assert from "node:assert/strict"
import { chmod, cp, mkdir, readFile, rm, symlink, utimes, writeFile } from "node:fs/promises"
import { readdir } from "node:fs/promises"
import { join } from "node:path"
import { test, type TestContext } from "node:test"
import { setTimeout } from "node:timers/promises"
import { AmbiguousTagError, BentoError } from "../../store/errors.ts"
import { openBentoStore, openModelStore, type Store } from "../../store/store.ts"
import { readYaml } from "../../store/pyyaml.ts"
import { formatTag, parseTag, parseTagRef, type Tag } from "../../store/tag.ts"
import { FIXTURES, tempFolder, treeOf, writesBento, writesModel } from "./support.ts"

interface Sort {
  readonly open: (home: string) => Store<{ readonly tag: Tag }>
  readonly writes: (tag: Tag, second?: number) => (dir: string) => Promise<void>
  readonly manifest: string
  readonly notFound: string
}

const MODELS: Sort = {
  open: openModelStore,
  writes: writesModel,
  manifest: "model.yaml",
  notFound: "MODEL_NOT_FOUND",
}
const BENTOS: Sort = {
  open: openBentoStore,
  writes: writesBento,
  manifest: "bento.yaml",
  notFound: "BENTO_NOT_FOUND",
}

/** Runs one test for models and for Bentos. */
function both(name: string, run: (t: TestContext, sort: Sort) => Promise<void>): void {
  for (const [kind, sort] of Object.entries({ models: MODELS, bentos: BENTOS })) {
    test(`${kind}: ${name}`, (t) => run(t, sort))
  }
}

async function fill(
  sort: Sort,
  home: string,
  ...tags: readonly string[]
): Promise<Store<{ readonly tag: Tag }>> {
  const store = sort.open(home)
  for (const [second, text] of tags.entries()) {
    const tag = parseTag(text)
    await store.add(tag, sort.writes(tag, second))
  }
  return store
}

async function tagsOf(store: Store<{ readonly tag: Tag }>, ref?: string): Promise<string[]> {
  const { items } = await store.list(ref === undefined ? undefined : parseTagRef(ref))
  return items.map((item) => formatTag(item.tag))
}

async function rejected(work: Promise<unknown>, code: string): Promise<BentoError> {
  const error: unknown = await work.then(
    () => assert.fail(`expected ${code}`),
    (reason: unknown) => reason,
  )
  assert(error instanceof BentoError, String(error))
  assert.equal(error.code, code, error.message)
  return error
}

/** File times count in ticks of the kernel, of up to 10 ms. */
function nextTick(): Promise<void> {
  return setTimeout(25)
}

both("an item that was added is listed, got and laid out as BentoML has it", async (t, sort) => {
  const home = await tempFolder(t)
  const store = await fill(sort, home, "iris:v1")
  assert.deepEqual(await tagsOf(store), ["iris:v1"])
  assert.equal(formatTag((await store.get({ name: "iris" })).tag), "iris:v1")
  const kind = `${store.kind}s`
  assert.equal(store.dir(parseTag("iris:v1")), join(home, kind, "iris", "v1"))
  const paths = Object.keys(await treeOf(home))
  assert(paths.includes(join(kind, "iris", "v1", sort.manifest)))
  assert.equal(await readFile(join(home, kind, "iris", "latest"), "utf8"), "v1")
  assert.deepEqual(await readdir(join(home, "tmp")), [])
})

both("a list is ordered by creation, the newest first, and narrowed by name and version", async (t, sort) => {
  const store = await fill(sort, await tempFolder(t), "b:v1", "a:x1", "b:v2", "a:x10")
  assert.deepEqual(await tagsOf(store), ["a:x10", "b:v2", "a:x1", "b:v1"])
  assert.deepEqual(await tagsOf(store, "b"), ["b:v2", "b:v1"])
  assert.deepEqual(await tagsOf(store, "a:x1"), ["a:x1"])
  assert.deepEqual(await tagsOf(store, "a:x"), ["a:x10", "a:x1"])
  assert.deepEqual(await tagsOf(store, "a:latest"), ["a:x10"])
  assert.deepEqual(await tagsOf(store, "a:none"), [])
  await rejected(store.list({ name: "c" }), sort.notFound)
})

both("a version is found by latest, in full, and by a prefix that fits one", async (t, sort) => {
  const store = await fill(sort, await tempFolder(t), "iris:abc", "iris:abd", "iris:ab", "iris:xyz")
  const resolve = async (text: string): Promise<string> => formatTag(await store.resolve(parseTagRef(text)))
  assert.equal(await resolve("iris"), "iris:xyz")
  assert.equal(await resolve("iris:latest"), "iris:xyz")
  assert.equal(await resolve("iris:ab"), "iris:ab") // exact goes before prefix
  assert.equal(await resolve("iris:x"), "iris:xyz")
  const error = await rejected(store.resolve({ name: "iris", version: "a" }), "TAG_AMBIGUOUS")
  assert(error instanceof AmbiguousTagError)
  assert.deepEqual(error.candidates, ["iris:ab", "iris:abc", "iris:abd"])
})

both("what is not there is not found, with the nearest names or versions", async (t, sort) => {
  const store = await fill(sort, await tempFolder(t), "iris_clf:v1", "digits:v1")
  const name = await rejected(store.get({ name: "iris_cfl" }), sort.notFound)
  assert.match(name.hint ?? "", /Did you mean iris_clf\?/)
  assert.match(name.message, /iris_cfl/)
  const version = await rejected(store.get({ name: "iris_clf", version: "v2" }), sort.notFound)
  assert.match(version.hint ?? "", /iris_clf:v1/)
  const far = await rejected(store.get({ name: "something" }), sort.notFound)
  assert.match(far.hint ?? "", /list/)
  await rejected(store.remove(parseTag("iris_clf:v2")), sort.notFound)
  await rejected(store.size(parseTag("iris_clf:v2")), sort.notFound)
})

both("reading a store that does not exist makes none", async (t, sort) => {
  const home = join(await tempFolder(t), "none")
  const store = sort.open(home)
  assert.deepEqual(await store.list(), { items: [], broken: [] })
  await rejected(store.get({ name: "iris" }), sort.notFound)
  await rejected(store.remove(parseTag("iris:v1")), sort.notFound)
  await assert.rejects(readdir(home), { code: "ENOENT" })
})

both("latest is the newest by creation time, not by order of arrival", async (t, sort) => {
  const store = sort.open(await tempFolder(t))
  for (const [text, second] of [
    ["iris:new", 50],
    ["iris:old", 10],
    ["iris:newest", 60],
  ] as const) {
    const tag = parseTag(text)
    await store.add(tag, sort.writes(tag, second))
  }
  const pointer = (): Promise<string> => readFile(join(store.root, "iris", "latest"), "utf8")
  assert.equal(await pointer(), "newest")
  await store.remove(parseTag("iris:newest"))
  assert.equal(await pointer(), "new")
  await store.remove(parseTag("iris:old"))
  assert.equal(await pointer(), "new")
})

both("latest is right however a manifest writes its time, and whatever else it says", async (t, sort) => {
  const store = await fill(sort, await tempFolder(t), ...[1, 2, 3, 4, 5, 6].map((each) => `iris:v${each}`))
  const rewrite = async (version: string, change: (text: string) => string): Promise<void> => {
    const manifest = join(store.root, "iris", version, sort.manifest)
    await writeFile(manifest, change(await readFile(manifest, "utf8")))
  }
  const timed =
    (time: string) =>
    (text: string): string =>
      text.replace(/^creation_time: .*$/m, `creation_time: ${time}`)
  await rewrite("v1", (text) => JSON.stringify(readYaml(timed("2024-05-01T00:00:00+00:00")(text), "").value))
  await rewrite("v2", timed("'2024-04-01T00:00:00+00:00'"))
  await rewrite("v3", timed("2024-03-01 00:00:00+00:00 # by hand"))
  await rewrite("v4", (text) => timed("2024-06-01T00:00:00+00:00")(text) + "oops: [")
  await rewrite("v6", timed("''"))
  const resolved: string[] = []
  for (let left = 5; left > 0; left--) {
    await rm(join(store.root, "iris", "latest"))
    const tag = await store.resolve({ name: "iris" })
    resolved.push(tag.version)
    await store.remove(tag)
    if (left > 1) assert.notEqual(await readFile(join(store.root, "iris", "latest"), "utf8"), tag.version)
  }
  assert.deepEqual(resolved, ["v1", "v2", "v3", "v5", "v6"])
})

both("with its last version a name is gone", async (t, sort) => {
  const store = await fill(sort, await tempFolder(t), "iris:v1", "other:v1")
  await store.remove(parseTag("iris:v1"))
  assert.deepEqual(await readdir(store.root), ["other"])
  await rejected(store.resolve({ name: "iris" }), sort.notFound)
})

both("latest is looked for where it is missing, wrong or lags behind, and read-only", async (t, sort) => {
  const store = await fill(sort, await tempFolder(t), "iris:v1", "iris:v2")
  const pointer = join(store.root, "iris", "latest")
  for (const spoil of [
    () => rm(pointer),
    () => writeFile(pointer, "gone"),
    () => writeFile(pointer, "../../etc"),
    () => writeFile(pointer, ""),
  ]) {
    await spoil()
    const before = await treeOf(store.root)
    assert.equal(formatTag(await store.resolve({ name: "iris" })), "iris:v2")
    assert.deepEqual(await treeOf(store.root), before)
  }
  await nextTick()
  await writeFile(pointer, "v1") // set by hand: it stands
  assert.equal(formatTag(await store.resolve({ name: "iris" })), "iris:v1")
  // A writer was killed between its item and `latest`.
  await nextTick()
  await cp(store.dir(parseTag("iris:v2")), join(store.root, "iris", "v3"), { recursive: true })
  const manifest = join(store.root, "iris", "v3", sort.manifest)
  const text = await readFile(manifest, "utf8")
  await writeFile(manifest, text.replace("version: v2", "version: v3").replace("00:00:01", "00:00:59"))
  assert.equal(formatTag(await store.resolve({ name: "iris" })), "iris:v3")
})

both("where latest cannot be written, items come and go all the same", async (t, sort) => {
  const store = await fill(sort, await tempFolder(t), "iris:v1", "iris:v2")
  const pointer = join(store.root, "iris", "latest")
  const latest = async (): Promise<string> => formatTag((await store.get({ name: "iris" })).tag)
  const tag = parseTag("iris:v3")
  await store.add(tag, async (dir) => {
    await sort.writes(tag, 3)(dir)
    await mkdir(join(dir, "..", "latest")) // in the way of what will be renamed
  })
  assert.equal(await readFile(pointer, "utf8"), "v2")
  assert.equal(await latest(), "iris:v3")

  await rm(pointer)
  await mkdir(pointer)
  await store.remove(tag)
  assert.equal(await latest(), "iris:v2")
  await rm(pointer, { recursive: true })
  const next = parseTag("iris:v4")
  await store.add(next, sort.writes(next, 4))
  assert.equal(await readFile(pointer, "utf8"), "v4")
})

both("a broken version is told apart and the others work", async (t, sort) => {
  const store = await fill(sort, await tempFolder(t), "iris:v1", "other:v1")
  const root = store.root
  await mkdir(join(root, "iris", "empty"))
  await mkdir(join(root, "iris", "bad"))
  await writeFile(join(root, "iris", "bad", sort.manifest), "name: iris\nversion: [1\n")
  await mkdir(join(root, "iris", "UPPER"))
  await cp(join(root, "iris", "v1"), join(root, "iris", "copied"), { recursive: true })
  await mkdir(join(root, "half"))
  await mkdir(join(root, "half", "v1"))
  await mkdir(join(root, "not a name"))
  await writeFile(join(root, "stray.txt"), "")
  await writeFile(join(root, "iris", "stray"), "")
  await mkdir(join(root, ".git"))
  const { items, broken } = await store.list()
  assert.deepEqual(items.map((item) => formatTag(item.tag)).toSorted(), ["iris:v1", "other:v1"])
  const reasons = Object.fromEntries(broken.map(({ path, reason }) => [path.slice(root.length + 1), reason]))
  assert.deepEqual(Object.keys(reasons).toSorted(), [
    "half/v1",
    "iris/UPPER",
    "iris/bad",
    "iris/copied",
    "iris/empty",
    "not a name",
  ])
  assert.match(reasons["iris/empty"] ?? "", new RegExp(`^it has no ${sort.manifest}`))
  assert.match(reasons["iris/bad"] ?? "", new RegExp(`${sort.manifest}:[23]:`))
  assert.match(reasons["iris/copied"] ?? "", new RegExp(`^its ${sort.manifest} says iris:v1`))
  assert.equal(formatTag(await store.resolve({ name: "iris" })), "iris:v1")
  await rejected(store.get(parseTag("iris:empty")), "STORE_CORRUPT")
  await rejected(store.get({ name: "half" }), "STORE_CORRUPT")
  await rejected(store.add(parseTag("iris:empty"), sort.writes(parseTag("iris:empty"))), "STORE_EXISTS")
  await store.remove(parseTag("iris:empty"))
  await store.remove(parseTag("half:v1"))
  assert.deepEqual(await tagsOf(store, "iris"), ["iris:v1"])
})

both("a tag is added once", async (t, sort) => {
  const store = await fill(sort, await tempFolder(t), "iris:v1")
  const tag = parseTag("iris:v1")
  const before = await treeOf(store.root)
  const error = await rejected(
    store.add(tag, () => assert.fail("must not be asked")),
    "STORE_EXISTS",
  )
  assert.match(error.hint ?? "", /delete iris:v1/)
  assert.deepEqual(await treeOf(store.root), before)
})

both("of writers at once in one process exactly one wins", async (t, sort) => {
  const store = sort.open(await tempFolder(t))
  const tag = parseTag("iris:v1")
  const outcomes = await Promise.allSettled(Array.from({ length: 8 }, () => store.add(tag, sort.writes(tag))))
  const lost = outcomes.filter((outcome) => outcome.status === "rejected")
  assert.equal(lost.length, 7)
  for (const { reason } of lost)
    assert(reason instanceof BentoError && reason.code === "STORE_EXISTS", String(reason))
  assert.deepEqual(await tagsOf(store), ["iris:v1"])
})

both("many versions added and removed at once leave the right latest", async (t, sort) => {
  const store = sort.open(await tempFolder(t))
  const tags = Array.from({ length: 24 }, (_, i) => ({ name: "iris", version: `v${i}` }))
  await Promise.all(tags.map((tag, i) => store.add(tag, sort.writes(tag, i))))
  assert.equal(await readFile(join(store.root, "iris", "latest"), "utf8"), "v23")
  await Promise.all(tags.slice(8).map((tag) => store.remove(tag)))
  assert.equal(await readFile(join(store.root, "iris", "latest"), "utf8"), "v7")
  await Promise.all([
    ...tags.slice(0, 8).map((tag) => store.remove(tag)),
    ...tags.slice(8, 12).map((tag, i) => store.add(tag, sort.writes(tag, i))),
  ])
  assert.equal(await readFile(join(store.root, "iris", "latest"), "utf8"), "v11")
})

both("a writer that fails leaves nothing, not even the store's folders", async (t, sort) => {
  const home = join(await tempFolder(t), "deep", "home")
  const store = sort.open(home)
  const tag = parseTag("iris:v1")
  const boom = new Error("boom")
  await assert.rejects(
    store.add(tag, async (dir) => {
      await writeFile(join(dir, "half"), "")
      throw boom
    }),
    boom,
  )
  await assert.rejects(readdir(join(home, "..")), { code: "ENOENT" })
  await assert.rejects(
    store.add(tag, (dir) => readFile(join(dir, "none")).then(() => undefined)),
    { code: "ENOENT" },
    "an error of the caller's own files stays what it is",
  )
})

both("an interrupted add leaves nothing", async (t, sort) => {
  const store = await fill(sort, await tempFolder(t), "iris:v1")
  const tag = parseTag("iris:v2")
  const before = await treeOf(store.root)
  const control = new AbortController()
  const work = store.add(
    tag,
    async (dir) => {
      await sort.writes(tag)(dir)
      control.abort()
    },
    { signal: control.signal },
  )
  await rejected(work, "CANCELLED")
  await rejected(store.add(tag, sort.writes(tag), { signal: control.signal }), "CANCELLED")
  assert.deepEqual(await treeOf(store.root), before)
  assert.deepEqual(await readdir(join(store.root, "..", "tmp")), [])
})

both("an item whose manifest names another tag is a bug of the caller", async (t, sort) => {
  const store = sort.open(await tempFolder(t))
  await assert.rejects(
    store.add(parseTag("iris:v1"), sort.writes(parseTag("iris:v2"))),
    /says iris:v2, not iris:v1/,
  )
})

both("what a dead process left is cleaned away, what a live one holds is not", async (t, sort) => {
  const home = await tempFolder(t)
  const store = sort.open(home)
  const tag = parseTag("iris:v1")
  let own = ""
  await store.add(tag, async (dir) => {
    const [name = ""] = await readdir(join(home, "tmp"))
    own = name
    await sort.writes(tag)(dir)
  })
  const [prefix = "", space = "", pid = "", start = ""] = own.split("-")
  const dead = [prefix, space, "4194303", start, "aaaaaa"].join("-")
  const reused = [prefix, space, "1", "123456789", "bbbbbb"].join("-")
  const alive = [prefix, space, pid, start, "cccccc"].join("-")
  const foreign = [prefix, "00000000", pid, start, "dddddd"].join("-")
  const foreignOld = [prefix, "00000000", pid, start, "eeeeee"].join("-")
  const bentoml = "bentoml_bento_iris_abc"
  for (const name of [dead, reused, alive, foreign, foreignOld, bentoml]) {
    await mkdir(join(home, "tmp", name))
    await writeFile(join(home, "tmp", name, "half"), "")
  }
  const longAgo = new Date("2001-01-01")
  await utimes(join(home, "tmp", foreignOld), longAgo, longAgo)
  await store.remove(tag)
  assert.deepEqual((await readdir(join(home, "tmp"))).toSorted(), [alive, foreign, bentoml].toSorted())
})

both("a tag that is none never becomes a path", async (t, sort) => {
  const home = await tempFolder(t)
  const store = await fill(sort, home, "iris:v1")
  const before = await treeOf(home)
  for (const tag of [
    { name: "..", version: "iris" },
    { name: "iris", version: "../../x" },
    { name: "iris", version: "latest" },
    { name: "/etc", version: "v1" },
  ]) {
    assert.throws(() => store.dir(tag), BentoError)
    await rejected(store.add(tag, sort.writes(tag)), "TAG_INVALID")
    await rejected(store.remove(tag), "TAG_INVALID")
    if (tag.version !== "latest") await assert.rejects(store.get(tag), BentoError)
  }
  assert.deepEqual(await treeOf(home), before)
})

both("the size is that of all files", async (t, sort) => {
  const store = sort.open(await tempFolder(t))
  const tag = parseTag("iris:v1")
  await store.add(tag, async (dir) => {
    await sort.writes(tag)(dir)
    await mkdir(join(dir, "sub"))
    await writeFile(join(dir, "sub", "weights"), Buffer.alloc(1000))
  })
  const tree = await treeOf(store.dir(tag))
  const files = Object.values(tree).filter((content) => content !== "folder")
  assert.equal(
    await store.size(tag),
    files.reduce((sum, content) => sum + content.length, 0),
  )
})

test(
  "a home where no folder can be made is told so, and not tried for ever",
  { skip: process.platform !== "linux" },
  async () => {
    const tag = parseTag("iris:v1")
    const error = await rejected(openModelStore("/proc/home").add(tag, writesModel(tag)), "STORE_UNUSABLE")
    assert.match(
      error.message,
      /the store \/proc\/home cannot be used: no folder can be made there \(\/proc\/home\)/,
    )
  },
)

both("a home that cannot be used is told with its reason", async (t, sort) => {
  const folder = await tempFolder(t)
  const tag = parseTag("iris:v1")
  const file = join(folder, "file")
  await writeFile(file, "")
  for (const home of [file, join(file, "below")]) {
    const store = sort.open(home)
    const works = [() => store.list(), () => store.get(tag), () => store.add(tag, sort.writes(tag))]
    for (const work of works) {
      const error = await rejected(work(), "STORE_UNUSABLE")
      assert.match(error.message, /a file, .* stands where a folder should be/)
      assert(error.message.includes(home))
    }
  }
  const store = await fill(sort, join(folder, "home"), "iris:v1")
  await writeFile(join(store.root, "digits"), "a file")
  await rejected(store.add(parseTag("digits:v1"), sort.writes(parseTag("digits:v1"))), "STORE_UNUSABLE")
  await rm(join(folder, "home", "tmp"), { recursive: true })
  await writeFile(join(folder, "home", "tmp"), "")
  await rejected(store.add(parseTag("iris:v2"), sort.writes(parseTag("iris:v2"))), "STORE_UNUSABLE")
  assert.deepEqual(await tagsOf(store), ["iris:v1"])
})

test("a home without permission is told so", async (t) => {
  const home = await tempFolder(t)
  const tag = parseTag("iris:v1")
  await chmod(home, 0o555)
  const isRoot = process.getuid?.() === 0
  if (isRoot) process.seteuid?.(65534) // root may do anything
  try {
    const error = await rejected(openModelStore(home).add(tag, writesModel(tag)), "STORE_UNUSABLE")
    assert.match(error.message, /permission denied|not permitted/)
    assert.match(error.hint ?? "", /BENTOML_HOME/)
  } finally {
    if (isRoot) process.seteuid?.(0)
    await chmod(home, 0o755)
  }
})

test("models may be a link to another place", async (t) => {
  const folder = await tempFolder(t)
  await mkdir(join(folder, "home"))
  await mkdir(join(folder, "large", "models"), { recursive: true })
  await symlink(join(folder, "large", "models"), join(folder, "home", "models"))
  const store = await fill(MODELS, join(folder, "home"), "iris:v1")
  assert.deepEqual(await tagsOf(store), ["iris:v1"])
  assert.deepEqual((await readdir(join(folder, "large"))).toSorted(), ["models", "tmp"])
})

test("a store that BentoML wrote lists, gets and resolves", async () => {
  const home = join(FIXTURES, "bentoml-home")
  const models = await openModelStore(home).list()
  assert.deepEqual(models.broken, [])
  const golden: unknown = JSON.parse(
    await readFile(join(FIXTURES, "bentoml-home-golden", "models-list.json"), "utf8"),
  )
  assert(Array.isArray(golden))
  assert.deepEqual(
    models.items.map((item) => formatTag(item.tag)),
    golden.map((row: { tag: string }) => row.tag),
  )
  const bentos = await openBentoStore(home).list()
  assert.deepEqual(bentos.broken, [])
  assert(bentos.items.length > 0)
  for (const name of new Set(models.items.map((item) => item.tag.name))) {
    const pointer = await readFile(join(home, "models", name, "latest"), "utf8")
    assert.equal((await openModelStore(home).resolve({ name })).version, pointer)
  }
})
