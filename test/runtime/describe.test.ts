/** Errors of user code are told with the user's own file and line; no stack of ours, no hang. */
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, describe, test } from "node:test"
import type { DescribeResult, ServeSpec } from "../../store/bento.ts"
import { parseModelYaml } from "../../store/model.ts"

const program = path.resolve(import.meta.dirname, "../../runtime/describer.ts")
const IRIS = path.resolve(
  import.meta.dirname,
  "../fixtures/bentoml-home/models/iris_sklearn/mox5xxxfsccawax4",
)
const folder = await mkdtemp(path.join(tmpdir(), "bentoctl-describe-"))
after(() => rm(folder, { recursive: true, force: true }))

interface Described {
  readonly code: number | null
  readonly output: string
  readonly result: DescribeResult
}

/** Describes a service file of this text. */
async function describeText(
  text: string,
  options: { files?: Record<string, string>; service?: string; packagesDir?: string } = {},
): Promise<Described> {
  const srcDir = await mkdtemp(path.join(folder, "src-"))
  const files = { "service.ts": text, ...options.files }
  for (const [name, content] of Object.entries(files)) {
    await mkdir(path.dirname(path.join(srcDir, name)), { recursive: true })
    await writeFile(path.join(srcDir, name), content)
  }
  const spec: ServeSpec = {
    name: "s",
    version: null,
    service: options.service ?? "service.ts:svc",
    srcDir,
    models: [],
    ...(options.packagesDir === undefined ? {} : { packagesDir: path.join(srcDir, options.packagesDir) }),
  }
  return describeSpec(spec)
}

async function describeSpec(spec: ServeSpec): Promise<Described> {
  const child = spawn(process.execPath, ["--disable-warning=ExperimentalWarning", program], {
    stdio: ["pipe", "pipe", "pipe", "pipe"],
  })
  child.stdin?.end(JSON.stringify(spec))
  let output = ""
  let answer = ""
  const [, stdout, stderr, results] = child.stdio
  stdout?.on("data", () => assert.fail("stdout is not for the user's output"))
  stderr?.on("data", (chunk: Buffer) => (output += chunk.toString()))
  results?.on("data", (chunk: Buffer) => (answer += chunk.toString()))
  const code = await new Promise<number | null>((resolve) => child.on("close", resolve))
  return { code, output, result: JSON.parse(answer) as DescribeResult }
}

const GOOD = `
import { api, json, service, text } from "bentoctl/runtime"
console.log("hello from the module")
export const svc = service({
  name: "greeter",
  apis: [api({ name: "greet", input: text(), output: json<{ length: number }>(), handler: (x) => ({ length: x.length }) })],
})
`

test("a service is described with its OpenAPI document; what it prints goes to stderr", async () => {
  const { code, output, result } = await describeText(GOOD)
  assert.equal(code, 0)
  assert.equal(output, "hello from the module\n")
  assert.ok(result.ok)
  assert.deepEqual(
    [
      result.service.name,
      result.service.apis.map((api) => [api.name, api.route, api.input.kind, api.output.kind]),
    ],
    ["greeter", [["greet", "/greet", "text", "json"]]],
  )
  assert.equal(result.openapi["openapi"], "3.1.0")
})

test("the export may be left out where there is one service, and the extension as BentoML writes it", async () => {
  assert.ok((await describeText(GOOD, { service: "service.ts" })).result.ok)
  assert.ok((await describeText(GOOD, { service: "service:svc" })).result.ok)
})

describe("what is wrong with a service is told with its place", { concurrency: 2 }, () => {
  const fails = async (
    text: string,
    expected: { message: RegExp; file?: string; line?: number; column?: number },
    options?: Parameters<typeof describeText>[1],
  ): Promise<void> => {
    const { code, result } = await describeText(text, options)
    assert.equal(code, 1)
    assert.ok(!result.ok)
    const { message, ...place } = expected
    assert.match(result.message, message)
    assert.doesNotMatch(result.message, /\n\s+at |node:internal|runtime\/load/)
    const { ok: _, message: _message, ...found } = result
    assert.deepEqual(found, place)
  }

  test("a syntax error", () =>
    fails("export const a = 1\nexport const b: number = = 2\n", {
      message: /SyntaxError: Expression expected/,
      file: "service.ts",
      line: 2,
      column: 26,
    }))

  test("TypeScript that cannot be stripped", () =>
    fails("\nexport enum Species { Setosa }\n", {
      message: /enum is not supported/,
      file: "service.ts",
      line: 2,
      column: 8,
    }))

  test("a syntax error in a file that it imports", () =>
    fails(
      'import { a } from "./lib/a.ts"\nconsole.log(a)\n',
      { message: /SyntaxError/, file: "lib/a.ts", line: 3, column: 1 },
      { files: { "lib/a.ts": "export const a = 1\n\n}\n" } },
    ))

  test("a throw while it is imported", () =>
    fails('const ready = false\nif (!ready) {\n  throw new RangeError("not ready")\n}\n', {
      message: /^RangeError: not ready$/,
      file: "service.ts",
      line: 3,
      column: 9,
    }))

  test("something thrown that is no error", () =>
    fails('throw "text"', { message: /throws "text"/, file: "service.ts" }))

  test("a package that is not there", () =>
    fails('import path from "node:path"\nimport _ from "lodash-is-not-here"\nconsole.log(path, _)\n', {
      message: /^Cannot find package 'lodash-is-not-here'$/,
      file: "service.ts",
      line: 2,
      column: 16,
    }))

  test("a file that is not there", () =>
    fails('import { a } from "./missing.ts"\nconsole.log(a)\n', {
      message: /^Cannot find module '.*missing\.ts'$/,
      file: "service.ts",
      line: 1,
      column: 22,
    }))

  test("an import of what is not exported", () =>
    fails('import { api, servce } from "bentoctl/runtime"\nconsole.log(api, servce)\n', {
      message: /does not provide an export named 'servce'/,
      file: "service.ts",
      line: 1,
      column: 15,
    }))

  test("no service file", () =>
    fails(
      "",
      { message: /there is no service file other\.ts/, file: "other.ts" },
      { service: "other.ts:svc" },
    ))

  test("no such export: those that there are", () =>
    fails(
      GOOD,
      { message: /no export "svcs"[\s\S]*Services that it exports: svc\./, file: "service.ts" },
      { service: "service.ts:svcs" },
    ))

  test("an export that is no service", () =>
    fails("export const svc = { name: 'x' }\n", {
      message: /was not made by service\(\)/,
      file: "service.ts",
    }))

  test("an invalid definition, with every problem", () =>
    fails(
      'import { api, service, text } from "bentoctl/runtime"\nexport const svc = service({\n  name: "UPPER",\n  apis: [api({ name: "livez", input: text(), output: text(), handler: (x) => x })],\n})\n',
      {
        message: /name: "UPPER" must[\s\S]*apis\[0\]\.route: \/livez is a route of the server itself/,
        file: "service.ts",
        line: 2,
        column: 20,
      },
    ))

  test("a module that ends the process", () =>
    fails("process.exit(3)", { message: /ended the process \(exit 3\)/, file: "service.ts" }))

  test("a module that waits for ever for nothing", () =>
    fails("await new Promise(() => {})", { message: /never finishes loading/, file: "service.ts" }))

  test("an error that comes later, outside of any promise", () =>
    fails(
      '\nsetTimeout(() => {\n  throw new Error("late")\n}, 1)\nawait new Promise((resolve) => setTimeout(resolve, 1000))\n',
      {
        message: /^late$/,
        file: "service.ts",
        line: 3,
        column: 9,
      },
    ))
})

