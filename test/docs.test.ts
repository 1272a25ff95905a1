/** The documents say what the code says: error codes in both directions, links that lead somewhere. */
import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { existsSync, globSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import os from "node:os"
import path from "node:path"
import { test } from "node:test"
import { promisify } from "node:util"
import { ERROR_CODES } from "../store/errors.ts"

const root = path.resolve(import.meta.dirname, "..")
const read = (file: string): string => readFileSync(path.join(root, file), "utf8")
const sources = (folders: string): string =>
  globSync(`${folders}/**/*.ts`, { cwd: root }).map(read).join("\n")

const codes = Object.keys(ERROR_CODES)

test("docs/errors.md says of each error code what the code says of it, and names no other", () => {
  const rows = Object.entries(ERROR_CODES).map(
    ([code, [meaning, remedy]]) => `| \`${code}\` | ${meaning} | ${remedy} |`,
  )
  const table = ["| code | meaning | what to do |", "| --- | --- | --- |", ...rows].join("\n")
  const page = read("docs/errors.md")
  const written = /^\| code \|.*(?:\n\|.*)*/m.exec(page)?.[0]
  if (process.env["UPDATE_GOLDEN"] === "1") {
    writeFileSync(
      path.join(root, "docs/errors.md"),
      written === undefined ? `${page.trimEnd()}\n\n${table}\n` : page.replace(written, () => table),
    )
  } else {
    assert.equal(written, table, "UPDATE_GOLDEN=1 writes the table anew")
  }
})

test("every error code is thrown somewhere", () => {
  const text = sources("{store,images,templates,cli,runtime}")
  assert.deepEqual(
    codes.filter((code) => !text.includes(`"${code}"`)),
    [],
  )
})

test("each relative link of the documents leads to a file", () => {
  const files = ["README.md", "CHANGELOG.md", ...globSync("{docs,examples}/**/*.md", { cwd: root })]
  const broken = files.flatMap((file) =>
    [...read(file).matchAll(/\]\((?!https?:|#|mailto:)([^)#\s]+)/g)]
      .map((match) => match[1] ?? "")
      .filter((target) => !existsSync(path.resolve(root, path.dirname(file), target)))
      .map((target) => `${file}: ${target}`),
  )
  assert.deepEqual(broken, [])
})

test("the services that the documents show compile", async (t) => {
  const folder = mkdtempSync(path.join(os.tmpdir(), "bentoctl-docs-"))
  t.after(() => rmSync(folder, { recursive: true }))
  const pages = ["README.md", ...globSync("{docs,examples}/**/*.md", { cwd: root })]
  const services = pages.flatMap((page) =>
    [...read(page).matchAll(/^```ts[^\n]*\n(.*?)^```/gms)].map(
      ([, code = ""], index) => [page, index, code] as const,
    ),
  )
  assert.ok(services.length >= 3)
  for (const [page, index, code] of services) {
    writeFileSync(path.join(folder, `${page.replaceAll("/", "_")}.${index}.ts`), code)
  }
  const compilerOptions = {
    noEmit: true,
    types: ["node"],
    typeRoots: [path.join(root, "node_modules/@types")],
    paths: { "bentoctl/runtime": [path.join(root, "runtime/index.ts")] },
  }
  const config = { extends: path.join(root, "tsconfig.json"), compilerOptions, include: ["*.ts"] }
  writeFileSync(path.join(folder, "tsconfig.json"), JSON.stringify(config))
  writeFileSync(path.join(folder, "package.json"), '{"type": "module"}')
  const tsc = path.join(root, "node_modules/.bin/tsc")
  const { stdout } = await promisify(execFile)(tsc, ["-p", folder]).catch(
    (error: { stdout: string }) => error,
  )
  assert.equal(stdout, "")
})

test("every dependency is named in docs/architecture.md", () => {
  const { dependencies, devDependencies } = JSON.parse(read("package.json")) as Record<string, object>
  const text = read("docs/architecture.md")
  assert.deepEqual(
    Object.keys({ ...dependencies, ...devDependencies }).filter((name) => !text.includes(name)),
    [],
  )
})
