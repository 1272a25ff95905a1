import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { appendFile, chmod, link, mkdir, rm, symlink, truncate, utimes, writeFile } from "node:fs/promises"
import path from "node:path"
import { buffer } from "node:stream/consumers"
import type { Readable } from "node:stream"
import { promisify } from "node:util"
import { after, before, describe, test } from "node:test"
import { extract } from "tar-stream"
import { createContext } from "../../images/context.ts"
import type { BuildContext } from "../../images/context.ts"
import { planImage } from "../../images/plan.ts"
import type { FileSource, ImagePlan } from "../../images/plan.ts"
import { BentoError, BuildError } from "../../store/errors.ts"
import { bentoOf, fakeRuntime, planOptions, root, temporaryFolder, writeFiles } from "./support.ts"

const { folder, remove } = await temporaryFolder()
after(remove)

function planOf(files: readonly FileSource[]): ImagePlan {
  const copy = { from: "", to: "" }
  const plan = planImage(planOptions(bentoOf()))
  return {
    ...plan,
    dockerfile: { ...plan.dockerfile, runtime: copy, models: [], bento: copy },
    layers: [{ cause: "bento", name: "source and metadata", ...copy, files }],
  }
}

interface Entry {
  readonly name: string
  readonly type: string
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly mtimeMs: number
  readonly linkname: string
  readonly content: string
}

async function entriesOf(tar: Readable): Promise<Entry[]> {
  const entries: Entry[] = []
  const reader = extract()
  tar.pipe(reader)
  for await (const entry of reader) {
    const { name, type, mode, uid, gid, mtime, linkname } = entry.header
    const content = (await buffer(entry)).toString("latin1")
    entries.push({ name, type, mode, uid, gid, mtimeMs: mtime.getTime(), linkname: linkname ?? "", content })
  }
  return entries
}

async function tree(name: string, reverse = false): Promise<FileSource[]> {
  const from = path.join(folder, name)
  const files = Object.entries({ "a.txt": "a", "b/c.txt": "c", "b/d/e.bin": "\u0000x", "z.sh": "#!/bin/sh" })
  await writeFiles(from, Object.fromEntries(reverse ? files.toReversed() : files))
  await chmod(path.join(from, "z.sh"), 0o700)
  await symlink("../a.txt", path.join(from, "b/link"))
  return [
    { kind: "tree", from, to: "src" },
    { kind: "text", to: "bento/bento.yaml", text: "x: 1\n" },
    { kind: "folder", to: "empty" },
    { kind: "secret", to: "build-env/env", values: [{ name: "A", value: "it's\n$1" }] },
  ]
}

