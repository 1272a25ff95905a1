import assert from "node:assert/strict"
import { createHash, randomBytes } from "node:crypto"
import { chmod, cp, mkdir, readFile, readdir, stat, symlink, utimes, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, describe, test } from "node:test"
import { Readable, Writable } from "node:stream"
import { buffer } from "node:stream/consumers"
import { pipeline } from "node:stream/promises"
import { assemble, CannotAssemble } from "../../images/assemble.ts"
import type { BuildEvent } from "../../images/builder.ts"
import { openCache } from "../../images/cache.ts"
import { tarEntries } from "../../images/context.ts"
import type { Cache } from "../../images/cache.ts"
import { imageConfig } from "../../images/image-config.ts"
import type { Base } from "../../images/image-config.ts"
import { countLayer, layerBytes, layerChunks, readLayer } from "../../images/layers.ts"
import type { FolderFacts } from "../../images/layers.ts"
import { ensureModelImage, modelImage } from "../../images/model-image.ts"
import { planImage } from "../../images/plan.ts"
import type { ImagePlan, LayerPlan } from "../../images/plan.ts"
import { findLeftovers, removeLeftovers } from "../../images/prune.ts"
import { tarStream } from "../../images/tar.ts"
import { BlobEngine, MemoryEngine } from "./memory-engine.ts"
import { bentoOf, modelOf, planned, planOptions, temporaryFolder, writeFiles } from "./support.ts"

const { folder, remove } = await temporaryFolder()
after(remove)
let count = 0
const fresh = (): string => path.join(folder, String(count++))

const BASE = "my/node:24"
const WEIGHTS = randomBytes(3 << 19)

interface World {
  readonly home: string
  readonly engine: MemoryEngine
  readonly dir: string
}

/** An engine with a base, and a folder with the files of an image: a model of 1.5 MiB is the only large one. */
async function world(): Promise<World> {
  const dir = fresh()
  await writeFiles(dir, {
    "runtime/serve.js": "serve",
    "bento/src/service.ts": "1",
    "bento/README.md": "x",
    "bento/apis/o.json": "{}",
  })
  await mkdir(path.join(dir, "model"))
  await writeFile(path.join(dir, "model/m.onnx"), WEIGHTS)
  const engine = new MemoryEngine()
  engine.addBase(BASE)
  return { home: fresh(), engine, dir }
}

/** A plan whose layers are the folders of a world. */
function planOf({ dir }: World, options: Parameters<typeof bentoOf> = [], models = ["iris:v1"]): ImagePlan {
  const listed = models.map((tag) => {
    const [name = "", version = ""] = tag.split(":")
    return planned(name, version, path.join(dir, "model"))
  })
  const bento = bentoOf(...options)
  const given = { ...bento, models: listed.map(({ model }) => ({ ...model, alias: undefined })) }
  const plan = planImage(planOptions(given as never, { baseImage: BASE, models: listed }))
  const folders = { runtime: "runtime", source: "src", bento: "bento", model: "model" }
  const layers = plan.layers.map((layer): LayerPlan => {
    const to = layer.from.replace(/\/$/, "")
    return { ...layer, files: [{ kind: "tree", from: path.join(dir, folders[layer.cause]), to }] }
  })
  return { ...plan, layers, stepFiles: [] }
}

async function run(
  { home, engine }: World,
  plan: ImagePlan,
  more: { noCache?: boolean; signal?: AbortSignal } = {},
): Promise<{ id: string; events: BuildEvent[]; sent: string[] }> {
  const events: BuildEvent[] = []
  let times = 0
  const before = engine.loads.length
  const walk = assemble(plan, { engine, cache: openCache(home), clock: () => times++, ...more })
  for (;;) {
    const next = await walk.next()
    if (next.done === true) {
      const sent = engine.loads
        .slice(before)
        .flatMap(({ files }) => files.filter((name) => name.endsWith(".tar")))
      return { id: next.value, events, sent }
    }
    events.push(next.value)
  }
}

