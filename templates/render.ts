/**
 * DockerfileVars → the text of a Dockerfile, by the Handlebars templates beside this file.
 *
 * A template can print a value only through a quoting helper: that is checked on its syntax tree before it runs, so
 * no template, and no value, can add an instruction by accident. `base.hbs` holds the layout in named blocks;
 * `cuda.hbs` and `ubi9.hbs` override some of them.
 */
import { readFileSync } from "node:fs"
import path from "node:path"
import Handlebars from "handlebars"
import { checkNeeds, checkUserTemplate, EXTENDED } from "./user-template.ts"
import { QuoteError, dockerWord, jsonText, plainWord, shellWord, variableName } from "./quote.ts"

export { shellAssignments } from "./quote.ts"

/** All that a Dockerfile depends on. Lists are in the order of the file. */
export interface DockerfileVars {
  readonly baseImage: string
  /** Set for a CUDA image: where node comes from, and which ONNX Runtime's CUDA libraries are fetched. */
  readonly cuda: { readonly nodeImage: string; readonly onnxruntimeVersion: string } | null
  /** The user's, which extends ours. `file` is for messages. */
  readonly template: { readonly file: string; readonly text: string } | null
  /** Set before anything runs. */
  readonly env: readonly NamedValue[]
  /** Null where there is no shell to run one. */
  readonly packageManager: "apt" | "microdnf" | null
  readonly systemPackages: readonly string[]
  /**
   * npm packages are installed from `packages/` of the context in a stage on `image`, by `packages-step/install.mts`
   * with the arguments in `command`.
   */
  readonly packages: { readonly image: string; readonly command: readonly string[] } | null
  /** When `setup/script` of the context runs: before there are files of ours, or after all of them; null for none. */
  readonly setupScript: "first" | "last" | null
  /** `build-env/env` is in the context: values for the steps that run, and for nothing else. */
  readonly buildEnv: boolean
  // What only adds files, one layer each.
  readonly runtime: CopiedFolder
  readonly models: readonly CopiedFolder[]
  readonly source: CopiedFolder
  readonly metadata: CopiedFolder
  readonly config: ContainerConfig
}

/** What a container starts with. The Dockerfile says it in words, an assembled image in JSON: both are made from this. */
export interface ContainerConfig {
  /** Set after all that runs. */
  readonly env: readonly NamedValue[]
  readonly workingDir: string
  /** TCP. */
  readonly port: number
  readonly stopSignal: string
  readonly healthcheck: {
    readonly command: readonly string[]
    readonly intervalS: number
    readonly timeoutS: number
    readonly startPeriodS: number
    readonly retries: number
  }
  readonly labels: readonly NamedValue[]
  readonly user: string
  readonly entrypoint: readonly string[]
}

export interface NamedValue {
  readonly name: string
  readonly value: string
}

/** Both paths end in a slash: what is in the one comes to lie in the other. */
export interface CopiedFolder {
  readonly from: string
  readonly to: string
  /** The image that `from` is in, instead of the context. */
  readonly image?: string
}

declare const rendered: unique symbol
/** The text of a Dockerfile; only `renderDockerfile` makes one. */
export type Dockerfile = string & { readonly [rendered]: true }

/** A template that cannot be rendered. `line` counts from 1 in `template`. */
export class TemplateError extends Error {
  override readonly name = "TemplateError"
  readonly template: string
  readonly line: number | undefined

  constructor(template: string, line: number | undefined, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.template = template
    this.line = line
  }
}

/** `foundation`: only what has to run, and what that needs; the rest of an assembled image is laid on top. */
export type DockerfilePart = "whole" | "foundation"

export function renderDockerfile(vars: DockerfileVars, part: DockerfilePart = "whole"): Dockerfile {
  const names = ["base", variantOf(vars)]
  const templates = names.map((name) => {
    const file = path.join(import.meta.dirname, `${name}.hbs`)
    return { name, text: readFileSync(file, "utf8") }
  })
  const { template, ...rest } = vars
  const given = {
    ...rest,
    foundation: part === "foundation",
    setupFirst: vars.setupScript === "first",
    setupLast: vars.setupScript === "last",
  }
  // The places that give a string this type.
  if (template === null) return renderTemplates(templates, given) as Dockerfile
  return renderUserTemplate(templates, template, given) as Dockerfile
}

function renderUserTemplate(
  ours: readonly { name: string; text: string }[],
  { file, text }: { readonly file: string; readonly text: string },
  vars: Omit<DockerfileVars, "template">,
): string {
  const refuse = (line: number | undefined, message: string): never => {
    throw new TemplateError(file, line, message)
  }
  const blocks = checkUserTemplate(parse(file, text), refuse)
  const extended = ours.at(-1)?.text ?? ""
  const all = [...ours, { name: EXTENDED, text: extended }, { name: file, text }]
  let dockerfile: string
  try {
    dockerfile = renderTemplates(all, vars)
  } catch (error) {
    // A name that is not there is noticed by the template around; a value that cannot be quoted tells its own place.
    if (!(error instanceof TemplateError) || error.cause instanceof QuoteError) throw error
    throw new TemplateError(file, error.line, error.message, error)
  }
  const { runtime, models, source, metadata } = vars
  const copied = [runtime, ...models, source, metadata].map(({ to }) => to)
  checkNeeds(dockerfile, blocks, { env: vars.env, copied }, refuse)
  return dockerfile
}