describe("a build context", () => {
  test("is sorted, owned by root, readable by all, and without time", async () => {
    const entries = await entriesOf((await createContext(planOf(await tree("sorted")))).tar())
    assert.deepEqual(
      entries.map(({ name, type, mode, linkname }) =>
        [name, type, mode.toString(8), linkname].join(" ").trim(),
      ),
      [
        "Dockerfile file 644",
        "bento directory 755",
        "bento/bento.yaml file 644",
        "build-env directory 755",
        "build-env/env file 644",
        "empty directory 755",
        "src directory 755",
        "src/a.txt file 644",
        "src/b directory 755",
        "src/b/c.txt file 644",
        "src/b/d directory 755",
        "src/b/d/e.bin file 644",
        "src/b/link symlink 777 ../a.txt",
        "src/z.sh file 755",
      ],
    )
    for (const { uid, gid, mtimeMs } of entries) assert.deepEqual([uid, gid, mtimeMs], [0, 0, 0])
    const env = entries.find(({ name }) => name === "build-env/env")
    assert.equal(env?.content, "export A='it'\\''s\n$1'\n")
  })

  test("has the same bytes and digest in another folder, order, umask and time", async () => {
    const first = await createContext(planOf(await tree("one")))
    const umask = process.umask(0o077)
    const other = await tree("two", true).finally(() => process.umask(umask))
    await utimes(path.join(folder, "two/a.txt"), 1, 1)
    const second = await createContext(planOf(other))
    const [a, b] = [await buffer(first.tar()), await buffer(second.tar())]
    assert.ok(a.equals(b))
    assert.equal(await first.digest(), await second.digest())
    assert.match(await first.digest(), /^sha256:[0-9a-f]{64}$/)
    await writeFile(path.join(folder, "two/a.txt"), "b")
    assert.notEqual(await first.digest(), await (await createContext(planOf(other))).digest())
  })

  test("can be asked for twice", async () => {
    const context = await createContext(planOf(await tree("twice")))
    assert.ok((await buffer(context.tar())).equals(await buffer(context.tar())))
  })

  test("carries a large file through slow hands without holding it", async () => {
    const from = path.join(folder, "large")
    await mkdir(from)
    await writeFile(path.join(from, "model.bin"), "")
    await truncate(path.join(from, "model.bin"), 256 * 1024 * 1024)
    const context = await createContext(planOf([{ kind: "tree", from, to: "models/m/v" }]))
    assert.ok(context.sizeBytes >= 256 * 1024 * 1024)
    const before = process.memoryUsage().rss
    let bytes = 0
    let peak = 0
    for await (const chunk of context.tar()) {
      bytes += (chunk as Buffer).length
      if (bytes % (1 << 24) < 300_000) {
        await new Promise((resolve) => setTimeout(resolve, 1))
        peak = Math.max(peak, process.memoryUsage().rss - before)
      }
    }
    assert.ok(bytes > 256 * 1024 * 1024)
    assert.ok(peak < 120 * 1024 * 1024, `${Math.round(peak / 1024 / 1024)} MiB`)
  })

  for (const [what, change] of [
    ["grows", (file: string) => appendFile(file, "more")],
    ["shrinks", (file: string) => truncate(file, 1)],
    ["is written again", (file: string) => writeFile(file, "same size")],
  ] as const) {
    test(`ends with the file's name when one ${what} before it is sent`, async () => {
      const from = path.join(folder, `changed ${what}`)
      await writeFiles(from, { "a.txt": "some text" })
      const context = await createContext(planOf([{ kind: "tree", from, to: "src" }]))
      await change(path.join(from, "a.txt"))
      await assert.rejects(
        buffer(context.tar()),
        (error) => error instanceof BuildError && /a\.txt changed while/.test(error.message),
      )
    })
  }

  test("takes a file to which others have made a hard link meanwhile", async () => {
    const from = path.join(folder, "linked")
    await writeFiles(from, { "a.txt": "some text" })
    const context = await createContext(planOf([{ kind: "tree", from, to: "src" }]))
    await link(path.join(from, "a.txt"), path.join(folder, "another link"))
    assert.match((await buffer(context.tar())).toString(), /some text/)
  })

  test("does not follow a link that took a file's place", async () => {
    const from = path.join(folder, "swapped")
    await writeFiles(from, { "a.txt": "x" })
    const context = await createContext(planOf([{ kind: "tree", from, to: "src" }]))
    await rm(path.join(from, "a.txt"))
    await symlink("/etc/hostname", path.join(from, "a.txt"))
    await assert.rejects(buffer(context.tar()), /a\.txt changed while the image was built/)
  })

  test("refuses a link of a foreign Bento that leaves its folder", async () => {
    for (const [index, target] of ["/etc/passwd", "../../x", "../models", "../bento.yaml"].entries()) {
      const from = path.join(folder, `foreign${index}`)
      await writeFiles(from, { "src/deep/x": "" })
      for (const name of ["leak", "deep/leak"]) {
        const link = path.join(from, "src", name)
        await symlink(name === "leak" ? target : target.replace("..", "../.."), link)
        const { layers } = planImage(planOptions(bentoOf(), { bentoDir: from }))
        const sources = layers.at(-1)?.files.filter((file) => file.kind === "tree" && file.to === "bento/src")
        assert.equal(sources?.length, 1)
        await assert.rejects(
          createContext(planOf(sources ?? [])),
          (error) => error instanceof BentoError && error.code === "CONTEXT_ESCAPE",
          `${name} → ${target}`,
        )
        await rm(link)
      }
    }
  })

  test("stops reading when its reader goes", async () => {
    const from = path.join(folder, "gone")
    await mkdir(from)
    await writeFile(path.join(from, "x"), Buffer.alloc(8 * 1024 * 1024))
    const tar = (await createContext(planOf([{ kind: "tree", from, to: "src" }]))).tar()
    await new Promise((resolve) => tar.once("data", resolve))
    tar.destroy()
    await new Promise((resolve) => setTimeout(resolve, 20))
    assert.ok(tar.destroyed)
  })
})