const states = (events: readonly BuildEvent[]): string[] =>
  events.flatMap((event) =>
    event.type === "step" && event.state !== "started" ? [`${event.name.split(" ")[1]} ${event.state}`] : [],
  )

describe("assembling an image", () => {
  test("sends all layers the first time, and names the image after the digest of its config", async () => {
    const given = await world()
    const { id, sent, events } = await run(given, planOf(given))
    assert.deepEqual(sent, ["layers/0.tar", "layers/1.tar", "layers/2.tar"])
    assert.deepEqual(states(events), ["runtime done", "model done", "source done", "into done"])
    assert.equal(given.engine.tags.get("iris_classifier:latest"), id)
    assert.equal(given.engine.tags.get("iris_classifier:u2swufhfec6rgax4"), id)
    const config = given.engine.find(id)
    assert.equal(config?.created, "2026-01-02T03:04:05.678901Z")
    assert.deepEqual(
      config?.history.map(({ created_by }) => created_by.split(" in ")[0]),
      [
        "base",
        "bentoctl: runtime (ONNX Runtime 1.30.0, linux/amd64)",
        "bentoctl: model iris:v1",
        "bentoctl: source and metadata",
        "container config",
      ],
    )
  })

  test("sends nothing but the changed layer and those above it, and reads no model for that", async () => {
    const given = await world()
    await run(given, planOf(given))
    await writeFile(path.join(given.dir, "bento/src/service.ts"), "2")
    const readAt = (await stat(path.join(given.dir, "model/m.onnx"))).atimeMs
    const { sent, events } = await run(given, planOf(given))
    assert.deepEqual(sent, ["layers/2.tar"])
    assert.deepEqual(states(events).slice(0, 2), ["runtime cached", "model cached"])
    assert.equal((await stat(path.join(given.dir, "model/m.onnx"))).atimeMs, readAt)
  })

  test("loads nothing when the image is there, but gives it its names", async () => {
    const given = await world()
    const first = await run(given, planOf(given))
    given.engine.tags.delete("iris_classifier:latest")
    const again = await run(given, planOf(given))
    assert.deepEqual([again.id, again.sent, given.engine.loads.length], [first.id, [], 1])
    assert.equal(given.engine.tags.get("iris_classifier:latest"), first.id)
  })

  test("finds a model in the image of another Bento, even if nobody remembers its digest", async () => {
    const given = await world()
    await run(given, planOf(given))
    const other = planOf(given, [{}, { tag: { name: "other", version: "v9" } }])
    const known = await run(given, other)
    assert.deepEqual(known.sent, [], "all layers are those of the first; the config is not")
    const forgetful = { ...given, home: fresh() }
    const third = planOf(given, [{}, { tag: { name: "third", version: "v9" } }])
    assert.deepEqual((await run(forgetful, third)).sent, [])
    assert.equal(given.engine.loads.length, 3)
  })

  test("finds a layer though the likeliest images have it on another one", async () => {
    const given = await world()
    for (const name of ["a", "b", "c", "d", "e"]) {
      await run(given, planOf(given, [{}, { tag: { name, version: "v1" } }], ["else:v1", "iris:v1"]))
    }
    await run(given, planOf(given))
    const forgetful = { ...given, home: fresh() }
    const last = planOf(given, [{}, { tag: { name: "last", version: "v1" } }])
    assert.deepEqual((await run(forgetful, last)).sent, [])
  })

  test("breaks off the load that it began, when the engine turns out to have it all or the base cannot be read", async () => {
    const given = await world()
    const { engine } = given
    await run(given, planOf(given))
    const begun: (AbortSignal | undefined)[] = []
    const load = engine.load.bind(engine)
    engine.load = (archive, options) => {
      begun.push(options.signal)
      return load(archive, options)
    }
    assert.deepEqual((await run(given, planOf(given))).sent, [])
    engine.readPaths = () => Promise.reject(new Error("no"))
    await assert.rejects(run({ ...given, home: fresh() }, planOf(given)), CannotAssemble)
    assert.deepEqual(
      begun.map((signal) => signal?.aborted),
      [true, true],
    )
    assert.equal(engine.loads.length, 1)
  })

  test("begins the load anew when the one that it began was cut off while it idled", async () => {
    const given = await world()
    const { engine } = given
    const load = engine.load.bind(engine)
    let loads = 0
    engine.load = async function* cutOff(archive, options) {
      if (loads++ === 0) throw new Error("the connection was reset")
      yield* load(archive, options)
    }
    const { sent } = await run(given, planOf(given))
    assert.deepEqual([sent.length, loads], [3, 2])
  })

  test("begins no load early with an engine of another machine", async () => {
    const given = await world()
    await run(given, planOf(given))
    given.engine.info = { ...given.engine.info, isLocal: false }
    given.engine.load = () => assert.fail("there is nothing to send")
    assert.deepEqual((await run(given, planOf(given))).sent, [])
  })

  test("of a model that no image holds reads the bytes once, while they are sent", async () => {
    const given = await world()
    await run(given, planOf(given, [{}, { tag: { name: "other", version: "v9" } }], ["else:v1"]))
    const plan = planOf(given)
    // A reader that would be asked twice would find another file the second time.
    const { sent, events } = await run(given, plan)
    assert.deepEqual(sent, ["layers/1.tar", "layers/2.tar"])
    assert.equal(states(events)[1], "model done")
  })

  test("gives the same id under another folder, with other times, modes and order of creation", async () => {
    const given = await world()
    const first = await run(given, planOf(given))
    const copy = fresh()
    for (const name of ["model", "bento", "runtime"]) {
      await cp(path.join(given.dir, name), path.join(copy, name), { recursive: true })
    }
    for (const entry of (await readdir(copy, { recursive: true, withFileTypes: true })).toReversed()) {
      const name = path.join(entry.parentPath, entry.name)
      if (entry.isFile()) await chmod(name, 0o600)
      await utimes(name, 1e9, 1e9)
    }
    const second = { dir: copy, home: fresh(), engine: new MemoryEngine() }
    second.engine.addBase(BASE)
    assert.equal((await run(second, planOf(second))).id, first.id)
  })

  test("is the same whatever processor the engine has, and nothing runs for it", async () => {
    const [here, there] = [await world(), await world()]
    there.engine.info = { ...there.engine.info, arch: "arm64" }
    for (const platform of ["linux/amd64", "linux/arm64"] as const) {
      const ids = []
      for (const given of [here, there]) ids.push((await run(given, { ...planOf(given), platform })).id)
      assert.equal(ids[0], ids[1], platform)
    }
    assert.deepEqual([...here.engine.builds, ...there.engine.builds], [])
  })

  test("ends at once when it is interrupted, and names nothing", async () => {
    const given = await world()
    const abort = new AbortController()
    given.engine.load = async function* (archive, { signal }) {
      archive.resume()
      setTimeout(() => abort.abort(new Error("stop")), 20)
      yield { name: "x", current: 1, total: 2 }
      await new Promise((_, reject) => signal?.addEventListener("abort", () => reject(new Error("aborted"))))
    }
    await assert.rejects(run(given, planOf(given), { signal: abort.signal }), /aborted|stop/)
    assert.deepEqual([...given.engine.tags.keys()], [BASE])
  })

  test("stops the load when whoever watches it has seen enough", async () => {
    const given = await world()
    let stopped = false
    given.engine.load = async function* (archive, { signal }) {
      archive.resume()
      yield { name: "x", current: 1, total: 2 }
      await new Promise((_, reject) =>
        signal?.addEventListener("abort", () => {
          stopped = true
          reject(new Error("aborted"))
        }),
      )
    }
    const events = assemble(planOf(given), {
      engine: given.engine,
      cache: openCache(given.home),
      clock: () => 0,
    })
    for await (const event of events) if (event.type === "progress" && event.step === "load") break
    assert.ok(stopped)
    assert.deepEqual([...given.engine.tags.keys()], [BASE])
  })
})

