/** YAML as BentoML writes lists. A file of its own because the writer is imported only where it is needed. */
import { stringify } from "yaml"

/** YAML that PyYAML reads back as the same strings: YAML 1.1, keys in alphabetical order, lines never folded. */
export function formatYaml(value: unknown): string {
  return stringify(value, { version: "1.1", sortMapEntries: true, singleQuote: true, lineWidth: 0 })
}
