/** Stores in temporary folders, and models and Bentos to put in them. */
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { TestContext } from "node:test"
import { type Bento, formatBentoYaml } from "../../store/bento.ts"
import { formatModelYaml, type Model } from "../../store/model.ts"
import type { Tag } from "../../store/tag.ts"
import { BENTO_YAML, MODEL_YAML } from "../../store/layout.ts"

export const FIXTURES = join(import.meta.dirname, "..", "fixtures")

/** A folder that is gone after the test. */
export async function tempFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "bentoctl-test-"))
  t.after(() => rm(folder, { recursive: true, force: true }))
  return folder
}

export function aModel(tag: Tag, second = 0): Model {
  return {
    tag,
    module: "bentoml.onnx",
    labels: {},
    options: {},
    metadata: {},
    context: { frameworkName: "onnx", frameworkVersions: {}, bentomlVersion: "1.4.38", pythonVersion: "" },
    signatures: { run: { batchable: true, batchDim: [0, 0] } },
    apiVersion: "v2",
    creationTime: new Date(Date.UTC(2024, 0, 1, 0, 0, second)).toISOString().replace("Z", "000+00:00"),
  }
}

export function aBento(tag: Tag, second = 0): Bento {
  return {
    tag,
    service: "",
    description: "",
    labels: {},
    models: [],
    envs: [],
    selfTest: false,
    docker: {
      distro: "debian",
      nodeVersion: null,
      baseImage: null,
      cudaVersion: null,
      env: {},
      systemPackages: [],
      setupScript: null,
      dockerfileTemplate: null,
      platforms: [],
    },
    runners: [],
    apis: [],
    git: null,
    license: null,
    bentoctlVersion: "0.1.0",
    creationTime: aModel(tag, second).creationTime,
  }
}

/** What `Store.add` wants of a model; the file makes a half-written item easy to tell. */
export function writesModel(tag: Tag, second = 0): (dir: string) => Promise<void> {
  return async (dir) => {
    await writeFile(join(dir, "saved_model.onnx"), `model of ${tag.version}`)
    await writeFile(join(dir, MODEL_YAML), formatModelYaml(aModel(tag, second)))
  }
}

export function writesBento(tag: Tag, second = 0): (dir: string) => Promise<void> {
  return (dir) => writeFile(join(dir, BENTO_YAML), formatBentoYaml(aBento(tag, second)))
}

/** Every path below `folder` with the content of files, for comparing a tree before and after. */
export async function treeOf(folder: string): Promise<Record<string, string>> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])
  const tree: Record<string, string> = {}
  for (const entry of entries) {
    const path = join(entry.parentPath, entry.name)
    const content = entry.isFile() ? await readFile(path, "latin1") : entry.isDirectory() ? "folder" : "other"
    tree[path.slice(folder.length + 1)] = content
  }
  return tree
}
