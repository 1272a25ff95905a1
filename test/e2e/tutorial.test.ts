/**
 * docs/tutorial.md, done by a machine: its files are written, its commands run, its outputs compared.
 *
 * A block's first word is its language. `sh` runs; `sh background` runs until the next background block; `sh engine` runs
 * where a Docker Engine is; `text` must begin the output of the block before it, with … for what differs from run to
 * run; any other language with a file name is written to that file.
 */
import assert from "node:assert/strict"
import { type ChildProcess, spawn } from "node:child_process"
import { chmod, copyFile, mkdir, readFile, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, test } from "node:test"
import { freePort, root, run, temporaryFolder, until200, watchNames } from "./support.ts"

interface Block {
  readonly language: string
  readonly note: string
  readonly text: string
  readonly line: number
}

const page = await readFile(path.join(root, "docs/tutorial.md"), "utf8")
const blocks: Block[] = [...page.matchAll(/^```(\w+) ?(.*)\n([\s\S]*?)^```$/gm)].map((match) => ({
  language: match[1] ?? "",
  note: match[2] ?? "",
  text: match[3] ?? "",
  line: page.slice(0, match.index).split("\n").length + 1,
}))

const { folder, remove } = await temporaryFolder()
const project = path.join(folder, "project")
const port = await freePort()
const env = {
  BENTOML_HOME: path.join(folder, "bentoml"),
  PORT: String(port),
  PATH: `${path.join(folder, "bin")}:${process.env["PATH"]}`,
}
let background: ChildProcess | undefined

const removeImages = await watchNames("iris_classifier")
after(async () => {
  await stopBackground()
  await run("docker", ["rm", "-f", "iris-tutorial"])
  await removeImages()
  await remove()
})

/** The page speaks of port 3000, which may be taken where this runs. */
const withPort = (text: string): string =>
  text.replaceAll("localhost:3000", `localhost:${port}`).replaceAll("-p 3000:3000", `-p ${port}:3000`)

test("the tutorial has a block of each kind", () => {
  assert.ok(blocks.length >= 15, `${blocks.length} blocks`)
  assert.deepEqual([...new Set(blocks.map((block) => block.language))].sort(), [
    "python",
    "sh",
    "text",
    "ts",
    "yaml",
  ])
})

test("the training in the tutorial is that of examples/iris", async () => {
  const script = await readFile(path.join(root, "examples/iris/train.py"), "utf8")
  const lines = blocks.find((block) => block.language === "python")?.text.split("\n") ?? []
  const foreign = lines.filter((line) => line !== "" && !line.startsWith("open(") && !script.includes(line))
  assert.deepEqual(foreign, [])
})

test(
  "every command of the tutorial works, and answers what the tutorial says",
  { timeout: 300_000 },
  async (t) => {
    await mkdir(project)
    await mkdir(path.join(folder, "bin"))
    const shim = path.join(folder, "bin/bentoctl")
    await writeFile(
      shim,
      `#!/bin/sh\nexec "${process.execPath}" "${path.join(root, "dist/cli/main.js")}" "$@"\n`,
    )
    await chmod(shim, 0o755)
    await copyFile(path.join(root, "examples/iris/iris.onnx"), path.join(project, "iris.onnx"))
    let output = ""
    for (const { language, note, text, line } of blocks) {
      await t.test(`line ${line}: ${text.trim().split("\n")[0]}`, async () => {
        if (language === "python") return
        if (language === "text") {
          const expected = text
            .trimEnd()
            .split("…")
            .map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"))
          assert.match(output, new RegExp(expected.join("[\\s\\S]*?")), `docs/tutorial.md:${line}`)
        } else if (language !== "sh") {
          await writeFile(path.join(project, note), text)
        } else if (note === "background") {
          await startBackground(text.trim())
        } else {
          if (note === "engine") await stopBackground()
          const { code, stdout, stderr } = await run("bash", ["-euc", withPort(text)], { cwd: project, env })
          output = stdout
          assert.equal(code, 0, `docs/tutorial.md:${line} ended with ${code}:\n${stdout}${stderr}`)
        }
      })
    }
  },
)

async function startBackground(command: string): Promise<void> {
  await stopBackground()
  background = spawn("bash", ["-c", `exec ${command}`], {
    cwd: project,
    env: { ...process.env, ...env },
    stdio: "ignore",
  })
  await until200(`http://127.0.0.1:${port}/readyz`)
}

async function stopBackground(): Promise<void> {
  const child = background
  background = undefined
  if (child === undefined || child.exitCode !== null) return
  const exited = new Promise((resolve) => child.once("exit", resolve))
  child.kill("SIGINT")
  await exited
}
