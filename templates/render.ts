/**
 * DockerfileVars → the text of a Dockerfile, by the Handlebars templates beside this file.
 *
 * A template can print a value only through a quoting helper: that is checked on its syntax tree before it runs, so
 * no template, and no value, can add an instruction by accident. `base.hbs` holds the layout in named blocks;
 * `cuda.hbs` and `ubi9.hbs` override some of them.
 */
import type { OurTemplate } from "./compile.ts"
import { asTemplateError, HELPERS } from "./helpers.ts"
import { Handlebars, ourTemplate } from "./ours.ts"

export { TemplateError } from "./helpers.ts"
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
  /** The sources, where they are not in `bento`. */
  readonly source: CopiedFolder | null
  readonly bento: CopiedFolder
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

/** `foundation`: only what has to run, and what that needs; the rest of an assembled image is laid on top. */
export type DockerfilePart = "whole" | "foundation"

/** By our own templates alone; for one of the user's there is `renderUserDockerfile`. Throws TemplateError. */
export function renderDockerfile(vars: OwnDockerfileVars, part: DockerfilePart = "whole"): Dockerfile {
  return renderTemplates(Handlebars.create(), ourTemplates(vars), templateVars(vars, part)) as Dockerfile
}

export type OwnDockerfileVars = Omit<DockerfileVars, "template"> & { readonly template?: null }

/** A template by its name, for one environment of Handlebars. */
export interface NamedTemplate {
  readonly name: string
  readonly compile: (handlebars: typeof Handlebars) => HandlebarsTemplateDelegate
}

/** The base, and what fills its blocks in. */
export function ourTemplates({ cuda, packageManager }: OwnDockerfileVars): NamedTemplate[] {
  const variant = cuda !== null ? "cuda" : packageManager === "microdnf" ? "ubi9" : "cpu"
  return (["base", variant] satisfies OurTemplate[]).map((name) => {
    return { name, compile: (handlebars) => ourTemplate(handlebars, name) }
  })
}

/** What the templates see. */
export function templateVars(vars: OwnDockerfileVars, part: DockerfilePart): object {
  return {
    ...vars,
    foundation: part === "foundation",
    setupFirst: vars.setupScript === "first",
    setupLast: vars.setupScript === "last",
  }
}

/** Renders the last of the templates; the others are its partials. Throws TemplateError. */
export function renderTemplates(
  handlebars: typeof Handlebars,
  templates: readonly NamedTemplate[],
  vars: object,
): string {
  handlebars.registerHelper(HELPERS)
  // It would print to the terminal.
  handlebars.unregisterHelper("log")
  const renderers = templates.map(({ name, compile }) => {
    const compiled = compile(handlebars)
    const render: HandlebarsTemplateDelegate = (...args) => {
      try {
        return compiled(...args)
      } catch (error) {
        // The innermost template is the one to mend.
        throw asTemplateError(name, error)
      }
    }
    handlebars.registerPartial(name, render)
    return render
  })
  const main = renderers.at(-1)
  if (main === undefined) throw new Error("no template was given")
  return `${main(vars).trim()}\n`
}
