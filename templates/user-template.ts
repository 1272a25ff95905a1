/**
 * A Dockerfile template of the user's: it extends ours and overrides named blocks. What it may hold is checked on its
 * syntax tree before it runs; that the result still does what an image needs, on the instructions that came out.
 */
import path from "node:path"
import Handlebars from "handlebars"
import { compileTemplate, parseTemplate } from "./compile.ts"
import { TemplateError } from "./helpers.ts"
import { QuoteError } from "./quote.ts"
import { ourTemplates, renderTemplates, templateVars } from "./render.ts"
import type { Dockerfile, DockerfilePart, DockerfileVars } from "./render.ts"

/** What a user's template extends: `{{#> bento_base_template}}…{{/bento_base_template}}`. */
const EXTENDED = "bento_base_template"

/** BentoML's names of the blocks. */
const BLOCKS = [
  "SETUP_BENTO_BASE_IMAGE",
  "SETUP_BENTO_ENVARS",
  "SETUP_BENTO_COMPONENTS",
  "SETUP_BENTO_USER",
  "SETUP_BENTO_ENTRYPOINT",
] as const
type Block = (typeof BLOCKS)[number]

type Refuse = (line: number | undefined, message: string) => never

/** The Dockerfile of an image that has a template of its own. Throws TemplateError. */
export function renderUserDockerfile(
  { template: { file, text }, ...vars }: DockerfileVars & { readonly template: object },
  part: DockerfilePart = "whole",
): Dockerfile {
  const refuse = (line: number | undefined, message: string): never => {
    throw new TemplateError(file, line, message)
  }
  const blocks = checkUserTemplate(parseTemplate(file, text), refuse)
  const ours = ourTemplates(vars)
  const extended = ours.slice(-1).map((template) => ({ ...template, name: EXTENDED }))
  const users = { name: file, compile: (env: typeof Handlebars) => compileTemplate(env, file, text) }
  let dockerfile: Dockerfile
  try {
    const templates = [...ours, ...extended, users]
    dockerfile = renderTemplates(Handlebars.create(), templates, templateVars(vars, part)) as Dockerfile
  } catch (error) {
    // A name that is not there is noticed by the template around; a value that cannot be quoted tells its own place.
    if (!(error instanceof TemplateError) || error.cause instanceof QuoteError) throw error
    throw new TemplateError(file, error.line, error.message, error)
  }
  const { runtime, models, source, bento } = vars
  const copied = [runtime, ...models, ...(source === null ? [] : [source]), bento].map(({ to }) => to)
  checkNeeds(dockerfile, blocks, { env: vars.env, copied }, refuse)
  return dockerfile
}

/** The blocks that a template overrides, with their lines. */
type Overridden = ReadonlyMap<Block, number>

function checkUserTemplate(tree: hbs.AST.Program, refuse: Refuse): Overridden {
  const [extending, ...more] = meaningful(tree.body, refuse, "outside of the template that is extended")
  if (
    extending === undefined ||
    extending.type !== "PartialBlockStatement" ||
    nameOf(extending) !== EXTENDED
  ) {
    refuse(
      extending?.loc.start.line ?? 1,
      `a template must extend ours: {{#> ${EXTENDED}}} … {{/${EXTENDED}}}, with the blocks that it overrides inside`,
    )
  }
  const second = more[0]
  if (second !== undefined) refuse(second.loc.start.line, `nothing may follow {{/${EXTENDED}}}`)
  const found = new Map<Block, number>()
  const { program } = extending as hbs.AST.PartialBlockStatement
  for (const part of meaningful(program.body, refuse, "outside of a block")) {
    const { line } = part.loc.start
    if (part.type !== "DecoratorBlock") refuse(line, `only {{#*inline "BLOCK"}} … {{/inline}} may stand here`)
    const { params, program: body } = part as hbs.AST.DecoratorBlock
    const [name] = params as hbs.AST.StringLiteral[]
    const block = BLOCKS.find((known) => known === name?.value)
    if (block === undefined) {
      refuse(line, `${JSON.stringify(name?.value ?? "")} is no block; there are ${BLOCKS.join(", ")}`)
    }
    if (found.has(block)) refuse(line, `${block} is overridden twice (first on line ${found.get(block)})`)
    found.set(block, line)
    new Body(block, refuse).accept(body)
  }
  return found
}

/** Refuses what the body of a block may not hold. */
class Body extends Handlebars.Visitor {
  readonly #block: Block
  readonly #refuse: Refuse

  constructor(block: Block, refuse: Refuse) {
    super()
    this.#block = block
    this.#refuse = refuse
  }

  override PathExpression(name: hbs.AST.PathExpression): void {
    if (!name.parts.some((part) => ["constructor", "__proto__", "prototype"].includes(part))) return
    this.#refuse(name.loc.start.line, `${name.original} is no value of the template`)
  }

