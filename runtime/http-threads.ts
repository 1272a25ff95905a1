/**
 * The HTTP threads, seen from the main thread: it starts them, answers what only it knows, adds up what they count, replaces
 * one that ends unasked, and lets all end together.
 *
 * Why the main thread serves no requests itself: a handler that keeps its thread busy would then hold up the queue before the
 * models, and with it every other thread.
 */
import { Worker } from "node:worker_threads"
import type { Clock } from "./batcher.ts"
import {
  type FromHttpThread,
  type HttpThreadSettings,
  type Questions,
  type ToHttpThread,
  toWireError,
} from "./http-protocol.ts"
import type { Log } from "./log.ts"
import type { RouteSnapshot } from "./metrics.ts"
import { type ModelRunner, type SignatureSpec } from "./runner.ts"
import { RunnerDesk } from "./runner-bridge.ts"

/** What all threads are told alike. */
type CommonSettings = Omit<HttpThreadSettings, "listensEarly" | "inFlight" | "cell">

export interface HttpThreadsOptions {
  readonly count: number
  readonly runners: readonly ModelRunner[]
  readonly clock: Clock
  readonly log: Log
  readonly metricsText: () => Promise<string>
  /** A thread is gone, with what it had counted. */
  readonly onGone: (routes: readonly RouteSnapshot[]) => void
  readonly onRestart: () => void
}

/** Of the first start: as its text says it, for people. */
export class HttpThreadFailed extends Error {}

const BACK_OFF_MS = { first: 100, most: 30_000 }
/** A thread that served for so long did not fail because of how it starts. */
const STEADY_MS = 60_000
/** A thread whose handler keeps it busy does not answer; its counts of the last scrape are shown then. */
const SCRAPE_MS = 500
/** For memory: two threads under load held 362–379 MiB with it and 533–561 MiB without. Throughput was not measured apart. */
const RESOURCES = { maxYoungGenerationSizeMb: 24 }
/** Threads at once, with those that are still finishing. */
const CELLS = 1024

export class HttpThreads {
  readonly #options: HttpThreadsOptions
  readonly #inFlight = new Int32Array(new SharedArrayBuffer(CELLS * Int32Array.BYTES_PER_ELEMENT))
  readonly #threads = new Set<HttpThread>()
  #signatures: Readonly<Record<string, Readonly<Record<string, SignatureSpec>>>> | undefined
  #serving = false
  #draining = false
  #failures = 0

  constructor(options: HttpThreadsOptions) {
    this.#options = options
  }

