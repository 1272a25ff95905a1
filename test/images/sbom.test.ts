import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { Spec, Validation } from "@cyclonedx/cyclonedx-library"
import { lockedPackages } from "../../images/facts.ts"
import { formatSbom } from "../../images/sbom.ts"
import type { SbomParts } from "../../images/sbom.ts"

const parts: SbomParts = {
  bento: { name: "iris", version: "v1" },
  createdAt: "2026-01-02T03:04:05.678901Z",
  license: "(MIT OR Apache-2.0)",
  git: { revision: "a".repeat(40), isDirty: true, url: "git@example.com:team/iris.git" },
  path: "/home/bentoml/bento/",
  baseImages: ["node:24", `registry.example.com:5000/team/cuda@sha256:${"0".repeat(64)}`],
  runtime: {
    path: "/opt/bentoctl/",
    version: "0.1.0",
    onnxruntimeVersion: "1.30.0",
    bundled: [
      { name: "hono", version: "4.13.19", license: "MIT" },
      { name: "odd", version: "1.0.0", license: "My own licence" },
    ],
    installed: [{ name: "onnxruntime-node", version: "1.30.0", license: null }],
    binaries: [{ path: "node_modules/onnxruntime-node/bin/x.so.1", sha256: "b".repeat(64) }],
  },
  models: [
    {
      tag: { name: "clf", version: "m1" },
      module: "bentoml.onnx",
      path: "/home/bentoml/bento/models/clf/m1/",
      facts: {
        files: [
          { path: "saved_model.onnx", sha256: "c".repeat(64) },
          { path: "weights.bin", sha256: "d".repeat(64) },
        ],
        manifest: "e".repeat(64),
        origin: { producer: "skl2onnx 1.20", opsets: { "ai.onnx": 21, "ai.onnx.ml": 1 } },
      },
    },
  ],
  systemPackages: ["curl", "libgomp1=12.2.0-14"],
  distro: "debian",
  packages: {
    path: "/home/bentoml/node_modules/",
    // One that is in the server, too.
    locked: [{ name: "hono", version: "4.13.19", license: "MIT" }],
  },
}
const known = {
  id: `sha256:${"e".repeat(64)}`,
  tags: ["iris:v1"],
  base: { id: `sha256:${"f".repeat(64)}`, repoDigests: [`node@sha256:${"1".repeat(64)}`] },
}

interface Bom {
  readonly components: readonly Record<string, unknown>[]
  readonly metadata: { readonly component: Record<string, unknown> }
}
const read = (text: string): Bom => JSON.parse(text) as Bom
const named = (bom: Bom, name: string): Record<string, unknown> =>
  bom.components.find((component) => component["name"] === name) ?? assert.fail(name)

