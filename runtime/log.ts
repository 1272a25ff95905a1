/** Log lines: plain text for people, or one JSON object per line. Values cannot forge a line: they are quoted. */
import { inspect } from "node:util"
import type { Json } from "../store/bento.ts"

export interface Log {
  info(message: string, fields?: Fields): void
  warn(message: string, fields?: Fields): void
  error(message: string, fields?: Fields): void
}
type Fields = Readonly<Record<string, Json>>
type Level = "info" | "warn" | "error"

export interface LogOptions {
  readonly write: (line: string) => void
  readonly now: () => Date
  readonly format: "text" | "json"
  /** Below this nothing is written. */
  readonly level?: Level
}

const ORDER: Record<Level, number> = { info: 0, warn: 1, error: 2 }

export function createLog({ write, now, format, level: lowest = "info" }: LogOptions): Log {
  const at =
    (level: Level) =>
    (message: string, fields: Fields = {}): void => {
      if (ORDER[level] < ORDER[lowest]) return
      const time = now().toISOString()
      write(
        format === "json" ? jsonLine(time, level, message, fields) : textLine(time, level, message, fields),
      )
    }
  return { info: at("info"), warn: at("warn"), error: at("error") }
}

function jsonLine(time: string, level: Level, message: string, fields: Fields): string {
  return `${JSON.stringify({ time, level, message, ...fields })}\n`
}

/** `2026-01-31T12:00:00.000Z [error] POST /classify failed requestId=1f… ` and a stack on lines of its own. */
function textLine(time: string, level: Level, message: string, { stack, ...fields }: Fields): string {
  const pairs = Object.entries(fields).map(([name, value]) => ` ${name}=${plain(value)}`)
  const trace = typeof stack === "string" ? `\n${stack.replace(/^/gm, "    ")}` : ""
  return `${time} [${level}] ${clean(message)}${pairs.join("")}${clean(trace, true)}\n`
}

function plain(value: Json): string {
  return typeof value === "string" && /^[\w.:/@+-]+$/.test(value) ? value : JSON.stringify(value)
}

/** Control characters, the escape sequences of terminals among them, are shown and not sent. */
function clean(text: string, lines = false): string {
  return text.replace(/\p{Cc}|\p{Zl}|\p{Zp}/gu, (character) => {
    if (lines && character === "\n") return character
    return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`
  })
}

/** What a log says of something that was thrown: for whoever runs the server, never for its clients. */
export function errorFields(error: unknown): Fields {
  try {
    return fieldsOf(error)
  } catch {
    // User code may throw anything, also what throws when it is looked at.
    return { thrown: "something that cannot be shown" }
  }
}

function fieldsOf(error: unknown): Fields {
  if (!(error instanceof Error)) return { thrown: String(error) }
  const { cause } = error
  const stack = error.stack ?? `${error.name}: ${error.message}`
  if (cause === undefined) return { stack }
  return {
    stack: `${stack}\ncaused by ${cause instanceof Error ? (cause.stack ?? cause.message) : inspect(cause)}`,
  }
}
