/** Reads model.yaml and bento.yaml field by field and collects every problem with its line. */
import { type Issue, IssueError } from "./errors.ts"
import { readYaml, type YamlFile, YamlMap, YamlScalar } from "./pyyaml.ts"

type Entries = ReadonlyMap<unknown, unknown>

/**
 * Views of mappings as objects with text keys → the mapping as it stood in the file. A view loses number keys and, for
 * keys such as "10", their order; whoever writes the file again asks `asWritten` for the original.
 */
const originals = new WeakMap<object, YamlMap>()

/** The mapping as it was read, if `view` came from a file unchanged. */
export function asWritten(view: object): object {
  return originals.get(view) ?? view
}

/** A value as JSON has it: dates become text, numbers numbers, number keys text keys. */
export function toJson(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(toJson)
  if (value instanceof YamlScalar) return value.valueOf()
  const entries = entriesOf(value)
  return entries === null ? value : Object.fromEntries([...entries].map(([key, item]) => [key, toJson(item)]))
}

/** One mapping of a manifest. Wrong types become issues; the caller goes on with a stand-in until `finish`. */
export class Fields {
  readonly #entries: Entries
  readonly #at: readonly string[]
  readonly #file: YamlFile
  readonly #path: string
  readonly #issues: Issue[]

  private constructor(value: Entries, at: readonly string[], file: YamlFile, path: string, issues: Issue[]) {
    this.#entries = value
    this.#at = at
    this.#file = file
    this.#path = path
    this.#issues = issues
  }

  static read(text: string, path: string): Fields {
    const file = readYaml(text, path)
    const issues: Issue[] = []
    const root = entriesOf(file.value)
    const fields = new Fields(root ?? new Map(), [], file, path, issues)
    if (root === null) {
      fields.issue([], file.value === null ? "is empty" : "is not a map")
      fields.finish()
    }
    return fields
  }

  /** Throws MANIFEST_INVALID if any issue was found in this file. */
  finish(): void {
    if (this.#issues.length === 0) return
    const issues = this.#issues.toSorted((a, b) => (a.line ?? 0) - (b.line ?? 0))
    throw new IssueError("MANIFEST_INVALID", `${this.#path} cannot be understood:`, issues)
  }

  issue(key: readonly string[], message: string): void {
    const at = [...this.#at, ...key]
    const where = { file: this.#path, line: this.#file.lineOf(at), field: at.join(".") }
    this.#issues.push({ message, ...where })
  }

  get(key: string): unknown {
    return this.#entries.get(key) ?? null
  }

  /** Text; absent or null gives `fallback`, and is an issue without one. */
  text(key: string, fallback?: string): string {
    const value = this.get(key)
    if (typeof value === "string") return value
    if (value instanceof YamlScalar && value.kind === "timestamp") return value.text
    if (value === null && fallback !== undefined) return fallback
    this.issue([key], value === null ? "is missing" : `must be text, is ${describe(value)}`)
    return fallback ?? ""
  }

  /** Text, or null where it is absent. */
  textOrNull(key: string): string | null {
    return this.get(key) === null ? null : this.text(key)
  }

  flag(key: string): boolean {
    const value = this.get(key)
    if (typeof value === "boolean") return value
    if (value !== null) this.issue([key], `must be true or false, is ${describe(value)}`)
    return false
  }

  /** Any map; empty where it is absent. */
  record(key: string): Readonly<Record<string, unknown>> {
    const value = this.get(key)
    const entries = entriesOf(value)
    if (entries === null) {
      if (value !== null) this.issue([key], `must be a map, is ${describe(value)}`)
      return {}
    }
    return value instanceof YamlMap ? viewOf(value) : Object.fromEntries(entries)
  }

  /** A map of texts; other scalars become text as Python's str() has them. */
  texts(key: string): Readonly<Record<string, string>> {
    const record = this.record(key)
    const pairs = Object.entries(record).map(([name, value]) => {
      if (typeof value === "object" && value !== null && !(value instanceof YamlScalar)) {
        this.issue([key, name], `must be text, is ${describe(value)}`)
      }
      return [name, pythonText(value)] as const
    })
    const texts = Object.fromEntries(pairs)
    const original = originals.get(record)
    if (original !== undefined)
      originals.set(texts, new YamlMap([...original].map(([k, v]) => [k, pythonText(v)])))
    return texts
  }

  /** The map under `key`; an empty one where it is absent. */
  map(key: string): Fields {
    return this.#child(this.get(key), [key])
  }

  /** The maps under each key of the map under `key`, in their order. */
  maps(key: string): [name: string, fields: Fields][] {
    const entries = Object.entries(this.record(key))
    return entries.map(([name, value]) => [name, this.#child(value, [key, name])])
  }

  /** A list of maps; empty where it is absent. */
  list(key: string): Fields[] {
    return this.values(key).map((value, index) => this.#child(value, [key, String(index)]))
  }

  /** A list of anything; empty where it is absent. */
  values(key: string): readonly unknown[] {
    const value = this.get(key)
    if (Array.isArray(value)) return value as unknown[] // Array.isArray gives any[]
    if (value !== null) this.issue([key], `must be a list, is ${describe(value)}`)
    return []
  }

  #child(value: unknown, key: readonly string[]): Fields {
    const entries = entriesOf(value)
    if (entries === null && value !== null) this.issue(key, `must be a map, is ${describe(value)}`)
    return new Fields(entries ?? new Map(), [...this.#at, ...key], this.#file, this.#path, this.#issues)
  }
}

function viewOf(map: YamlMap): Readonly<Record<string, unknown>> {
  const view = map.toJSON()
  originals.set(view, map)
  return view
}

function entriesOf(value: unknown): Entries | null {
  if (value instanceof YamlMap) return new Map([...value].map(([key, item]) => [String(key), item]))
  if (typeof value !== "object" || value === null || Array.isArray(value)) return null
  if (value instanceof YamlScalar || value instanceof Uint8Array) return null
  return new Map(Object.entries(value))
}

function pythonText(value: unknown): string {
  if (value === null) return "None"
  if (typeof value === "boolean") return value ? "True" : "False"
  return scalarText(value) ?? ""
}

/** The text of a scalar; null for lists, maps and binary data. */
function scalarText(value: unknown): string | null {
  if (value instanceof YamlScalar) return value.text
  if (typeof value === "string") return value
  return typeof value === "number" || typeof value === "boolean" ? String(value) : null
}

function describe(value: unknown): string {
  if (value === null) return "null"
  if (Array.isArray(value)) return "a list"
  if (value instanceof Uint8Array) return "binary data"
  const text = scalarText(value)
  return text === null ? "a map" : `${text} (quote it)`
}