describe("an engine that keeps its images as blobs", () => {
  const blobWorld = async () => {
    const given = await world()
    const engine = new BlobEngine()
    const baseId = engine.addBase(BASE)
    return { ...given, engine, baseId }
  }

  test("gets the layers that it lacks as they are, on the blobs of the base, whose manifest is asked for once", async () => {
    const given = await blobWorld()
    const { engine, baseId } = given
    const first = await run(given, planOf(given))
    assert.deepEqual(states(first.events).slice(0, 2), ["the done", "runtime done"])
    assert.equal(engine.tags.get("iris_classifier:latest"), first.id)
    const layers = engine.manifests.get(first.id) ?? []
    assert.deepEqual(layers[0], engine.manifests.get(baseId)?.[0])
    assert.deepEqual(
      layers.slice(1).map(({ digest }) => digest),
      engine.find(first.id)?.rootfs.diff_ids.slice(1),
    )
    await writeFile(path.join(given.dir, "bento/src/service.ts"), "2")
    const { sent } = await run(given, planOf(given))
    assert.deepEqual(sent, ["layers/2.tar"])
    assert.deepEqual(engine.asked, [baseId])
    assert.deepEqual((await run(given, planOf(given))).sent, [], "the image is there")
  })

  test("gives the same image the same id", async () => {
    const [one, other] = [await blobWorld(), await blobWorld()]
    assert.equal((await run(one, planOf(one))).id, (await run(other, planOf(other))).id)
  })

  test("is sent a layer again if the image that has it came from elsewhere: there it may be another blob", async () => {
    const given = await blobWorld()
    await run(given, planOf(given))
    await writeFile(path.join(given.dir, "bento/src/service.ts"), "2")
    assert.equal((await run({ ...given, home: fresh() }, planOf(given))).sent.length, 3)
  })

  test("and lost one gets all of them once", async () => {
    const given = await blobWorld()
    const { engine, baseId } = given
    await run(given, planOf(given))
    await writeFile(path.join(given.dir, "bento/src/service.ts"), "2")
    for (const digest of engine.blobs) {
      if (digest !== engine.manifests.get(baseId)?.[0]?.digest) engine.blobs.delete(digest)
    }
    assert.equal((await run(given, planOf(given))).sent.length, 1 + 3)
  })

  for (const [what, change] of [
    ["tells no manifest", (engine: BlobEngine) => engine.manifests.clear()],
    ["tells another number of layers", (engine: BlobEngine, id: string) => engine.manifests.set(id, [])],
    ["lost the base's blob", (engine: BlobEngine) => engine.blobs.clear()],
    [
      "would have to hand out a large base",
      (engine: BlobEngine) => {
        const inspect = engine.inspect.bind(engine)
        engine.inspect = async (reference) => {
          const found = await inspect(reference)
          return found && { ...found, sizeBytes: 3e9 }
        }
      },
    ],
  ] as const) {
    test(`and ${what} cannot be assembled for`, async () => {
      const given = await blobWorld()
      change(given.engine, given.baseId)
      await assert.rejects(run(given, planOf(given)), CannotAssemble)
      assert.deepEqual([...given.engine.tags.keys()], [BASE])
    })
  }
})

