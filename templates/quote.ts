/**
 * How a value from outside gets into a Dockerfile. Each place has one function; a value that cannot stand there in
 * any spelling is refused. Nothing else in a template may print a value (`render.ts` sees to that).
 */

/** A value that cannot be written where it was wanted. */
export class QuoteError extends Error {
  override readonly name = "QuoteError"
}

/** The parser of a Dockerfile (Go's bufio.Scanner) gives up on lines of 64 KiB. */
const MAX_VALUE_BYTES = 60 * 1024

/**
 * A word of ENV or LABEL, in double quotes: the parser takes `\`, `"` and `$` literally after a backslash.
 * @example dockerWord('a "b" $c') // "a \"b\" \$c"
 */
export function dockerWord(value: string): string {
  return `"${oneLine(value).replace(/[\\"$]/g, "\\$&")}"`
}

/** A word of a shell command, in single quotes. `<<` is taken apart: not every parser of Dockerfiles sees the quotes. */
export function shellWord(value: string): string {
  return `'${oneLine(value).replaceAll("'", `'\\''`).replaceAll("<<", "<''<")}'`
}

/** A value in one line of JSON, for the exec form of an instruction. */
export function jsonText(value: unknown): string {
  const text = Array.isArray(value)
    ? `[${value.map((item) => JSON.stringify(item)).join(", ")}]`
    : JSON.stringify(value)
  // The exec form of COPY still expands $NAME; nothing of ours has one.
  return oneLine(text.replaceAll("$", "\\u0024"))
}

/** A word that may hold only what image references, paths, numbers and names are made of. */
export function plainWord(value: string): string {
  if (!/^[A-Za-z0-9/[\]][A-Za-z0-9._/:@[\]+-]*$/.test(value)) {
    throw new QuoteError(`${JSON.stringify(value)} cannot stand in a Dockerfile without quotes`)
  }
  return oneLine(value)
}

/** The name of an environment variable, bare. */
export function variableName(value: string): string {
  if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(value)) {
    throw new QuoteError(`${JSON.stringify(value)} is no name of an environment variable`)
  }
  return oneLine(value)
}

/** Lines of a shell file that set variables for the commands after them; here a value may hold line breaks. */
export function shellAssignments(
  values: readonly { readonly name: string; readonly value: string }[],
): string {
  const lines = values.map(({ name, value }) => {
    if (value.includes("\0")) throw new QuoteError(`${name} holds a NUL`)
    return `export ${variableName(name)}='${value.replaceAll("'", `'\\''`)}'\n`
  })
  return lines.join("")
}

function oneLine(value: string): string {
  // oxlint-disable-next-line no-control-regex -- control characters are what is looked for
  if (/[\u0000-\u0008\u000a-\u001f\u007f]/.test(value)) {
    throw new QuoteError(`${JSON.stringify(value.slice(0, 80))} holds a line break or control character`)
  }
  if (!value.isWellFormed()) throw new QuoteError(`${JSON.stringify(value.slice(0, 80))} is not Unicode text`)
  if (Buffer.byteLength(value) > MAX_VALUE_BYTES) {
    throw new QuoteError(
      `a value of ${Buffer.byteLength(value)} bytes is too long for a line of a Dockerfile`,
    )
  }
  return value
}
