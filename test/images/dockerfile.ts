/** A small reader of Dockerfiles, for tests only: what an engine would see of a rendered text. */

export interface Instruction {
  readonly name: string
  readonly text: string
}

/** Instructions with continuation lines joined; comments and blank lines left out, also between continuations. */
export function parseDockerfile(text: string): Instruction[] {
  const instructions: Instruction[] = []
  let open = ""
  for (const line of text.split("\n")) {
    if (/^\s*#/.test(line) || line.trim() === "") continue
    const joined = open + line
    if (/\\[ \t]*$/.test(joined)) {
      open = joined.replace(/\\[ \t]*$/, "")
      continue
    }
    open = ""
    const [, name = "", rest = ""] = /^\s*(\S+)\s*([^]*)$/.exec(joined) ?? []
    instructions.push({ name: name.toUpperCase(), text: rest.trim() })
  }
  if (open !== "") throw new Error("the text ends in a continuation")
  return instructions
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