  override PartialStatement(partial: hbs.AST.PartialStatement): void {
    if (nameOf(partial) === "@partial-block") return
    this.#refuse(
      partial.loc.start.line,
      "there is no other partial than {{> @partial-block}}, our own body of the block",
    )
  }

  override PartialBlockStatement(partial: hbs.AST.PartialBlockStatement): void {
    this.#refuse(partial.loc.start.line, "a block holds no other blocks")
  }

  override DecoratorBlock(decorator: hbs.AST.DecoratorBlock): void {
    this.#refuse(decorator.loc.start.line, "a block holds no other blocks")
  }

  override ContentStatement(content: hbs.AST.ContentStatement): void {
    if (this.#block === "SETUP_BENTO_BASE_IMAGE") return
    const at = textOf(content)
      .split("\n")
      .findIndex((line) => /^\s*FROM\s/i.test(line))
    if (at >= 0) {
      this.#refuse(
        content.loc.start.line + at,
        "FROM may stand in SETUP_BENTO_BASE_IMAGE only: it begins a new image",
      )
    }
  }
}

function meaningful(body: readonly hbs.AST.Statement[], refuse: Refuse, where: string): hbs.AST.Statement[] {
  return body.filter((part) => {
    if (part.type === "CommentStatement") return false
    if (part.type !== "ContentStatement") return true
    const original = textOf(part)
    if (original.trim() === "") return false
    const before = original.slice(0, original.search(/\S/)).split("\n").length - 1
    return refuse(part.loc.start.line + before, `text ${where} would be lost`)
  })
}

function textOf(part: hbs.AST.Statement): string {
  // As the parser makes it; its types say otherwise.
  return String((part as unknown as { readonly original: unknown }).original)
}

function nameOf(partial: hbs.AST.PartialStatement | hbs.AST.Statement): string {
  const { name } = partial as hbs.AST.PartialStatement
  return (name as hbs.AST.PathExpression).original
}

/** What the image needs, whoever wrote the blocks. */
interface Needs {
  readonly env: readonly { readonly name: string }[]
  /** The places that the files of the server, the models and the Bento are copied to. */
  readonly copied: readonly string[]
}

function checkNeeds(dockerfile: string, blocks: Overridden, needs: Needs, refuse: Refuse): void {
  const all = instructions(dockerfile)
  const last = all.slice(all.findLastIndex(({ name }) => name === "FROM"))
  const need = (block: Block, isMet: boolean, what: string): void => {
    if (!isMet)
      refuse(blocks.get(block) ?? 1, `${block} ${what}; {{> @partial-block}} gives our own body of the block`)
  }
  need("SETUP_BENTO_BASE_IMAGE", last[0]?.name === "FROM", "has no FROM")
  const set = new Set(
    last
      .filter(({ name }) => name === "ENV")
      .flatMap(({ text }) => text.match(/^[A-Za-z_]\w*|(?<=\s)[A-Za-z_]\w*(?==)/g) ?? []),
  )
  for (const { name } of needs.env) need("SETUP_BENTO_ENVARS", set.has(name), `does not set ${name}`)
  const copies = last.filter(({ name }) => name === "COPY" || name === "ADD")
  for (const place of needs.copied) {
    const isCopied = copies.some(({ text }) => destinationOf(text) === place)
    need("SETUP_BENTO_COMPONENTS", isCopied, `copies nothing to ${place}`)
  }
  const user = last.findLast(({ name }) => name === "USER")?.text ?? ""
  const isNumeric = /^[1-9]\d*(:\d+)?$/.test(user)
  need("SETUP_BENTO_USER", isNumeric, "must end as a user with a number that is not root's: USER 1034:1034")
  const entry = last.findLast(({ name }) => name === "ENTRYPOINT")?.text ?? ""
  need(
    "SETUP_BENTO_ENTRYPOINT",
    entry.startsWith("["),
    'has no ENTRYPOINT of the form ["program", "argument"]',
  )
}

/** Where COPY and ADD put things, with a slash at its end: the last word of both their forms. */
function destinationOf(text: string): string {
  const word = /("[^"]*"|'[^']*'|[^\s"'[\],]+)\s*\]?\s*$/.exec(text)?.[1] ?? ""
  return path.posix.normalize(`${word.replace(/^["']|["']$/g, "")}/`)
}

/** Instructions without comments, their lines joined. */
function instructions(dockerfile: string): { readonly name: string; readonly text: string }[] {
  const lines = dockerfile.split("\n").filter((line) => !/^\s*#/.test(line))
  return lines
    .join("\n")
    .replace(/\\[ \t]*\n/g, " ")
    .split("\n")
    .flatMap((line) => {
      const [, name, text = ""] = /^\s*([A-Za-z]+)\s+(.*)$/.exec(line) ?? []
      return name === undefined ? [] : [{ name: name.toUpperCase(), text: text.trim() }]
    })
}
