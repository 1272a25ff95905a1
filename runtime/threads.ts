/**
 * Starting the threads that hold models. A thread needs as long to start and to load ONNX Runtime as the server needs to find
 * out what it is to serve; so the image's entry point starts the first one before anybody knows which model it will hold.
 */
import { Worker } from "node:worker_threads"
// Knows of every thread from here on.
import "./exit.ts"
import type { WorkerSettings } from "./protocol.ts"

let early: Worker | undefined

export function startEarly(): void {
  const thread = newThread()
  const forget = (): void => {
    early = undefined
  }
  // Whoever wants a thread then starts another, and hears why this one failed.
  thread.once("error", forget).once("exit", forget)
  early = thread
}

/** Lets the thread go that was started early, where nobody took it. */
export function endEarly(): void {
  early?.postMessage({ type: "close" })
  early = undefined
}

/** A thread that loads a model. */
export function startThread(settings: WorkerSettings): Worker {
  const thread = early ?? newThread()
  early = undefined
  thread.postMessage({ type: "load", settings })
  return thread.removeAllListeners("error")
}

function newThread(): Worker {
  // In development Node runs the TypeScript itself; in dist and in the image both are JavaScript.
  return new Worker(new URL(import.meta.url.endsWith(".ts") ? "./worker.ts" : "./worker.js", import.meta.url))
}
