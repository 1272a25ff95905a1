/** Values of somebody who wants more than a value, for tests: what breaks lines, quotes, shells, paths or objects. */
export const HOSTILE = {
  "line break": "x\nRUN touch /pwned",
  "carriage return": "x\rRUN touch /pwned",
  "both of them": "x\r\nRUN touch /pwned",
  NUL: "x\0y",
  "escape sequence": "x\u001b[31my",
  "lone surrogate": "x\ud800y",
  "line separator": "x\u2028RUN touch /pwned",
  "next line": "x\u0085RUN touch /pwned",
  "text that runs backwards": "x\u202etxt.hs",
  "double quote": 'x" y="z',
  "single quote": "x' y='z",
  "command substitution": "$(touch /pwned)",
  backtick: "`touch /pwned`",
  "backslash at the end": "x\\",
  "two backslashes at the end": "x\\\\",
  comment: "# x",
  "comment inside": "x # y",
  "leading dash": "-x",
  "long option": "--option=x",
  dots: "..",
  "way up": "../../../etc/passwd",
  "absolute path": "/etc/passwd",
  "4 KiB": "x".repeat(4096),
  variable: "$HOME",
  "variable in braces": "${HOME:-x}",
  "here document": "<<EOF",
  template: "{{env}}{{{env}}}",
  spaces: " x  y ",
  tab: "x\ty",
  semicolon: "x; touch /pwned",
  ampersands: "x && touch /pwned",
  pipe: "x | touch /pwned",
  glob: "*",
  "per cent": "%s%n",
  prototype: "__proto__",
  constructor: "constructor",
  "equals sign": "x=y",
  JSON: '["x"]',
  emoji: "🌷",
  "byte order mark": "\ufeffx",
} as const

export type Hostile = keyof typeof HOSTILE

const all = Object.keys(HOSTILE) as Hostile[]

/** What no line of text may hold. */
export const CONTROLS: readonly Hostile[] = all.filter(
  // oxlint-disable-next-line no-control-regex -- control characters are what is looked for
  (what) => /[\0-\u001f]/.test(HOSTILE[what]) || !HOSTILE[what].isWellFormed(),
)

/** What any line of text may hold. */
export const LINES: readonly Hostile[] = all.filter((what) => !CONTROLS.includes(what))
