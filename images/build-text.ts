/** What a builder without BuildKit tells about a build, Podman's for one: the text that people would see. */
import type { BuildEvent } from "./builder.ts"
import { readable } from "./buildkit.ts"
import type { BuildFailure } from "./buildkit.ts"

/** Turns the text of one build into events; remembers what explains a failure. */
export class BuildText {
  #step: { readonly name: string; readonly startedMs: number; cached: boolean } | undefined
  #rest = ""
  #tail: readonly string[] = []

  failure(): BuildFailure {
    return { step: this.#step?.name, error: "", logTail: this.#tail }
  }

  *read(text: string): Generator<BuildEvent> {
    const lines = (this.#rest + text).split(/\r?\n/)
    this.#rest = lines.pop() ?? ""
    for (const line of lines) yield* this.#line(line)
  }

  /** The step that runs has come to its end. */
  *end(state: "done" | "failed"): Generator<BuildEvent> {
    if (this.#step === undefined) return
    const { name, startedMs, cached } = this.#step
    // A failed one is still to be asked for.
    if (state === "done") this.#step = undefined
    const durationMs = performance.now() - startedMs
    yield { type: "step", step: name, name, state: cached && state === "done" ? "cached" : state, durationMs }
  }

  *#line(line: string): Generator<BuildEvent> {
    const [, number, instruction = ""] = /^STEP (\d+\/\d+) ?: (.*)$/i.exec(line) ?? []
    if (number !== undefined) {
      yield* this.end("done")
      const name = readable(`[${number}] ${instruction}`)
      this.#step = { name, startedMs: performance.now(), cached: false }
      this.#tail = []
      yield { type: "step", step: name, name, state: "started" }
    } else if (line.startsWith("COMMIT ")) {
      yield* this.end("done")
    } else if (/^ ?-+> Using cache/i.test(line)) {
      if (this.#step !== undefined) this.#step.cached = true
    } else if (this.#step !== undefined && line !== "" && !/^ ?-+> /.test(line)) {
      this.#tail = [...this.#tail.slice(-19), line]
      yield { type: "log", step: this.#step.name, stream: "stdout", text: line }
    }
  }
}
