/** Where in the user's files an error is. */
import { readFileSync, realpathSync } from "node:fs"
import path from "node:path"
import { fileURLToPath } from "node:url"
import type { DescribeResult, ServeSpec } from "../store/bento.ts"
import { BentoError } from "../store/errors.ts"

type Located = Omit<Extract<DescribeResult, { ok: false }>, "ok">

/** The message of an error for the user, and the place in the user's own files. */
export function locate(error: unknown, spec: Pick<ServeSpec, "srcDir" | "service">): Located {
  if (!(error instanceof Error)) {
    return {
      message: `it throws ${typeof error === "string" ? JSON.stringify(error) : String(error)}`,
      ...entryFile(spec),
    }
  }
  const hint = error instanceof BentoError && error.hint !== undefined ? `\n${error.hint}` : ""
  const name = error instanceof BentoError || error.name === "Error" ? "" : `${error.name}: `
  const { code } = error as { code?: unknown }
  // Where a module is missing Node names the file that asks for it; stack and message end in our loader.
  const importer =
    code === "ERR_MODULE_NOT_FOUND" ? /imported from (.*)$/m.exec(error.message)?.[1] : undefined
  const message =
    importer === undefined
      ? `${name}${error.message}${hint}`
      : error.message.replace(/ imported from .*$/m, "")
  const place =
    (importer === undefined ? undefined : placeOfImport(importer, error.message, spec.srcDir)) ??
    placeInStack(error.stack ?? "", spec.srcDir) ??
    entryFile(spec)
  return { message, ...place }
}

type Place = Pick<Located, "file" | "line" | "column">

/** Only what the spec names: the error is of the file as a whole. */
function entryFile({ service }: Pick<ServeSpec, "service">): Place {
  const [file] = service?.split(":") ?? []
  return file === undefined ? {} : { file }
}

/**
 * The first place in a stack that is in the user's folder. Syntax errors have theirs in the first line, `FILE:LINE` with the
 * source line and a row of carets below; all others in frames, `at f (FILE:LINE:COLUMN)`.
 */
function placeInStack(stack: string, srcDir: string): Place | undefined {
  for (const [index, line] of stack.split("\n").entries()) {
    const match = /^(?:.*\(|\s*at (?:async )?)?((?:file:\/\/)?\/.*?):(\d+)(?::(\d+))?\)?$/.exec(line)
    const file = match?.[1] === undefined ? undefined : insideOf(match[1], srcDir)
    if (file === undefined) continue
    const caret = index === 0 ? caretIn(stack) : -1
    const column = match?.[3] === undefined ? (caret === -1 ? undefined : caret + 1) : Number(match[3])
    return { file, line: Number(match?.[2]), ...(column === undefined ? {} : { column }) }
  }
  return undefined
}

/** Column, from 0, of the row of carets below the source lines that a syntax error shows. */
function caretIn(stack: string): number {
  return (
    stack
      .split("\n")
      .find((line) => /^\s*\^+\s*$/.test(line))
      ?.indexOf("^") ?? -1
  )
}

function placeOfImport(importer: string, message: string, srcDir: string): Place | undefined {
  const file = insideOf(importer, srcDir)
  if (file === undefined) return undefined
  const wanted = /Cannot find (?:package|module) '(.*?)'/.exec(message)?.[1] ?? ""
  // A package is written as it is; a file was resolved, so only its name is surely written.
  const written = wanted.startsWith("/") || wanted.startsWith("file:") ? path.basename(wanted) : wanted
  const lines = readFileSync(path.join(srcDir, file), "utf8").split("\n")
  const line = lines.findIndex((text) => text.includes(written) && /import|require|from/.test(text))
  if (line === -1) return { file }
  return { file, line: line + 1, column: (lines[line]?.indexOf(written) ?? 0) + 1 }
}

/** A path or URL relative to the user's folder; undefined outside of it and in `node_modules`. */
function insideOf(location: string, srcDir: string): string | undefined {
  const absolute = location.startsWith("file://") ? fileURLToPath(location) : location
  for (const root of new Set([path.resolve(srcDir), realPath(srcDir)])) {
    const relative = path.relative(root, absolute)
    if (!relative.startsWith("..") && !path.isAbsolute(relative) && !relative.includes("node_modules"))
      return relative
  }
  return undefined
}

function realPath(dir: string): string {
  try {
    return realpathSync(dir)
  } catch {
    return path.resolve(dir)
  }
}
