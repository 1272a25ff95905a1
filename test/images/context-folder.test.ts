import assert from "node:assert/strict"
import { lstat, mkdir, readFile, readdir, readlink, writeFile } from "node:fs/promises"
import path from "node:path"
import { Readable } from "node:stream"
import { after, describe, test } from "node:test"
import { writeContext } from "../../images/context-folder.ts"
import type { createContext } from "../../images/context.ts"
import type { BuildContext, ContextEntry } from "../../images/context.ts"
import { BentoError } from "../../store/errors.ts"
import { temporaryFolder } from "./support.ts"

const { folder, remove } = await temporaryFolder()
after(remove)
let count = 0
const fresh = (): string => path.join(folder, String(count++), "out")

function contextOf(entries: readonly ContextEntry[]): BuildContext {
  const dockerfile = "" as Awaited<ReturnType<typeof createContext>>["dockerfile"]
  return { dockerfile, entries, sizeBytes: 0, digest: async () => "", tar: () => Readable.from([]) }
}
const file = (name: string, more: Partial<Extract<ContextEntry, { kind: "file" }>> = {}): ContextEntry => ({
  kind: "file",
  path: name,
  executable: false,
  size: 3,
  source: { bytes: Buffer.from("abc") },
  ...more,
})
const context = contextOf([
  file("Dockerfile"),
  { kind: "folder", path: "src" },
  file("src/$(reboot) \n'ü"),
  { kind: "link", path: "src/link", target: "../Dockerfile" },
  file("src/run", { executable: true }),
  file("src/secret", { secret: true }),
])
/** Its file cannot be read as it was promised. */
const broken = contextOf([...context.entries, file("z", { source: { file: "/dev/null", stamp: "other" } })])

/** Every entry: path → mode, time, content. */
async function treeOf(dir: string): Promise<Record<string, string>> {
  const tree: Record<string, string> = {}
  for (const name of (await readdir(dir, { recursive: true })).toSorted()) {
    const at = path.join(dir, name)
    const info = await lstat(at)
    const content = info.isSymbolicLink()
      ? await readlink(at)
      : info.isFile()
        ? await readFile(at, "utf8")
        : ""
    tree[name] = `${(info.mode & 0o7777).toString(8)} ${info.mtimeMs} ${content}`
  }
  return tree
}

const refused = (text: RegExp) => (error: unknown) =>
  error instanceof BentoError && error.code === "OUTPUT_UNUSABLE" && text.test(error.message)

describe("a build context in a folder", () => {
  test("is the same in a new folder and in an empty one, under any umask", async () => {
    const [made, there] = [fresh(), fresh()]
    await mkdir(there, { recursive: true })
    await writeContext(context, made)
    const umask = process.umask(0o077)
    try {
      await writeContext(context, there)
    } finally {
      process.umask(umask)
    }
    assert.deepEqual(await treeOf(made), {
      Dockerfile: "644 0 abc",
      src: "755 0 ",
      "src/$(reboot) \n'ü": "644 0 abc",
      "src/link": "777 0 ../Dockerfile",
      "src/run": "755 0 abc",
      "src/secret": "600 0 abc",
    })
    assert.deepEqual(await treeOf(there), await treeOf(made))
    assert.equal((await lstat(made)).mode & 0o777, 0o755)
  })

  test("is not written over anything", async () => {
    const out = fresh()
    await mkdir(out, { recursive: true })
    await writeFile(path.join(out, "mine"), "1")
    await assert.rejects(writeContext(context, out), refused(/out is not empty: it holds mine/))
    assert.deepEqual(await readdir(out), ["mine"])
    await assert.rejects(writeContext(context, path.join(out, "mine")), refused(/is no folder/))
    await assert.rejects(writeContext(context, path.join(out, "mine/below")), refused(/is no folder/))
  })

  for (const [what, isThere] of [
    ["that was not there", false],
    ["that was empty", true],
  ] as const) {
    test(`whose writing fails or is stopped leaves nothing of it in a folder ${what}`, async () => {
      const out = fresh()
      await mkdir(isThere ? out : path.dirname(out), { recursive: true })
      await assert.rejects(writeContext(broken, out), /changed while the image was built/)
      const abort = AbortSignal.abort(new Error("stop"))
      await assert.rejects(writeContext(context, out, abort), /^Error: stop$/)
      assert.deepEqual(await readdir(path.dirname(out), { recursive: true }), isThere ? ["out"] : [])
    })
  }
})
