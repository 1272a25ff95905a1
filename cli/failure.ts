/** How errors look: text for people, one JSON line for programs, always on stderr. */
import { styleText } from "node:util"
import { UsageError } from "clipanion"
import { AmbiguousTagError, BentoError, BuildError, ERROR_CODES, IssueError } from "../store/errors.ts"
import { Interruption, type Context } from "./context.ts"
import { plain, wrap } from "./output.ts"

export interface ErrorStyle {
  readonly json: boolean
  readonly debug: boolean
  /** The command that failed, as soon as it is known. */
  readonly command?: string | undefined
  /** What is left to say of what was done before. */
  readonly afterword?: string | undefined
}

/** Prints the error and says what the exit code is to be. */
export function reportError(error: unknown, context: Context, style: ErrorStyle): number {
  // Whatever broke off after Ctrl-C did so because of it.
  const shown = context.signal.aborted ? (context.signal.reason as unknown) : error
  context.stderr.write(
    style.json
      ? `${JSON.stringify({ type: "error", error: errorJson(shown, style) })}\n`
      : errorText(shown, context, style),
  )
  if (shown instanceof Interruption) return shown.exitCode
  return shown instanceof UsageError ? 2 : 1
}

function usageHint(style: ErrorStyle): string {
  if (style.command === undefined) return "Run `bentoctl --help` for the list of commands."
  return `Run \`bentoctl ${style.command} --help\` for its arguments and options.`
}

/** The machine-readable form, for `-o json` and as the last event of `--progress json`. */
function errorJson(error: unknown, style: ErrorStyle): Record<string, unknown> {
  if (error instanceof UsageError) return { code: "USAGE", message: error.message, hint: usageHint(style) }
  if (!(error instanceof BentoError)) {
    return {
      code: "INTERNAL",
      message: messageOf(error),
      stack: error instanceof Error ? error.stack : undefined,
    }
  }
  return {
    code: error.code,
    message: error.message,
    hint: hintOf(error),
    ...(error instanceof IssueError && { issues: error.issues }),
    ...(error instanceof AmbiguousTagError && { candidates: error.candidates }),
    ...(error instanceof BuildError && { step: error.step, log: error.logTail }),
  }
}

function errorText(error: unknown, context: Context, style: ErrorStyle): string {
  const paint = (format: Parameters<typeof styleText>[0], text: string): string =>
    context.colour.stderr ? styleText(format, text, { validateStream: false }) : text
  const fit = (text: string): string => fitTerminal(plain(text), context)
  const label = (text: string): string => paint(["red", "bold"], text)
  if (error instanceof UsageError) return `${label("Error:")} ${fit(error.message)}\n${usageHint(style)}\n`
  if (!(error instanceof BentoError)) {
    return (
      `${label("Internal error:")} ${plain(messageOf(error))}\n` +
      `${stackOf(error)}\nThis is a defect of bentoctl ${context.version}. Please report it with the lines above` +
      `${context.bugs === null ? "" : `: ${context.bugs}`}\n`
    )
  }
  if (error.code === "CANCELLED") return `${plain(error.message)}\n`
  const hint = fit(`Hint: ${hintOf(error)} [${error.code}]`)
  const lines = [
    fit(`Error: ${error.message}`).replace(/^Error:/, label),
    ...(error instanceof BuildError ? buildDetails(error, (text) => paint("dim", text)) : []),
    hint.replace(/^Hint:/, (word) => paint("cyan", word)).replace(/\[\w+\]$/, (code) => paint("dim", code)),
    ...(style.debug ? [stackOf(error), ...causesOf(error)] : []),
    ...(style.afterword === undefined ? [] : [fit(style.afterword)]),
  ]
  return `${lines.join("\n")}\n`
}

/** On a terminal, lines broken between words, those after the first one set in; in a pipe, lines as they are. */
function fitTerminal(text: string, context: Context): string {
  if (!context.terminal.stderr) return text
  return text
    .split("\n")
    .map((line) => {
      const indent = /^ */.exec(line)?.[0] ?? ""
      const width = context.columns() - indent.length - 3
      return wrap(line, Math.max(20, width))
        .map((part, index) => (index === 0 ? indent : `${indent}  `) + part)
        .join("\n")
    })
    .join("\n")
}

/** The step that failed and the last lines of its log, each only if the message does not hold it already. */
function buildDetails(error: BuildError, dim: (text: string) => string): string[] {
  const step =
    error.step !== undefined && !error.message.includes(error.step) ? [`  step: ${plain(error.step)}`] : []
  const log = error.logTail.filter((line) => !error.message.includes(line))
  return [...step, ...log.map((line) => dim(`  | ${plain(line)}`))]
}

function hintOf(error: BentoError): string {
  return error.hint ?? ERROR_CODES[error.code][1]
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

function stackOf(error: unknown): string {
  return error instanceof Error && error.stack !== undefined
    ? error.stack.replace(/^.*?\n(?= {4}at )/s, "")
    : ""
}

function causesOf(error: Error): string[] {
  if (!(error.cause instanceof Error)) return []
  return [
    `caused by ${error.cause.name}: ${error.cause.message}`,
    stackOf(error.cause),
    ...causesOf(error.cause),
  ]
}
