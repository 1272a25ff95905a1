import assert from "node:assert/strict"
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { describe, test } from "node:test"
import fc from "fast-check"
import { dockerfileOf } from "../../images/context.ts"
import type { ModelWithFacts } from "../../images/facts.ts"
import { planImage, printablePlan } from "../../images/plan.ts"
import type { PlanOptions } from "../../images/plan.ts"
import { parseBentoYaml } from "../../store/bento.ts"
import type { Bento } from "../../store/bento.ts"
import { BentoError } from "../../store/errors.ts"
import { preparedName } from "../../store/prepared.ts"
import { YamlScalar } from "../../store/pyyaml.ts"
import { parseDockerfile, parsePair } from "./dockerfile.ts"
import { bentoOf as bento, planned, planOptions as options, root } from "./support.ts"

describe("the Dockerfile of each decision equals its golden file", () => {
  const decisions: Record<string, PlanOptions> = {
    cpu: options(bento()),
    "cpu-two-models": options(bento(), {
      models: [planned("iris", "v1", "/m/iris/v1"), planned("digits", "v2", "/m/digits/v2")],
    }),
    cuda: options(bento({ cudaVersion: "12.8.1" })),
    "cuda-mirrored-base": options(
      bento({ cudaVersion: "12.6.3", baseImage: "mirror.local:5000/nvidia/cuda:12.6.3" }),
    ),
    "custom-base": options(bento({ baseImage: "registry.local/team/node:24@sha256:" + "0".repeat(64) })),
    "system-packages": options(bento({ systemPackages: ["curl", "libgomp1=12.2.0-14"] })),
    distroless: options(bento({ distro: "distroless", env: { A: "1" } })),
    ubi9: options(
      bento(
        { distro: "ubi9", systemPackages: ["libgomp", "openssl-libs-3.2.2"], setupScript: "setup.sh" },
        { envs: [{ name: "PIP_TOKEN", value: "not in this file", stage: "build" }] },
      ),
    ),
    "setup-script": options(bento({ setupScript: "setup.sh" })),
    "setup-script-of-files": options(
      bento({ setupScript: "setup.sh" }, { envs: [{ name: "PIP_TOKEN", value: "x", stage: "build" }] }),
      { setupScript: '#!/bin/sh\nls "$BENTO_PATH"\n' },
    ),
    "large-sources": options(bento(), { sourceBytes: 600_000 }),
    packages: options(bento({}, { node: { manager: "pnpm", version: "10.34.9", settings: {} } })),
    env: options(
      bento(
        { env: { GREETING: 'say "hi" to $USER \\', EMPTY: "" } },
        {
          envs: [
            { name: "ALWAYS", value: "1", stage: "all" },
            { name: "SERVING", value: "a b", stage: "runtime" },
            { name: "PIP_TOKEN", value: "not in this file", stage: "build" },
          ],
        },
      ),
    ),
    everything: options(
      bento(
        { systemPackages: ["curl"], setupScript: "setup.sh", env: { A: "1" }, cudaVersion: "12.8.1" },
        {
          envs: [{ name: "PIP_TOKEN", value: "not in this file", stage: "build" }],
          node: { manager: "npm", version: "", settings: {} },
        },
      ),
    ),
  }
  const check = (name: string, text: string): void => {
    const file = path.join(root, "test/golden", `${name}.Dockerfile`)
    if (process.env["UPDATE_GOLDEN"] === "1") writeFileSync(file, text)
    assert.equal(text, readFileSync(file, "utf8"))
  }
  for (const [name, given] of Object.entries(decisions)) {
    test(name, async () => check(name, await dockerfileOf(planImage(given))))
  }
  for (const name of ["everything", "packages", "system-packages"] as const) {
    test(`the foundation of ${name}, which is how the whole begins`, async () => {
      const plan = planImage(decisions[name] ?? assert.fail())
      const foundation = await dockerfileOf(plan, "foundation")
      check(`${name}-foundation`, foundation)
      assert.ok((await dockerfileOf(plan)).startsWith(foundation.trimEnd()))
    })
  }
})