describe("an engine that is not what it seems", () => {
  test("gets all layers once when it lacks one that an image of it is made of", async () => {
    const given = await world()
    await run(given, planOf(given))
    await writeFile(path.join(given.dir, "bento/src/service.ts"), "2")
    for (const chain of given.engine.chains.keys()) if (chain.includes(" ")) given.engine.chains.delete(chain)
    const { sent } = await run(given, planOf(given))
    assert.deepEqual(sent, ["layers/2.tar", "layers/0.tar", "layers/1.tar", "layers/2.tar"])
  })

  test("and lacks the base's own layers cannot be assembled for", async () => {
    const given = await world()
    given.engine.chains.clear()
    await assert.rejects(run(given, planOf(given)), CannotAssemble)
  })

  test("that names the image otherwise cannot be assembled for", async () => {
    const given = await world()
    given.engine.tag = async () => false
    await assert.rejects(run(given, planOf(given)), CannotAssemble)
  })
})

describe("what is remembered", () => {
  const cacheFiles = async (home: string): Promise<string[]> => {
    const dir = path.join(home, ".bentoctl/cache")
    return (await readdir(dir)).map((name) => path.join(dir, name))
  }
  const rightId = async (given: World): Promise<void> => {
    await writeFile(path.join(given.dir, "bento/src/service.ts"), "2")
    const { id } = await run(given, planOf(given))
    const blank = { ...given, home: fresh(), engine: new MemoryEngine() }
    blank.engine.addBase(BASE)
    assert.equal(id, (await run(blank, planOf(given))).id)
  }

  for (const [what, spoil] of [
    ["cut off", (text: string) => text.slice(0, 40)],
    ["empty", () => ""],
    ["of something else", () => '{"name":"x"}'],
    ["edited", (text: string) => text.replace(/sha256:[0-9a-f]{4}/, "sha256:0000")],
    ["no text", () => "\u0000\ufffd"],
  ] as const) {
    test(`costs only time when it is ${what}`, async () => {
      const given = await world()
      await run(given, planOf(given))
      const files = await cacheFiles(given.home)
      assert.equal(files.length, 2, "the model's digest, and what is known of the base")
      for (const file of files) await writeFile(file, spoil(await readFile(file, "utf8")))
      await rightId(given)
    })
  }

  test("is not believed of a file that was written since, though its size and time are as before", async () => {
    const given = await world()
    await run(given, planOf(given))
    const file = path.join(given.dir, "model/m.onnx")
    const { atime, mtime } = await stat(file)
    await writeFile(file, randomBytes(WEIGHTS.length))
    await utimes(file, atime, mtime)
    await rightId(given)
  })

  test("is not believed where it is wrong: what is sent is counted", async () => {
    const given = await world()
    const { engine, home } = given
    const plan = planOf(given)
    const lie = `sha256:${"0".repeat(64)}`
    const lying: Cache = {
      ...openCache(home),
      read: async (name) => (name.startsWith("layer") ? lie : null),
    }
    const walk = assemble(plan, { engine, cache: lying, clock: () => 0 })
    for (let next = await walk.next(); next.done !== true; next = await walk.next());
    const config = engine.find("iris_classifier:latest")
    assert.ok(!config?.rootfs.diff_ids.includes(lie))
  })

  test("need not be kept: a store that cannot be written to is no error", async () => {
    const given = await world()
    await writeFile(given.home, "a file where the folder should be")
    const { sent } = await run(given, planOf(given))
    assert.equal(sent.length, 3)
  })
})

