import assert from "node:assert/strict"
import { globSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { test } from "node:test"
import { type Bento, formatBentoYaml, parseBentoYaml } from "../../store/bento.ts"
import { IssueError } from "../../store/errors.ts"
import { readYaml } from "../../store/pyyaml.ts"
import { aBento, FIXTURES } from "./support.ts"

const FULL: Bento = {
  ...aBento({ name: "iris_service", version: "u2swufhfec6rgax4" }),
  service: "service.ts:svc",
  description: "Sorts flowers: three kinds\nof them.",
  labels: { owner: "yes", größe: "1" },
  models: [
    {
      tag: { name: "iris", version: "abcdef" },
      module: "bentoml.onnx",
      creationTime: "2024-05-17T09:30:00.123456+00:00",
      alias: "flowers",
    },
    {
      tag: { name: "iris_large", version: "v1" },
      module: "bentoml.onnx",
      creationTime: "2024-05-17T09:30:00+00:00",
    },
  ],
  envs: [{ name: "MODE", value: "fast", stage: "runtime" }],
  docker: {
    distro: "debian",
    baseImage: "node:24",
    nodeVersion: "24.11",
    cudaVersion: "13.9",
    env: { A: "b c" },
    systemPackages: ["git", "libgomp1"],
    setupScript: "setup.sh",
    dockerfileTemplate: "Dockerfile.hbs",
    platforms: ["linux/arm64", "linux/amd64"],
  },
  node: { manager: "pnpm", version: "10.34.9", settings: { registry: "https://r.example/" } },
  selfTest: true,
  runners: [
    { name: "a", model: "iris:abc", methods: ["run"] },
    { name: "b", model: "flowers", methods: ["run"] },
    { name: "c", model: "iris_large", methods: [] },
  ],
  apis: [
    {
      name: "classify",
      route: "/classify",
      doc: null,
      input: {
        kind: "ndarray",
        mediaType: "application/json",
        schema: { type: "array", maxItems: 9007199254740991 },
      },
      output: {
        kind: "text",
        mediaType: "text/plain",
        schema: { const: 1, maximum: 1e300, "10": [null, { "2": 1.5 }] },
      },
    },
  ],
}

test("a Bento is read as it was written", () => {
  assert.deepEqual(parseBentoYaml(formatBentoYaml(FULL), "bento.yaml"), FULL)
  const git = { revision: "0123456789".repeat(4), isDirty: true, url: "https://example.com/a/b" }
  const known = { ...FULL, git, license: "MIT" }
  assert.deepEqual(parseBentoYaml(formatBentoYaml(known), "bento.yaml"), known)
  const empty = aBento({ name: "a", version: "b" })
  assert.deepEqual(parseBentoYaml(formatBentoYaml(empty), "bento.yaml"), empty)
})

test("bento.yaml has BentoML's keys in the order of spec 1, and ours last", () => {
  const { value } = readYaml(formatBentoYaml(FULL), "bento.yaml")
  assert(typeof value === "object" && value !== null)
  assert.equal(
    Object.keys(value).join(" "),
    "service name version bentoml_version creation_time labels models entry_service services envs schema args spec " +
      "runners apis docker python conda bentoctl",
  )
  const text = formatBentoYaml(FULL)
  assert.match(text, /^docker:\n {2}distro: debian\n {2}python_version: null\n {2}cuda_version: null\n/m)
  assert.match(text, /^spec: 1$/m)
})

test("a runner names the exact models that it got", () => {
  const { value } = readYaml(formatBentoYaml(FULL), "bento.yaml")
  assert(typeof value === "object" && value !== null && "runners" in value && Array.isArray(value.runners))
  assert.deepEqual(
    value.runners.map((runner: { models: unknown }) => runner.models),
    [["iris:abcdef"], ["iris:abcdef"], ["iris_large:v1"]],
  )
})

test("Bentos that BentoML wrote are read, old and new", () => {
  const paths = globSync(join(FIXTURES, "bentoml-home/bentos/*/*/bento.yaml"))
  assert(paths.length > 0)
  for (const path of paths) {
    const bento = parseBentoYaml(readFileSync(path, "utf8"), path)
    assert(path.endsWith(join(bento.tag.name, bento.tag.version, "bento.yaml")))
    assert.equal(bento.bentoctlVersion, "")
    assert(bento.models.length > 0)
  }
})

test("models of before 1.0 are plain tags", () => {
  const bento = parseBentoYaml(
    "name: a\nversion: b\ncreation_time: '2022-01-01T00:00:00+00:00'\nmodels: ['iris:v1']\n",
    "x",
  )
  assert.deepEqual(bento.models, [
    { tag: { name: "iris", version: "v1" }, module: "unknown", creationTime: "0001-01-01T00:00:00+00:00" },
  ])
})

test("every problem of a Bento is told with its line", () => {
  const text = formatBentoYaml({ ...FULL, git: { revision: "HEAD", isDirty: false, url: null } })
    .replace("stage: runtime", "stage: later")
    .replace("kind: ndarray", "kind: image")
    .replace("tag: iris:abcdef", "tag: iris")
    .replace("manager: pnpm", "manager: bun")
    .replace("version: 10.34.9", "version: latest")
    .replace("registry: https://r.example/", 'registry: "a\\nb"')
  assert.throws(
    () => parseBentoYaml(text, "bento.yaml"),
    (error) => {
      assert(error instanceof IssueError)
      const lines = text.split("\n")
      assert.deepEqual(
        error.issues.map((issue) => [issue.field, lines[(issue.line ?? 0) - 1]?.trim().replace(/^- /, "")]),
        [
          ["models.0.tag", "tag: iris"],
          ["envs.0.stage", "stage: later"],
          ["bentoctl.git.revision", "revision: HEAD"],
          ["bentoctl.apis.0.input.kind", "kind: image"],
          ["bentoctl.node.manager", "manager: bun"],
          ["bentoctl.node.version", "version: latest"],
          ["bentoctl.node.settings.registry", 'registry: "a\\nb"'],
        ],
      )
      return true
    },
  )
})