  /** Resolves with the names of the runners that the service calls, when every thread listens and has loaded it. */
  async start(settings: CommonSettings): Promise<readonly string[]> {
    const threads = Array.from({ length: this.#options.count }, () => this.#spawn(settings, true))
    await Promise.all(threads.map((thread) => thread.listening))
    const [names = []] = await Promise.all(threads.map((thread) => thread.loaded))
    return names
  }

  /** The models are ready: resolves when every thread answers. */
  async serve(): Promise<void> {
    const { runners } = this.#options
    this.#signatures = Object.fromEntries(runners.map((runner) => [runner.name, runner.signatures]))
    const threads = [...this.#threads]
    for (const thread of threads) thread.post({ type: "serve", signatures: this.#signatures })
    await Promise.all(threads.map((thread) => thread.serving))
    if (this.#threads.size < this.#options.count) throw new HttpThreadFailed("an HTTP thread ended at once")
    this.#serving = true
  }

  /** What all threads have counted. */
  collect(): Promise<(readonly RouteSnapshot[])[]> {
    return Promise.all([...this.#threads].map((thread) => thread.routes()))
  }

  /** Resolves when no thread works on a request. All listen until `close`: the port must not be left to fewer. */
  async drain(): Promise<void> {
    this.#draining = true
    await Promise.all(
      [...this.#threads].map((thread) => {
        thread.post({ type: "drain" })
        return Promise.race([thread.drained, thread.gone])
      }),
    )
  }

  refuse(): void {
    for (const thread of this.#threads) thread.post({ type: "refuse" })
  }

  async close(): Promise<void> {
    await Promise.all(
      [...this.#threads].map((thread) => {
        thread.post({ type: "close" })
        return thread.gone
      }),
    )
  }

  #spawn(settings: CommonSettings, listensEarly: boolean): HttpThread {
    const { runners, clock } = this.#options
    const used = new Set([...this.#threads].map((thread) => thread.cell))
    const cell = this.#inFlight.findIndex((_, index) => !used.has(index))
    const thread: HttpThread = new HttpThread({
      settings: { ...settings, listensEarly, inFlight: this.#inFlight, cell },
      clock,
      runnerOf: (name) => runners.find((runner) => runner.name === name),
      answer: (what) => this.#answer(what),
      onLeaving: () => this.#replace(thread, settings),
    })
    this.#threads.add(thread)
    void thread.gone.then(() => {
      this.#threads.delete(thread)
      Atomics.store(this.#inFlight, cell, 0)
      this.#options.onGone(thread.lastRoutes)
      if (!thread.left) this.#replace(thread, settings)
    })
    return thread
  }

  #replace(thread: HttpThread, settings: CommonSettings): void {
    // One that ends before all have started fails the start; one that ends while all end was meant to.
    if (!this.#serving || this.#draining) return
    const { clock, onRestart } = this.#options
    onRestart()
    if (clock.now() - thread.startedMs > STEADY_MS) this.#failures = 0
    this.#spawnLater(settings, `an HTTP thread ${thread.left ? "ends" : "is gone"}`)
  }

  #spawnLater(settings: CommonSettings, why: string): void {
    const { clock, log } = this.#options
    const backOffMs = Math.min(BACK_OFF_MS.first * 2 ** this.#failures, BACK_OFF_MS.most)
    this.#failures++
    log.error(`${why}, another starts in ${backOffMs} ms`)
    clock.setTimer(() => {
      if (this.#draining) return
      let next: HttpThread
      try {
        next = this.#spawn(settings, false)
      } catch (error) {
        // The system gives no thread, or no memory for one.
        this.#spawnLater(settings, `the new HTTP thread did not start: ${String(error)}`)
        return
      }
      next.loaded.then(
        () => next.post({ type: "serve", signatures: this.#signatures ?? {} }),
        // It is gone: it is replaced as any other.
        (error: unknown) => log.error(`the new HTTP thread did not start: ${String(error)}`),
      )
    }, backOffMs)
  }

  async #answer(what: keyof Questions): Promise<Questions[keyof Questions]> {
    if (what === "metrics") return this.#options.metricsText()
    const waiting = this.#options.runners.filter((runner) => !runner.ready).map((runner) => runner.name)
    if (this.#draining) return "the server is shutting down"
    if (!this.#serving) return "the server is starting"
    return waiting.length > 0 ? `not ready: ${waiting.join(", ")}` : null
  }
}

interface HttpThreadOptions {
  readonly settings: HttpThreadSettings
  readonly clock: Clock
  readonly runnerOf: (name: string) => ModelRunner | undefined
  readonly answer: (what: keyof Questions) => Promise<Questions[keyof Questions]>
  readonly onLeaving: () => void
}

/** One thread, from its start to its end. */
class HttpThread {
  readonly cell: number
  readonly startedMs: number
  readonly listening: Promise<void>
  readonly loaded: Promise<readonly string[]>
  readonly serving: Promise<void>
  readonly drained: Promise<void>
  readonly gone: Promise<void>
  /** It has said that it ends. */
  left = false
  lastRoutes: readonly RouteSnapshot[] = []
  readonly #options: HttpThreadOptions
  readonly #worker: Worker
  readonly #desk: RunnerDesk
  readonly #listening = Promise.withResolvers<void>()
  readonly #loaded = Promise.withResolvers<readonly string[]>()
  readonly #serving = Promise.withResolvers<void>()
  readonly #drained = Promise.withResolvers<void>()
  readonly #gone = Promise.withResolvers<void>()
  readonly #scrapes = new Map<number, () => void>()
  #lastScrape = 0
  #ended = false

  constructor(options: HttpThreadOptions) {
    this.#options = options
    this.cell = options.settings.cell
    this.startedMs = options.clock.now()
    this.listening = this.#listening.promise
    this.loaded = this.#loaded.promise
    this.serving = this.#serving.promise
    this.drained = this.#drained.promise
    this.gone = this.#gone.promise
    // Not everyone waits for every step.
    for (const step of [this.listening, this.loaded, this.serving]) step.catch(() => {})
    // In development Node runs the TypeScript itself; in dist and in the image both are JavaScript.
    const file = import.meta.url.endsWith(".ts") ? "./http-worker.ts" : "./http-worker.js"
    this.#worker = new Worker(new URL(file, import.meta.url), {
      workerData: options.settings,
      resourceLimits: RESOURCES,
    })
    this.#desk = new RunnerDesk(
      options.runnerOf,
      (message, transfer) => this.#worker.postMessage(message, transfer),
      (callback) => void setImmediate(callback),
    )
    this.#worker.on("message", (message: FromHttpThread) => this.#receive(message))
    // Also where its heap is full: a limit of its own, so the others go on.
    this.#worker.on("error", (error) => this.#end(error instanceof Error ? error.message : String(error)))
    this.#worker.on("exit", (code) => this.#end(`the HTTP thread ended with exit code ${code}`))
  }

  post(message: ToHttpThread): void {
    this.#worker.postMessage(message)
  }

  /** What it has counted, or had when it was asked last. */
  routes(): Promise<readonly RouteSnapshot[]> {
    const id = ++this.#lastScrape
    return new Promise((resolve) => {
      const done = (): void => {
        stopTimer()
        this.#scrapes.delete(id)
        resolve(this.lastRoutes)
      }
      const stopTimer = this.#options.clock.setTimer(done, SCRAPE_MS)
      this.#scrapes.set(id, done)
      this.post({ type: "scrape", id })
    })
  }

  #receive(message: FromHttpThread): void {
    switch (message.type) {
      case "calls":
        this.#desk.receive(message)
        break
      case "ask": {
        const { id, what } = message
        this.#options.answer(what).then(
          (value) => this.post({ type: "answer", id, value }),
          (error: unknown) => this.post({ type: "unanswered", id, error: toWireError(error) }),
        )
        break
      }
      case "routes":
        this.lastRoutes = message.routes
        this.#scrapes.get(message.id)?.()
        break
      case "listening":
        this.#listening.resolve()
        break
      case "loaded":
        this.#loaded.resolve(message.runners)
        break
      case "serving":
        this.#serving.resolve()
        break
      case "drained":
        this.#drained.resolve()
        break
      case "leaving":
        this.left = true
        this.#options.onLeaving()
        break
      case "failed":
        this.#fail(message.text)
        break
    }
  }

  #end(reason: string): void {
    if (this.#ended) return
    this.#ended = true
    this.#desk.close()
    for (const done of this.#scrapes.values()) done()
    this.#fail(reason)
    this.#gone.resolve()
  }

  /** Of steps that it has done already nothing changes. */
  #fail(reason: string): void {
    const error = new HttpThreadFailed(reason)
    this.#listening.reject(error)
    this.#loaded.reject(error)
    this.#serving.reject(error)
  }
}
