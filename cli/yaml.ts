/** YAML as BentoML writes and reads it. A file of its own because the parser is imported only where it is needed. */
import { parse, stringify } from "yaml"

/** YAML that PyYAML reads back as the same strings: YAML 1.1, keys in alphabetical order, lines never folded. */
export function formatYaml(value: unknown): string {
  return stringify(value, { version: "1.1", sortMapEntries: true, singleQuote: true, lineWidth: 0 })
}

/** What PyYAML wrote is YAML 1.1, what people write is meant as 1.2. Throws YAMLParseError with line and column. */
export function parseYaml(text: string, version: "1.1" | "1.2"): unknown {
  return parse(text, { version, prettyErrors: true }) as unknown
}
