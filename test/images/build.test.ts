import assert from "node:assert/strict"
import { existsSync } from "node:fs"
import { cp, lstat, mkdir, readFile, readdir, readlink, symlink, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { buildBento, serveSpecOf, snakeCase } from "../../images/build.ts"
import type { BuildBentoOptions } from "../../images/build.ts"
import { containerize, planContainer } from "../../images/containerize.ts"
import { LoadRefused } from "../../images/builder.ts"
import type { BuildEvent } from "../../images/builder.ts"
import { BentoError } from "../../store/errors.ts"
import type { ErrorCode } from "../../store/errors.ts"
import { openBentoStore } from "../../store/store.ts"
import { formatTag } from "../../store/tag.ts"
import type { TagRef } from "../../store/tag.ts"
import { MemoryEngine } from "./memory-engine.ts"
import { buildOptions, fakeRuntime, fixtureStore, temporaryFolder, writeFiles } from "./support.ts"

const { folder, remove } = await temporaryFolder()
after(remove)
let given: { home: string; runtimeDir: string }
before(async () => {
  given = { home: await fixtureStore(folder), runtimeDir: await fakeRuntime(folder) }
})
let count = 0

async function project(files: Readonly<Record<string, string>>): Promise<string> {
  const dir = path.join(folder, `project${count++}`)
  await mkdir(dir)
  await writeFiles(dir, files)
  return dir
}
const build = async (files: Readonly<Record<string, string>>, more: Partial<BuildBentoOptions> = {}) =>
  buildBento(buildOptions(await project(files), given, { version: `v${count}`, ...more }))
const failsWith = (code: ErrorCode, pattern: RegExp) => (error: unknown) => {
  assert.ok(error instanceof BentoError, String(error))
  assert.equal(error.code, code)
  assert.match(`${error.message}\n${error.hint ?? ""}`, pattern)
  return true
}
const SERVICE = `export const svc = { name: "DemoService" }\n`

describe("a Bento", () => {
  test("has BentoML's layout, with the sources as they are and the models by exact tag", async () => {
    const contextDir = await project({
      "bentofile.yaml": `service: service.ts:svc
labels: {team: a}
models: [iris_sklearn, {tag: "digits_sklearn:moxkirhfsccawax4", alias: d}]
exclude: [tests/]
docker: {setup_script: setup.sh}
`,
      "service.ts": SERVICE,
      "setup.sh": "#!/bin/sh\n",
      "lib/a.ts": "1",
      "tests/b.ts": "2",
      ".env": "SECRET=1",
      "README.md": "# Mine\n",
    })
    await symlink("a.ts", path.join(contextDir, "lib/link.ts"))
    const built = await buildBento(buildOptions(contextDir, given, { labels: { team: "b", ci: "1" } }))
    assert.equal(formatTag(built.bento.tag), `demo_service:${built.bento.tag.version}`)
    assert.match(built.bento.tag.version, /^[a-z2-7]{16}$/)
    assert.deepEqual(built.bento.labels, { team: "b", ci: "1" })
    assert.deepEqual(
      built.bento.models.map((model) => [formatTag(model.tag), model.alias]),
      [
        ["iris_sklearn:mox5xxxfsccawax4", undefined],
        ["digits_sklearn:moxkirhfsccawax4", "d"],
      ],
    )
    const files = (await readdir(built.dir, { recursive: true })).toSorted()
    assert.deepEqual(files, [
      "README.md",
      "apis",
      "apis/openapi.yaml",
      "bento.yaml",
      "env",
      "env/docker",
      "env/docker/Dockerfile",
      "env/docker/setup_script",
      "src",
      "src/README.md",
      "src/bentofile.yaml",
      "src/lib",
      "src/lib/a.ts",
      "src/lib/link.ts",
      "src/service.ts",
      "src/setup.sh",
    ])
    assert.equal(await readFile(path.join(built.dir, "README.md"), "utf8"), "# Mine\n")
    assert.equal(await readlink(path.join(built.dir, "src/lib/link.ts")), "a.ts")
    assert.equal((await lstat(path.join(built.dir, "env/docker/setup_script"))).mode & 0o777, 0o755)
    assert.match(
      await readFile(path.join(built.dir, "env/docker/Dockerfile"), "utf8"),
      /^FROM node:24-bookworm-slim$/m,
    )
    assert.match(built.notes.join("\n"), /^\.env was left out/)
    const read = await openBentoStore(given.home).get(built.bento.tag)
    assert.deepEqual(read, built.bento)
  })

  test("without code takes no sources, and serves its models", async () => {
    const { bento, files } = await build({
      "bentofile.yaml": "models: [iris_sklearn]\n",
      "train.py": "…",
      "iris.onnx": "…",
    })
    assert.equal(bento.service, "")
    assert.equal(bento.tag.name, "iris_sklearn")
    assert.deepEqual(files, [])
    assert.deepEqual(bento.runners, [
      { name: "iris_sklearn", model: "iris_sklearn:mox5xxxfsccawax4", methods: ["run"] },
    ])
  })

  test("takes its name from --name, the bentofile, the service, the only model, the folder", async () => {
    const named = { "bentofile.yaml": "service: service.ts:svc\nname: written\n", "service.ts": SERVICE }
    const asked = await build(named, { name: "Given", version: "V1" })
    assert.deepEqual(asked.bento.tag, { name: "given", version: "v1" })
    assert.deepEqual(asked.notes, ['version "V1" was lowered to "v1"', 'name "Given" was lowered to "given"'])
    assert.deepEqual(
      asked.openapi["info"],
      { version: "v1" },
      "what the document of the fake says, and the version",
    )
    assert.equal((await build(named)).bento.tag.name, "written")
    const upper = { ...named, "bentofile.yaml": "service: service.ts:svc\nname: Written\n" }
    const lowered = await build(upper)
    assert.deepEqual(
      [lowered.bento.tag.name, lowered.notes],
      ["written", ['name "Written" was lowered to "written"']],
    )
    assert.equal((await serveSpecOf(buildOptions(await project(upper), given))).name, "written")
    const two = await build({ "bentofile.yaml": "models: [iris_sklearn, digits_sklearn]\n" })
    assert.equal(two.bento.tag.name, `project${count - 1}`)
    const unnameable = {
      "service.ts": 'export const svc = { name: "ü" }',
      "bentofile.yaml": "service: service.ts:svc",
    }
    await assert.rejects(build(unnameable), failsWith("TAG_INVALID", /"ü" cannot name the Bento[^]*--name/))
  })

  test("is named after a service as BentoML names after classes", () => {
    const cases = {
      Summarization: "summarization",
      SimpleBento: "simple_bento",
      HTTPServer: "http_server",
      RAGService2: "rag_service2",
      IrisV2: "iris_v2",
      LLM: "llm",
      vLLM: "vllm",
      iris_classifier: "iris_classifier",
    }
    for (const [name, expected] of Object.entries(cases)) assert.equal(snakeCase(name), expected)
  })

  test("holds the models that only its runners name", async () => {
    const { bento } = await build({
      "bentofile.yaml": "service: service.ts:svc\nmodels: [{tag: 'iris_sklearn:moxu', alias: iris}]\n",
      "service.ts": `export const svc = { name: "s", runners: [
        { name: "a", model: "iris", methods: ["run"] },
        { name: "b", model: "iris_sklearn:latest", methods: ["run"] },
        { name: "c", model: "digits_sklearn", methods: ["run"] },
      ] }`,
    })
    assert.deepEqual(
      bento.models.map((model) => formatTag(model.tag)),
      ["iris_sklearn:moxuqlhfsccawax4", "digits_sklearn:moxkirhfsccawax4"],
    )
  })

  test("needs no bentofile where a service is given", async () => {
    const { bento } = await build({ "service.ts": SERVICE }, { service: "service.ts:svc" })
    assert.equal(bento.service, "service.ts:svc")
  })

  test("does not take the store that lies in the project", async () => {
    const contextDir = await project({ "bentofile.yaml": "service: service.ts:svc\n", "service.ts": SERVICE })
    const home = path.join(contextDir, "bentoml")
    await cp(given.home, home, { recursive: true })
    const { files } = await buildBento(buildOptions(contextDir, { ...given, home }, { dryRun: true }))
    assert.deepEqual(files, ["service.ts"])
  })

  test("that is only tried is planned and not written", async () => {
    const { dir, plan, bento } = await build(
      { "bentofile.yaml": "models: [iris_sklearn]\n" },
      { dryRun: true, baseImage: "my/base:1" },
    )
    assert.equal(existsSync(dir), false)
    assert.equal(plan.dockerfile.baseImage, "my/base:1")
    assert.deepEqual(JSON.parse(JSON.stringify(plan)), plan)
    assert.equal(plan.bento, formatTag(bento.tag))
  })

  test("with a version that is taken is STORE_EXISTS, and an illegal one TAG_INVALID", async () => {
    const files = { "bentofile.yaml": "models: [iris_sklearn]\n" }
    await build(files, { version: "once" })
    await assert.rejects(build(files, { version: "once" }), failsWith("STORE_EXISTS", /iris_sklearn:once/))
    await assert.rejects(build(files, { version: "a b" }), failsWith("TAG_INVALID", /a b/))
  })
})

for (const [what, size, causes] of [
  ["", 1000, ["runtime", "model", "bento"]],
  [" with large sources", 600_000, ["runtime", "model", "source", "bento"]],
] as const) {
  test(`the image of a Bento${what} is planned alike by who has just built it and from the store, for each platform`, async () => {
    const files = { "bentofile.yaml": `models: [iris_sklearn]\ninclude: ["*"]\n`, "a.txt": "x".repeat(size) }
    const built = await build(files, { name: "alike" })
    for (const platform of ["linux/amd64", "linux/arm64"] as const) {
      const options = { ...given, bento: built.bento.tag, platform }
      const [now, later] = [await planContainer({ ...options, built }), await planContainer(options)]
      assert.deepEqual(now, later)
      assert.deepEqual(
        now.layers.map(({ cause }) => cause),
        causes,
      )
      const binaries = now.sbom.runtime.binaries.map((file) => file.path)
      assert.ok(binaries.every((file) => file.includes(platform === "linux/amd64" ? "/x64/" : "/arm64/")))
      assert.ok(binaries.length > 0)
    }
  })
}

describe("a project that cannot be built leaves nothing behind and says why:", () => {
  const bentofile = "service: service.ts:svc\n"
  const cases: readonly (readonly [
    what: string,
    files: Readonly<Record<string, string>>,
    code: ErrorCode,
    pattern: RegExp,
    more?: Partial<BuildBentoOptions>,
  ])[] = [
    ["no bentofile", {}, "BENTOFILE_NOT_FOUND", /holds no bentofile\.yaml[^]*service\.ts:svc/],
    [
      "nothing to serve",
      { "bentofile.yaml": "name: a\n" },
      "BENTOFILE_INVALID",
      /bentofile\.yaml:1: there is nothing to serve/,
    ],
    [
      "no service file",
      { "bentofile.yaml": bentofile },
      "SERVICE_INVALID",
      /bentofile\.yaml:1:10: service: no such file: service\.ts/,
    ],
    [
      "a service without a file",
      { "bentofile.yaml": 'service: ":svc"\n' },
      "SERVICE_INVALID",
      /bentofile\.yaml:1:10: service: expected a file and an export[^]*Write `service: service\.ts:svc`/,
    ],
    [
      "a model that is listed twice",
      { "bentofile.yaml": "models:\n  - iris_sklearn:latest\n  - iris_sklearn:mox5\n" },
      "BENTOFILE_INVALID",
      /bentofile\.yaml:3: models\[1\]: iris_sklearn:mox5xxxfsccawax4 is listed twice \(first in models\[0\]\)/,
    ],
    [
      "models without a signature, and no code",
      { "bentofile.yaml": "name: t\nmodels:\n  - tokenizer\n" },
      "BENTOFILE_INVALID",
      /bentofile\.yaml:3: models: there is nothing to serve: tokenizer:moyo6ohfsccawax4 has no signature/,
    ],
    [
      "a service named as a Python module",
      { "bentofile.yaml": "service: service:svc\n", "service.ts": SERVICE },
      "SERVICE_INVALID",
      /Did you mean `service: service\.ts:svc`\?/,
    ],
    [
      "a service in Python",
      { "bentofile.yaml": "service: service.py:svc\n", "service.py": "" },
      "SERVICE_INVALID",
      /written in TypeScript or JavaScript/,
    ],
    [
      "a service that is no script",
      { "bentofile.yaml": "service: a.md:svc\n", "a.md": "" },
      "SERVICE_INVALID",
      /a\.md is neither/,
    ],
    [
      "a service elsewhere",
      { "bentofile.yaml": "service: ../project0/service.ts:svc\n" },
      "CONTEXT_ESCAPE",
      /lies outside of/,
    ],
    [
      "a service without this export",
      { "bentofile.yaml": bentofile, "service.ts": "export const other = 1\n" },
      "SERVICE_INVALID",
      /service\.ts:3: exports other, not svc/,
    ],
    [
      "a service that is left out",
      { "bentofile.yaml": `${bentofile}exclude: ["*.ts"]\n`, "service.ts": SERVICE },
      "SERVICE_INVALID",
      /service\.ts needs what the Bento leaves out: service\.ts/,
    ],
    [
      "a service that imports what is left out",
      {
        "bentofile.yaml": `${bentofile}include: [service.ts]\n`,
        "service.ts": `${SERVICE}export const alsoRead = ["lib/a.ts"]\n`,
      },
      "SERVICE_INVALID",
      /needs what the Bento leaves out: lib\/a\.ts/,
    ],
    [
      "a service that imports from outside",
      { "bentofile.yaml": bentofile, "service.ts": `${SERVICE}export const alsoRead = ["../x.ts"]\n` },
      "CONTEXT_ESCAPE",
      /imports what lies outside of the build context: \.\.\/x\.ts/,
    ],
    [
      "models that are not in the store, all at once",
      { "bentofile.yaml": "models:\n  - iris_sklearn\n  - iris_skleam\n  - nothing:v1\n" },
      "MODEL_NOT_FOUND",
      /bentofile\.yaml:3: models\[1\]: .*iris_skleam.*bentoctl models import FILE\.onnx --name iris_skleam[^]*bentofile\.yaml:4: models\[2\].*nothing/,
    ],
    [
      "a model that is meant twice",
      { "bentofile.yaml": "models: [iris_sklearn:mox]\n" },
      "TAG_AMBIGUOUS",
      /mox5xxxfsccawax4.*moxuqlhfsccawax4/,
    ],
    [
      "a runner's model that is not in the store",
      {
        "bentofile.yaml": bentofile,
        "service.ts":
          'export const svc = { name: "s", runners: [{ name: "r", model: "none", methods: [] }] }',
      },
      "MODEL_NOT_FOUND",
      /runner r: .*none/,
    ],
    [
      "a link out of the project",
      { "bentofile.yaml": `${bentofile}include: ["*", leak]\n`, "service.ts": SERVICE },
      "CONTEXT_ESCAPE",
      /the link leak/,
    ],
  ]
  for (const [what, files, code, pattern, more] of cases) {
    test(what, async () => {
      const contextDir = await project(files)
      if (what === "a link out of the project") await symlink("/etc/passwd", path.join(contextDir, "leak"))
      const before = await openBentoStore(given.home).list()
      await assert.rejects(buildBento(buildOptions(contextDir, given, more)), failsWith(code, pattern))
      const after = await openBentoStore(given.home).list()
      assert.deepEqual([after.items.length, after.broken], [before.items.length, before.broken])
    })
  }

  test("an interruption", async () => {
    const abort = new AbortController()
    setTimeout(() => abort.abort(new Error("stop")), 200)
    const files = { "bentofile.yaml": bentofile, "service.ts": "for (;;) {}" }
    await assert.rejects(build(files, { signal: abort.signal }), /^Error: stop$/)
    assert.deepEqual((await openBentoStore(given.home).list()).broken, [])
  })
})

describe("what is served where it stands", () => {
  test("is the project with its models at their places, and no Bento is written", async () => {
    const contextDir = await project({
      "bentofile.yaml": "service: service.ts:svc\nmodels: [{tag: iris_sklearn, alias: i}]\n",
      "service.ts": SERVICE,
    })
    const spec = await serveSpecOf(buildOptions(contextDir, given))
    assert.deepEqual(spec, {
      name: "DemoService",
      version: null,
      service: "service.ts:svc",
      srcDir: contextDir,
      models: [
        {
          tag: "iris_sklearn:mox5xxxfsccawax4",
          dir: path.join(given.home, "models/iris_sklearn/mox5xxxfsccawax4"),
          alias: "i",
        },
      ],
      labels: {},
    })
  })

  test("needs no description where there is no code", async () => {
    const contextDir = await project({ "bentofile.yaml": "models: [iris_sklearn]\n" })
    const spec = await serveSpecOf(buildOptions(contextDir, { ...given, runtimeDir: "/nowhere" }))
    assert.deepEqual([spec.service, spec.models.length], [null, 1])
  })
})

describe("the walk from a Bento to an image", () => {
  async function walk(
    engine: MemoryEngine,
    more: Partial<Parameters<typeof containerize>[0]> & { bento: TagRef },
  ): Promise<BuildEvent[]> {
    const events: BuildEvent[] = []
    for await (const event of containerize({ ...given, engine, ...more })) events.push(event)
    return events
  }

  /** Keeps the tags of the images that it builds, and takes no layers from us. */
  class DockerfileEngine extends MemoryEngine {
    override info = { ...new MemoryEngine().info, noPartialLoads: "it is old" }
  }

  test("carries out the Dockerfile where layers cannot be loaded alone, and ends with what was built", async () => {
    const { bento } = await build({
      "bentofile.yaml": "models: [iris_sklearn]\ndocker: {cuda_version: default}\n",
    })
    const engine = new DockerfileEngine()
    for (const base of ["my/node:24", "nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04"]) engine.addBase(base)
    let times = 0
    const events = await walk(engine, {
      bento: bento.tag,
      baseImage: "my/node:24",
      clock: () => times++ * 1000,
    })
    const name = formatTag(bento.tag)
    const built = events.at(-1)
    assert.ok(built?.type === "built")
    assert.deepEqual(
      [built.builder, built.tags, built.sizeBytes],
      ["dockerfile", [name, "iris_sklearn:latest"], 42],
    )
    assert.ok(built.durationMs > 0)
    assert.equal(engine.tags.get(name), built.imageId)
    assert.deepEqual(events[0], { type: "builder", builder: "dockerfile", reason: "it is old" })
    assert.equal(engine.builds.length, 1)
    const names = engine.builds[0]?.context.entries.map((entry) => entry.path) ?? []
    assert.ok(names.includes("bento/bento.yaml") && !names.includes("src/bentofile.yaml"))
  })

  test("copies models from images of their own; where none can be loaded they travel in the context", async () => {
    const { bento } = await build({ "bentofile.yaml": "models: [iris_sklearn]\n" })
    const model = "models/iris_sklearn/mox5xxxfsccawax4/saved_model.onnx"
    const engine = new DockerfileEngine()
    engine.addBase("node:24-bookworm-slim")
    await walk(engine, { bento: bento.tag })
    const names = engine.builds[0]?.context.entries.map((entry) => entry.path) ?? []
    const [image = ""] = [...engine.tags.keys()].filter((tag) => tag.startsWith("bentoctl/model:"))
    assert.ok(!names.includes(model))
    assert.match(
      engine.builds[0]?.context.dockerfile ?? "",
      new RegExp(`^COPY --from=${image} \\["/models/", `, "m"),
    )
    await walk(engine, { bento: bento.tag })
    assert.equal(engine.loads.length, 1, "the second build finds the model's image")

    const stubborn = new DockerfileEngine()
    stubborn.addBase("node:24-bookworm-slim")
    // oxlint-disable-next-line require-yield -- it fails before it could tell anything
    stubborn.load = async function* () {
      throw new LoadRefused("no")
    }
    const events = await walk(stubborn, { bento: bento.tag })
    assert.ok(events.some((event) => event.type === "warning" && /context \(no\)/.test(event.message)))
    assert.ok(stubborn.builds[0]?.context.entries.some((entry) => entry.path === model))
  })

  test("carries out a template's Dockerfile, and refuses to assemble it before it asks the engine", async () => {
    const { bento } = await build({
      "bentofile.yaml": "models: [iris_sklearn]\ndocker: {dockerfile_template: image.hbs}\n",
      "image.hbs": "{{#> bento_base_template}}{{/bento_base_template}}\n",
    })
    const engine = new MemoryEngine()
    engine.addBase("node:24-bookworm-slim")
    const [how] = await walk(engine, { bento: bento.tag })
    const reason = "the engine carries out its docker.dockerfile_template"
    assert.deepEqual(how, { type: "builder", builder: "dockerfile", reason })
    engine.ping = () => assert.fail("asked")
    await assert.rejects(
      walk(engine, { bento: bento.tag, builder: "assemble" }),
      failsWith(
        "ASSEMBLE_IMPOSSIBLE",
        /cannot be assembled: the engine carries out its docker\.dockerfile_template/,
      ),
    )
  })

  test("asks nothing of the engine for a Bento whose model is gone, or that Python built", async () => {
    const engine = new MemoryEngine()
    engine.ping = () => assert.fail("asked")
    const walkTo = async (name: string) => walk(engine, { bento: { name } })
    await assert.rejects(walkTo("legacy_iris"), failsWith("MANIFEST_INVALID", /Python/))
    await assert.rejects(walkTo("nothing"), failsWith("BENTO_NOT_FOUND", /nothing/))
    const dir = path.join(given.home, "models/gone/v1")
    await cp(path.join(given.home, "models/iris_sklearn/mox5xxxfsccawax4"), dir, { recursive: true })
    const manifest = path.join(dir, "model.yaml")
    const text = (await readFile(manifest, "utf8"))
      .replace("iris_sklearn", "gone")
      .replace("mox5xxxfsccawax4", "v1")
    await writeFile(manifest, text)
    await build({ "bentofile.yaml": "models: ['gone:v1']\n" })
    await import("node:fs/promises").then(({ rm }) => rm(dir, { recursive: true }))
    await assert.rejects(walkTo("gone"), failsWith("MODEL_NOT_FOUND", /gone/))
  })
})
