export type Field = readonly [field: number, value: number | string | Uint8Array]

/** A protobuf message: numbers as varints, texts and messages with their length. */
export function message(...fields: readonly Field[]): Buffer {
  return Buffer.concat(
    fields.map(([field, value]) => {
      if (typeof value === "number") return Buffer.concat([varint(field * 8), varint(value)])
      const bytes = Buffer.from(value)
      return Buffer.concat([varint(field * 8 + 2), varint(bytes.length), bytes])
    }),
  )
}

function varint(value: number): Buffer {
  const bytes: number[] = []
  let rest = value
  do {
    bytes.push((rest % 128) + (rest >= 128 ? 128 : 0))
    rest = Math.floor(rest / 128)
  } while (rest > 0)
  return Buffer.from(bytes)
}

/** A model of ONNX: float vectors, through operators that take and give one of each. */
export function onnxModel(
  inputs: readonly string[],
  nodes: readonly (readonly [inputs: readonly string[], output: string, operator: string])[],
): Buffer {
  const value = (name: string): Buffer => {
    const shape = message([1, message([2, "N"])])
    return message([1, name], [2, message([1, message([1, 1], [2, shape])])])
  }
  const node = ([from, to, operator]: (typeof nodes)[number]): Buffer =>
    message(...from.map((name): Field => [1, name]), [2, to], [4, operator])
  const graph = message(
    ...nodes.map((one): Field => [1, node(one)]),
    [2, "g"],
    ...inputs.map((name): Field => [11, value(name)]),
    ...nodes.map(([, output]): Field => [12, value(output)]),
  )
  return message([1, 8], [7, graph], [8, message([1, ""], [2, 17])])
}
