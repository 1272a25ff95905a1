/** What all commands share: global options, printing, and how to say that the command line is wrong. */
import { styleText } from "node:util"
import { Command, Option, UsageError } from "clipanion"
import type { Context } from "./context.ts"
import { formatJson, plain } from "./output.ts"

/** What help and docs/cli.md say of a command, beside the options, which are read from the class itself. */
export interface CommandHelp {
  readonly group: string
  /** One line, as in the overview. */
  readonly summary: string
  /** Positional arguments in order: how the usage line shows it, and its meaning. */
  readonly args?: readonly (readonly [name: string, meaning: string])[]
  /** Paragraphs. */
  readonly details?: readonly string[]
  readonly examples: readonly (readonly [meaning: string, line: string])[]
}

/** A class of a command that can be run and explained. */
export interface CommandType {
  new (): BaseCommand
  readonly paths: string[][]
  readonly help: CommandHelp
}

/**
 * Descriptions of options begin with the name of their value in angle brackets, if they take one:
 * `<FILE> read it from there`.
 */
export abstract class BaseCommand extends Command<Context> {
  /** Clipanion lists the options of commands with a usage only; ours stands in `help`. */
  static override usage = Command.Usage({})

  quiet: boolean = Option.Boolean("-q,--quiet", false, {
    description: "print only what was asked for (a list, -o), warnings and errors",
  })
  debug: boolean = Option.Boolean("--verbose,--debug", false, {
    description: "say more; show the stack and the cause of an error",
  })

  /** Printed below an error: what was done all the same. */
  afterword: string | undefined

  abstract override execute(): Promise<number | undefined>

  /** The result of the command: the only thing that goes to stdout. */
  protected print(text: string): void {
    this.context.stdout.write(text)
  }

  protected printJson(value: unknown): void {
    this.print(formatJson(value))
  }

  /** The result as a sentence for people; programs ask for `-o`. */
  protected say(text: string): void {
    if (!this.quiet) this.print(`${plain(text)}\n`)
  }

  /** Something worth knowing that is not the result. */
  protected note(text: string): void {
    if (!this.quiet) this.context.stderr.write(`${plain(text)}\n`)
  }

  /** Something that the user should look after, although the command went on. */
  protected warn(text: string): void {
    const label = this.context.colour.stderr
      ? styleText("yellow", "Warning", { validateStream: false })
      : "Warning"
    this.context.stderr.write(`${label}: ${plain(text)}\n`)
  }
}

/** Checks the value of an option that has few. */
export function oneOf<T extends string>(flag: string, value: string, allowed: readonly T[]): T {
  const found = allowed.find((candidate) => candidate === value)
  if (found === undefined)
    throw new UsageError(`${flag} must be one of ${allowed.join(", ")}, not "${value}"`)
  return found
}

/** `--label K=V` given any number of times; the last one of a key counts. */
export function parseLabels(given: readonly string[]): Record<string, string> {
  const labels = new Map<string, string>()
  for (const text of given) {
    const at = text.indexOf("=")
    if (at < 1) throw new UsageError(`--label must be KEY=VALUE, not "${text}"`)
    labels.set(text.slice(0, at), text.slice(at + 1))
  }
  return Object.fromEntries(labels)
}

/** A port number; 0 lets the system choose one. */
export function parsePort(flag: string, text: string): number {
  const port = Number(text)
  if (!/^\d{1,5}$/.test(text) || port > 65_535) {
    throw new UsageError(`${flag} must be a port number from 0 to 65535, not "${text}"`)
  }
  return port
}