describe("a layer", () => {
  const facts: FolderFacts = new Map([
    ["/home", { mode: 0o711, uid: 3, gid: 4 }],
    ["/home/bentoml", null],
  ])

  test("holds the folders above its files as they are in the base, and as COPY makes them where they are not", async () => {
    const given = await world()
    const [, , bento] = planOf(given).layers
    const layer = await readLayer(bento ?? assert.fail(), facts)
    assert.deepEqual(
      layer.entries.map((entry) => [
        entry.path,
        "mode" in entry ? [entry.mode, entry.uid, entry.gid] : entry.kind,
      ]),
      [
        ["home", [0o711, 3, 4]],
        ["home/bentoml", "folder"],
        ["home/bentoml/bento", "folder"],
        ["home/bentoml/bento/README.md", "file"],
        ["home/bentoml/bento/apis", "folder"],
        ["home/bentoml/bento/apis/o.json", "file"],
        ["home/bentoml/bento/src", "folder"],
        ["home/bentoml/bento/src/service.ts", "file"],
      ],
    )
  })

  test("knows how long its tar is before it is made, with long names and large files too", async () => {
    const dir = fresh()
    const long = "n".repeat(120)
    await writeFiles(dir, {
      [`${long}/${long}.txt`]: "x",
      "ü.txt": "ü",
      empty: "",
      "512": "y".repeat(512),
      "513": "y".repeat(513),
      large: "z".repeat(1 << 20),
    })
    await symlink(`${long}/${long}.txt`, path.join(dir, "link"))
    const plan = {
      cause: "bento",
      name: "s",
      from: "s/",
      to: "/a/b/",
      files: [{ kind: "tree", from: dir, to: "s" }],
    } as const
    const layer = await readLayer(plan, new Map())
    assert.equal(layer.tar, null)
    const tar = await buffer(tarStream(tarEntries(layer.entries)))
    assert.equal(await layerBytes(layer), tar.length)
    assert.equal(await countLayer(layer), `sha256:${createHash("sha256").update(tar).digest("hex")}`)
  })

  test("has the same digest in every image", async () => {
    const given = await world()
    const one = await run(given, planOf(given))
    const other = await run(
      given,
      planOf(given, [{ env: { A: "1" } }, { tag: { name: "other", version: "1" } }], ["else:v1", "iris:v1"]),
    )
    const layersOf = (id: string): readonly string[] => given.engine.find(id)?.rootfs.diff_ids ?? []
    assert.equal(layersOf(one.id)[2], layersOf(other.id)[3])
  })
})

