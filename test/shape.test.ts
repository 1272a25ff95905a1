/** The shape of what is shipped: what the image's bundle is made of, and what the npm package holds. */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { readFileSync, statSync } from "node:fs"
import { builtinModules } from "node:module"
import path from "node:path"
import { test } from "node:test"

const root = path.resolve(import.meta.dirname, "..")

interface Metafile {
  readonly inputs: Record<string, unknown>
  readonly outputs: Record<
    string,
    { imports: { path: string; external?: boolean }[]; bytes: number; entryPoint?: string }
  >
}
const metafile = JSON.parse(readFileSync(path.join(root, "dist/metafile.json"), "utf8")) as Metafile

/** Packages that may be part of the server. A new one is a decision: see the table in docs/architecture.md. */
const BUNDLED = [
  "@hono/node-server",
  "@opentelemetry/api",
  "@pinojs/redact",
  "atomic-sleep",
  "bintrees",
  "hono",
  "on-exit-leak-free",
  "pino",
  "pino-std-serializers",
  "process-warning",
  "prom-client",
  "quick-format-unescaped",
  "real-require",
  "safe-stable-stringify",
  "sonic-boom",
  "tdigest",
  "thread-stream",
  "yaml",
  "zod",
]

test("the image's bundle holds only the packages that were decided on", () => {
  const packages = Object.keys(metafile.inputs).flatMap(
    (input) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(input)?.[1] ?? [],
  )
  assert.deepEqual(
    [...new Set(packages)].filter((name) => !BUNDLED.includes(name)),
    [],
  )
})

test("the image's bundle leaves only onnxruntime-node and Node's own modules outside", () => {
  const external = Object.values(metafile.outputs)
    .flatMap((output) => output.imports)
    .filter((entry) => entry.external && !entry.path.startsWith("node:"))
    .map((entry) => entry.path)
  const builtins = new Set(builtinModules)
  assert.deepEqual([...new Set(external)].filter((name) => !builtins.has(name)).sort(), ["onnxruntime-node"])
})

test("no file of the command line or of the image side is in the image's bundle", () => {
  assert.deepEqual(
    Object.keys(metafile.inputs).filter((input) => /^(cli|images|templates|test)\//.test(input)),
    [],
  )
})

test("the server's bundle stays below 2 MB", () => {
  const bytes = Object.values(metafile.outputs).reduce((sum, output) => sum + output.bytes, 0)
  assert.ok(bytes < 2e6, `${bytes} bytes`)
})

test("the npm package holds the command line, the server, templates and types, and no sources or tests", () => {
  const [packed] = JSON.parse(
    execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: root, encoding: "utf8" }),
  ) as {
    files: { path: string }[]
  }[]
  const files = packed?.files.map((file) => file.path) ?? []
  for (const needed of [
    "dist/cli/main.js",
    "dist/image/serve.js",
    "dist/image/worker.js",
    "dist/runtime/index.d.ts",
    "LICENSE",
    "README.md",
  ]) {
    assert.ok(files.includes(needed), `${needed} is missing`)
  }
  assert.ok(
    files.some((file) => /^dist\/templates\/.*\.hbs$/.test(file)),
    "no template",
  )
  assert.deepEqual(
    files.filter((file) => !/^dist\/|^(LICENSE|README\.md|CHANGELOG\.md|package\.json)$/.test(file)),
    [],
  )
})

test("the command line's file can be executed", () => {
  assert.ok((statSync(path.join(root, "dist/cli/main.js")).mode & 0o111) !== 0)
})
