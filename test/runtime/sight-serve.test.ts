/** The server as a process: its access log on stdout, the configuration that it prints, the GPU that it is told of. */
import assert from "node:assert/strict"
import { type ChildProcess, spawn } from "node:child_process"
import { cpSync, linkSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import net from "node:net"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, describe, test } from "node:test"
import { setTimeout as sleep } from "node:timers/promises"
import type { ServeSpec } from "../../store/bento.ts"
import { CUDA_LIBRARIES, libraryFolder, providersFor } from "../../runtime/cuda.ts"

const root = path.resolve(import.meta.dirname, "../..")
const folder = mkdtempSync(path.join(tmpdir(), "bentoctl-sight-"))
const children: ChildProcess[] = []
after(() => {
  for (const child of children) child.kill("SIGKILL")
  rmSync(folder, { recursive: true, force: true })
})

const model = path.join(root, "test/fixtures/bentoml-home/models/iris_sklearn/mox5xxxfsccawax4")
const SPEC: ServeSpec = {
  name: "iris",
  version: null,
  service: null,
  srcDir: folder,
  models: [{ tag: "iris_sklearn:mox5xxxfsccawax4", dir: model }],
}

function serve(
  env: Record<string, string>,
  args: readonly string[] = [],
  file = path.join(root, "runtime/serve.ts"),
) {
  const child = spawn(
    process.execPath,
    [file, "--spec", JSON.stringify(SPEC), "--host", "127.0.0.1", ...args],
    { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, CUDA_VISIBLE_DEVICES: "", ...env } },
  )
  children.push(child)
  const output = { out: "", err: "" }
  child.stdout.on("data", (chunk: Buffer) => (output.out += chunk.toString()))
  child.stderr.on("data", (chunk: Buffer) => (output.err += chunk.toString()))
  const exit = new Promise<number | null>((resolve) => child.on("close", resolve))
  return { child, output, exit }
}

async function until(isSo: () => boolean): Promise<void> {
  for (let tries = 0; tries < 1000 && !isSo(); tries++) await sleep(10)
  assert.ok(isSo())
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = net.createServer().listen(0, "127.0.0.1", () => {
      const address = server.address()
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0))
    })
  })
}

describe("the access log", () => {
  for (const workers of ["1", "2"]) {
    test(`is on stdout, each line whole, with ${workers} HTTP thread(s); nothing is lost when the server ends`, async () => {
      const port = await freePort()
      const { child, output, exit } = serve(
        { BENTOML_CONFIG_OPTIONS: "api_server.logging.access.enabled=true", BENTOML_API_WORKERS: workers },
        ["--port", `${port}`],
      )
      await until(() => output.out.includes("Serving") || child.exitCode !== null)
      const body = "[[1, 2, 3, 4]]"
      const ask = async (id: number): Promise<void> => {
        const headers = { "content-type": "application/json", "x-request-id": `r${id}` }
        const answer = await fetch(`http://127.0.0.1:${port}/run`, { method: "POST", body, headers })
        assert.match(
          answer.headers.get("server-timing") ?? "",
          /^decode;dur=\S+, queue;dur=\S+, batch;desc="rows=\d+", infer;dur=(?!0\.00)\S+, encode;dur=\S+$/,
        )
        assert.equal(answer.status, 200, await answer.text())
      }
      await Promise.all(Array.from({ length: 100 }, (_, id) => ask(id)))
      await fetch(`http://127.0.0.1:${port}/livez`)
      child.kill("SIGTERM")
      assert.equal(await exit, 0)
      const lines = output.out
        .split("\n")
        .filter((line) => line.startsWith("{"))
        .map((line) => JSON.parse(line) as Record<string, unknown>)
      assert.deepEqual(
        lines.map((line) => String(line["requestId"])).toSorted(),
        Array.from({ length: 100 }, (_, id) => `r${id}`).toSorted(),
        output.err,
      )
      for (const line of lines) {
        assert.equal(line["bytesIn"], body.length)
        assert.equal(line["status"], 200)
        assert.ok(Number(line["batchRows"]) >= 1)
        assert.ok(Math.abs(Date.parse(String(line["time"])) - Date.now()) < 60_000)
      }
    })
  }
})

