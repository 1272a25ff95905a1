import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import path from "node:path"
import { describe, test } from "node:test"
import { CUDA_IMAGES, DEFAULT_CUDA, ONNXRUNTIME_CUDA } from "../../images/cuda-images.ts"
import { cudaBaseImage, resolveCuda } from "../../images/cuda.ts"
import { root } from "./support.ts"

describe("docker.cuda_version", () => {
  // BentoML's own table of short forms.
  const short: Readonly<Record<string, string>> = {
    default: "12.8.1",
    "12": "12.8.1",
    "12.8": "12.8.1",
    "12.8.0": "12.8.0",
    "12.6": "12.6.3",
    "12.6.1": "12.6.1",
    "12.9": "12.9.1",
  }
  for (const [written, version] of Object.entries(short)) {
    test(`${written} is ${version}`, () => {
      assert.deepEqual(resolveCuda(written), { ok: true, version })
      assert.equal(cudaBaseImage(version), `nvidia/cuda:${version}-cudnn-runtime-ubuntu24.04`)
    })
  }

  for (const [written, holds] of Object.entries({
    "12.1": "CUDA 12.1.1 and cuDNN 8 (Ubuntu 22.04)",
    "12.0": "CUDA 12.0.1 and cuDNN 8 (Ubuntu 22.04)",
    "11": "CUDA 11.8.0 and cuDNN 8 (Ubuntu 22.04)",
    "11.2": "CUDA 11.2.2 and cuDNN 8 (Ubuntu 20.04)",
  })) {
    test(`${written} is refused, with what its image holds`, () => {
      const choice = resolveCuda(written)
      assert.ok(!choice.ok && choice.reason.includes(`holds ${holds}; use one of 12.9.1, 12.8.1`))
    })
  }

  for (const written of ["1", "12.", "12.4", "13", "12.8.1.0", "constructor", " 12"]) {
    test(`${JSON.stringify(written)} is no version`, () => assert.ok(!resolveCuda(written).ok))
  }

  test("absent is no CUDA", () => {
    for (const written of ["", "None"]) assert.deepEqual(resolveCuda(written), { ok: true, version: null })
  })

  test("is told in docs/images.md as the data say, for the ONNX Runtime that we ship", () => {
    const page = readFileSync(path.join(root, "docs/images.md"), "utf8")
    const rows = CUDA_IMAGES.map(
      ({ version, cudnn, ubuntu }) =>
        `| ${version} | ${cudnn} | ${ubuntu} | ${resolveCuda(version).ok ? "yes" : "no"} |`,
    )
    assert.ok(page.includes(rows.join("\n")), rows.join("\n"))
    assert.ok(page.includes(`| ONNX Runtime ${ONNXRUNTIME_CUDA.onnxruntime} (CUDA 12, cuDNN 9) |`))
    assert.ok(page.includes(`\`default\` are ${DEFAULT_CUDA}`))
    const installed = path.join(root, "node_modules/onnxruntime-node/package.json")
    const { version } = JSON.parse(readFileSync(installed, "utf8")) as { version: string }
    assert.ok(
      version.startsWith(`${ONNXRUNTIME_CUDA.onnxruntime}.`),
      "check the needs of the new ONNX Runtime",
    )
  })
})
