/** Takes what was made beforehand of the files that a server starts from, and makes it of the service's modules (store/prepared.ts). */
import { readFileSync } from "node:fs"
import { registerHooks, stripTypeScriptTypes } from "node:module"
import path from "node:path"
import { fileURLToPath } from "node:url"
import { type PreparedKind, preparedName } from "../store/prepared.ts"

/** What was made of this text; undefined where nothing was. */
export function readPrepared(
  dir: string | undefined,
  text: string | Uint8Array,
  kind: PreparedKind,
): string | undefined {
  if (dir === undefined) return undefined
  try {
    return readFileSync(path.join(dir, preparedName(text, kind)), "utf8")
  } catch {
    // Whatever the reason, the server can do without.
    return undefined
  }
}

/** From here on modules of TypeScript come without their types from this folder, if they are there; Node's stripper need not load. */
export function importPrepared(dir: string): void {
  registerHooks({
    load(url, context, next) {
      const source = /^file:.*\.m?ts$/.test(url) ? readPrepared(dir, sourceOf(url), "js") : undefined
      return source === undefined ? next(url, context) : { format: "module", source, shortCircuit: true }
    },
  })
}

function sourceOf(url: string): Uint8Array {
  try {
    return readFileSync(fileURLToPath(url))
  } catch {
    // Node is about to say so itself.
    return new Uint8Array()
  }
}

/** Node's, whose first call takes 50 ms. */
export function loadTypeStripper(): void {
  stripTypeScriptTypes("")
}

export interface Imports {
  /** Relative to the folder that is given. */
  readonly files: () => string[]
  /** Modules without their types, by the names that they are looked for under. */
  readonly prepared: () => Readonly<Record<string, string>>
}

/** What importing the service reads from now on. Our own bundle is left out. */
export function watchImports(dir: string): Imports {
  const files = new Set<string>()
  const prepared = new Map<string, string>()
  const own = import.meta.dirname
  registerHooks({
    load(url, context, next) {
      const loaded = next(url, context)
      if (!url.startsWith("file:")) return loaded
      const file = fileURLToPath(url)
      if (path.dirname(file) === own) return loaded
      files.add(path.relative(dir, file))
      if (loaded.format !== "module-typescript" || !(loaded.source instanceof Uint8Array)) return loaded
      try {
        const source = stripTypeScriptTypes(new TextDecoder().decode(loaded.source))
        prepared.set(preparedName(loaded.source, "js"), source)
        return { ...loaded, format: "module", source }
      } catch {
        // Node's own message has the line.
        return loaded
      }
    },
  })
  return { files: () => [...files].toSorted(), prepared: () => Object.fromEntries(prepared) }
}
