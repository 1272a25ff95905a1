/** The YAML of a bentofile: values where they stand, and numbers that are kept as they were written. */
import type { Issue } from "../store/errors.ts"
import { placeOf, readYamlTree } from "../store/yaml-tree.ts"
import type { YamlPath } from "../store/yaml-tree.ts"

export { formatYamlPath as formatPath } from "../store/yaml-tree.ts"
export type { YamlPath } from "../store/yaml-tree.ts"

export interface YamlSource {
  /** Maps without a prototype, arrays and scalars; undefined when the text could not be read. */
  readonly value: unknown
  readonly issues: readonly Issue[]
  /** Where the value (or, with `part: "key"`, its key) stands; of the nearest parent when it is missing. */
  position(path: YamlPath, part?: "key" | "value"): { line: number; column: number } | undefined
}

/**
 * @param asWritten paths (`*` = any key or index) where a number or boolean is kept as the text that was written,
 *   so that a label `1.10` stays `1.10`.
 */
export function readYaml(text: string, file: string, asWritten: readonly YamlPath[] = []): YamlSource {
  const { value, issues, spots } = readYamlTree(text, {
    file,
    scalar: (read, source, path) => {
      const kept = typeof read === "number" || typeof read === "boolean"
      return {
        value: kept && asWritten.some((pattern) => fits(pattern, path)) ? (source ?? String(read)) : read,
      }
    },
  })
  return {
    value: spots.size === 0 ? undefined : value,
    issues,
    position(path, part = "value") {
      const { line, column } = placeOf(spots, path, part) ?? {}
      return line === undefined || column === undefined ? undefined : { line, column }
    },
  }
}

function fits(pattern: YamlPath, path: YamlPath): boolean {
  return (
    pattern.length === path.length && pattern.every((part, index) => part === "*" || part === path[index])
  )
}
