/**
 * What a request costs inside the app, without sockets and model: CPU time from `listener` to `end`, 64 requests at a time.
 * Steadier than a load test, so it shows tenths of a microsecond: `node bench/app.ts`.
 */
import type { IncomingMessage, ServerResponse } from "node:http"
import { api, json, ndarray, runner, service } from "../runtime/index.ts"
import { serviceWithoutCode } from "../runtime/load.ts"
import { callScope } from "../runtime/service.ts"
import { FakeRunner, appFor } from "../test/fakes.ts"

const ROUNDS = 8
const REQUESTS = 20_000
const CONCURRENT = 64

const model = runner("fake")
const input = ndarray({ dtype: "float32", shape: [-1, 4] })
const coded = service({
  name: "coded",
  runners: [model],
  apis: [
    api({ name: "constant", input, output: json(), handler: () => 1 }),
    api({ name: "model", input, output: json(), handler: async (x) => Object.keys(await model.run(x)) }),
  ],
})
const fake = new FakeRunner()
const tag = { name: "fake", version: "v1" }
const spec = {
  name: "fake",
  dir: "",
  spec: { tag: "fake:v1", dir: "" },
  model: { tag, signatures: { run: {} } } as never,
}
const zero = serviceWithoutCode(
  "zero",
  [spec],
  () => fake,
  () => fake.signatures["run"] ?? { inputs: [], outputs: [] },
)
const codedApp = appFor(coded, { runner: fake }).app
const zeroApp = appFor({ ...zero, version: null }).app

const body = Buffer.from("[[5.9,3,5.1,1.8]]")
const headers = { host: "x", "content-length": String(body.length), "content-type": "application/json" }

/** As much of an IncomingMessage and of a ServerResponse as the app uses. */
class Incoming {
  readonly method = "POST"
  readonly headers = headers
  readonly complete = true
  onData: ((piece: Buffer) => void) | undefined
  readonly url: string

  constructor(url: string) {
    this.url = url
  }

  on(_: string, listener: (piece: Buffer) => void): void {
    this.onData = listener
  }
}

class Outgoing {
  readonly headersSent = false
  readonly destroyed = false
  readonly #done: () => void

  constructor(done: () => void) {
    this.#done = done
  }

  on(): void {}
  writeHead(): void {}

  end(): void {
    this.#done()
  }
}

function round(app: typeof codedApp, path: string): Promise<void> {
  let left = REQUESTS
  let open = CONCURRENT
  return new Promise((resolve) => {
    const next = (): void => {
      if (left-- <= 0) {
        if (--open === 0) resolve()
        return
      }
      const incoming = new Incoming(path)
      const outgoing = new Outgoing(() => setImmediate(next))
      app.listener(incoming as unknown as IncomingMessage, outgoing as unknown as ServerResponse)
      incoming.onData?.call(incoming, body)
    }
    for (let index = 0; index < CONCURRENT; index++) next()
  })
}

async function measure(name: string, run: () => Promise<void>, count = REQUESTS): Promise<void> {
  let best = Infinity
  for (let index = 0; index < ROUNDS; index++) {
    const before = process.cpuUsage()
    await run()
    const { user, system } = process.cpuUsage(before)
    best = Math.min(best, (user + system) / count)
  }
  console.log(`${name.padEnd(44)} ${best.toFixed(2)} µs`)
}

const idle = { listener: (_: IncomingMessage, outgoing: ServerResponse): unknown => outgoing.end() }
await measure("the bench itself", () => round(idle as typeof codedApp, "/"))
await measure("a handler that returns a constant", () => round(codedApp, "/constant"))
await measure("a handler that calls its model", () => round(codedApp, "/model"))
await measure("without code", () => round(zeroApp, "/run"))
await measure("AsyncLocalStorage for one handler", async () => {
  const handler = async (): Promise<unknown> => callScope.getStore()
  for (let index = 0; index < REQUESTS; index++) await callScope.run({} as never, handler)
})
await measure("the same handler without it", async () => {
  const handler = async (): Promise<unknown> => undefined
  for (let index = 0; index < REQUESTS; index++) await handler()
})