function parse(name: string, text: string): hbs.AST.Program {
  try {
    return Handlebars.parse(text, { srcName: name })
  } catch (error) {
    throw asTemplateError(name, error)
  }
}

/** The template that fills the blocks of the base in. */
function variantOf({ cuda, packageManager }: DockerfileVars): string {
  if (cuda !== null) return "cuda"
  return packageManager === "microdnf" ? "ubi9" : "cpu"
}

/** Renders the last of the templates; the others are its partials. */
export function renderTemplates(templates: readonly { name: string; text: string }[], vars: object): string {
  const handlebars = Handlebars.create()
  handlebars.registerHelper(HELPERS)
  // It would print to the terminal.
  handlebars.unregisterHelper("log")
  const compiled = templates.map(({ name, text }) => ({ name, render: compile(handlebars, name, text) }))
  for (const { name, render } of compiled) handlebars.registerPartial(name, render)
  const main = compiled.at(-1)
  if (main === undefined) throw new Error("no template was given")
  try {
    return `${main.render(vars).trim()}\n`
  } catch (error) {
    throw asTemplateError(main.name, error)
  }
}

function compile(handlebars: typeof Handlebars, name: string, text: string): HandlebarsTemplateDelegate {
  try {
    const tree = handlebars.parse(text, { srcName: name })
    new OnlyQuoted(name).accept(tree)
    const known = Object.fromEntries(Object.keys(HELPERS).map((helper) => [helper, true]))
    const options = {
      strict: true,
      noEscape: true,
      knownHelpersOnly: true,
      knownHelpers: { ...known, log: false },
    }
    const render = handlebars.compile(tree, options)
    return (...args) => {
      try {
        return render(...args)
      } catch (error) {
        // The innermost template is the one to mend.
        throw asTemplateError(name, error)
      }
    }
  } catch (error) {
    throw asTemplateError(name, error)
  }
}

/** The quoting helpers; an argument that is neither text nor a number is a mistake of the template. */
const HELPERS = {
  word: textHelper(dockerWord),
  variable: textHelper(variableName),
  shell: textHelper(shellWord),
  plain: textHelper(plainWord),
  json: helper((values) => jsonText(values.length === 1 ? values[0] : values)),
}

function textHelper(quote: (value: string) => string): Handlebars.HelperDelegate {
  return helper(([value, ...others]) => {
    if ((typeof value !== "string" && typeof value !== "number") || others.length > 0) {
      throw new QuoteError(`a helper takes one text, not ${value === undefined ? "nothing" : "this"}`)
    }
    return quote(String(value))
  })
}

/** Handlebars gives a helper its arguments, then an object that says where in which template it was called. */
function helper(print: (values: unknown[]) => string): Handlebars.HelperDelegate {
  return (...args: unknown[]) => {
    const { loc } = args.pop() as { loc: { source: string; start: { line: number } } }
    try {
      return print(args)
    } catch (error) {
      if (error instanceof QuoteError)
        throw new TemplateError(loc.source, loc.start.line, error.message, error)
      throw error
    }
  }
}

/** Refuses `{{value}}`: a value is printed by a quoting helper, or not at all. */
class OnlyQuoted extends Handlebars.Visitor {
  readonly #template: string

  constructor(template: string) {
    super()
    this.#template = template
  }

  override MustacheStatement(mustache: hbs.AST.MustacheStatement): void {
    const name =
      mustache.path.type === "PathExpression" ? (mustache.path as hbs.AST.PathExpression).original : "?"
    if (!Object.hasOwn(HELPERS, name) && mustache.params.length > 0 && name !== "lookup") {
      const known = Object.keys(HELPERS).join(", ")
      throw new TemplateError(
        this.#template,
        mustache.loc.start.line,
        `${name} is no helper; what prints a value is one of ${known}`,
      )
    }
    if (!Object.hasOwn(HELPERS, name)) {
      throw new TemplateError(
        this.#template,
        mustache.loc.start.line,
        `{{${name}}} prints a value as it is; write one of ${Object.keys(HELPERS)
          .map((each) => `{{${each} …}}`)
          .join(", ")}`,
      )
    }
  }
}

function asTemplateError(template: string, error: unknown): TemplateError {
  if (error instanceof TemplateError) return error
  const { lineNumber, message } = error as { lineNumber?: number; message?: string }
  const line = lineNumber ?? Number(/(?:line |- )(\d+)/.exec(message ?? "")?.[1] ?? Number.NaN)
  return new TemplateError(template, Number.isNaN(line) ? undefined : line, message ?? String(error), error)
}
