/** The events of an image build, shown: a live view on a terminal, lines in a pipe, NDJSON for programs. */
import { styleText } from "node:util"
import type { BuildEvent, Pushed } from "../images/builder.ts"
import type { Context } from "./context.ts"
import { cut, formatDuration, formatSize, plain, wrap } from "./output.ts"

export const PROGRESS = ["auto", "plain", "json"] as const

export const BUILDERS = ["auto", "assemble", "dockerfile"] as const

/** What `--builder` does; the same words for every command that has it. */
export const BUILDER_MEANING =
  "write the layers of files ourselves (assemble), let the engine carry out the Dockerfile, or the first where that is possible (auto)"

/** What `--push` means; the same words for every command that has it. */
export const PUSH_MEANING =
  "send the image to the registry that each name tells (-t), as the user that `docker login` wrote down"

/** Where progress goes. `columns` is asked anew for each drawing, since windows change their size. */
export interface Screen {
  readonly write: (text: string) => void
  readonly columns: () => number
  readonly colour: boolean
  readonly now: () => Date
}

export function stderrScreen(context: Context): Screen {
  return {
    write: (text) => void context.stderr.write(text),
    columns: context.columns,
    colour: context.colour.stderr,
    now: context.now,
  }
}

/** Whether stderr is a terminal whose lines can be drawn over. */
export function isLive(context: Context): boolean {
  return context.terminal.stderr && context.env["TERM"] !== "dumb"
}

export interface Reporter {
  readonly event: (event: BuildEvent) => void
  /** Must be called at the end, however it came: leaves the terminal as it was found. */
  readonly close: () => void
}

// NDJSON ------------------------------------------------------------------------------------------------------------

/** One event per line, keys in snake case like all JSON that we print. */
export function jsonReporter(screen: Screen): Reporter {
  return {
    event: (event) => {
      if (event.type === "pushed")
        return screen.write(`${JSON.stringify({ type: event.type, ...pushedJson(event) })}\n`)
      const entries = Object.entries(event).map(([key, value]) => [snakeCase(key), value] as const)
      screen.write(`${JSON.stringify(Object.fromEntries(entries))}\n`)
    },
    close: () => {},
  }
}

/** What programs read of an image in a registry. */
export function pushedJson(pushed: Pushed): Record<string, unknown> {
  return {
    reference: pushed.reference,
    digest: pushed.digest,
    repo_digest: pushed.repoDigest,
    layers_sent: pushed.layers?.sent ?? null,
    layers_present: pushed.layers?.present ?? null,
    sent_bytes: pushed.layers?.sentBytes ?? null,
    duration_ms: Math.round(pushed.durationMs),
  }
}

function snakeCase(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}

// Lines -------------------------------------------------------------------------------------------------------------

/** Lines that only grow, each with the number of its step, since steps run side by side. */
export function plainReporter(screen: Screen): Reporter {
  const numbers = new Map<string, number>()
  const numberOf = (step: string): string => {
    const number = numbers.get(step) ?? numbers.size + 1
    numbers.set(step, number)
    return `#${number}`
  }
  const named = new Set<string>()
  const line = (text: string): void => screen.write(`${plain(text)}\n`)
  return {
    event: (event) => {
      switch (event.type) {
        case "step":
          if (!named.has(event.step)) line(`${numberOf(event.step)} ${event.name}`)
          named.add(event.step)
          if (event.state !== "started") line(`${numberOf(event.step)} ${outcome(event)}`)
          return
        case "log":
          return line(`${numberOf(event.step)} | ${event.text}`)
        case "warning":
          return line(`Warning: ${event.message}`)
        case "builder":
          return line(builderText(event))
        case "progress":
        case "built":
        case "pushed":
          return undefined
      }
    },
    close: () => {},
  }
}

function builderText({ builder, reason }: BuildEvent & { type: "builder" }): string {
  return `builder: ${builder}${reason === null ? "" : ` (${reason})`}`
}

function outcome(event: {
  readonly state: "cached" | "done" | "failed"
  readonly durationMs: number
}): string {
  switch (event.state) {
    case "cached":
      return "CACHED"
    case "done":
      return `done in ${formatDuration(event.durationMs)}`
    case "failed":
      return `FAILED after ${formatDuration(event.durationMs)}`
  }
}

/** For whoever wants no progress: what they should look after is told all the same. */
export function warningReporter(screen: Screen): Reporter {
  const lines = plainReporter(screen)
  return {
    event: (event) => {
      if (event.type === "warning") lines.event(event)
    },
    close: lines.close,
  }
}

// Live --------------------------------------------------------------------------------------------------------------

interface Running {
  readonly name: string
  readonly sinceMs: number
  log: readonly string[]
  progress: string
}