describe("a bill of materials", () => {
  for (const [what, text] of [
    ["in the image", formatSbom(parts)],
    ["beside it", formatSbom(parts, known)],
    [
      "of next to nothing",
      formatSbom({
        ...parts,
        license: null,
        git: null,
        models: [],
        systemPackages: [],
        packages: null,
        baseImages: ["a"],
      }),
    ],
  ] as const) {
    test(`${what} keeps to the official schema of CycloneDX 1.6`, async () => {
      assert.equal(await new Validation.JsonStrictValidator(Spec.Version.v1dot6).validate(text), null)
    })
  }

  test("is the same text each time, without a serial number and without a clock's time", () => {
    assert.equal(formatSbom(parts), formatSbom(structuredClone(parts)))
    assert.doesNotMatch(formatSbom(parts), /serialNumber/)
    assert.match(formatSbom(parts), /"timestamp": "2026-01-02T03:04:05.678Z"/)
  })

  test("has a component for each cause, and no name twice", () => {
    const bom = read(formatSbom(parts))
    assert.deepEqual(
      bom.components.map(({ type, name, version }) => [type, name, version]),
      [
        ["container", "node", "24"],
        ["container", "registry.example.com:5000/team/cuda", `sha256:${"0".repeat(64)}`],
        ["library", "curl", undefined],
        ["library", "libgomp1", "12.2.0-14"],
        ["library", "node_modules", undefined],
        ["application", "bentoctl-runtime", "0.1.0"],
        ["library", "onnxruntime-node", "1.30.0"],
        ["library", "onnxruntime", "1.30.0"],
        ["machine-learning-model", "clf", "m1"],
        ["application", "iris", "v1"],
      ],
    )
    const refs = formatSbom(parts).match(/"bom-ref": ".*"/g) ?? []
    assert.equal(new Set(refs).size, refs.length)
  })

  test("says of a model its digests, its producer and its operators' versions", () => {
    const model = named(read(formatSbom(parts)), "clf")
    assert.deepEqual(model["hashes"], [{ alg: "SHA-256", content: "c".repeat(64) }])
    assert.deepEqual(model["properties"], [
      { name: "bentoctl:path", value: "/home/bentoml/bento/models/clf/m1/" },
      { name: "bentoctl:model:module", value: "bentoml.onnx" },
      { name: "bentoctl:model:producer", value: "skl2onnx 1.20" },
      { name: "bentoctl:model:opset", value: "ai.onnx 21" },
      { name: "bentoctl:model:opset", value: "ai.onnx.ml 1" },
    ])
    assert.deepEqual(
      (model["components"] as { name: string }[]).map(({ name }) => name),
      ["/home/bentoml/bento/models/clf/m1/saved_model.onnx", "/home/bentoml/bento/models/clf/m1/weights.bin"],
    )
  })

  test("has licences as SPDX knows them, and as they are written where it does not", () => {
    const bom = read(formatSbom(parts))
    assert.deepEqual(named(bom, "iris")["licenses"], [{ expression: "(MIT OR Apache-2.0)" }])
    const bundled = named(bom, "bentoctl-runtime")["components"] as { licenses: object[] }[]
    assert.deepEqual(
      bundled.map(({ licenses }) => licenses),
      [[{ license: { id: "MIT" } }], [{ license: { name: "My own licence" } }]],
    )
  })

  test("outside of the image also says what the engine knows: the image's id, and the base's id and digests", () => {
    const text = formatSbom(parts, known)
    for (const value of [known.id, known.base.id, ...known.base.repoDigests])
      assert.ok(text.includes(value), value)
    for (const value of [known.id, known.base.id]) assert.ok(!formatSbom(parts).includes(value))
  })
})

describe("the packages of a lock file", () => {
  const expected = [
    { name: "@a/b", version: "1.0.0", license: null },
    { name: "left", version: "2.0.0-rc.1", license: null },
  ]
  for (const [name, text] of Object.entries({
    "package-lock.json": JSON.stringify({
      lockfileVersion: 3,
      packages: {
        "": { name: "mine", version: "1.0.0" },
        "node_modules/left": { version: "2.0.0-rc.1" },
        "node_modules/left/node_modules/@a/b": { version: "1.0.0" },
        "node_modules/only-for-tests": { version: "1.0.0", dev: true },
        "node_modules/mine-too": { link: true },
      },
    }),
    "pnpm-lock.yaml": `lockfileVersion: '9.0'
packages:
  '@a/b@1.0.0':
    resolution: {integrity: x}
  left@2.0.0-rc.1(@a/b@1.0.0):
    resolution: {integrity: x}
`,
    "yarn.lock": `# yarn lockfile v1

"@a/b@^1.0.0", "@a/b@1":
  version "1.0.0"

left@2.0.0-rc.1:
  version "2.0.0-rc.1"
`,
  })) {
    test(`${name} are found`, () =>
      assert.deepEqual(lockedPackages({ [name]: text, "package.json": "{}" }), expected))
  }

  test("of newer Yarn are found, and the project itself is none", () => {
    const text = `__metadata:
  version: 8

"@a/b@npm:^1.0.0":
  version: 1.0.0
  resolution: "@a/b@npm:1.0.0"

"left@npm:2.0.0-rc.1":
  version: 2.0.0-rc.1

"mine@workspace:.":
  version: 0.0.0-use.local
`
    assert.deepEqual(lockedPackages({ "yarn.lock": text }), expected)
  })
})