describe("--print-config", () => {
  test("tells every setting and where it comes from, in a form that is a configuration file, and serves nothing", async () => {
    const { output, exit } = serve({ BENTOML_CONFIG_OPTIONS: "runners.iris_sklearn.workers=2" }, [
      "--print-config",
      "--port",
      "4321",
    ])
    assert.equal(await exit, 0, output.err)
    assert.match(output.out, /^ {4}port: 4321 +# flag --port$/m)
    assert.match(output.out, /^ {2}iris_sklearn:\n(?: {4}.*\n)* {4}workers: 2 +# env BENTOML_CONFIG_OPTIONS/m)
    const file = path.join(folder, "again.yaml")
    writeFileSync(file, output.out)
    const again = serve({ BENTOML_CONFIG: file }, ["--print-config"])
    assert.equal(await again.exit, 0, again.output.err)
    const values = (text: string): string => text.replaceAll(/ +# .*$/gm, "")
    assert.equal(values(again.output.out), values(output.out))
  })

  test("refuses what the server would refuse", async () => {
    const { output, exit } = serve({ BENTOML_CONFIG_OPTIONS: "runners.iris_sklaern.workers=2" }, [
      "--print-config",
    ])
    assert.equal(await exit, 1)
    assert.match(output.err, /iris_sklaern/)
    assert.equal(output.out, "")
  })
})

describe("CUDA", () => {
  const cudaFolder = path.join(folder, "cuda")
  mkdirSync(cudaFolder)
  writeFileSync(path.join(cudaFolder, "libonnxruntime_providers_cuda.so"), "")

  test("is used where devices are visible and the image has the libraries", () => {
    const providers = (devices: string | undefined, at: string) => providersFor(devices, () => at)
    for (const devices of ["0", "0,1", "all", "GPU-8932f937"]) {
      assert.deepEqual(providers(devices, cudaFolder), { providers: ["cuda", "cpu"], note: null })
    }
    for (const devices of [undefined, "", " ", "-1"]) {
      assert.deepEqual(providers(devices, cudaFolder), { providers: ["cpu"], note: null })
    }
    const cpu = providers("0", folder)
    assert.deepEqual(cpu.providers, ["cpu"])
    assert.match(cpu.note ?? "", /without its CUDA libraries: models run on the CPU/)
  })

  /** The server's bundle as an image with CUDA has it, but for what the libraries hold. */
  function cudaImage(name: string, libraries: Record<string, string>): string {
    const dir = path.join(folder, name)
    cpSync(path.join(root, "dist/image"), dir, { recursive: true })
    const packages = path.join(dir, "node_modules")
    cpSync(path.join(root, "node_modules/onnxruntime-common"), path.join(packages, "onnxruntime-common"), {
      recursive: true,
    })
    const from = libraryFolder()
    const to = path.join(packages, path.relative(path.join(root, "node_modules"), from))
    cpSync(path.join(root, "node_modules/onnxruntime-node"), path.join(packages, "onnxruntime-node"), {
      recursive: true,
      filter: (file) => path.basename(file) !== "bin",
    })
    mkdirSync(to, { recursive: true })
    for (const file of readdirSync(from)) {
      if (!file.includes("providers")) copy(path.join(from, file), path.join(to, file))
    }
    for (const [library, text] of Object.entries(libraries)) writeFileSync(path.join(to, library), text)
    return path.join(dir, "serve.js")
  }
  function copy(from: string, to: string): void {
    try {
      linkSync(from, to)
    } catch {
      cpSync(from, to)
    }
  }

  test("that cannot be loaded stops the server, with the library's name", async () => {
    const file = cudaImage("strict", { [CUDA_LIBRARIES[1]]: "no library" })
    const { output, exit } = serve({ CUDA_VISIBLE_DEVICES: "0" }, ["--port", "0"], file)
    assert.equal(await exit, 1)
    assert.match(
      output.err,
      /CUDA cannot be used: libonnxruntime_providers_shared\.so is not in .*\n.*\[MODEL_LOAD_FAILED\]/,
    )
  })

  test("that cannot be loaded gives way to the CPU only where that is allowed, and the log tells", async () => {
    const file = cudaImage("lenient", { [CUDA_LIBRARIES[1]]: "no library" })
    const env = { CUDA_VISIBLE_DEVICES: "0", BENTOML_CONFIG_OPTIONS: "runners.allow_cpu_fallback=true" }
    const { child, output, exit } = serve(env, ["--port", "0"], file)
    await until(() => output.out.includes("Serving") || child.exitCode !== null)
    assert.match(
      output.err,
      /CUDA cannot be used: libonnxruntime_providers_shared\.so.*the model runs on the CPU/,
    )
    child.kill("SIGTERM")
    assert.equal(await exit, 0, output.err)
  })
})