test("a runner of a signature that its model does not have is named with those it has", async () => {
  const srcDir = await mkdtemp(path.join(folder, "src-"))
  await writeFile(
    path.join(srcDir, "service.ts"),
    GOOD.replace("service, text", "runner, service, text").replace(
      "apis:",
      'runners: [runner("iris_sklearn:latest", ["encode"])],\n  apis:',
    ),
  )
  const { result } = await describeSpec({
    name: "s",
    version: null,
    service: "service.ts:svc",
    srcDir,
    models: [{ tag: "iris_sklearn:mox5xxxfsccawax4", dir: IRIS }],
  })
  assert.ok(!result.ok)
  assert.match(result.message, /iris_sklearn:mox5xxxfsccawax4 has no signature "encode"\nIt has "run"\./)
})

describe("a model in a service without code", () => {
  test("is described from its manifest, without loading it", async () => {
    const { result } = await describeSpec({
      name: "iris",
      version: null,
      service: null,
      srcDir: folder,
      models: [{ tag: "iris_sklearn:mox5xxxfsccawax4", dir: IRIS }],
    })
    assert.ok(result.ok)
    assert.deepEqual(result.service.runners, [
      { name: "iris_sklearn", model: "iris_sklearn:mox5xxxfsccawax4", methods: ["run"] },
    ])
    assert.deepEqual(
      result.service.apis.map((api) => [api.name, api.route, api.input.kind]),
      [["run", "/run", "tensors"]],
    )
  })

  test("is described from the manifest that comes with it, without looking for it", async () => {
    const file = path.join(IRIS, "model.yaml")
    const manifest = JSON.stringify(parseModelYaml(await readFile(file, "utf8"), file))
    const { result } = await describeSpec({
      name: "iris",
      version: null,
      service: null,
      srcDir: folder,
      models: [{ tag: "iris_sklearn:mox5xxxfsccawax4", dir: path.join(folder, "nowhere"), manifest }],
    })
    assert.ok(result.ok)
    assert.deepEqual(
      result.service.apis.map((api) => [api.name, api.input.kind]),
      [["run", "tensors"]],
    )
  })

  test("that is not there is named", async () => {
    const { result } = await describeSpec({
      name: "iris",
      version: null,
      service: null,
      srcDir: folder,
      models: [{ tag: "iris:v1", dir: path.join(folder, "nowhere") }],
    })
    assert.ok(!result.ok)
    assert.match(result.message, /model iris:v1 is not in /)
  })
})

describe("packages that lie elsewhere", () => {
  const files = {
    "installed/node_modules/@a/esm/package.json":
      '{"name":"@a/esm","type":"module","exports":{"./x":"./x.js"}}',
    "installed/node_modules/@a/esm/x.js": 'import { b } from "b"\nexport const name = b',
    "installed/node_modules/b/index.js": 'exports.b = "from-b"',
    "old.cjs": 'module.exports = require("b").b',
  }
  const importing = (lines: string): string =>
    `${lines}\n${GOOD.replace('"greeter"', "name").replace("console.log", "void ")}`

  for (const [how, lines] of [
    ["imported", 'import { name } from "@a/esm/x"'],
    ["required", 'import name from "./old.cjs"'],
  ] as const) {
    test(`are found when they are ${how}`, async () => {
      const { result } = await describeText(importing(lines), { files, packagesDir: "installed" })
      assert.ok(result.ok, JSON.stringify(result))
      assert.equal(result.service.name, "from-b")
    })
  }

  test("and are missing are told with the line that asks for them", async () => {
    const text = importing('\nimport { name } from "nowhere"')
    const { result } = await describeText(text, { files, packagesDir: "installed" })
    assert.deepEqual(result, {
      ok: false,
      message: "Cannot find package 'nowhere'",
      file: "service.ts",
      line: 2,
      column: 23,
    })
  })
})
