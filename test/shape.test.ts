/** The shape of what is shipped: what the bundles are made of, and what the npm package holds. */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { globSync, readFileSync, statSync } from "node:fs"
import { builtinModules, isBuiltin } from "node:module"
import path from "node:path"
import { test } from "node:test"

const root = path.resolve(import.meta.dirname, "..")

interface Metafile {
  readonly outputs: Record<
    string,
    {
      readonly imports: readonly { path: string; kind: string; external?: boolean }[]
      readonly inputs: Record<string, unknown>
      readonly bytes: number
      readonly entryPoint?: string
    }
  >
}
const metafiles = JSON.parse(readFileSync(path.join(root, "dist/metafile.json"), "utf8")) as {
  cli: Metafile
  image: Metafile
}

/** Packages that may be part of a bundle. A new one is a decision: see the table in docs/architecture.md. */
const BUNDLED = {
  cli: [
    "@balena/dockerignore",
    "@cyclonedx/cyclonedx-library",
    "b4a",
    "clipanion",
    "debug",
    "docker-modem",
    "dockerode",
    "events-universal",
    "fast-fifo",
    "handlebars",
    "ignore",
    "inherits",
    "ms",
    "readable-stream",
    "safe-buffer",
    "source-map",
    "split-ca",
    "streamx",
    "string_decoder",
    "tar-fs",
    "tar-stream",
    "text-decoder",
    "typanion",
    "util-deprecate",
    "yaml",
    "zod",
  ],
  image: [
    "@hono/node-server",
    "@opentelemetry/api",
    "@pinojs/redact",
    "atomic-sleep",
    "bintrees",
    "hono",
    "on-exit-leak-free",
    "pino",
    "pino-std-serializers",
    "prom-client",
    "quick-format-unescaped",
    "safe-stable-stringify",
    "sonic-boom",
    "tdigest",
    "thread-stream",
    "yaml",
    "zod",
  ],
}

/** Packages that a bundle leaves outside: to be installed, or looked for and done without. */
const EXTERNAL = { cli: ["supports-color", "xmlbuilder2"], image: ["onnxruntime-node"] }

/** Folders of ours that belong to the other side. */
const FOREIGN = { cli: /^(runtime|test)\//, image: /^(cli|images|templates|test)\// }

for (const name of ["cli", "image"] as const) {
  const outputs = Object.values(metafiles[name].outputs)
  /** Not all that was read: what nothing uses is left out. */
  const inputs = outputs.flatMap((output) => Object.keys(output.inputs))

  test(`dist/${name} holds only the packages that were decided on`, () => {
    const packages = inputs.flatMap((input) => /.*node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(input)?.[1] ?? [])
    assert.deepEqual([...new Set(packages)].sort(), BUNDLED[name])
  })

  test(`dist/${name} leaves only ${EXTERNAL[name].join(", ")} and Node's own modules outside`, () => {
    const external = outputs
      .flatMap((output) => output.imports)
      .filter((entry) => entry.external && !entry.path.startsWith("node:"))
      .map((entry) => entry.path)
    const builtins = new Set(builtinModules)
    assert.deepEqual([...new Set(external)].filter((found) => !builtins.has(found)).sort(), EXTERNAL[name])
  })

  test(`no file of the other side is in dist/${name}`, () => {
    assert.deepEqual(
      inputs.filter((input) => FOREIGN[name].test(input)),
      [],
    )
  })
}

test("no chunk imports a module of Node's: that would read all that is in it", () => {
  for (const file of globSync("dist/{cli,image}/*.js", { cwd: root })) {
    const text = readFileSync(path.join(root, file), "utf8")
    const isRun = text.startsWith("#!") || file.endsWith("/install-packages.js")
    const imported = [...text.matchAll(/^import [^;]*? from "([^"]+)";/gm)].map(([, name = ""]) => name)
    const builtins = imported.filter((name) => isBuiltin(name) && name !== "node:module")
    assert.deepEqual(isRun ? [] : builtins, [], file)
  }
})

test("the server's bundle stays below 2 MB", () => {
  const bytes = Object.values(metafiles.image.outputs).reduce((sum, output) => sum + output.bytes, 0)
  assert.ok(bytes < 2e6, `${bytes} bytes`)
})

test("the command line's file links nothing of ours before it has looked at Node's version", () => {
  const main = Object.values(metafiles.cli.outputs).find((output) => output.entryPoint === "cli/main.ts")
  const linked = main?.imports.filter(({ kind }) => kind === "import-statement").map((entry) => entry.path)
  assert.deepEqual(
    linked?.filter((file) => !file.startsWith("node:")),
    [],
  )
})

test("the npm package holds the command line, the server and types, and no sources or tests", () => {
  const [packed] = JSON.parse(
    execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: root, encoding: "utf8" }),
  ) as {
    files: { path: string }[]
  }[]
  const files = packed?.files.map((file) => file.path) ?? []
  for (const needed of [
    "dist/cli/main.js",
    "dist/cli/install-packages.js",
    "dist/image/serve.js",
    "dist/image/worker.js",
    "dist/licenses.txt",
    "dist/runtime/index.d.ts",
    "LICENSE",
    "README.md",
  ]) {
    assert.ok(files.includes(needed), `${needed} is missing`)
  }
  assert.deepEqual(
    files.filter((file) => !/^dist\/|^(LICENSE|README\.md|CHANGELOG\.md|package\.json)$/.test(file)),
    [],
  )
})

test("the licence of each package in a bundle is shipped", () => {
  const licenses = readFileSync(path.join(root, "dist/licenses.txt"), "utf8")
  for (const name of [...BUNDLED.cli, ...BUNDLED.image]) {
    assert.ok(
      licenses.split("\n").some((line) => line.startsWith(`${name} `)),
      name,
    )
  }
})

test("an npm install fetches nothing that is in a bundle already", () => {
  const { dependencies } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8")) as {
    dependencies: Record<string, string>
  }
  // The types of `bentoctl/runtime` name the first, the server loads the second.
  assert.deepEqual(Object.keys(dependencies), ["@standard-schema/spec", "onnxruntime-node"])
})

test("the command line's file can be executed", () => {
  assert.ok((statSync(path.join(root, "dist/cli/main.js")).mode & 0o111) !== 0)
})