test("a layer of many small files arrives as it was counted, however slowly it is taken", async () => {
  const dir = fresh()
  // Alike in length and not in content: a buffer that is used again too early shows.
  const files = Array.from({ length: 200 }, (_, index) => [`f${index}`, String(index).padStart(1500, "x")])
  await writeFiles(dir, Object.fromEntries(files))
  await writeFile(path.join(dir, "large"), randomBytes(3 << 20))
  const plan: LayerPlan = {
    cause: "model",
    name: "m",
    from: "m/",
    to: "/m/",
    files: [{ kind: "tree", from: dir, to: "m" }],
  }
  const layer = await readLayer(plan, new Map())
  const hash = createHash("sha256")
  // As a socket does: it takes what fits into its buffer, and looks at the bytes when it sends them.
  const socket = new Writable({
    write: (chunk: Buffer, _encoding, done) => {
      setTimeout(() => {
        hash.update(chunk)
        done()
      }, 1)
    },
  })
  await pipeline(Readable.from(layerChunks(layer), { objectMode: false, highWaterMark: 1 }), socket)
  assert.equal(`sha256:${hash.digest("hex")}`, await countLayer(layer))
})

describe("the foundation", () => {
  const setup = { systemPackages: ["curl"] }

  test("is built once by the Dockerfile's upper half, labelled, and reused", async () => {
    const given = await world()
    const first = await run(given, planOf(given, [setup]))
    await writeFile(path.join(given.dir, "bento/src/service.ts"), "2")
    const second = await run(given, planOf(given, [setup, { description: "another" }]))
    assert.equal(given.engine.builds.length, 1)
    const [build] = given.engine.builds
    assert.match(build?.context.dockerfile ?? "", /apt-get/)
    assert.doesNotMatch(build?.context.dockerfile ?? "", /ENTRYPOINT|runtime|LABEL/)
    const [tag = ""] = build?.options.tags ?? []
    assert.match(tag, /^bentoctl\/foundation:[0-9a-f]{32}$/)
    assert.ok(build?.options.labels?.["bentoctl.foundation"]?.startsWith(tag.split(":")[1] ?? "?"))
    assert.ok(
      second.events.some((event) => event.type === "step" && event.state === "cached" && event.step === tag),
    )
    const below = given.engine.find(tag)?.rootfs.diff_ids ?? []
    for (const { id } of [first, second]) {
      const { rootfs, config } = given.engine.find(id) ?? assert.fail()
      assert.deepEqual(rootfs.diff_ids.slice(0, 2), below)
      assert.ok(!("bentoctl.foundation" in (config["Labels"] as object)), "it is about another image")
    }
  })

  test("is another one for another base, package, build-time value or platform, and with --no-cache", async () => {
    const given = await world()
    const { engine, dir } = given
    engine.addBase("other/node:24")
    const secret = (value: string): ImagePlan => {
      const plan = planOf(given, [setup])
      const values = [{ name: "TOKEN", value }]
      return { ...plan, stepFiles: [{ kind: "secret", to: "build-env/env", values }] }
    }
    const plans = [
      planOf(given, [setup]),
      planOf(given, [{ ...setup, baseImage: "other/node:24" }]),
      planOf(given, [{ systemPackages: ["curl", "jq"] }]),
      { ...planOf(given, [setup]), platform: "linux/arm64" as const },
      secret("a"),
      secret("b"),
    ]
    for (const plan of plans) await run({ ...given, dir }, plan)
    const tags = engine.builds.map(({ options }) => options.tags[0])
    assert.equal(new Set(tags).size, plans.length)
    await run(given, plans[0] ?? assert.fail(), { noCache: true })
    assert.equal(engine.builds.length, plans.length + 1)
    assert.equal(engine.builds.at(-1)?.options.noCache, true)
    // oxlint-disable-next-line no-control-regex -- the text of all tags and labels
    assert.doesNotMatch(JSON.stringify([...engine.tags, ...engine.images.values()]), /TOKEN/)
  })

  test("is the base itself where nothing has to run", async () => {
    const given = await world()
    await run(given, planOf(given))
    assert.deepEqual(given.engine.builds, [])
  })
})

