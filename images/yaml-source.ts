/**
 * YAML as untrusted text: a plain value, where each part of it stands, and every problem at once.
 *
 * The tree is walked here and not by the `yaml` package, because a bentofile may come from a stranger: aliases
 * count against a budget, `__proto__` never becomes a key, maps have no prototype, and tags make no objects.
 */
import { LineCounter, isAlias, isMap, isScalar, isSeq, parseDocument } from "yaml"
import type { Document, Node, Pair } from "yaml"
import type { Issue } from "../store/errors.ts"

export type YamlPath = readonly (string | number)[]

export interface YamlSource {
  /** Maps without a prototype, arrays and scalars; undefined when the text could not be read. */
  readonly value: unknown
  readonly issues: readonly Issue[]
  /** Where the value (or, with `part: "key"`, its key) stands; of the nearest parent when it is missing. */
  position(path: YamlPath, part?: "key" | "value"): { line: number; column: number } | undefined
}

/** Aliases and nodes that a bentofile may expand to: ten times what the longest real ones have. */
const MAX_ALIASES = 100
const MAX_NODES = 20_000
const MAX_DEPTH = 32

/**
 * @param asWritten paths (`*` = any key or index) where a number or boolean is kept as the text that was written,
 *   so that a label `1.10` stays `1.10`.
 */
export function readYaml(text: string, file: string, asWritten: readonly YamlPath[] = []): YamlSource {
  const lines = new LineCounter()
  const document = parseDocument(text, {
    lineCounter: lines,
    prettyErrors: false,
    uniqueKeys: false,
    merge: false,
  })
  const place = (offset: number) => {
    const { line, col } = lines.linePos(offset)
    return { line: Math.max(1, line), column: Math.max(1, col) }
  }
  const problems = [...document.errors, ...document.warnings]
  if (problems.length > 0) {
    const issues = problems.map(({ message, pos }) => ({
      file,
      ...place(pos[0]),
      message: sentence(message),
    }))
    return { value: undefined, issues, position: () => undefined }
  }
  const tree = new Tree(document, asWritten, (offset) => place(offset).line)
  const value = tree.read()
  return {
    value,
    issues: tree.issues.map(({ offset, message, field }) => ({ file, ...place(offset), field, message })),
    position(path, part = "value") {
      for (let length = path.length; length >= 0; length--) {
        const found = tree.places.get(JSON.stringify(path.slice(0, length)))
        if (found !== undefined)
          return place(length === path.length && part === "value" ? found.value : found.key)
      }
      return undefined
    },
  }
}

/** One reading of one document. */
class Tree {
  readonly places = new Map<string, { key: number; value: number }>()
  readonly issues: { offset: number; message: string; field: string }[] = []
  readonly #document: Document.Parsed
  readonly #asWritten: readonly YamlPath[]
  readonly #line: (offset: number) => number
  /** Nodes being read, from the root: an alias to one of them would never end. */
  readonly #open = new Set<Node>()
  #aliases = 0
  #nodes = 0

  constructor(document: Document.Parsed, asWritten: readonly YamlPath[], line: (offset: number) => number) {
    this.#document = document
    this.#asWritten = asWritten
    this.#line = line
  }

  read(): unknown {
    return this.#value(this.#document.contents, [], 0, 0)
  }

