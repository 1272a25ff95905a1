/** The house rules are enforced by the linter; here one planted violation per rule must be found, and clean code must not. */
import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { cp, mkdir, mkdtemp, readFile, readdir, rm, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, before, test } from "node:test"
import { promisify } from "node:util"

const root = path.resolve(import.meta.dirname, "..")
const imports = "eslint(no-restricted-imports)"
const properties = "eslint(no-restricted-properties)"

/** path → [source, the rule that must object]. */
const PLANTED: Record<string, readonly [source: string, rule: string]> = {
  "store/planted-images.ts": [`import "../images/plan.ts"\n`, imports],
  "store/planted-package.ts": [`import "hono"\n`, imports],
  "templates/planted-store.ts": [
    `import type { Tag } from "../store/tag.ts"\nexport type T = Tag\n`,
    imports,
  ],
  "images/planted-runtime.ts": [
    `import type { Tensor } from "../runtime/tensor.ts"\nexport type T = Tensor\n`,
    imports,
  ],
  "images/planted-cli.ts": [`export const cli = () => import("../cli/main.ts")\n`, imports],
  "images/planted-dockerode.ts": [`import "dockerode"\n`, imports],
  "images/docker.ts": [`import "clipanion"\n`, imports],
  "runtime/planted-images.ts": [`import "../images/plan.ts"\n`, imports],
  "runtime/planted-onnxruntime.ts": [`import "onnxruntime-node"\n`, imports],
  "runtime/worker.ts": [`import "hono"\n`, imports],
  "cli/planted-runtime.ts": [`import "../runtime/tensor.ts"\n`, imports],
  "cli/planted-templates.ts": [`import "../templates/render.ts"\n`, imports],
  "cli/planted-dockerode.ts": [`import "dockerode"\n`, imports],
  "store/planted-env.ts": [`export const home = process.env["HOME"]\n`, properties],
  "images/planted-cwd.ts": [`export const here = process.cwd()\n`, properties],
  "runtime/planted-clock.ts": [`export const now = Date.now()\n`, properties],
  "runtime/planted-random.ts": [`export const chance = Math.random()\n`, properties],
  "store/planted-cycle-a.ts": [
    `import { b } from "./planted-cycle-b.ts"\nexport const a = () => b\n`,
    "import(no-cycle)",
  ],
  "store/planted-floating.ts": [
    `export function go(): void {\n  Promise.resolve(1)\n}\n`,
    "typescript(no-floating-promises)",
  ],
  "store/planted-any.ts": [`export const x: any = 1\n`, "typescript(no-explicit-any)"],
  "store/planted-throw.ts": [
    `export function go(): never {\n  throw "text"\n}\n`,
    "typescript(only-throw-error)",
  ],
  "store/planted-switch.ts": [
    `export function go(x: "a" | "b"): void {\n  switch (x) {\n    case "a":\n  }\n}\n`,
    "typescript(switch-exhaustiveness-check)",
  ],
  "store/planted-default.ts": [`export default 1\n`, "import(no-default-export)"],
  "store/planted-console.ts": [`console.log(1)\n`, "eslint(no-console)"],
  "store/planted-misused.ts": [
    `export function go(): void {\n  setTimeout(async () => {\n    await Promise.resolve(1)\n  }, 1)\n}\n`,
    "typescript(no-misused-promises)",
  ],
  "store/planted-not-null.ts": [
    `export function first(list: string[]): string {\n  return list[0]!\n}\n`,
    "typescript(no-non-null-assertion)",
  ],
  "store/planted-type-import.ts": [
    `import { Tag } from "./tag.ts"\nexport type T = Tag\n`,
    "typescript(consistent-type-imports)",
  ],
  "store/planted-equal.ts": [`export const same = (a: unknown) => a == 1\n`, "eslint(eqeqeq)"],
  "store/planted-var.ts": [`export var x = 1\n`, "eslint(no-var)"],
  "store/planted-let.ts": [`let x = 1\nexport const y = x\n`, "eslint(prefer-const)"],
}

