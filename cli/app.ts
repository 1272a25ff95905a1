/**
 * From arguments to an exit code: finds the command, answers `--help`, runs it, reports its error.
 *
 * Clipanion parses; running and reporting are ours, because its own loop prints errors to stdout and knows one exit
 * code only. Ours: 0 done · 1 the command failed · 2 the command line is wrong · 130 interrupted (SIGTERM: 143, SIGHUP: 129).
 */
import { styleText } from "node:util"
import { Cli, UsageError } from "clipanion"
import { BentofileSchemaCommand } from "./bentofile.ts"
import { BentosDeleteCommand, BentosGetCommand, BentosListCommand } from "./bentos.ts"
import { BuildCommand } from "./build.ts"
import type { BaseCommand, CommandType } from "./command.ts"
import { ContainerizeCommand } from "./containerize.ts"
import type { Context } from "./context.ts"
import { ImagePruneCommand } from "./engine-images.ts"
import { ImageDiffCommand, ImageInspectCommand } from "./image-inspect.ts"
import { reportError, type ErrorStyle } from "./failure.ts"
import { commandHelp, explain, overview, PLAIN, type Explained, type Style } from "./help.ts"
import {
  ModelsContainerizeCommand,
  ModelsDeleteCommand,
  ModelsGetCommand,
  ModelsImportCommand,
  ModelsListCommand,
  ModelsRecordCommand,
} from "./models.ts"
import { nearestNames } from "../store/tag.ts"
import { SelfTestCommand } from "./selftest.ts"
import { ServeCommand } from "./serve.ts"

/** In the order of the overview. */
export const COMMANDS: readonly CommandType[] = [
  ModelsImportCommand,
  ModelsRecordCommand,
  ModelsListCommand,
  ModelsGetCommand,
  ModelsDeleteCommand,
  ModelsContainerizeCommand,
  BuildCommand,
  BentofileSchemaCommand,
  BentosListCommand,
  BentosGetCommand,
  BentosDeleteCommand,
  ServeCommand,
  SelfTestCommand,
  ContainerizeCommand,
  ImagePruneCommand,
  ImageInspectCommand,
  ImageDiffCommand,
]

/** With less to choose from, it is made sooner. */
export function createCli(commands: readonly CommandType[] = COMMANDS): Cli<Context> {
  return Cli.from<Context>([...commands], { binaryName: "bentoctl" })
}

/** Every command with its options, in the order of the overview. */
export function explainAll(cli: Cli<Context> = createCli()): Explained[] {
  return COMMANDS.map((type) => explain(cli, type))
}

export async function runApp(argv: readonly string[], context: Context): Promise<number> {
  let style: ErrorStyle = {
    json: asksForJson(argv),
    debug: argv.includes("--debug") || argv.includes("--verbose"),
  }
  let running: BaseCommand | undefined
  try {
    const asked = interpret(argv)
    if (asked.type === "text") {
      context.stdout.write(asked.text(context))
      return 0
    }
    style = { ...style, command: asked.command.paths[0]?.join(" ") }
    const command = parse(asked.command, asked.argv, context)
    style = { ...style, debug: command.debug }
    running = command
    return (await command.execute()) ?? 0
  } catch (error) {
    return reportError(error, context, { ...style, afterword: running?.afterword })
  }
}

type Asked =
  | { readonly type: "text"; readonly text: (context: Context) => string }
  | { readonly type: "run"; readonly command: CommandType; readonly argv: readonly string[] }

/** What the arguments ask for, before any option is looked at. */
function interpret(argv: readonly string[]): Asked {
  const given = argv[0] === "help" ? [...argv.slice(1), "--help"] : argv
  const beforeDashes = given.includes("--") ? given.slice(0, given.indexOf("--")) : given
  const wantsHelp = beforeDashes.includes("--help") || beforeDashes.includes("-h")
  if (given[0] === "-v" || given[0] === "--version") {
    return { type: "text", text: (context) => `bentoctl ${context.version}\n` }
  }
  const words = leadingWords(beforeDashes)
  const command = findCommand(words)
  if (command !== undefined && wantsHelp) {
    return {
      type: "text",
      text: (context) => commandHelp(explain(createCli([command]), command), width(context), style(context)),
    }
  }
  if (command !== undefined) return { type: "run", command, argv: given }
  const first = words[0]
  if (first === undefined) {
    const stray = given.find((word) => !/^(-h|--help|-q|--quiet|--verbose|--debug|--)$/.test(word))
    if (stray !== undefined) throw new UsageError(`unknown option ${stray}`)
    return overviewText(undefined)
  }
  const isGroup = COMMANDS.some(({ paths }) => paths.some((path) => path.length > 1 && path[0] === first))
  if (!isGroup) throw unknownCommand(words.slice(0, 1))
  if (words.length > 1) throw unknownCommand(words.slice(0, 2))
  return overviewText(first)
}

