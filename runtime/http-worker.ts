/**
 * An HTTP thread: one of `api_server.workers`, with the user's service, its own event loop and its own listener on the port
 * that all share. The kernel shares out connections among the listeners. Models are behind the main thread's runners.
 */
import { randomBytes } from "node:crypto"
import { parentPort, workerData } from "node:worker_threads"
import { clock } from "./clock.ts"
import {
  accessLogOf,
  appService,
  createFront,
  failureText,
  loadService,
  metricsOptions,
  requestIds,
} from "./front.ts"
import {
  type FromHttpThread,
  type HttpThreadSettings,
  type Questions,
  type ToHttpThread,
  fromWireError,
} from "./http-protocol.ts"
import { listen } from "./http.ts"
import { createLog, errorFields } from "./log.ts"
import { Metrics } from "./metrics.ts"
import { resolveOwnRuntime } from "./own-runtime.ts"
import { RemoteRunners } from "./runner-bridge.ts"

if (parentPort === null) throw new Error("http-worker.ts runs as a worker thread")
const port = parentPort
// http-threads.ts, which starts this thread, is the only one that sets workerData.
const {
  spec,
  models,
  config,
  logFormat,
  listen: address,
  listensEarly,
  inFlight,
  cell,
} = workerData as HttpThreadSettings

const log = createLog({
  write: (line) => process.stderr.write(line),
  now: () => new Date(),
  format: logFormat,
})
const post = (message: FromHttpThread, transfer: ArrayBuffer[] = []): void =>
  port.postMessage(message, transfer)

const runners = new RemoteRunners(post, (callback) => void setImmediate(callback))
const asked = new Map<number, Pick<PromiseWithResolvers<never>, "resolve" | "reject">>()
let lastAsk = 0

/** Asks the main thread what only it knows. */
function ask<Q extends keyof Questions>(what: Q): Promise<Questions[Q]> {
  const id = ++lastAsk
  const question = Promise.withResolvers<Questions[Q]>()
  asked.set(id, question)
  post({ type: "ask", id, what })
  return question.promise
}

const metrics = new Metrics({
  ...metricsOptions(spec, config, performance.timeOrigin),
  render: () => ask("metrics"),
})
const front = createFront({
  config,
  clock,
  log,
  metrics,
  newRequestId: requestIds(randomBytes(4).toString("hex")),
  ...(await accessLogOf(config, { now: () => new Date(), random: Math.random })),
  siblings: {
    notReady: () => ask("readiness"),
    setInFlight: (count) => void Atomics.store(inFlight, cell, count),
    inFlight: () => inFlight.reduce((sum, _, index) => sum + Atomics.load(inFlight, index), 0),
  },
})
const modelsReady = Promise.withResolvers<void>()

port.on("message", (message: ToHttpThread) => {
  switch (message.type) {
    case "serve":
      runners.describe(message.signatures)
      modelsReady.resolve()
      break
    case "results":
      runners.receive(message.results)
      break
    case "answer":
      asked.get(message.id)?.resolve(message.value as never) // of the type that `ask` was called for
      asked.delete(message.id)
      break
    case "unanswered":
      asked.get(message.id)?.reject(fromWireError(message.error))
      asked.delete(message.id)
      break
    case "scrape":
      post({ type: "routes", id: message.id, routes: metrics.routes() })
      break
    case "drain":
      void front.drain().then(() => post({ type: "drained" }))
      break
    case "refuse":
      front.refuse()
      break
    case "close":
      void front.close().then(() => process.exit(0))
      break
  }
})

/** After what nobody caught; what was counted since the last scrape is not lost. */
function end(): never {
  post({ type: "routes", id: 0, routes: metrics.routes() })
  process.exit(1)
}

let leaving = false
process.on("uncaughtException", (error) => {
  log.error("an exception was not caught; finishing requests in flight", errorFields(error))
  if (leaving) return
  leaving = true
  post({ type: "leaving" })
  clock.setTimer(end, config.gracefulTimeoutMs)
  // Others accept what comes from here on.
  front.server.close()
  void front
    .drain()
    .then(() => front.close())
    .then(end)
})
process.on("unhandledRejection", (error) => {
  log.error("a promise was rejected and nobody handled it", errorFields(error))
})

const startListening = async (): Promise<void> => {
  await listen(front.server, address, { shared: true })
  post({ type: "listening" })
}

resolveOwnRuntime()
try {
  const listening = listensEarly ? startListening() : undefined
  const service = await loadService(spec, models, (model) => runners.get(model.name))
  await listening
  post({ type: "loaded", runners: service.runners.map((runner) => runner.name) })
  await modelsReady.promise
  front.serve(appService(spec, service))
  if (!listensEarly) await startListening()
  post({ type: "serving" })
} catch (error) {
  post({ type: "failed", text: failureText(error, spec) })
  process.exit(1)
}