/** Files that break no rule, though they stand beside those that do. */
const CLEAN: Record<string, string> = {
  "store/planted-cycle-b.ts": `export { a as b } from "./planted-cycle-a.ts"\n`,
  "store/clean.ts": `import { readFileSync } from "node:fs"\nexport const read = readFileSync\n`,
  "images/plan.ts": `import type { Tag } from "../store/tag.ts"\nexport type T = Tag\n`,
  "runtime/tensor.ts": `export type Tensor = number\n`,
  "templates/render.ts": `export {}\n`,
  "store/tag.ts": `export type Tag = string\n`,
  "cli/program.ts": `import "../images/plan.ts"\nexport const home = process.env["HOME"]\nexport const now = Date.now()\n`,
}

interface Diagnostic {
  readonly code: string
  readonly filename: string
}

let found: Diagnostic[]
let filesChecked: number
let folder: string

before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "bentoctl-layers-"))
  for (const name of [".oxlintrc.json", "tsconfig.json", "package.json"]) {
    await cp(path.join(root, name), path.join(folder, name))
  }
  await symlink(path.join(root, "node_modules"), path.join(folder, "node_modules"))
  const sources = {
    ...CLEAN,
    ...Object.fromEntries(Object.entries(PLANTED).map(([name, [source]]) => [name, source])),
  }
  for (const [name, source] of Object.entries(sources)) {
    await mkdir(path.dirname(path.join(folder, name)), { recursive: true })
    await writeFile(path.join(folder, name), source)
  }
  const run = promisify(execFile)(
    path.join(root, "node_modules/.bin/oxlint"),
    ["--type-aware", "-f", "json"],
    {
      cwd: folder,
    },
  )
  // oxlint exits 1 when it finds something, which is what we want here.
  const { stdout } = await run.catch((error: { stdout: string }) => error)
  const report = JSON.parse(stdout) as { diagnostics: Diagnostic[]; number_of_files: number }
  found = report.diagnostics
  filesChecked = report.number_of_files
})

after(() => rm(folder, { recursive: true, force: true }))

test("the linter looks at every planted file", () => {
  assert.equal(filesChecked, Object.keys(PLANTED).length + Object.keys(CLEAN).length)
})

for (const [name, [, rule]] of Object.entries(PLANTED)) {
  test(`${rule} finds the violation planted in ${name}`, () => {
    const codes = found
      .filter((diagnostic) => diagnostic.filename === name)
      .map((diagnostic) => diagnostic.code)
    assert.ok(codes.includes(rule), `${rule} expected, found: ${codes.join(", ") || "nothing"}`)
  })
}

test("nothing is said of files that keep the rules", () => {
  const wronglyNamed = found.filter(({ filename, code }) => filename in CLEAN && code !== "import(no-cycle)")
  assert.deepEqual(wronglyNamed, [])
})

test("each rule of the configuration has its planted violation, and each package that a layer may import is one of ours", async () => {
  const read = async (name: string): Promise<string> => readFile(path.join(root, name), "utf8")
  const config = await read(".oxlintrc.json")
  const { rules } = JSON.parse(config) as { rules: Record<string, string> }
  const planted = new Set(Object.values(PLANTED).map(([, rule]) => rule))
  assert.deepEqual(
    Object.keys(rules).filter((rule) => !planted.has(rule.replace(/^(\w+)\/(.+)$/, "$1($2)"))),
    [],
  )
  const allowed = [...config.matchAll(/"!((?:@[a-z-]+\/)?[a-z][a-z-]*)[/"]/g)].map(([, name = ""]) => name)
  const { dependencies, devDependencies } = JSON.parse(await read("package.json")) as Record<string, object>
  const known = { ...dependencies, ...devDependencies }
  assert.ok(allowed.length > 0)
  assert.deepEqual(
    allowed.filter((name) => !(name in known)),
    [],
  )
})

test("no program is started through a shell", async () => {
  let starting = 0
  for (const layer of ["cli", "images", "runtime", "store", "templates"]) {
    const names = (await readdir(path.join(root, layer))).filter((name) => name.endsWith(".ts"))
    for (const name of names) {
      const source = await readFile(path.join(root, layer, name), "utf8")
      for (const [, imported = ""] of source.matchAll(/import (.*?) from "(?:node:)?child_process"/gs)) {
        assert.match(
          imported,
          /^(\{ (spawn|execFile|type ChildProcess|, )+ \}|type \{ ChildProcess \})$/,
          `${layer}/${name}`,
        )
        assert.doesNotMatch(source, /\bshell:/, `${layer}/${name}`)
        starting++
      }
    }
  }
  assert.ok(starting > 0)
})
