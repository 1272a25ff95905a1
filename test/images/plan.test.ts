import assert from "node:assert/strict"
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { describe, test } from "node:test"
import fc from "fast-check"
import { dockerfileOf } from "../../images/context.ts"
import { planImage, printablePlan } from "../../images/plan.ts"
import type { PlanOptions } from "../../images/plan.ts"
import type { Bento } from "../../store/bento.ts"
import { BentoError } from "../../store/errors.ts"
import { parseDockerfile, parsePair } from "./dockerfile.ts"
import { bentoOf as bento, modelOf as model, planOptions as options, root } from "./support.ts"

describe("the Dockerfile of each decision equals its golden file", () => {
  const decisions: Record<string, PlanOptions> = {
    cpu: options(bento()),
    "cpu-two-models": options(bento(), {
      models: [
        { model: model("iris", "v1"), dir: "/m/iris/v1" },
        { model: model("digits", "v2"), dir: "/m/digits/v2" },
      ],
    }),
    cuda: options(bento({ cudaVersion: "12.8.1" })),
    "cuda-mirrored-base": options(
      bento({ cudaVersion: "12.6.3", baseImage: "mirror.local:5000/nvidia/cuda:12.6.3" }),
    ),
    "custom-base": options(bento({ baseImage: "registry.local/team/node:24@sha256:" + "0".repeat(64) })),
    "system-packages": options(bento({ systemPackages: ["curl", "libgomp1=12.2.0-14"] })),
    "setup-script": options(bento({ setupScript: "setup.sh" })),
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
    test(name, () => check(name, dockerfileOf(planImage(given))))
  }
  for (const name of ["everything", "packages", "system-packages"] as const) {
    test(`the foundation of ${name}, which is how the whole begins`, () => {
      const plan = planImage(decisions[name] ?? assert.fail())
      const foundation = dockerfileOf(plan, "foundation")
      check(`${name}-foundation`, foundation)
      assert.ok(dockerfileOf(plan).startsWith(foundation.trimEnd()))
    })
  }
})

describe("a plan", () => {
  test("is plain JSON, and the same for the same Bento", () => {
    const plan = planImage(options(bento()))
    assert.deepEqual(JSON.parse(JSON.stringify(plan)), plan)
    assert.deepEqual(planImage(options(bento())), plan)
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

  test("makes one layer of a model that is listed under two aliases", () => {
    const one = { model: model("iris", "v1"), dir: "/m" }
    assert.equal(planImage(options(bento(), { models: [one, one] })).dockerfile.models.length, 1)
  })

  test("keeps build-time values out of the Dockerfile, the image's bento.yaml and what is printed", () => {
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
    assert.doesNotMatch(dockerfileOf(plan) + JSON.stringify(printablePlan(plan)), /s3cr3t/)
    assert.match(JSON.stringify(plan.layers), /name: TOKEN/)
  })

  test("keeps credentials of registries in one file of the step, which is not printed", () => {
    const given = bento({}, { node: { manager: "npm", version: "", settings: { registry: "https://r/" } } })
    const plan = planImage(options(given, { npmrc: "//r/:_authToken=s3cr3t\n" }))
    assert.ok(plan.runs)
    const credentials = plan.stepFiles.filter((file) => JSON.stringify(file).includes("s3cr3t"))
    assert.deepEqual(
      credentials.map(({ kind, to }) => [kind, to]),
      [["credentials", "packages-step/npmrc"]],
    )
    const shown = dockerfileOf(plan) + JSON.stringify([printablePlan(plan), plan.layers, plan.dockerfile])
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
    const labels = Object.fromEntries(
      planImage(options(bento())).dockerfile.config.labels.map(({ name, value }) => [name, value]),
    )
    assert.deepEqual(labels, {
      "bentoctl.apis":
        '[{"name":"classify","route":"/classify","input":"application/json","output":"application/json"}]',
      "bentoctl.bento": "iris_classifier:u2swufhfec6rgax4",
      "bentoctl.models": '[{"tag":"iris:v1"}]',
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

  test("is refused for a Bento of another tool that holds what cannot stand in a Dockerfile", () => {
    const hostile: Bento[] = [
      bento({ systemPackages: ["-o=x"] }),
      bento({ systemPackages: ["a b"] }),
      bento({ baseImage: "a:1\nRUN x" }),
      bento({ env: { A: "1\nRUN x" } }),
      bento({ env: { "A B": "1" } }),
      bento({ cudaVersion: "11.8" }),
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

  test("for any description and any legal label gives exactly that label", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), fc.string({ unit: "grapheme" }), (description, value) => {
        const given = bento({}, { description, labels: { note: value } })
        let text: string
        try {
          text = dockerfileOf(planImage(options(given)))
        } catch (error) {
          assert.ok(error instanceof BentoError && error.code === "MANIFEST_INVALID", String(error))
          return
        }
        const labels = parseDockerfile(text).filter(({ name }) => name === "LABEL")
        assert.equal(new Map(labels.map((label) => parsePair(label.text))).get("note"), value)
      }),
      { numRuns: 200 },
    )
  })
})
