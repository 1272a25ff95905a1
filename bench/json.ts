/** JSON ⇄ tensors: our one pass over the bytes against `JSON.parse` and a walk, `JSON.stringify` of nested arrays. */
import { formatTensor, parseTensor } from "../runtime/tensor-json.ts"

const cases: [string, number, number][] = [
  ["iris, 1 row of 4", 1, 4],
  ["mnist, 1 row of 784", 1, 784],
  ["mnist, 64 rows of 784", 64, 784],
]
const bestOf = (run: () => unknown, repeats: number): number => {
  let best = Infinity
  for (let round = 0; round < 7; round++) {
    const startedMs = performance.now()
    for (let index = 0; index < repeats; index++) run()
    best = Math.min(best, (performance.now() - startedMs) / repeats)
  }
  return best * 1000
}

for (const [name, rows, columns] of cases) {
  const values = Array.from({ length: rows }, () =>
    Array.from({ length: columns }, () => Number(Math.random().toFixed(4))),
  )
  const bytes = Buffer.from(JSON.stringify(values))
  const repeats = Math.ceil(2e5 / (rows * columns))
  const ours = bestOf(() => parseTensor(bytes, "float32"), repeats)
  const theirs = bestOf(() => Float32Array.from((JSON.parse(bytes.toString()) as number[][]).flat()), repeats)
  const tensor = parseTensor(bytes, "float32")
  const write = bestOf(() => formatTensor(tensor), repeats)
  const stringify = bestOf(() => {
    if (tensor.dtype !== "float32") return
    const nested: number[][] = []
    for (let row = 0; row < rows; row++)
      nested.push([...tensor.data.subarray(row * columns, (row + 1) * columns)])
    JSON.stringify(nested)
  }, repeats)
  console.log(
    `${name}: read ${ours.toFixed(2)} µs (JSON.parse and a walk ${theirs.toFixed(2)}), write ${write.toFixed(2)} µs (JSON.stringify ${stringify.toFixed(2)})`,
  )
}