const FRAMES = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"]
const FRAME_MS = 100
/** Lines of a step's output that are shown while it runs. */
const LOG_LINES = 4
const HIDE_CURSOR = "\u001B[?25l"
const SHOW_CURSOR = "\u001B[?25h"

/**
 * Finished steps are printed for good; below them, what is running is drawn again ten times a second. Each drawing is
 * one write that overwrites line by line, so nothing flickers; no line is longer than the terminal is wide.
 */
export function liveReporter(screen: Screen): Reporter {
  const running = new Map<string, Running>()
  let drawn: readonly string[] = []
  let frame = 0
  const paint = (format: Parameters<typeof styleText>[0], text: string): string =>
    screen.colour ? styleText(format, text, { validateStream: false }) : text
  const width = (): number => Math.max(16, screen.columns() - 1)

  /** Replaces what was drawn by `finished` lines, which stay, and the present state below them. */
  const draw = (finished: readonly string[] = []): void => {
    const block = [...running.values()].flatMap((step) => stepLines(step))
    const up = drawn.length === 0 ? "" : `\u001B[${rowsOf(drawn, screen.columns())}A\r`
    const lines = [...finished, ...block].map((line) => `${line}\u001B[K\n`).join("")
    screen.write(`${up}${lines}\u001B[J`)
    drawn = block
  }
  const stepLines = (step: Running): string[] => {
    const spinner = FRAMES[frame % FRAMES.length] ?? ""
    const time = formatDuration(screen.now().getTime() - step.sinceMs)
    const both = step.progress === "" ? time : `${step.progress}  ${time}`
    const detail = both.length <= width() / 2 ? both : time
    return [
      row(paint("cyan", spinner), step.name, detail, width()),
      ...step.log.map((text) => paint("dim", cut(`    ${text}`, width()))),
    ]
  }
  const finishedLine = (event: BuildEvent & { type: "step" }): string => {
    if (event.state === "started") return ""
    const time = formatDuration(event.durationMs)
    if (event.state === "failed") return row(paint("red", "✗"), event.name, `FAILED ${time}`, width())
    return row(paint("green", "✓"), event.name, event.state === "cached" ? "CACHED" : time, width())
  }

  screen.write(HIDE_CURSOR)
  const timer = setInterval(() => {
    frame += 1
    draw()
  }, FRAME_MS)
  return {
    event: (event) => {
      switch (event.type) {
        case "step":
          if (event.state === "started") {
            const sinceMs = screen.now().getTime()
            running.set(event.step, { name: plain(event.name), sinceMs, log: [], progress: "" })
            return draw()
          }
          running.delete(event.step)
          return draw([finishedLine({ ...event, name: plain(event.name) })])
        case "log": {
          const step = running.get(event.step)
          const text = plain(event.text).replaceAll("\t", "  ").trim()
          if (step !== undefined && text !== "") step.log = [...step.log, text].slice(-LOG_LINES)
          return undefined
        }
        case "progress": {
          const step = running.get(event.step)
          if (step !== undefined) step.progress = bytesOf(event)
          return undefined
        }
        case "builder":
          return draw(wrap(plain(builderText(event)), width()).map((line) => paint("dim", line)))
        case "warning":
          // It stays, and is of no use when its end is missing.
          return draw(
            wrap(`Warning: ${plain(event.message)}`, width()).map((line) =>
              line.replace(/^Warning(?=:)/, paint("yellow", "Warning")),
            ),
          )
        case "built":
        case "pushed":
          return undefined
      }
    },
    close: () => {
      clearInterval(timer)
      running.clear()
      draw()
      screen.write(SHOW_CURSOR)
    },
  }
}

/** Shows on a terminal that something is being done, if it takes longer than a moment; leaves nothing behind. */
export async function showWhile<T>(screen: Screen | null, name: string, work: Promise<T>): Promise<T> {
  let reporter: Reporter | undefined
  const timer =
    screen === null
      ? undefined
      : setTimeout(() => {
          reporter = liveReporter(screen)
          reporter.event({ type: "step", step: name, name, state: "started" })
        }, 500)
  try {
    return await work
  } finally {
    clearTimeout(timer)
    reporter?.close()
  }
}

function bytesOf(event: { readonly current: number; readonly total: number }): string {
  if (event.total === 0) return formatSize(event.current)
  return `${formatSize(event.current)} of ${formatSize(event.total)}`
}

/** `mark name      detail`, as wide as the terminal; a long name is cut, the detail never is. */
function row(mark: string, name: string, detail: string, width: number): string {
  const room = Math.max(3, width - 2 - detail.length - 2)
  return `${mark} ${cut(name, room).padEnd(room)}  ${detail}`
}

/** Rows that lines take on a terminal that may have become narrower since they were drawn. */
function rowsOf(lines: readonly string[], columns: number): number {
  return lines.reduce(
    (rows, line) => rows + Math.max(1, Math.ceil(plain(line).length / Math.max(1, columns))),
    0,
  )
}