describe("the runtime in a context", () => {
  let runtimeDir: string
  before(async () => {
    runtimeDir = await fakeRuntime(folder)
  })
  const context = (platform: "linux/amd64" | "linux/arm64"): Promise<BuildContext> =>
    createContext(planOf([{ kind: "runtime", from: runtimeDir, to: "runtime", platform }]))

  for (const [platform, arch] of [
    ["linux/amd64", "x64"],
    ["linux/arm64", "arm64"],
  ] as const) {
    test(`has of ONNX Runtime what ${platform} loads, and nothing else`, async () => {
      const names = (await context(platform)).entries
        .filter(({ kind }) => kind === "file")
        .map((entry) => entry.path)
      assert.deepEqual(
        names.filter((name) => name.startsWith("runtime/node_modules/onnxruntime-node/bin/")),
        ["libonnxruntime.so.1", "onnxruntime_binding.node"].map(
          (name) => `runtime/node_modules/onnxruntime-node/bin/napi-v6/linux/${arch}/${name}`,
        ),
      )
      assert.ok(names.includes("runtime/serve.js"))
      assert.ok(!names.includes("runtime/describer.js"), "no image needs it")
      assert.ok(names.includes("runtime/node_modules/onnxruntime-common/dist/cjs/package.json"))
      assert.deepEqual(
        names.filter((name) => /\.(map|ts|md)$|providers|win32|darwin/.test(name)),
        [],
      )
    })
  }

  test("is below 48 MB for linux/amd64", async () => {
    assert.ok((await context("linux/amd64")).sizeBytes < 48e6)
  })

  test("runs an inference from those files alone", async () => {
    const { entries } = await context("linux/amd64")
    const alone = path.join(folder, "alone")
    for (const entry of entries) {
      if (entry.kind !== "file" || !("file" in entry.source)) continue
      const target = path.join(alone, entry.path)
      await mkdir(path.dirname(target), { recursive: true })
      await symlink(entry.source.file, target).catch(() => {})
    }
    const script = `
      import ort from "onnxruntime-node"
      const session = await ort.InferenceSession.create(process.argv[2])
      console.log(session.inputNames.join())`
    const model = "test/fixtures/bentoml-home/models/iris_sklearn/moxuqlhfsccawax4/saved_model.onnx"
    await writeFile(path.join(alone, "runtime/try.mjs"), script)
    const { stdout } = await promisify(execFile)(process.execPath, [
      "--preserve-symlinks",
      "--preserve-symlinks-main",
      path.join(alone, "runtime/try.mjs"),
      path.join(root, model),
    ])
    assert.match(stdout, /\w/)
  })

  test("that is not built is RUNTIME_MISSING", async () => {
    await assert.rejects(
      createContext(planOf([{ kind: "runtime", from: "/nowhere", to: "runtime", platform: "linux/amd64" }])),
      (error) => error instanceof BentoError && error.code === "RUNTIME_MISSING",
    )
  })
})
