/** What the tests of images/ share: a store, a runtime bundle that only describes, and project folders. */
import { cp, mkdir, mkdtemp, realpath, rm, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import path from "node:path"
import type { BuildBentoOptions } from "../../images/build.ts"
import type { PlanOptions } from "../../images/plan.ts"
import type { Bento, DockerOptions } from "../../store/bento.ts"
import type { Model } from "../../store/model.ts"

export const root = path.resolve(import.meta.dirname, "../..")

/** A folder that goes when the test file ends; give `remove` to `after`. */
export async function temporaryFolder(): Promise<{ folder: string; remove: () => Promise<void> }> {
  const folder = await realpath(await mkdtemp(path.join(tmpdir(), "bentoctl-images-")))
  return { folder, remove: () => rm(folder, { recursive: true, force: true }) }
}

/**
 * A bundle whose describer takes the exported object as it is, so that these tests need no build: what a service
 * is, is the runtime's matter.
 */
const DESCRIBER = `
import { readFileSync, writeSync } from "node:fs"
import path from "node:path"
import { pathToFileURL } from "node:url"
const spec = JSON.parse(readFileSync(0, "utf8"))
const body = { kind: "json", mediaType: "application/json", schema: {} }
let result
try {
  let service = {
    name: spec.name,
    runners: spec.models.map(({ tag }) => ({ name: tag.split(":")[0], model: tag, methods: ["run"] })),
    apis: [{ name: "run", route: "/run", doc: null, input: body, output: body }],
  }
  let files = []
  if (spec.service !== null) {
    const [file, name] = spec.service.split(":")
    const module = await import(pathToFileURL(path.join(spec.srcDir, file)))
    if (!(name in module)) throw new Error("exports " + Object.keys(module).join(", ") + ", not " + name)
    service = { runners: [], apis: [], ...module[name] }
    files = [file, ...(module.alsoRead ?? [])]
  }
  result = { ok: true, service, openapi: { openapi: "3.1.0" }, files }
} catch (error) {
  result = { ok: false, message: error.message, file: spec.service?.split(":")[0], line: 3 }
}
writeSync(3, JSON.stringify(result))
process.exit(result.ok ? 0 : 1)
`

export async function fakeRuntime(folder: string): Promise<string> {
  const runtimeDir = path.join(folder, "runtime")
  await mkdir(runtimeDir, { recursive: true })
  await symlink(path.join(root, "node_modules"), path.join(runtimeDir, "node_modules"))
  const dependencies = { "onnxruntime-node": "1.30.0" }
  const manifest = { version: "0.0.0", type: "module", dependencies, bundled: [] }
  await writeFile(path.join(runtimeDir, "package.json"), JSON.stringify(manifest))
  await writeFile(path.join(runtimeDir, "describer.js"), DESCRIBER)
  await writeFile(path.join(runtimeDir, "serve.js"), "")
  const image = 'import { createServer } from "node:http"\ncreateServer((_, r) => r.end("ok")).listen(3000)\n'
  await writeFile(path.join(runtimeDir, "entrypoint.js"), image)
  await writeFile(path.join(runtimeDir, "healthcheck.js"), "")
  return runtimeDir
}

/** The store that Python's BentoML wrote: iris_sklearn (two versions), digits_sklearn and a tokenizer. */
export async function fixtureStore(folder: string): Promise<string> {
  const home = path.join(folder, "bentoml")
  await cp(path.join(root, "test/fixtures/bentoml-home"), home, { recursive: true })
  return home
}

export async function writeFiles(folder: string, files: Readonly<Record<string, string>>): Promise<void> {
  for (const [name, text] of Object.entries(files)) {
    const file = path.join(folder, name)
    await mkdir(path.dirname(file), { recursive: true })
    await writeFile(file, text)
  }
}

/** Options of `buildBento` for a project, with a clock and a chance that stand still. */
export function buildOptions(
  project: string,
  given: { home: string; runtimeDir: string },
  more: Partial<BuildBentoOptions> = {},
): BuildBentoOptions {
  return {
    contextDir: project,
    nodePath: process.execPath,
    env: process.env,
    now: new Date("2026-01-02T03:04:05.678Z"),
    random: (size) => new Uint8Array(size).fill(7),
    ...given,
    ...more,
  }
}

const body = { kind: "json", mediaType: "application/json", schema: {} } as const

/** A model of the store, with nothing special about it. */
export function modelOf(name: string, version: string): Model {
  return {
    tag: { name, version },
    module: "bentoml.onnx",
    labels: {},
    options: {},
    metadata: {},
    context: {
      frameworkName: "onnx",
      frameworkVersions: {},
      bentomlVersion: "1.4.38",
      pythonVersion: "3.11.2",
    },
    signatures: {},
    apiVersion: "v2",
    creationTime: "2026-01-02T03:04:05.678901+00:00",
  }
}

export function bentoOf(docker: Partial<DockerOptions> = {}, more: Partial<Bento> = {}): Bento {
  return {
    tag: { name: "iris_classifier", version: "u2swufhfec6rgax4" },
    service: "service.ts:svc",
    description: "# Iris\n\nClassifies flowers.\n",
    labels: { owner: "team a" },
    models: [{ tag: { name: "iris", version: "v1" }, module: "bentoml.onnx", creationTime: "" }],
    envs: [],
    selfTest: false,
    docker: {
      distro: "debian",
      baseImage: null,
      nodeVersion: null,
      cudaVersion: null,
      env: {},
      systemPackages: [],
      setupScript: null,
      dockerfileTemplate: null,
      platforms: [],
      ...docker,
    },
    runners: [],
    apis: [{ name: "classify", route: "/classify", doc: null, input: body, output: body }],
    git: null,
    license: null,
    bentoctlVersion: "0.1.0",
    creationTime: "2026-01-02T03:04:05.678901+00:00",
    ...more,
  }
}

/** A model as `planImage` takes it. */
export function planned(name: string, version: string, dir: string): PlanOptions["models"][number] {
  return { model: modelOf(name, version), dir, facts: { files: [], manifest: "a".repeat(64), origin: null } }
}

export function planOptions(given: Bento, more: Partial<PlanOptions> = {}): PlanOptions {
  return {
    bento: given,
    bentoDir: "/home/bentos/iris_classifier/u2swufhfec6rgax4",
    models: [planned("iris", "v1", "/home/models/iris/v1")],
    runtimeDir: "/opt/dist/image",
    runtime: { version: "0.1.0", onnxruntimeVersion: "1.30.0", bundled: [], installed: [], binaries: [] },
    openapi: null,
    prepared: {},
    sourceBytes: 0,
    locked: [],
    ...more,
  }
}