describe("a base image that cannot be assembled on", () => {
  for (const [what, folders, reason] of [
    ["whose /opt is a link", { "/opt": "link" as const }, /\/opt is no folder/],
    [
      "that has our folder",
      { "/opt": { mode: 0o755 }, "/opt/bentoctl": { mode: 0o755 } },
      /\/opt\/bentoctl already/,
    ],
  ] as const) {
    test(what, async () => {
      const given = await world()
      given.engine.folders = folders
      await assert.rejects(
        run(given, planOf(given)),
        (error) => error instanceof CannotAssemble && reason.test(error.message),
      )
      await assert.rejects(run(given, planOf(given)), CannotAssemble, "remembered")
      assert.deepEqual(given.engine.loads, [])
    })
  }

  test("with ONBUILD", async () => {
    const given = await world()
    given.engine.addBase(BASE, { OnBuild: ["RUN x"] })
    await assert.rejects(run(given, planOf(given)), /ONBUILD/)
  })

  test("that cannot be looked into", async () => {
    const given = await world()
    given.engine.readPaths = async () => {
      throw new Error("no containers here")
    }
    await assert.rejects(run(given, planOf(given)), /looked into: no containers here/)
  })
})

describe("the config of an image", () => {
  const base = (more: Partial<Base> = {}): Base => ({
    os: "linux",
    architecture: "amd64",
    variant: null,
    layers: ["sha256:1", "sha256:2"],
    config: {},
    history: [],
    ...more,
  })
  const line = (createdBy: string, sizeBytes: number) => ({ createdS: 1, createdBy, comment: "", sizeBytes })
  const history = (given: Base): object[] => {
    const { bytes } = imageConfig(given, { createdAt: "t", config: {}, layers: [] })
    return (
      JSON.parse(String(bytes)) as { history: { created_by: string; empty_layer?: boolean }[] }
    ).history.map(({ created_by, empty_layer }) => [created_by, empty_layer ?? false])
  }

  test("has the base's history, where the engine's account of it fits its layers", () => {
    const fits = base({ history: [line("ADD", 5), line("ENV", 0), line("RUN", 7)] })
    assert.deepEqual(history(fits).slice(0, -1), [
      ["ADD", false],
      ["ENV", true],
      ["RUN", false],
    ])
    const alsoFits = base({ history: [line("ADD", 5), line("RUN true", 0)] })
    assert.deepEqual(history(alsoFits).slice(0, -1), [
      ["ADD", false],
      ["RUN true", false],
    ])
    const doesNot = base({ history: [line("ADD", 5), line("ENV", 0), line("RUN true", 0)] })
    assert.deepEqual(history(doesNot).slice(0, -1), [
      ["base image", false],
      ["base image", false],
    ])
  })
})

