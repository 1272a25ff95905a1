/**
 * The three ways to write settings as text (a YAML file, JSON, `a.b=value` words), all read into one shape: a tree and
 * where each part of it stands. Loaded only when one of them is there: the `yaml` package takes 12 ms.
 */
import type { Json } from "../store/bento.ts"
import type { Issue } from "../store/errors.ts"
import { placeOf, readYamlTree } from "../store/yaml-tree.ts"
import type { YamlOptions, YamlPath, YamlSpot } from "../store/yaml-tree.ts"
import { type Place, formatKey, parseKey } from "./config-entry.ts"

export type Path = YamlPath
/** Without a prototype: `constructor` is a key like any other. */
export type Tree = { [key: string]: Json }

/** Settings as one source gave them, not yet checked. */
export interface Source {
  readonly tree: Tree
  /** Where the key, or its value, stands; of the nearest parent when it is not there. */
  place(path: Path, part: "key" | "value"): Place
  readonly issues: readonly Issue[]
}

export type Env = Readonly<Record<string, string | undefined>>

export function readYamlSource(text: string, file: string, env: Env): Source {
  const { value, issues, spots } = readYamlTree(text, optionsOf(file, env))
  return sourceOf(value, file, spots, issues)
}

/** JSON is read as the YAML it is, so that its problems have places; but it has to be JSON. */
export function readJsonSource(text: string, variable: string, env: Env): Source {
  try {
    JSON.parse(text)
  } catch (error) {
    const message = `is not JSON: ${error instanceof Error ? error.message : String(error)}`
    return sourceOf(null, variable, new Map(), [{ file: variable, message }])
  }
  return readYamlSource(text, variable, env)
}

/**
 * `a.b.c=value` separated by spaces, each value in YAML. Quotes group, as in a shell, and keep their say within a key:
 * `runners."my.model".workers=2 'api_server.metrics.duration.buckets=[0.1, 1]'`.
 */
export function readOptionsSource(text: string, variable: string, env: Env): Source {
  const tree = emptyTree()
  const issues: Issue[] = []
  const spots = new Map<string, YamlSpot>()
  for (const { word, column, open } of splitWords(text)) {
    const place = { file: variable, line: 1, column }
    const equals = word.indexOf("=")
    const path = equals < 0 ? null : parseKey(word.slice(0, equals))
    const issue = (message: string, at: Path = []): void =>
      void issues.push({ ...place, ...(at.length > 0 ? { field: formatPath(at) } : {}), message })
    if (open) issue(`the quote in ${text.slice(column - 1).trimEnd()} does not end`)
    else if (path === null) issue(`${JSON.stringify(word)} is not of the form a.b.c=value`)
    else if (path.includes("__proto__")) issue("is not allowed as a key", path)
    else {
      const read = readYamlTree(word.slice(equals + 1), {
        ...optionsOf(variable, env),
        part: { path, place },
      })
      issues.push(...read.issues)
      for (const [key, spot] of read.spots) spots.set(key, spot)
      for (const length of path.keys()) {
        const key = JSON.stringify(path.slice(0, length))
        if (length > 0 && !spots.has(key)) spots.set(key, { key: place, value: place })
      }
      if (!put(tree, path, read.value as Json)) issue("is given twice", path)
    }
  }
  return sourceOf(tree, variable, spots, issues)
}

function optionsOf(file: string, env: Env): YamlOptions {
  const scalar = (value: string | number | boolean | null): { value: Json; problem?: string } =>
    typeof value === "string" ? expand(value, env) : { value }
  return { file, format: formatPath, scalar }
}

/** `value` holds what JSON holds: that is what YAML's scalars, lists and maps are. */
function sourceOf(
  value: unknown,
  file: string,
  spots: ReadonlyMap<string, YamlSpot>,
  found: readonly Issue[],
): Source {
  const place = (path: Path, part: "key" | "value"): Place => placeOf(spots, path, part) ?? { file }
  const json = value as Json
  const message = "must be a map with the keys version, api_server and runners"
  const issues = json === null || isTree(json) ? found : [...found, { ...place([], "value"), message }]
  return { tree: isTree(json) ? json : emptyTree(), place, issues }
}

export function emptyTree(): Tree {
  // A cast, because Object.create has no better type than any.
  return Object.create(null) as Tree
}

export function isTree(value: Json | undefined): value is Tree {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}

/** `runners.iris.workers`, `api_server.logging.access.skip_paths[2]`. */
export function formatPath(path: Path): string {
  const from = path.findIndex((part) => typeof part === "number")
  const keys = from < 0 ? path : path.slice(0, from)
  const rest = from < 0 ? [] : path.slice(from)
  return formatKey(keys.map(String)) + rest.map((part) => `[${part}]`).join("")
}

/**
 * `${NAME}` and `${NAME:-default}`. A text in which something was replaced is then read as YAML reads a plain word:
 * `port: ${PORT}` is a number. It never becomes a list or a map. `$${` stands for the two characters themselves.
 */
function expand(text: string, env: Env): { value: Json; problem?: string } {
  if (!text.includes("${")) return { value: text }
  let problem: string | undefined
  let replaced = false
  const value = text.replace(
    /\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\})?/g,
    (match, name, fallback) => {
      if (match === "$${") return "${"
      if (typeof name !== "string") {
        problem =
          "`${` begins a variable: write ${NAME} or ${NAME:-default}, and $${ for the characters themselves"
        return ""
      }
      replaced = true
      // As a shell has it: `:-` also stands in for what is set but empty.
      const own = Object.hasOwn(env, name) ? env[name] : undefined
      const found = typeof fallback === "string" ? own || fallback : own
      if (found === undefined)
        problem = `the variable ${name} is not set; write \${${name}:-default} to allow that`
      return found ?? ""
    },
  )
  if (problem !== undefined) return { value: null, problem }
  return { value: replaced ? plainWord(value) : value }
}

/** The core schema of YAML 1.2. */
function plainWord(text: string): Json {
  if (/^(null|Null|NULL|~|)$/.test(text)) return null
  if (/^(true|True|TRUE)$/.test(text)) return true
  if (/^(false|False|FALSE)$/.test(text)) return false
  return /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text) ? Number(text) : text
}

/** Quotes of a value are taken away, those of a key are left to `parseKey`. */
function splitWords(text: string): { word: string; column: number; open: boolean }[] {
  const words: { word: string; column: number; open: boolean }[] = []
  let index = 0
  while (index < text.length) {
    if (/\s/.test(text.charAt(index))) {
      index++
      continue
    }
    const start = index
    let word = ""
    let open = false
    while (index < text.length && !/\s/.test(text.charAt(index))) {
      const quote = text.charAt(index)
      if (quote !== '"' && quote !== "'") {
        word += quote
        index++
        continue
      }
      const end = text.indexOf(quote, index + 1)
      open = end < 0
      const quoted = text.slice(index + 1, open ? undefined : end)
      // A whole assignment, or a value, is grouped by its quotes; within a key they tell dots from dots.
      word +=
        word.includes("=") || (word === "" && quoted.includes("=")) ? quoted : `${quote}${quoted}${quote}`
      index = open ? text.length : end + 1
    }
    words.push({ word, column: start + 1, open })
  }
  return words
}

/** False when something is there already. */
function put(tree: Tree, path: readonly string[], value: Json): boolean {
  const last = path.at(-1)
  let at = tree
  for (const part of path.slice(0, -1)) {
    const next = (at[part] ??= emptyTree())
    if (!isTree(next)) return false
    at = next
  }
  if (last === undefined || last in at) return false
  at[last] = value
  return true
}