function overviewText(within: string | undefined): Asked {
  return {
    type: "text",
    text: (context) =>
      overview(explainAll(), {
        version: context.version,
        width: width(context),
        style: style(context),
        ...(within === undefined ? {} : { within }),
      }),
  }
}

/** Words before the first argument that cannot belong to a command's name; global switches may stand between them. */
function leadingWords(argv: readonly string[]): string[] {
  const words: string[] = []
  for (const word of argv) {
    if (/^(-h|--help|-q|--quiet|--verbose|--debug)$/.test(word)) continue
    if (word.startsWith("-")) break
    words.push(word)
  }
  return words
}

function findCommand(words: readonly string[]): CommandType | undefined {
  const fits = (path: readonly string[]): boolean => path.every((word, index) => words[index] === word)
  return COMMANDS.find(({ paths }) => paths.some(fits))
}

/** The last word is the one that is not known; what stands before it is a group. */
function unknownCommand(words: readonly string[]): Error {
  const group = words.slice(0, -1)
  const paths = COMMANDS.flatMap((type) => type.paths).filter((path) => path.length > group.length)
  const known = paths.filter((path) => group.every((word, index) => path[index] === word))
  const similar = nearestNames(words.at(-1) ?? "", new Set(known.map((path) => path[group.length] ?? "")))
  const names = similar.map((name) => `\`${[...group, name].join(" ")}\``)
  const meant = names.length === 0 ? "" : `; did you mean ${names.join(" or ")}?`
  return new UsageError(`unknown command "${words.join(" ")}"${meant}`)
}

/** Makes the command object, or throws an error that says what is wrong with the arguments. */
function parse(type: CommandType, argv: readonly string[], context: Context): BaseCommand {
  const cli = createCli([type])
  try {
    // The cast: clipanion gives back an instance of one of the registered classes, and all of ours are BaseCommands.
    const command = cli.process([...argv], context) as BaseCommand
    command.context = context
    return command
  } catch (error) {
    throw new UsageError(explainSyntaxError(cli, type, error))
  }
}

/** Clipanion names the reason but not always the thing, and adds the usage of every command that was near. */
function explainSyntaxError(cli: Cli<Context>, type: CommandType, error: unknown): string {
  const reason = reasonOf(error)
  const option = /^Unsupported option name \("(.+)"\)/.exec(reason)?.[1]
  if (option !== undefined) {
    const { options, globalOptions } = explain(cli, type)
    const flags = [...options, ...globalOptions].flatMap((known) => known.flags)
    const similar = option.startsWith("--")
      ? nearestNames(
          option,
          flags.filter((flag) => flag.startsWith("--")),
        )
      : []
    return `unknown option ${option}${similar.length === 0 ? "" : `; did you mean ${similar.join(", ")}?`}`
  }
  const needy = /^Not enough arguments to option (.+)\.$/.exec(reason)?.[1]
  if (needy !== undefined) return `option ${needy} needs a value`
  const required = (type.help.args ?? []).map(([name]) => name).filter((name) => !name.startsWith("["))
  if (reason.startsWith("Not enough positional")) return `${required.join(" and ")} is missing`
  if (reason.startsWith("Extraneous positional")) return "too many arguments"
  return reason
}

/** Commands whose names are alike are all candidates of clipanion's; those that did not fit at all have no reason. */
function reasonOf(error: unknown): string {
  if (error instanceof Error && "candidates" in error && Array.isArray(error.candidates)) {
    // The cast: `UnknownSyntaxError`, which clipanion does not export.
    const candidates = error.candidates as readonly { reason: string | null }[]
    const reason = candidates.find((candidate) => candidate.reason !== null)?.reason
    if (typeof reason === "string") return reason
  }
  return error instanceof Error ? error.message : String(error)
}

/** Known before parsing, so that a wrong command line is reported in the form that was asked for, too. */
function asksForJson(argv: readonly string[]): boolean {
  return argv.some(
    (word, index) =>
      ["-o=json", "--output=json", "--progress=json"].includes(word) ||
      (word === "json" && ["-o", "--output", "--progress"].includes(argv[index - 1] ?? "")),
  )
}

function width(context: Context): number {
  return Math.max(40, Math.min(100, context.columns()))
}

function style(context: Context): Style {
  if (!context.colour.stdout) return PLAIN
  return {
    heading: (text) => styleText("bold", text, { validateStream: false }),
    name: (text) => styleText("cyan", text, { validateStream: false }),
  }
}
