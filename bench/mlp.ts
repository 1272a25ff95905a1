/** Writes the multilayer perceptrons of the benches: float32, seeded weights. */
import { writeFileSync } from "node:fs"
import { mulberry32 } from "./load.ts"

/** The network of the table: 1.9 million weights, 7.5 MB. */
export const WIDE_INPUT = [784, 1024, 1024, 10]
/** Few numbers in, much work per row: what decides here is the model, not the parsing of requests. */
export const NARROW_INPUT = [16, 4096, 4096, 10]
/** 627 million multiplications and additions a row, as MobileNet takes for an image, over one set of weights. */
export const DEEP = [16, ...Array.from({ length: 600 }, () => 1024), 10]

/**
 * An ONNX file with input `x` [N, first] and output `y` [N, last]; layers of the same shape share their weights.
 * Field numbers: onnx.proto of ONNX 1.16.
 */
export function writeMlp(file: string, layers: readonly number[]): void {
  const random = mulberry32(784)
  const nodes: Buffer[] = []
  const weights = new Map<string, readonly Buffer[]>()
  layers.slice(1).forEach((columns, layer) => {
    const rows = layers[layer] ?? 0
    const scale = 1 / Math.sqrt(rows)
    const values = (count: number) => Float32Array.from({ length: count }, () => (random() * 2 - 1) * scale)
    const shape = `${rows}x${columns}`
    if (!weights.has(shape)) {
      weights.set(shape, [
        tensor(`w${shape}`, [rows, columns], values(rows * columns)),
        tensor(`b${shape}`, [columns], values(columns)),
      ])
    }
    const last = layer === layers.length - 2
    const input = layer === 0 ? "x" : `h${layer}`
    nodes.push(node("Gemm", [input, `w${shape}`, `b${shape}`], last ? "y" : `g${layer}`))
    if (!last) nodes.push(node("Relu", [`g${layer}`], `h${layer + 1}`))
  })
  const graph = Buffer.concat([
    ...nodes.map((bytes) => field(1, bytes)),
    text(2, "mlp"),
    ...[...weights.values()].flat().map((bytes) => field(5, bytes)),
    field(11, valueInfo("x", layers[0] ?? 0)),
    field(12, valueInfo("y", layers.at(-1) ?? 0)),
  ])
  const opset = field(8, Buffer.concat([text(1, ""), integer(2, 17)]))
  writeFileSync(file, Buffer.concat([integer(1, 8), text(2, "bentoctl-bench"), field(7, graph), opset]))
}

/** JSON bodies of random rows, as of images: the values are 0 to 255, over 255. */
export function rowBodies(columns: number, rowsEach = 1): string[] {
  const random = mulberry32(1)
  const row = (): number[] => Array.from({ length: columns }, () => Math.round(random() * 255) / 255)
  return Array.from({ length: 16 }, () => JSON.stringify(Array.from({ length: rowsEach }, row)))
}

function node(op: string, inputs: readonly string[], output: string): Buffer {
  return Buffer.concat([
    ...inputs.map((name) => text(1, name)),
    text(2, output),
    text(3, output),
    text(4, op),
  ])
}

function tensor(name: string, dims: readonly number[], values: Float32Array): Buffer {
  const raw = Buffer.from(values.buffer, values.byteOffset, values.byteLength)
  return Buffer.concat([...dims.map((dim) => integer(1, dim)), integer(2, 1), text(8, name), field(9, raw)])
}

function valueInfo(name: string, columns: number): Buffer {
  const shape = Buffer.concat([field(1, text(2, "N")), field(1, integer(1, columns))])
  const type = field(1, Buffer.concat([integer(1, 1), field(2, shape)]))
  return Buffer.concat([text(1, name), field(2, type)])
}

function field(number: number, bytes: Buffer): Buffer {
  return Buffer.concat([varint(number * 8 + 2), varint(bytes.length), bytes])
}

function text(number: number, value: string): Buffer {
  return field(number, Buffer.from(value))
}

function integer(number: number, value: number): Buffer {
  return Buffer.concat([varint(number * 8), varint(value)])
}

function varint(value: number): Buffer {
  const bytes: number[] = []
  let rest = value
  for (; rest > 127; rest = Math.floor(rest / 128)) bytes.push((rest % 128) + 128)
  return Buffer.from([...bytes, rest])
}
