/** What an engine would see of a rendered Dockerfile, for tests only. Instructions are found by a parser that is not ours. */
import { DockerfileParser } from "dockerfile-ast"

export interface Instruction {
  readonly name: string
  /** Without flags; continuation lines are joined. */
  readonly text: string
}

export function parseDockerfile(text: string): Instruction[] {
  return DockerfileParser.parse(text)
    .getInstructions()
    .map((found) => ({ name: found.getKeyword(), text: found.getArgumentsContent() ?? "" }))
}

/** `"a b"="c"` of LABEL or ENV, unquoted as BuildKit's shell lexer does; a variable would be expanded, so it throws. */
export function parsePair(text: string): [name: string, value: string] {
  const words: string[] = [""]
  let quote = ""
  for (let at = 0; at < text.length; at++) {
    const char = text[at] ?? ""
    const put = (piece: string): void => {
      words[words.length - 1] += piece
    }
    if (quote === "'" && char !== "'") put(char)
    else if (char === "\\") {
      const next = text[at + 1] ?? ""
      const escapes = quote === '"' ? ['"', "$", "\\"].includes(next) : true
      put(escapes ? next : "\\")
      if (escapes) at++
    } else if (char === "$") throw new Error(`${text} expands a variable`)
    else if (char === quote) quote = ""
    else if (quote === "" && (char === '"' || char === "'")) quote = char
    else if (quote === "" && char === "=" && words.length === 1) words.push("")
    else if (quote === "" && /\s/.test(char)) throw new Error(`${text} is more than one word`)
    else put(char)
  }
  if (quote !== "") throw new Error(`${text} has an open quote`)
  const [name = "", value = ""] = words
  return [name, value]
}

/** Words of a POSIX shell command; operators are words of their own. */
export function shellWords(text: string): string[] {
  const words: string[] = []
  let word: string | undefined
  for (let at = 0; at < text.length; at++) {
    const char = text[at] ?? ""
    if (char === "'") {
      const end = text.indexOf("'", at + 1)
      if (end < 0) throw new Error("open quote")
      word = (word ?? "") + text.slice(at + 1, end)
      at = end
    } else if (char === "\\") word = (word ?? "") + (text[++at] ?? "")
    else if (/\s/.test(char) || ";&|<>()".includes(char)) {
      if (word !== undefined) words.push(word)
      word = undefined
      if (!/\s/.test(char)) words.push(char)
    } else word = (word ?? "") + char
  }
  if (word !== undefined) words.push(word)
  return words
}
