import assert from "node:assert/strict"
import { describe, test } from "node:test"
import type { HistoryEntry, ImageInfo } from "../../images/builder.ts"
import { diffImages, inspectImage } from "../../images/inspect.ts"
import type { Answers } from "../../images/inspect.ts"
import { tarStream } from "../../images/tar.ts"
import { BentoError } from "../../store/errors.ts"

interface Fake {
  readonly labels?: Readonly<Record<string, string>>
  readonly env?: readonly string[]
  /** [instruction, bytes, digest of its layer or none] */
  readonly history: readonly (readonly [string, number, string?])[]
  readonly source?: Readonly<Record<string, string>>
}

function engineOf(images: Readonly<Record<string, Fake>>): Answers {
  const found = (id: string): Fake => images[id] ?? assert.fail(id)
  return {
    inspect: (reference): Promise<ImageInfo | null> => {
      const image = images[reference]
      if (image === undefined) return Promise.resolve(null)
      return Promise.resolve({
        id: reference,
        os: "linux",
        architecture: "amd64",
        variant: null,
        layers: image.history.flatMap(([, , digest]) => digest ?? []),
        config: { Labels: image.labels ?? null, Env: image.env ?? null },
        repoDigests: [],
        sizeBytes: 42,
      })
    },
    history: (id): Promise<HistoryEntry[]> =>
      Promise.resolve(
        found(id).history.map(([createdBy, sizeBytes]) => ({
          createdS: 0,
          createdBy,
          comment: "",
          sizeBytes,
        })),
      ),
    readPaths: async ({ id }, _, read) => {
      const files = Object.entries(found(id).source ?? {}).map(([name, text]) => ({
        header: { type: "file", name: `src/${name}`, mode: 0o644, size: text.length } as const,
        body: [Buffer.from(text)],
      }))
      return [await read(tarStream(files))]
    },
  }
}

const BENTO = "/home/bentoml/bento"
const labels = {
  "bentoctl.bento": "iris:v1",
  "bentoctl.models": '[{"tag":"clf:m1","files":{"saved_model.onnx":"sha256:aa"}}]',
}
const assembled: Fake = {
  labels,
  env: ["A=1", "B=x=y"],
  history: [
    ["/bin/sh -c #(nop) ADD file:1 in / ", 1000, "base"],
    ['/bin/sh -c #(nop)  CMD ["bash"]', 0],
    ["bentoctl: runtime (ONNX Runtime 1.30.0, linux/amd64) in /opt/bentoctl/", 100, "runtime"],
    [`bentoctl: model clf:m1 in ${BENTO}/models/clf/m1/`, 10, "model"],
    [`bentoctl: source and metadata in ${BENTO}/`, 2, "bento"],
    ["container config", 0],
  ],
  source: { "service.ts": "1", "old.ts": "1" },
}
const built: Fake = {
  labels,
  history: [
    ["ADD file:1 in /", 1000, "base"],
    ["USER 0:0", 0],
    ["ENV A=1", 0],
    ["RUN /bin/sh -c set -eu;     apt-get update # buildkit", 50, "step"],
    ["COPY /home/bentoml/node_modules/ /home/bentoml/node_modules/ # buildkit", 20, "packages"],
    ["COPY runtime/ /opt/bentoctl/ # buildkit", 100, "runtime2"],
    [`COPY /models/ ${BENTO}/models/clf/m1/ # buildkit`, 10, "model2"],
    [`COPY bento/ ${BENTO}/ # buildkit`, 2, "bento2"],
    [`WORKDIR ${BENTO}`, 0, "workdir"],
    ["USER 1034:1034", 0],
  ],
}

