/** The least that can serve a model: node:http, JSON.parse, session.run on the same thread, JSON.stringify. No batching. */
import { createServer } from "node:http"
import { InferenceSession, Tensor } from "onnxruntime-node"

const { model, input } = JSON.parse(process.argv[2] ?? "{}") as { model: string; input: string }
const session = await InferenceSession.create(model, { intraOpNumThreads: 1, interOpNumThreads: 1 })
const outputs = session.outputMetadata.filter((output) => output.isTensor).map((output) => output.name)

createServer((request, response) => {
  if (request.method === "GET") {
    response.writeHead(200).end("\n")
    return
  }
  const chunks: Buffer[] = []
  request.on("data", (chunk: Buffer) => chunks.push(chunk))
  request.on("end", () => {
    const rows = JSON.parse(Buffer.concat(chunks).toString()) as number[][]
    const feeds = { [input]: new Tensor("float32", rows.flat(), [rows.length, rows[0]?.length ?? 0]) }
    void session.run(feeds, outputs).then((results) => {
      const body = JSON.stringify(
        Object.fromEntries(
          outputs.map((name) => [name, Array.from(results[name]?.data as ArrayLike<number>, Number)]),
        ),
      )
      response
        .writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(body) })
        .end(body)
    })
  })
}).listen(Number(process.env["PORT"]), "127.0.0.1")
