/**
 * A worker thread: one model, one ONNX Runtime session. The only file that imports onnxruntime-node, whose
 * `session.run` blocks its thread for as long as the inference takes (microsoft/onnxruntime#19611).
 *
 * The process must have ORT_DISABLE_TELEMETRY=1 in its environment before this file is loaded: the library reads it
 * once, with getenv, when it initialises. A worker thread's own `process.env` is a copy that getenv does not see.
 */
import { existsSync } from "node:fs"
import { readFile } from "node:fs/promises"
import path from "node:path"
import { parentPort } from "node:worker_threads"
import { InferenceSession, Tensor } from "onnxruntime-node"
import { CUDA_LIBRARIES, libraryFolder } from "./cuda.ts"
import {
  type FromWorker,
  type Provider,
  type ToWorker,
  type ValueSpec,
  type WireTensor,
  type WorkerSettings,
  transferList,
} from "./protocol.ts"
import type { DType } from "./tensor.ts"

if (parentPort === null) throw new Error("worker.ts runs as a worker thread")
const port = parentPort
const post = (message: FromWorker, transfer: ArrayBuffer[] = []): void => port.postMessage(message, transfer)

let run: (id: number, wires: readonly WireTensor[]) => Promise<void> = () => Promise.resolve()
let release = (): Promise<void> => Promise.resolve()
// One after the other, though a second batch may be here before the first is done; closing waits for both.
let running = Promise.resolve()

port.on("message", (message: ToWorker) => {
  switch (message.type) {
    case "load":
      running = serve(message.settings).catch((error: unknown) => {
        post({ type: "failed", message: messageOf(error) })
        port.close()
      })
      break
    case "run":
      running = running.then(() => run(message.id, message.inputs))
      break
    case "close":
      void running.then(() => release()).finally(() => port.close())
      break
  }
})

async function serve(settings: WorkerSettings): Promise<void> {
  const startedMs = performance.now()
  const notes: string[] = []
  const session = await load(settings, notes)
  const inputs = session.inputMetadata.map((value) => describe(value, "input"))
  const outputs = session.outputMetadata
    .filter((value) => value.isTensor)
    .map((value) => describe(value, "output"))
  const left = session.outputMetadata.filter((value) => !value.isTensor).map((value) => value.name)
  if (left.length > 0) notes.push(`outputs that are not tensors are left out: ${left.join(", ")}`)
  if (outputs.length === 0) throw new Error(`none of the outputs is a tensor: ${left.join(", ")}`)
  const fetches = outputs.map((value) => value.name)

  run = async (id, wires) => {
    try {
      const feeds: Record<string, Tensor> = {}
      inputs.forEach((input, index) => {
        const wire = wires[index]
        if (wire === undefined) throw new Error(`no tensor for input ${input.name}`)
        feeds[input.name] = onnxTensor(input.dtype, wire)
      })
      const runMs = performance.now()
      const results = await session.run(feeds, fetches)
      const inferMs = performance.now() - runMs
      const answers = fetches.map((name): WireTensor => {
        const result = results[name]
        if (result === undefined) throw new Error(`ONNX Runtime gave no ${name}`)
        return { shape: result.dims, data: dataOf(result) }
      })
      post({ type: "done", id, outputs: answers, inferMs }, transferList(answers))
    } catch (error) {
      post({ type: "error", id, message: messageOf(error) })
    }
  }

  release = () => session.release()
  post({ type: "ready", inputs, outputs, loadMs: performance.now() - startedMs, notes })
}

/**
 * The library's own class turns float16 data into a Float16Array where JavaScript has one, whose length its binding
 * (1.30) takes for 0. The binding itself wants the bits in a Uint16Array, and reads no more than these four properties.
 */
function onnxTensor(dtype: DType, { shape, data }: WireTensor): Tensor {
  if (dtype === "float16") return { type: dtype, dims: shape, data, location: "cpu" } as unknown as Tensor
  // The runner has checked data against dtype; Tensor's overloads want each pair apart.
  return new Tensor(dtype as "float32", data as Float32Array, shape)
}