function labelsOf(given: PlanOptions): Record<string, string> {
  const { labels } = planImage(given).dockerfile.config
  return Object.fromEntries(labels.map(({ name, value }) => [name, value]))
}

describe("a plan", () => {
  test("is plain JSON, and the same for the same Bento", () => {
    const plan = planImage(options(bento()))
    assert.deepEqual(JSON.parse(JSON.stringify(plan)), plan)
    assert.deepEqual(planImage(options(bento())), plan)
  })

  test("has the manifests as JSON too, by the digest of the YAML, and what the Bento has prepared", () => {
    const envs = [{ name: "TOKEN", value: "hidden", stage: "build" as const }]
    const given = options(bento({}, { envs }), { prepared: { "0.js": "let x" } })
    const files = planImage(given).layers.at(-1)?.files ?? []
    const texts = new Map(files.flatMap((file) => (file.kind === "text" ? [[file.to, file.text]] : [])))
    const yaml = texts.get("bento/bento.yaml") ?? assert.fail()
    const json = texts.get(`bento/prepared/${preparedName(yaml, "json")}`) ?? assert.fail()
    assert.deepEqual(JSON.parse(json), JSON.parse(JSON.stringify(parseBentoYaml(yaml, "bento.yaml"))))
    const [model] = given.models
    assert.deepEqual(
      JSON.parse(texts.get(`bento/prepared/${model?.facts.manifest}.json`) ?? ""),
      model?.model,
    )
    assert.equal(texts.get("bento/prepared/0.js"), "let x")
    assert.ok(![...texts.values()].some((text) => text.includes("hidden")))
    const odd = {
      ...model?.model,
      metadata: { accuracy: new YamlScalar("float", "1.0") },
    } as ModelWithFacts["model"]
    const other = planImage({ ...given, models: [{ ...(model ?? assert.fail()), model: odd }] })
    assert.equal(other.layers.at(-1)?.files.length, files.length - 1)
  })

  test("names the image after the Bento, unless told otherwise", () => {
    assert.deepEqual(planImage(options(bento())).tags, [
      "iris_classifier:u2swufhfec6rgax4",
      "iris_classifier:latest",
    ])
    const tags = ["registry.local:5000/team/iris:1", "iris"]
    assert.deepEqual(planImage(options(bento(), { tags })).tags, tags)
  })

  for (const tag of [
    "Iris:1",
    "a b",
    "iris:",
    "iris@sha256:" + "0".repeat(64),
    "-t",
    "a:b\nc",
    "https://x/y",
  ]) {
    test(`refuses the image name ${JSON.stringify(tag)}`, () => {
      assert.throws(
        () => planImage(options(bento(), { tags: [tag] })),
        (error) => error instanceof BentoError && error.code === "TAG_INVALID",
      )
    })
  }

  test("chooses the base: the Bento's, else the one given, else node's slim image", () => {
    assert.deepEqual(planImage(options(bento())).baseImages, ["node:24-bookworm-slim"])
    assert.deepEqual(planImage(options(bento(), { baseImage: "my/node:24" })).baseImages, ["my/node:24"])
    assert.deepEqual(
      planImage(options(bento({ nodeVersion: "24.11" }), { baseImage: "my/node:24" })).baseImages,
      ["node:24.11-bookworm-slim"],
    )
    assert.deepEqual(
      planImage(options(bento({ distro: "distroless" }), { baseImage: "my/node:24" })).baseImages,
      ["gcr.io/distroless/nodejs24-debian12"],
    )
    assert.deepEqual(planImage(options(bento({ distro: "ubi9", nodeVersion: "26" }))).baseImages, [
      "registry.access.redhat.com/ubi9/nodejs-26-minimal",
    ])
    const own = planImage(options(bento({ baseImage: "a/b:c" }), { baseImage: "my/node:24" }))
    assert.deepEqual(own.baseImages, ["a/b:c"])
  })

  test("needs node's image beside NVIDIA's for CUDA, and refuses CUDA on arm64", () => {
    const plan = planImage(options(bento({ cudaVersion: "12.8.1" })))
    assert.deepEqual(plan.baseImages, [
      "node:24-bookworm-slim",
      "nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04",
    ])
    assert.throws(
      () => planImage(options(bento({ cudaVersion: "12.8.1" }), { platform: "linux/arm64" })),
      /docker\.cuda_version: ONNX Runtime has CUDA libraries for linux\/amd64 only/,
    )
  })

  test("is for the first of the Bento's platforms, and for no other than these", () => {
    const given = bento({ platforms: ["linux/arm64"] })
    assert.equal(planImage(options(given)).platform, "linux/arm64")
    assert.throws(
      () => planImage(options(given, { platform: "linux/amd64" })),
      /cannot be built for linux\/amd64:\s+docker\.platforms: it is for linux\/arm64 only/,
    )
  })

  test("starts Node without a shell where there is none", () => {
    const { config } = planImage(options(bento({ distro: "distroless" }))).dockerfile
    assert.equal(config.entrypoint[0], "/nodejs/bin/node")
    assert.equal(config.healthcheck.command[0], "/nodejs/bin/node")
  })

  test("makes one layer of a model that is listed under two aliases", () => {
    const one = planned("iris", "v1", "/m")
    assert.equal(planImage(options(bento(), { models: [one, one] })).dockerfile.models.length, 1)
  })

  test("keeps build-time values out of the Dockerfile, the image's bento.yaml and what is printed", async () => {
    const given = bento(
      { systemPackages: ["curl"] },
      { envs: [{ name: "TOKEN", value: "s3cr3t", stage: "build" }] },
    )
    const plan = planImage(options(given))
    assert.deepEqual(plan.stepFiles.at(-1), {
      kind: "secret",
      to: "build-env/env",
      values: [{ name: "TOKEN", value: "s3cr3t" }],
    })
    assert.doesNotMatch((await dockerfileOf(plan)) + JSON.stringify(printablePlan(plan)), /s3cr3t/)
    assert.match(JSON.stringify(plan.layers), /name: TOKEN/)
  })

  test("runs a setup script first, which lets the rest be assembled; one that names where the Bento lies, last", () => {
    for (const [script, expected] of [
      ["mkdir -p /home/bentoml /opt/tool; chown 7 /home/bentoml/bento-tools", ["first", "auto"]],
      ["ls ${BENTO_PATH}/src", ["last", "dockerfile"]],
      ["#!/usr/bin/env node\nfs.readdirSync(process.env.BENTO_PATH)", ["last", "dockerfile"]],
      ["chmod +x /home/bentoml/bento/src/tool", ["last", "dockerfile"]],
      ["cd /home/bentoml/bento", ["last", "dockerfile"]],
    ] as const) {
      const { dockerfile, builder } = planImage(options(bento({ setupScript: "s" }), { setupScript: script }))
      assert.deepEqual([dockerfile.setupScript, builder], expected, script)
    }
    assert.equal(planImage(options(bento(), { setupScript: "ls $BENTO_PATH" })).dockerfile.setupScript, null)
  })

  test("keeps credentials of registries in one file of the step, which is not printed", async () => {
    const given = bento({}, { node: { manager: "npm", version: "", settings: { registry: "https://r/" } } })
    const plan = planImage(options(given, { npmrc: "//r/:_authToken=s3cr3t\n" }))
    assert.ok(plan.runs)
    const credentials = plan.stepFiles.filter((file) => JSON.stringify(file).includes("s3cr3t"))
    assert.deepEqual(
      credentials.map(({ kind, to }) => [kind, to]),
      [["credentials", "packages-step/npmrc"]],
    )
    const shown =
      (await dockerfileOf(plan)) + JSON.stringify([printablePlan(plan), plan.layers, plan.dockerfile])
    assert.doesNotMatch(shown, /s3cr3t/)
    const settings = plan.stepFiles.find(({ to }) => to === "packages/.npmrc")
    assert.deepEqual(settings, { kind: "text", to: "packages/.npmrc", text: "registry=https://r/\n" })
  })

  test("installs packages for CUDA on node's image, and for the image's processor", () => {
    const node = { manager: "npm", version: "", settings: {} } as const
    const cuda = planImage(options(bento({ cudaVersion: "12.8.1" }, { node })))
    assert.equal(cuda.dockerfile.packages?.image, "node:24-bookworm-slim")
    const arm = planImage(options(bento({ baseImage: "a/b:c" }, { node }), { platform: "linux/arm64" }))
    assert.deepEqual(arm.dockerfile.packages, { image: "a/b:c", command: ["npm", "", "arm64"] })
  })

  test("takes a build-time value from the environment first, and none where nothing runs", () => {
    const envs = [{ name: "TOKEN", value: "", stage: "build" }] as const
    const plan = planImage(options(bento({ setupScript: "s" }, { envs }), { buildEnv: { TOKEN: "outside" } }))
    assert.deepEqual(plan.stepFiles.at(-1), {
      kind: "secret",
      to: "build-env/env",
      values: [{ name: "TOKEN", value: "outside" }],
    })
    const idle = planImage(options(bento({}, { envs }), { buildEnv: { TOKEN: "outside" } }))
    assert.doesNotMatch(JSON.stringify(idle), /outside/)
  })

  test("labels the image for registries: OCI's names, the Bento's labels, what it serves", () => {
    assert.deepEqual(labelsOf(options(bento())), {
      "bentoctl.apis":
        '[{"name":"classify","route":"/classify","input":"application/json","output":"application/json"}]',
      "bentoctl.bento": "iris_classifier:u2swufhfec6rgax4",
      "bentoctl.models": '[{"tag":"iris:v1","files":{},"signatures":{}}]',
      "bentoctl.onnxruntime": "1.30.0",
      "bentoctl.sbom": "/home/bentoml/bento/sbom.cdx.json",
      "bentoctl.service": "service.ts:svc",
      "bentoctl.version": "0.1.0",
      "org.opencontainers.image.base.name": "node:24-bookworm-slim",
      "org.opencontainers.image.created": "2026-01-02T03:04:05.678901Z",
      "org.opencontainers.image.description": "Iris",
      "org.opencontainers.image.title": "iris_classifier",
      "org.opencontainers.image.version": "u2swufhfec6rgax4",
      owner: "team a",
    })
  })

  test("labels the image with where it comes from: the commit, marked if the folder held more, its repository, a licence, a pinned base", () => {
    const git = { revision: "a".repeat(40), isDirty: true, url: "https://git.example.com/team/iris" }
    const baseImage = `node:24@sha256:${"0".repeat(64)}`
    const given = bento({ baseImage }, { git, license: "MIT OR Apache-2.0" })
    const oci = "org.opencontainers.image"
    const found = labelsOf(options(given))
    assert.deepEqual(
      ["revision", "source", "licenses", "base.name", "base.digest"].map((name) => found[`${oci}.${name}`]),
      [`${git.revision}-dirty`, git.url, "MIT OR Apache-2.0", baseImage, `sha256:${"0".repeat(64)}`],
    )
    const clean = bento(
      {},
      { git: { ...git, isDirty: false, url: null }, labels: { [`${oci}.revision`]: "mine" } },
    )
    assert.equal(labelsOf(options({ ...clean, labels: {} }))[`${oci}.revision`], git.revision)
    assert.equal(labelsOf(options(clean))[`${oci}.revision`], "mine")
    assert.ok(!(`${oci}.source` in labelsOf(options(clean))))
  })

  test("labels the image with its models' digests and signatures, and its OpenAPI document, as long as they are short", async () => {
    const one = planned("iris", "v1", "/m")
    const tensor = (name: string, elemType: number) => ({
      name,
      type: { tensorType: { elemType, shape: { dim: [{}, { dimValue: "4" }] } } },
    })
    const model = {
      ...one.model,
      options: { input_specs: { run: [tensor("X", 1)] }, output_specs: { run: [tensor("label", 7)] } },
      signatures: { run: { batchable: true, batchDim: [0, 0] as const } },
    }
    const facts = {
      files: [{ path: "saved_model.onnx", sha256: "ab" }],
      manifest: "a".repeat(64),
      origin: { producer: "skl2onnx 1.20", opsets: { "ai.onnx": 21 } },
    }
    const openapi = { openapi: "3.1.0", info: { title: "\u007f\n" } }
    const given = { ...options(bento()), models: [{ ...one, model, facts }], openapi }
    const labels = labelsOf(given)
    assert.deepEqual(JSON.parse(labels["bentoctl.openapi"] ?? ""), openapi)
    assert.deepEqual(JSON.parse(labels["bentoctl.models"] ?? ""), [
      {
        tag: "iris:v1",
        files: { "saved_model.onnx": "sha256:ab" },
        producer: "skl2onnx 1.20",
        opsets: { "ai.onnx": 21 },
        signatures: {
          run: {
            batchable: true,
            inputs: [{ name: "X", dtype: "float32", shape: [null, 4] }],
            outputs: [{ name: "label", dtype: "int64", shape: [null, 4] }],
          },
        },
      },
    ])
    const files = Array.from({ length: 1000 }, (_, index) => ({
      path: `weights${index}`,
      sha256: "0".repeat(64),
    }))
    const long = labelsOf({
      ...given,
      models: [{ ...one, model, facts: { ...facts, files, origin: null } }],
      openapi: { info: '"'.repeat(30_000) },
    })
    assert.deepEqual([long["bentoctl.models"], "bentoctl.openapi" in long], ['[{"tag":"iris:v1"}]', false])
    // The longest that there may be still is a line of a Dockerfile.
    const longest = await dockerfileOf(planImage({ ...given, openapi: { info: '"'.repeat(14_990) } }))
    assert.ok(longest.includes('LABEL "bentoctl.openapi"'))
    for (const line of longest.split("\n")) assert.ok(Buffer.byteLength(line) < 65_536)
  })

  test("is refused for a Bento of another tool that holds what cannot stand in a Dockerfile", () => {
    const hostile: Bento[] = [
      bento({ systemPackages: ["-o=x"] }),
      bento({ systemPackages: ["a b"] }),
      bento({ baseImage: "a:1\nRUN x" }),
      bento({ env: { A: "1\nRUN x" } }),
      bento({ env: { "A B": "1" } }),
      bento({ cudaVersion: "11.8" }),
      bento({ cudaVersion: "12.8", distro: "distroless" }),
      bento({ distro: "distroless", setupScript: "a" }),
      bento({ distro: "ubi9", systemPackages: ["-y"] }),
      bento({ nodeVersion: "24\nRUN x" }),
      bento({}, { labels: { "a\nb": "x" } }),
      bento({}, { labels: { a: "x\r" } }),
      bento({}, { envs: [{ name: "A=B", value: "", stage: "build" }] }),
      bento({}, { bentoctlVersion: "" }),
    ]
    for (const given of hostile) {
      assert.throws(
        () => planImage(options(given)),
        (error) => error instanceof BentoError && error.code === "MANIFEST_INVALID",
        JSON.stringify(given),
      )
    }
  })

  test("for any description and any legal label gives exactly that label", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.string({ unit: "binary" }),
        fc.string({ unit: "grapheme" }),
        async (description, value) => {
          const given = bento({}, { description, labels: { note: value } })
          let text: string
          try {
            text = await dockerfileOf(planImage(options(given)))
          } catch (error) {
            assert.ok(error instanceof BentoError && error.code === "MANIFEST_INVALID", String(error))
            return
          }
          const labels = parseDockerfile(text).filter(({ name }) => name === "LABEL")
          assert.equal(new Map(labels.map((label) => parsePair(label.text))).get("note"), value)
        },
      ),
      { numRuns: 200 },
    )
  })
})
