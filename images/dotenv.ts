/** The dotenv dialect of BentoML's `docker.env: FILE`, read strictly: a line that says nothing is a problem. */
import type { Issue } from "../store/errors.ts"

const LINE = /^(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*(?:=|:\s)\s*([^]*)$/

/**
 * `KEY=VALUE` or `KEY: VALUE` per line, optional `export`, quotes, `#` comments. `$NAME` and `${NAME}` stand for
 * names given earlier in the file, except in single quotes; `\$` is a dollar sign. Names of the builder's own
 * environment are not looked up, so that the same file gives the same image everywhere.
 */
export function parseDotenv(
  text: string,
  file: string,
): { env: Readonly<Record<string, string>>; issues: readonly Issue[] } {
  const env = new Map<string, string>()
  const issues: Issue[] = []
  text.split(/\r?\n/).forEach((raw, index) => {
    const line = raw.trim()
    if (line === "" || line.startsWith("#")) return
    const problem = (message: string): void => {
      issues.push({ file, line: index + 1, message })
    }
    const match = LINE.exec(line)
    if (match === null) return problem("is not KEY=VALUE")
    const [, name = "", written = ""] = match
    const value = unquote(written)
    if (value === null) return problem(`${name}: the quote is not closed, or text follows it`)
    if (value.literal) {
      env.set(name, value.text)
      return
    }
    const expanded = value.text.replace(
      /\\\$|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Za-z_][A-Za-z0-9_]*)/g,
      (whole, braced: string | undefined, bare: string | undefined) => {
        if (whole === "\\$") return "$"
        const wanted = braced ?? bare ?? ""
        const found = env.get(wanted)
        if (found === undefined)
          problem(`${name}: $${wanted} is not given above; write \\$ for a dollar sign`)
        return found ?? ""
      },
    )
    env.set(name, expanded)
  })
  return { env: Object.fromEntries(env), issues }
}

function unquote(written: string): { text: string; literal: boolean } | null {
  const quote = written[0]
  if (quote === "'") {
    const match = /^'([^']*)'\s*(?:#[^]*)?$/.exec(written)
    return match === null ? null : { text: match[1] ?? "", literal: true }
  }
  if (quote === '"') {
    const match = /^"((?:[^"\\]|\\[^])*)"\s*(?:#[^]*)?$/.exec(written)
    return match === null ? null : { text: (match[1] ?? "").replace(/\\(["\\])/g, "$1"), literal: false }
  }
  return { text: written.replace(/\s+#[^]*$/, ""), literal: false }
}