describe("an image of a Bento", () => {
  test("has layers by cause, whichever builder made it, and each knows its digest", async () => {
    const engine = engineOf({ assembled, built })
    const causes = async (name: string) =>
      (await inspectImage(name, engine)).layers.map(({ cause, digest, sizeBytes }) => [
        cause,
        digest,
        sizeBytes,
      ])
    assert.deepEqual(await causes("assembled"), [
      ["base", "base", 1000],
      ["runtime", "runtime", 100],
      ["model", "model", 10],
      ["bento", "bento", 2],
    ])
    assert.deepEqual(await causes("built"), [
      ["base", "base", 1000],
      ["step", "step", 50],
      ["packages", "packages", 20],
      ["runtime", "runtime2", 100],
      ["model", "model2", 10],
      ["bento", "bento2", 2],
      ["step", "workdir", 0],
    ])
  })

  test("has its sources in a layer of their own where they are large, and that alone tells whether they changed", async () => {
    const lines = [
      [`bentoctl: source in ${BENTO}/src/`, `bentoctl: metadata in ${BENTO}/`],
      [`COPY bento/src/ ${BENTO}/src/ # buildkit`, `COPY metadata/ ${BENTO}/ # buildkit`],
    ] as const
    for (const [source, metadata] of lines) {
      const image = (digest: string): Fake => ({
        labels,
        history: [
          ["ADD base", 1000, "base"],
          ["USER 0:0", 0],
          [source, 9, "source"],
          [metadata, 2, digest],
        ],
        source: { "service.ts": digest },
      })
      const engine = engineOf({ before: image("one"), after: image("two") })
      const { layers } = await inspectImage("before", engine)
      assert.deepEqual(
        layers.slice(1).map(({ cause, name }) => [cause, name]),
        [
          ["source", "source"],
          ["bento", "metadata"],
        ],
      )
      const diff = await diffImages(["before", "after"], engine)
      assert.deepEqual(diff.source, [], "it does not even look")
      assert.equal(diff.fetchBytes, 2)
    }
  })

  test("has layers without digests where the history does not say which lines made them", async () => {
    const odd = { ...assembled, history: [...assembled.history, ["COPY x /x", 0] as const] }
    const { layers } = await inspectImage("odd", engineOf({ odd }))
    assert.ok(layers.every(({ digest }) => digest === null))
    const { fetchBytes } = await diffImages(["odd", "odd"], engineOf({ odd }))
    assert.equal(fetchBytes, null)
  })

  test("is read though its labels are not what we write", async () => {
    const image = { ...assembled, labels: { ...labels, "bentoctl.models": "{" } }
    assert.deepEqual((await inspectImage("image", engineOf({ image }))).models, [])
  })
})

for (const [what, name, code] of [
  ["that is not there", "nothing", "IMAGE_NOT_FOUND"],
  ["of somebody else", "foreign", "IMAGE_FOREIGN"],
] as const) {
  test(`an image ${what} is told so`, async () => {
    const engine = engineOf({ foreign: { history: [] }, assembled })
    const isThat = (error: unknown): boolean => error instanceof BentoError && error.code === code
    await assert.rejects(inspectImage(name, engine), isThat)
    await assert.rejects(diffImages(["assembled", name], engine), isThat)
  })
}

describe("two images", () => {
  test("that are one have nothing changed and nothing to fetch", async () => {
    const diff = await diffImages(["assembled", "assembled"], engineOf({ assembled }))
    for (const what of ["base", "runtime", "models", "source", "env", "labels"] as const)
      assert.deepEqual(diff[what], [])
    assert.equal(diff.fetchBytes, 0)
  })

  test("differ in what was changed; only layers that the first lacks are fetched, wherever they lie", async () => {
    const after: Fake = {
      labels: {
        "bentoctl.bento": "iris:v2",
        "bentoctl.models": '[{"tag":"clf:m1","files":{"saved_model.onnx":"sha256:aa"}},{"tag":"more:m2"}]',
      },
      env: ["A=2", "B=x=y", "C="],
      history: [
        ...assembled.history.slice(0, 3),
        [`bentoctl: model more:m2 in ${BENTO}/models/more/m2/`, 500, "more"],
        [`bentoctl: model clf:m1 in ${BENTO}/models/clf/m1/`, 10, "model"],
        [`bentoctl: source and metadata in ${BENTO}/`, 5, "bento3"],
      ],
      source: { "service.ts": "2", "new.ts": "1" },
    }
    const diff = await diffImages(["assembled", "after"], engineOf({ assembled, after }))
    assert.deepEqual([diff.base, diff.runtime], [[], []])
    assert.deepEqual(diff.models, [{ name: "more:m2", before: null, after: "more" }])
    assert.deepEqual(
      diff.source.map(({ name, before, after: now }) => [name, before === null, now === null]),
      [
        ["src/new.ts", true, false],
        ["src/old.ts", false, true],
        ["src/service.ts", false, false],
      ],
    )
    assert.deepEqual(diff.env, [
      { name: "A", before: "1", after: "2" },
      { name: "C", before: null, after: "" },
    ])
    assert.deepEqual(
      diff.labels.map(({ name }) => name),
      ["bentoctl.bento", "bentoctl.models"],
    )
    assert.deepEqual(
      diff.layers.filter(({ isFetched }) => isFetched).map(({ digest }) => digest),
      ["more", "bento3"],
    )
    assert.equal(diff.fetchBytes, 505)
  })
})