function dataOf({ type, data }: Tensor): WireTensor["data"] {
  // Of the dtypes that `describe` lets through, a Tensor holds what TensorData says, but for float16.
  const held = data as WireTensor["data"]
  if (type !== "float16" || Array.isArray(held)) return held
  return new Uint16Array(held.buffer, held.byteOffset, held.length)
}

/** A session over the model; where a ZipMap makes an output no tensor, over the graph without it. */
async function load(settings: WorkerSettings, notes: string[]): Promise<InferenceSession> {
  const session = await create(settings.file, settings, notes)
  if (session.outputMetadata.every((output) => output.isTensor)) return session
  // Few models need it, and it brings YAML along.
  const { removeZipMaps } = await import("../store/onnx.ts")
  const { bytes, removed } = removeZipMaps(await readFile(settings.file))
  if (removed.length === 0) return session
  await session.release()
  notes.push(
    `ZipMap removed: ${removed.map(({ output }) => output).join(", ")} is now a tensor [rows, classes]`,
  )
  return await create(bytes, settings, notes)
}

async function create(
  model: string | Uint8Array,
  settings: WorkerSettings,
  notes: string[],
): Promise<InferenceSession> {
  const { providers, allowCpuFallback } = settings
  try {
    return await createWith(model, settings, providers)
  } catch (error) {
    if (!providers.includes("cuda")) throw error
    const message = `CUDA cannot be used: ${missingLibrary() ?? messageOf(error)}`
    if (!allowCpuFallback) throw new Error(message, { cause: error })
    notes.push(`${message}; the model runs on the CPU`)
    return await createWith(model, settings, ["cpu"])
  }
}

function createWith(
  model: string | Uint8Array,
  settings: WorkerSettings,
  executionProviders: readonly Provider[],
): Promise<InferenceSession> {
  const options: InferenceSession.SessionOptions = {
    executionProviders,
    intraOpNumThreads: settings.intraOpThreads,
    interOpNumThreads: 1,
    executionMode: "sequential",
    // An arena keeps the largest batch ever seen for ever, and the binding has no way to shrink it.
    enableCpuMemArena: false,
    logSeverityLevel: 4,
    extra: {
      session: {
        // Between batches the pool's threads sleep; by default they spin, at the cost of a whole CPU under light load.
        force_spinning_stop: "1",
        // A model given as bytes has its external data here.
        model_external_initializers_file_folder_path: path.dirname(settings.file),
      },
    },
  }
  return typeof model === "string"
    ? InferenceSession.create(model, options)
    : InferenceSession.create(model, options)
}

/** Which library of ONNX Runtime's CUDA provider, or of CUDA itself, cannot be loaded: ONNX Runtime does not tell. */
function missingLibrary(): string | null {
  const folder = libraryFolder()
  for (const library of CUDA_LIBRARIES) {
    const file = path.join(folder, library)
    if (!existsSync(file)) return `${library} is not in ${folder}`
    try {
      process.dlopen({ exports: {} }, file)
    } catch (error) {
      const missing = /(\S+): cannot open shared object file/.exec(messageOf(error))
      if (missing?.[1] !== undefined) return `${missing[1]}, which ${library} needs, cannot be found`
    }
  }
  return null
}

function describe(value: InferenceSession.ValueMetadata, what: string): ValueSpec {
  if (!value.isTensor) throw new Error(`${what} ${value.name} is not a tensor`)
  // ONNX Runtime takes and gives tensors as members of plain objects, which cannot have this one.
  if (value.name === "__proto__")
    throw new Error(`its ${what} is called __proto__, a name that no object can hold: rename it in the graph`)
  if (value.type === "int4" || value.type === "uint4") {
    throw new Error(`${what} ${value.name} is ${value.type}, which is not supported`)
  }
  return {
    name: value.name,
    dtype: value.type,
    shape: value.shape.map((size) => (size === "" ? null : size)),
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
