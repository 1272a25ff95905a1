/** What templates print values with, and what they fail with. */
import type Handlebars from "handlebars"
import { QuoteError, dockerWord, jsonText, plainWord, shellWord, variableName } from "./quote.ts"

/** A template that cannot be rendered. `line` counts from 1 in `template`. */
export class TemplateError extends Error {
  override readonly name = "TemplateError"
  readonly template: string
  readonly line: number | undefined

  constructor(template: string, line: number | undefined, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.template = template
    this.line = line
  }
}

export function asTemplateError(template: string, error: unknown): TemplateError {
  if (error instanceof TemplateError) return error
  const { lineNumber, message } = error as { lineNumber?: number; message?: string }
  const line = lineNumber ?? Number(/(?:line |- )(\d+)/.exec(message ?? "")?.[1] ?? Number.NaN)
  return new TemplateError(template, Number.isNaN(line) ? undefined : line, message ?? String(error), error)
}

/** The quoting helpers; an argument that is neither text nor a number is a mistake of the template. */
export const HELPERS = {
  word: textHelper(dockerWord),
  variable: textHelper(variableName),
  shell: textHelper(shellWord),
  plain: textHelper(plainWord),
  json: helper((values) => jsonText(values.length === 1 ? values[0] : values)),
}

function textHelper(quote: (value: string) => string): Handlebars.HelperDelegate {
  return helper(([value, ...others]) => {
    if ((typeof value !== "string" && typeof value !== "number") || others.length > 0) {
      throw new QuoteError(`a helper takes one text, not ${value === undefined ? "nothing" : "this"}`)
    }
    return quote(String(value))
  })
}

/** Handlebars gives a helper its arguments, then an object that says where in which template it was called. */
function helper(print: (values: unknown[]) => string): Handlebars.HelperDelegate {
  return (...args: unknown[]) => {
    const { loc } = args.pop() as { loc: { source: string; start: { line: number } } }
    try {
      return print(args)
    } catch (error) {
      if (error instanceof QuoteError)
        throw new TemplateError(loc.source, loc.start.line, error.message, error)
      throw error
    }
  }
}