describe("the image of a model", () => {
  const stored = ({ dir }: World) => ({ model: modelOf("iris", "v1"), dir: path.join(dir, "model") })
  const environment = ({ home, engine }: World) =>
    ({ engine, cache: openCache(home), clock: () => 0, platform: "linux/amd64" }) as const

  test("holds its files in /models and says what it is", async () => {
    const given = await world()
    const walk = modelImage(stored(given), ["team/iris:1"], environment(given))
    let next = await walk.next()
    while (next.done !== true) next = await walk.next()
    const { imageId, digest } = next.value
    assert.equal(given.engine.tags.get("team/iris:1"), imageId)
    const config = given.engine.find("team/iris:1")
    assert.deepEqual(config?.rootfs.diff_ids, [digest])
    assert.deepEqual(config?.config, {
      Labels: {
        "bentoctl.model": "iris:v1",
        "bentoctl.model.digest": digest,
        "org.opencontainers.image.created": "2026-01-02T03:04:05.678901Z",
        "org.opencontainers.image.title": "iris",
        "org.opencontainers.image.version": "v1",
      },
    })
    assert.deepEqual(await given.engine.entries("team/iris:1", digest), ["models", "models/m.onnx"])
  })

  test("for a Dockerfile is made once, and found by its content", async () => {
    const given = await world()
    const ask = async (of: World): Promise<string> => {
      const walk = ensureModelImage(stored(of), environment(of))
      let next = await walk.next()
      while (next.done !== true) next = await walk.next()
      return next.value
    }
    const first = await ask(given)
    assert.equal(await ask({ ...given, home: fresh() }), first)
    assert.equal(given.engine.loads.length, 1)
    await writeFile(path.join(given.dir, "model/m.onnx"), "changed")
    assert.notEqual(await ask(given), first)
  })
})

describe("pruning", () => {
  test("finds what no image of a Bento needs, and leaves what users named", async () => {
    const given = await world()
    const { engine, home } = given
    const environment = { engine, cache: openCache(home), clock: () => 0, platform: "linux/amd64" } as const
    await run(given, planOf(given, [{ systemPackages: ["curl"] }]))
    await run(given, planOf(given, [{ systemPackages: ["jq"] }, { tag: { name: "gone", version: "v1" } }]))
    const stored = { model: modelOf("iris", "v1"), dir: path.join(given.dir, "model") }
    for await (const _ of ensureModelImage(stored, environment));
    for await (const _ of modelImage({ ...stored, model: modelOf("mine", "v1") }, ["mine:1"], environment));
    assert.deepEqual(await findLeftovers(engine), [])
    await writeFile(path.join(given.dir, "model/m.onnx"), "other")
    for await (const _ of ensureModelImage({ ...stored, model: modelOf("idle", "v1") }, environment));
    engine.tags.delete("gone:v1")
    engine.tags.delete("gone:latest")
    engine.leftProbes.push("container1")
    const leftovers = await findLeftovers(engine)
    assert.deepEqual(
      leftovers.map(({ kind, reference }) => [kind, reference.split(":")[0]]),
      [
        ["container", "container1"],
        ["untagged", "sha256"],
        ["foundation", "bentoctl/foundation"],
        ["model", "bentoctl/model"],
      ],
    )
    const done = []
    for await (const each of removeLeftovers(engine, leftovers)) done.push(each.removed)
    assert.deepEqual(done, [true, true, true, true])
    assert.deepEqual(await findLeftovers(engine), [])
    assert.ok(engine.tags.has("mine:1") && engine.tags.has("iris_classifier:latest"))
  })
})
