/**
 * Templates from their text, by Handlebars' compiler. Ours are compiled by `npm run build`; where a user has none of
 * their own, nothing of this is loaded.
 */
import { readFileSync } from "node:fs"
import path from "node:path"
import Handlebars from "handlebars"
import { asTemplateError, HELPERS, TemplateError } from "./helpers.ts"

/** The names of our templates, one file each. */
export type OurTemplate = "base" | "cpu" | "cuda" | "ubi9"

/** A checked template: it prints values by the quoting helpers only. Throws TemplateError. */
export function compileTemplate(
  handlebars: typeof Handlebars,
  name: string,
  text: string,
): HandlebarsTemplateDelegate {
  return handlebars.compile(checkedTree(name, text), OPTIONS)
}

/** The same for one of ours, as JavaScript: an expression that gives what `Handlebars.template` takes. */
export function precompileOurs(name: OurTemplate): string {
  // Code is an object only where a source map was asked for.
  return Handlebars.precompile(checkedTree(name, readOurs(name)), OPTIONS) as string
}

export function readOurs(name: OurTemplate): string {
  return readFileSync(path.join(import.meta.dirname, `${name}.hbs`), "utf8")
}

const OPTIONS = {
  strict: true,
  noEscape: true,
  knownHelpersOnly: true,
  knownHelpers: { ...Object.fromEntries(Object.keys(HELPERS).map((helper) => [helper, true])), log: false },
}

export function parseTemplate(name: string, text: string): hbs.AST.Program {
  try {
    return Handlebars.parse(text, { srcName: name })
  } catch (error) {
    throw asTemplateError(name, error)
  }
}

function checkedTree(name: string, text: string): hbs.AST.Program {
  const tree = parseTemplate(name, text)
  new OnlyQuoted(name).accept(tree)
  return tree
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