  #value(node: Node | null | undefined, path: YamlPath, keyOffset: number, fallback: number): unknown {
    const offset = node?.range?.[0] ?? fallback
    if (!this.places.has(JSON.stringify(path))) {
      this.places.set(JSON.stringify(path), { key: keyOffset, value: offset })
    }
    if (node === null || node === undefined) return null
    this.#nodes++
    if (this.#nodes > MAX_NODES || path.length > MAX_DEPTH) {
      const what = this.#nodes > MAX_NODES ? `more than ${MAX_NODES} values` : `more than ${MAX_DEPTH} levels`
      // Once: the rest of an alias bomb would say the same ten thousand times.
      if (!this.issues.some(({ message }) => message.startsWith("holds more"))) {
        this.#issue(offset, path, `holds ${what}; aliases may have multiplied them`)
      }
      return null
    }
    if (isAlias(node)) return this.#alias(node.source, path, keyOffset, offset)
    if (this.#open.has(node)) {
      this.#issue(offset, path, "contains itself")
      return null
    }
    if (isScalar(node)) return this.#scalar(node.value, node.source, path, offset)
    this.#open.add(node)
    try {
      if (isSeq(node)) {
        return node.items.map((item, index) => {
          const child = item as Node | null
          return this.#value(child, [...path, index], child?.range?.[0] ?? offset, offset)
        })
      }
      if (isMap(node)) return this.#map(node.items as Pair<unknown, Node | null>[], path, offset)
    } finally {
      this.#open.delete(node)
    }
    this.#issue(offset, path, "is a kind of YAML value that has no place here")
    return null
  }

  #alias(name: string, path: YamlPath, keyOffset: number, offset: number): unknown {
    this.#aliases++
    if (this.#aliases > MAX_ALIASES) {
      if (this.#aliases === MAX_ALIASES + 1) this.#issue(offset, path, `more than ${MAX_ALIASES} aliases`)
      return null
    }
    let target: Node | undefined
    for (const open of this.#open) if (anchorOf(open) === name) target = open
    target ??= anchored(this.#document, name)
    if (target === undefined) {
      this.#issue(offset, path, `alias *${name} refers to nothing`)
      return null
    }
    return this.#value(target, path, keyOffset, offset)
  }

  #scalar(value: unknown, source: string | undefined, path: YamlPath, offset: number): unknown {
    if (typeof value === "number" || typeof value === "boolean" || typeof value === "bigint") {
      const kept = this.#asWritten.some((pattern) => fits(pattern, path))
      return kept ? (source ?? String(value)) : value
    }
    if (value === null || typeof value === "string") return value
    this.#issue(offset, path, "is a kind of YAML value that has no place here")
    return null
  }

  #map(items: readonly Pair<unknown, Node | null>[], path: YamlPath, offset: number): unknown {
    // No prototype: a key such as "constructor" is a key like any other.
    const map = Object.create(null) as Record<string, unknown>
    const firstAt = new Map<string, number>()
    for (const { key, value } of items) {
      const keyOffset = isScalar(key) ? (key.range?.[0] ?? offset) : offset
      if (!isScalar(key)) {
        this.#issue(offset, path, "has a key that is not a plain word")
        continue
      }
      const name = typeof key.value === "string" ? key.value : (key.source ?? String(key.value))
      const field = [...path, name]
      if (name === "__proto__") {
        this.#issue(keyOffset, field, "is not allowed as a key")
      } else if (name === "<<") {
        this.#issue(keyOffset, path, "merge keys (<<) are not supported; write the keys out")
      } else if (firstAt.has(name)) {
        this.#issue(keyOffset, field, `is given twice (first on line ${this.#line(firstAt.get(name) ?? 0)})`)
      } else {
        firstAt.set(name, keyOffset)
        map[name] = this.#value(value, field, keyOffset, keyOffset)
      }
    }
    return map
  }

  #issue(offset: number, path: YamlPath, message: string): void {
    this.issues.push({ offset, message, field: formatPath(path) })
  }
}

/** `docker.env`, `envs[2].name`. */
export function formatPath(path: YamlPath): string {
  return path
    .map((part, index) => (typeof part === "number" ? `[${part}]` : index === 0 ? part : `.${part}`))
    .join("")
}

function fits(pattern: YamlPath, path: YamlPath): boolean {
  return (
    pattern.length === path.length && pattern.every((part, index) => part === "*" || part === path[index])
  )
}

function anchorOf(node: Node): string | undefined {
  return isAlias(node) ? undefined : (node as { anchor?: string }).anchor
}

/** The first node with this anchor (the parser has already made sure that anchors come before their aliases). */
function anchored(document: Document.Parsed, name: string): Node | undefined {
  const waiting: unknown[] = [document.contents]
  while (waiting.length > 0) {
    const node = waiting.pop()
    if (isMap(node)) for (const { key, value } of node.items.toReversed()) waiting.push(value, key)
    else if (isSeq(node)) waiting.push(...node.items.toReversed())
    if ((isMap(node) || isSeq(node) || isScalar(node)) && node.anchor === name) return node
  }
  return undefined
}

function sentence(message: string): string {
  return message.split("\n")[0]?.replace(/:$/, "") ?? message
}
