/** Help texts, made from the commands' definitions. Pure: definitions in, text out. */
import type { Cli, Definition } from "clipanion"
import type { CommandType } from "./command.ts"
import type { Context } from "./context.ts"
import { IMAGE_FLAGS } from "./image-command.ts"
import { wrap } from "./output.ts"

export interface OptionHelp {
  readonly flags: readonly string[]
  /** Name of the option's value; null for a switch. */
  readonly value: string | null
  readonly meaning: string
}

/** One command, explained. */
export interface Explained {
  readonly name: string
  readonly aliases: readonly string[]
  readonly type: CommandType
  readonly usage: string
  readonly options: readonly OptionHelp[]
  readonly globalOptions: readonly OptionHelp[]
}

/** How to draw the parts that a terminal sets off. */
export interface Style {
  readonly heading: (text: string) => string
  readonly name: (text: string) => string
}

export const PLAIN: Style = { heading: (text) => text, name: (text) => text }

const GLOBAL_FLAGS = new Set(["--quiet", "--verbose"])

export function explain(cli: Cli<Context>, type: CommandType): Explained {
  const [first = [], ...others] = type.paths
  const name = first.join(" ")
  const definition = cli.definitions().find((candidate) => candidate.path === `${cli.binaryName} ${name}`)
  if (definition === undefined) throw new Error(`command "${name}" is not registered`)
  const options = definition.options.map(readOption)
  const isShared = ({ flags }: OptionHelp): boolean => flags.some((flag) => IMAGE_FLAGS.has(flag))
  const isGlobal = (option: OptionHelp): boolean => option.flags.some((flag) => GLOBAL_FLAGS.has(flag))
  const args = (type.help.args ?? []).map(([arg]) => ` ${arg}`).join("")
  return {
    name,
    aliases: others.map((path) => path.join(" ")),
    type,
    usage: `${cli.binaryName} ${name}${args} [OPTIONS]`,
    options: options
      .filter((option) => !isGlobal(option))
      .toSorted((a, b) => Number(isShared(a)) - Number(isShared(b))),
    globalOptions: [
      ...options.filter(isGlobal),
      { flags: ["-h", "--help"], value: null, meaning: "show this help" },
    ],
  }
}

function readOption(option: Definition["options"][number]): OptionHelp {
  const flags = option.definition.replace(/ #\d+/g, "").split(",")
  const [, value, meaning] = /^(?:<([^>]+)> )?(.*)$/s.exec(option.description ?? "") ?? []
  return { flags, value: value ?? null, meaning: meaning ?? "" }
}

/** All that `bentoctl COMMAND --help` prints. */
export function commandHelp(command: Explained, width: number, style: Style = PLAIN): string {
  const { help } = command.type
  const sections: string[] = [
    wrap(`${help.summary}.`, width).join("\n"),
    `${style.heading("Usage")}\n  ${command.usage}${alsoKnownAs(command)}`,
  ]
  for (const paragraph of help.details ?? []) sections.push(wrap(paragraph, width).join("\n"))
  if (help.args !== undefined && help.args.length > 0) {
    const rows = help.args.map(([name, meaning]): Row => [name.replace(/[[\].]/g, ""), meaning])
    sections.push(`${style.heading("Arguments")}\n${table(rows, width, style)}`)
  }
  const options = command.options.map(optionRow)
  const globals = command.globalOptions.map(optionRow)
  const column = nameColumn([...options, ...globals])
  if (options.length > 0)
    sections.push(`${style.heading("Options")}\n${table(options, width, style, column)}`)
  sections.push(`${style.heading("Global options")}\n${table(globals, width, style, column)}`)
  const examples = help.examples.map(
    ([meaning, line]) =>
      `${wrap(meaning, width - 2)
        .map((text) => `  # ${text}`)
        .join("\n")}\n  ${style.name(`$ ${line}`)}`,
  )
  sections.push(`${style.heading("Examples")}\n${examples.join("\n\n")}`)
  return `${sections.join("\n\n")}\n`
}

function alsoKnownAs(command: Explained): string {
  return command.aliases.length === 0 ? "" : `\n  (also: ${command.aliases.join(", ")})`
}

/** What `bentoctl` alone, or a group such as `bentoctl models`, prints. */
export function overview(
  commands: readonly Explained[],
  page: {
    readonly version: string
    readonly within?: string
    readonly width: number
    readonly style?: Style
  },
): string {
  const { version, within, width, style = PLAIN } = page
  const prefix = within === undefined ? "" : `${within} `
  const shown = commands.filter((command) => command.name.startsWith(prefix))
  const rows = shown.map((command): Row => [command.name, command.type.help.summary])
  const column = nameColumn(rows)
  const groups = [...new Set(shown.map((command) => command.type.help.group))]
  const sections = [
    within === undefined
      ? wrap(`bentoctl ${version}: turns a trained ONNX model into a production container.`, width).join("\n")
      : `${style.heading("Usage")}\n  bentoctl ${within} COMMAND [OPTIONS]`,
  ]
  if (within === undefined) sections.push(`${style.heading("Usage")}\n  bentoctl COMMAND [OPTIONS]`)
  for (const group of groups) {
    const members = shown
      .filter((command) => command.type.help.group === group)
      .map((command): Row => [command.name, command.type.help.summary])
    sections.push(`${style.heading(group)}\n${table(members, width, style, column)}`)
  }
  if (within === undefined) {
    const options: Row[] = [
      ["-h, --help", "show this help, or that of a command"],
      ["-v, --version", "show the version"],
      ...(shown[0]?.globalOptions.filter((option) => !option.flags.includes("-h")).map(optionRow) ?? []),
    ]
    sections.push(
      `${style.heading("Options")}\n${table(options, width, style, column)}`,
      `${style.heading("From a model to a container")}\n${FIRST_STEPS.map((line) => `  ${style.name(`$ ${line}`)}`).join("\n")}`,
    )
  }
  sections.push(
    `Run \`bentoctl ${within === undefined ? "" : prefix}COMMAND --help\` for the options and examples of one command.`,
  )
  return `${sections.join("\n\n")}\n`
}

const FIRST_STEPS = [
  "bentoctl models import iris.onnx --name iris",
  "bentoctl build --containerize",
  "docker run --rm -p 3000:3000 iris:latest",
]

type Row = readonly [name: string, meaning: string]

export function optionRow(option: OptionHelp): Row {
  // A long flag alone is set below the other long ones.
  const flags = option.flags.every((flag) => flag.startsWith("--"))
    ? `    ${option.flags.join(", ")}`
    : option.flags.join(", ")
  return [option.value === null ? flags : `${flags} ${option.value}`, option.meaning]
}

function nameColumn(rows: readonly Row[]): number {
  return Math.min(30, Math.max(...rows.map(([name]) => name.length)))
}

function table(rows: readonly Row[], width: number, style: Style, column = nameColumn(rows)): string {
  return rows
    .map(([name, meaning]) => {
      const lines = wrap(meaning, Math.max(20, width - column - 4))
      const indent = `\n${" ".repeat(column + 4)}`
      const gap = name.length > column ? indent : " ".repeat(column - name.length + 2)
      return `  ${style.name(name)}${gap}${lines.join(indent)}`.trimEnd()
    })
    .join("\n")
}
