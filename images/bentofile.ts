/**
 * bentofile.yaml: read, check, and say every problem at once, each with its line.
 *
 * Two steps, as the file is written for people: the zod schema knows the shape and the grammar of each value (and
 * gives editors their JSON Schema); `complete` does what needs the disk or looks at several keys together.
 */
import { readFile, realpath, stat } from "node:fs/promises"
import path from "node:path"
import * as z from "zod"
import { BentoError, IssueError } from "../store/errors.ts"
import type { Issue } from "../store/errors.ts"
import { DISTROS, PLATFORMS } from "../store/bento.ts"
import type { DockerOptions, EnvStage } from "../store/bento.ts"
import { checkName, nearestNames, parseTagRef } from "../store/tag.ts"
import { resolveCuda } from "./cuda.ts"
import { distroProblem, dockerConflicts, nodeVersionProblem, packageManagerOf } from "./distro.ts"
import { parseDotenv } from "./dotenv.ts"
import {
  aliasProblem,
  baseImageProblem,
  controlProblem,
  envNameProblem,
  labelKeyProblem,
  nodePackageProblem,
  splitNodePackage,
  systemPackageProblem,
} from "./grammar.ts"
import { formatPath, readYaml } from "./yaml-source.ts"
import type { YamlPath, YamlSource } from "./yaml-source.ts"

/** A checked bentofile. Absent keys are empty collections or null. */
export interface Bentofile {
  /** Where it was read from; null = there is none, and all is default. */
  readonly path: string | null
  /** `file.ts:export`; null = every signature of every model becomes an API. */
  readonly service: string | null
  /** Where the file names it. */
  readonly serviceAt: { readonly line: number; readonly column: number } | null
  /** As written: upper case is still to be lowered. */
  readonly name: string | null
  /** The text itself, also where the file says `file: path`. */
  readonly description: string | null
  readonly labels: Readonly<Record<string, string>>
  /** null = not written: all, or nothing where there is no service that could read it. */
  readonly include: readonly string[] | null
  readonly exclude: readonly string[]
  /** `line` is where the file names the model. */
  readonly models: readonly { readonly tag: string; readonly alias?: string; readonly line: number }[]
  readonly envs: readonly { readonly name: string; readonly value: string; readonly stage: EnvStage }[]
  readonly docker: DockerOptions
  /** `node.packages` as written; `line` is where. */
  readonly node: { readonly packages: readonly string[]; readonly line: number | null }
  /** Where the file asks for a self-test at the start; null = it does not. */
  readonly selfTest: { readonly line: number; readonly column: number } | null
}

/** What a project without a bentofile means. */
export const EMPTY_BENTOFILE: Bentofile = {
  path: null,
  service: null,
  serviceAt: null,
  name: null,
  description: null,
  labels: {},
  include: null,
  exclude: [],
  models: [],
  envs: [],
  docker: {
    distro: "debian",
    baseImage: null,
    nodeVersion: null,
    cudaVersion: null,
    env: {},
    systemPackages: [],
    setupScript: null,
    dockerfileTemplate: null,
    platforms: [],
  },
  node: { packages: [], line: null },
  selfTest: null,
}

/** Keys of BentoML that have no place here → what to do instead. */
const INSTEAD: Readonly<Record<string, string>> = {
  python:
    "the image holds no Python: convert the model to ONNX and import it, and write code around it in TypeScript (`service: service.ts:svc`)",
  conda:
    "the image holds no Python: convert the model to ONNX and import it; system libraries go into `docker.system_packages`",
  args: "template arguments are not supported: write the values out, or give them to the server as `envs`",
  "docker.python_version":
    "the image holds Node and no Python; `docker.node_version` names the version of that",
  "models.filter": "it is a query of BentoCloud; name the tag, or a prefix of its version",
}

// The schema ----------------------------------------------------------------------------------------------------

/** A string that `problem` finds nothing wrong with. */
function checked(problem: (text: string) => string | null) {
  return z.string().superRefine((text, context) => {
    const message = problem(text)
    if (message !== null) context.addIssue({ code: "custom", message })
  })
}

/** Accepts numbers and booleans too (as text), which `readYaml` has already turned into what was written. */
const WRITTEN = { type: ["string", "number", "boolean"] }
const oneLine = checked((text) => controlProblem(text))
const written = oneLine.meta(WRITTEN)
const pattern = checked((text) =>
  text.startsWith("../") || text.startsWith("!../") ? "leaves the build context" : controlProblem(text),
)
const tagRef = checked((text) => problemOf(() => parseTagRef(text)))

const modelSchema = z.union([
  tagRef,
  z.strictObject({
    tag: tagRef.describe("`name`, `name:version`, or a unique prefix of the version"),
    alias: checked(aliasProblem).nullish().describe("The name under which the service asks for it"),
  }),
])

const envSchema = z.strictObject({
  name: checked(envNameProblem)
    .meta({ pattern: "^[A-Za-z_][A-Za-z0-9_]*$" })
    .describe("Name of the environment variable"),
  value: written.nullish().describe("Its value; a build-time one is looked up in the environment first"),
  stage: z
    .enum(["all", "build", "runtime"])
    .nullish()
    .describe("When it is set; build-time values never reach the image"),
})

const dockerSchema = z.strictObject({
  distro: checked(distroProblem)
    .meta({ enum: [...DISTROS] })
    .nullish()
    .describe("The system of the image; distroless is the smallest one, and has no shell"),
  base_image: checked(baseImageProblem)
    .nullish()
    .describe("The image to build on; it must be of that system and have Node 24"),
  node_version: checked(nodeVersionProblem)
    .meta({ type: ["string", "number"] })
    .nullish()
    .describe("The version of Node in the image, 24 or newer"),
  env: z
    .union([z.record(z.string(), written.nullable()), z.array(z.string()), z.string()])
    .nullish()
    .describe("A map, a list of KEY=VALUE, or the path of a dotenv file"),
  system_packages: z
    .array(z.string())
    .nullish()
    .describe("Packages of the system: for debian `name` or `name=version`, for ubi9 as microdnf takes them"),
  cuda_version: checked((text) => {
    const choice = resolveCuda(text)
    return choice.ok ? null : choice.reason
  })
    .meta({ type: ["string", "number"] })
    .nullish()
    .describe("Builds on NVIDIA's image of this CUDA version, as 12.8 or 12.8.1"),
  setup_script: z
    .string()
    .min(1)
    .nullish()
    .describe("A script to run as root while building, inside the context"),
  dockerfile_template: z
    .string()
    .min(1)
    .nullish()
    .describe("A Handlebars file that overrides blocks of our Dockerfile, inside the context"),
  platforms: z
    .array(z.enum(PLATFORMS))
    .min(1)
    .nullish()
    .describe("What images of the Bento may be built for; the first one is the default"),
})

const nodeSchema = z.strictObject({
  packages: z
    .array(checked(nodePackageProblem))
    .nullish()
    .describe("npm packages, `name@range`; locked when the Bento is built. Instead of a package.json"),
})

const bentofileSchema = z
  .strictObject({
    service: oneLine
      .min(1)
      .nullish()
      .describe("`service.ts:svc`; without it each model signature becomes an API"),
    name: checked((text) => problemOf(() => checkName(text)))
      .nullish()
      .describe("Name of the Bento"),
    description: z
      .union([
        z.string(),
        z.strictObject({ file: z.string().min(1).describe("A file of the folder that holds it") }),
      ])
      .nullish()
      .describe("Markdown, or `file: path`"),
    labels: z.record(z.string(), written).nullish().describe("Labels of the Bento and of its image"),
    include: z.array(pattern).nullish().describe("What to take, as gitignore patterns; all by default"),
    exclude: z.array(pattern).nullish().describe("What to leave out of it, as gitignore patterns"),
    models: z.array(modelSchema).nullish().describe("Models of the Bento, from the store"),
    envs: z.array(envSchema).nullish().describe("Environment variables, while building and in the server"),
    docker: dockerSchema.nullish().describe("The image"),
    node: nodeSchema.nullish().describe("npm packages of the service"),
    selftest: z
      .boolean()
      .nullish()
      .describe("The server is ready only after its models have answered the examples that they carry"),
  })
  .meta({ title: "bentofile.yaml of bentoctl" })

type WrittenBentofile = z.output<typeof bentofileSchema>

/** JSON Schema (2020-12) of bentofile.yaml, for editors; made from the schema that checks it. */
export function bentofileJsonSchema(): object {
  const schema = z.toJSONSchema(bentofileSchema, { io: "input" })
  return { $schema: schema.$schema, $id: "urn:bentoctl:bentofile", ...schema }
}

// Reading -------------------------------------------------------------------------------------------------------

/** The bentofile of a project folder, or null. */
export async function findBentofile(contextDir: string): Promise<string | null> {
  for (const name of ["bentofile.yaml", "bentofile.yml"]) {
    const file = path.join(contextDir, name)
    const found = await stat(file).catch(() => null)
    if (found?.isFile() === true) return file
  }
  return null
}

/**
 * Reads and checks a bentofile; paths in it are relative to `contextDir`, by default the folder it lies in.
 * Throws one `IssueError` that names every problem.
 */
export async function readBentofile(file: string, options: { contextDir?: string } = {}): Promise<Bentofile> {
  const contextDir = path.resolve(options.contextDir ?? path.dirname(file))
  const text = await readText(file)
  const source = readYaml(text, file, [
    ["labels", "*"],
    ["envs", "*", "value"],
    ["docker", "env", "*"],
    ["docker", "cuda_version"],
    ["docker", "node_version"],
  ])
  const issues: Issue[] = [...source.issues]
  let bentofile: Bentofile | undefined
  if (source.value === null && issues.length === 0) {
    issues.push({ file, line: 1, message: "the file is empty; name a `service:` or list `models:`" })
  } else if (source.value !== undefined) {
    if (!isMap(source.value)) {
      issues.push({
        file,
        ...source.position([]),
        message: `expected a map of keys, found ${kindOf(source.value)}`,
      })
    } else {
      const result = bentofileSchema.safeParse(source.value)
      if (!result.success)
        issues.push(...result.error.issues.flatMap((issue) => issuesOf(issue, source, file)))
      // What is wrong in shape stays out; what needs the disk is checked for the rest, so that all is said at once.
      const rest = result.success ? result.data : withoutBroken(source.value, issues)
      bentofile = await complete(rest, { file, contextDir, source, issues })
    }
  }
  if (issues.length > 0 || bentofile === undefined) {
    throw new IssueError("BENTOFILE_INVALID", summary(file, issues.length), sorted(issues))
  }
  return bentofile
}

function summary(file: string, count: number): string {
  return `${path.basename(file)} has ${count === 1 ? "a problem" : `${count} problems`}:`
}

async function readText(file: string): Promise<string> {
  let bytes: Buffer
  try {
    bytes = await readFile(file)
  } catch (error) {
    if (isNodeError(error) && error.code === "ENOENT") {
      throw new BentoError("BENTOFILE_NOT_FOUND", `no such file: ${file}`, { cause: error })
    }
    throw new BentoError("BENTOFILE_NOT_FOUND", `cannot read ${file}: ${reasonOf(error)}`, { cause: error })
  }
  if (bytes.length > 1 << 20) {
    throw new IssueError("BENTOFILE_INVALID", summary(file, 1), [{ file, message: "larger than 1 MiB" }])
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes)
  } catch (error) {
    throw new IssueError("BENTOFILE_INVALID", summary(file, 1), [{ file, message: "is not UTF-8 text" }], {
      cause: error,
    })
  }
}

/** A problem that zod found, in our words and at its place. */
function issuesOf(issue: z.core.$ZodIssue, source: YamlSource, file: string): Issue[] {
  const at = (where: YamlPath, message: string, part: "key" | "value" = "value"): Issue => ({
    file,
    ...source.position(where, part),
    field: formatPath(where),
    message,
  })
  const where = issue.path.map((part) => (typeof part === "number" ? part : String(part)))
  switch (issue.code) {
    case "unrecognized_keys":
      return issue.keys.map((key) => at([...where, key], unknownKey(where, key), "key"))
    case "invalid_union":
      return (
        unionIssues(issue, source, file) ?? [
          at(where, `expected ${expectedAt(where)}, found ${kindAt(source, where)}`),
        ]
      )
    case "invalid_type": {
      const found = kindAt(source, where)
      if (found === "nothing" && valueAt(source.value, where) === undefined)
        return [at(where, "is missing", "key")]
      const quote = issue.expected === "string" && (found === "a number" || found === "a boolean")
      return [
        at(
          where,
          `expected ${nameOfType(issue.expected)}, found ${found}${quote ? "; put it in quotes" : ""}`,
        ),
      ]
    }
    case "invalid_value":
      return [at(where, `expected ${issue.values.map((value) => JSON.stringify(value)).join(" or ")}`)]
    case "too_small":
      return [at(where, "is empty")]
    case "custom":
    case "invalid_element":
    case "invalid_format":
    case "invalid_key":
    case "not_multiple_of":
    case "too_big":
      return [at(where, issue.message)]
  }
}

/** Of the alternatives, the one whose type fits what was written, has the problems worth telling. */
function unionIssues(issue: z.core.$ZodIssueInvalidUnion, source: YamlSource, file: string): Issue[] | null {
  for (const branch of issue.errors) {
    if (branch.some((inner) => inner.code === "invalid_type" && inner.path.length === 0)) continue
    return branch.flatMap((inner) =>
      issuesOf({ ...inner, path: [...issue.path, ...inner.path] }, source, file),
    )
  }
  return null
}

const TOP_KEYS = Object.keys(bentofileSchema.shape)
const DOCKER_KEYS = Object.keys(dockerSchema.shape)

function unknownKey(where: YamlPath, key: string): string {
  const section = where.filter((part) => typeof part === "string").join(".")
  const instead = own(INSTEAD, section === "" ? key : `${section}.${key}`)
  if (instead !== undefined) return `is not supported: ${instead}`
  if (section === "" && DOCKER_KEYS.includes(key)) return `unknown key; did you mean docker.${key}?`
  if (section === "docker" && TOP_KEYS.includes(key)) return `unknown key; ${key} belongs to the top level`
  const keys = {
    "": TOP_KEYS,
    docker: DOCKER_KEYS,
    models: ["tag", "alias"],
    envs: Object.keys(envSchema.shape),
    node: Object.keys(nodeSchema.shape),
    description: ["file"],
  }[section]
  const near = nearestNames(key, keys ?? [], 1)[0]
  if (near !== undefined) return `unknown key; did you mean ${near}?`
  return `unknown key; known are ${(keys ?? []).join(", ")}`
}

function expectedAt(where: YamlPath): string {
  switch (where.filter((part) => typeof part === "string").join(".")) {
    case "models":
      return "a tag, or a map with `tag` and `alias`"
    case "docker.env":
      return "a map, a list of KEY=VALUE, or the path of a dotenv file"
    case "description":
      return "text, or a map with `file`"
    default:
      return "another kind of value"
  }
}

/** A copy without the top-level and `docker` values that have a problem; what is left has the schema's shape. */
function withoutBroken(value: Record<string, unknown>, issues: readonly Issue[]): WrittenBentofile {
  const broken = (field: string): boolean =>
    issues.some(
      (issue) =>
        issue.field === field || issue.field?.startsWith(`${field}.`) || issue.field?.startsWith(`${field}[`),
    )
  const keep = (map: Record<string, unknown>, prefix: string): Record<string, unknown> =>
    Object.fromEntries(Object.entries(map).filter(([key]) => !broken(`${prefix}${key}`)))
  const rest = keep(value, "")
  const { docker } = value
  if (isMap(docker)) rest["docker"] = keep(docker, "docker.")
  const again = bentofileSchema.safeParse(rest)
  return again.success ? again.data : {}
}

// Completion ----------------------------------------------------------------------------------------------------

interface Completion {
  readonly file: string
  readonly contextDir: string
  readonly source: YamlSource
  readonly issues: Issue[]
}

async function complete(written: WrittenBentofile, c: Completion): Promise<Bentofile> {
  const docker = written.docker ?? {}
  const cuda = resolveCuda(docker.cuda_version ?? "")
  for (const [key, value] of Object.entries(written.labels ?? {})) {
    const problem = labelKeyProblem(key)
    if (problem !== null) report(c, ["labels", key], problem, "key")
    if (value === null) report(c, ["labels", key], 'has no value; write "" for an empty one')
  }
  const envs = (written.envs ?? []).map(({ name, value, stage }) => ({
    name,
    value: value ?? "",
    stage: stage ?? ("all" as const),
  }))
  const env = await dockerEnv(docker.env ?? {}, c)
  envs.forEach(({ name }, index) => {
    const first = envs.findIndex((other) => other.name === name)
    if (first < index) report(c, ["envs", index, "name"], `${name} is given twice (first in envs[${first}])`)
    else if (Object.hasOwn(env, name)) report(c, ["envs", index, "name"], `${name} is also set in docker.env`)
  })
  const models = (written.models ?? []).map((model, index) => {
    const { tag, alias } = typeof model === "string" ? { tag: model, alias: null } : model
    const line = c.source.position(["models", index])?.line ?? 1
    return alias === null || alias === undefined ? { tag, line } : { tag, alias, line }
  })
  models.forEach(({ alias }, index) => {
    if (alias === undefined) return
    const field = ["models", index, "alias"]
    const first = models.findIndex((other) => other.alias === alias)
    if (first < index) report(c, field, `${JSON.stringify(alias)} is given twice (first in models[${first}])`)
    const named = models.findIndex((other, at) => at !== index && nameOf(other.tag) === alias)
    if (named >= 0) report(c, field, `${JSON.stringify(alias)} is already the name of models[${named}]`)
  })
  const packages = written.node?.packages ?? []
  packages.forEach((text, index) => {
    const { name } = splitNodePackage(text)
    const first = packages.findIndex((other) => splitNodePackage(other).name === name)
    if (first < index) {
      report(c, ["node", "packages", index], `${name} is given twice (first in node.packages[${first}])`)
    }
  })
  const selfTestAt = c.source.position(["selftest"]) ?? { line: 1, column: 1 }
  const options: DockerOptions = {
    distro: DISTROS.find((known) => known === docker.distro) ?? "debian",
    baseImage: docker.base_image ?? null,
    nodeVersion: docker.node_version ?? null,
    cudaVersion: cuda.ok ? cuda.version : null,
    env,
    systemPackages: [...new Set(docker.system_packages ?? [])].sort(),
    setupScript: await contextFile(docker.setup_script ?? null, "setup_script", c),
    dockerfileTemplate: await contextFile(docker.dockerfile_template ?? null, "dockerfile_template", c),
    platforms: [...new Set(docker.platforms ?? [])],
  }
  for (const { key, message } of dockerConflicts(options)) report(c, ["docker", key], message)
  const manager = packageManagerOf(options.distro)
  ;(docker.system_packages ?? []).forEach((name, index) => {
    const problem = manager === null ? null : systemPackageProblem(name, manager)
    if (problem !== null) report(c, ["docker", "system_packages", index], problem)
  })
  return {
    path: c.file,
    service: written.service ?? null,
    serviceAt: c.source.position(["service"]) ?? null,
    name: written.name ?? null,
    description: await describe(written.description ?? null, c),
    labels: Object.fromEntries(
      Object.entries(written.labels ?? {}).map(([key, value]) => [key, value ?? ""]),
    ),
    include: written.include ?? null,
    exclude: written.exclude ?? [],
    models,
    envs,
    docker: options,
    node: {
      packages,
      line: packages.length === 0 ? null : (c.source.position(["node", "packages"], "key")?.line ?? null),
    },
    selfTest: written.selftest === true ? selfTestAt : null,
  }
}

/** The text, which `file: path` names, be it written as a map or (as BentoML has it) as one string. */
async function describe(written: WrittenBentofile["description"], c: Completion): Promise<string | null> {
  if (written === null || written === undefined) return null
  const named = typeof written === "string" ? /^file:(.+)$/.exec(written)?.[1]?.trim() : written.file
  if (named === undefined) return typeof written === "string" ? written : null
  const file = await insideContext(named, ["description"], c)
  return file === null ? null : await readFile(file, "utf8")
}

/** The path of a file of the context, relative to it. */
async function contextFile(
  written: string | null,
  key: "setup_script" | "dockerfile_template",
  c: Completion,
): Promise<string | null> {
  if (written === null) return null
  const file = await insideContext(written, ["docker", key], c)
  return file === null ? null : path.relative(c.contextDir, path.resolve(c.contextDir, written))
}

/** `docker.env` in its three forms. */
async function dockerEnv(
  written: NonNullable<NonNullable<WrittenBentofile["docker"]>["env"]>,
  c: Completion,
): Promise<Record<string, string>> {
  const field = ["docker", "env"]
  const env = new Map<string, string>()
  const put = (name: string, value: string, where: YamlPath, part: "key" | "value"): void => {
    // The Bento has them as a map, in which no reader takes this key.
    const refused = name === "__proto__" ? "the name __proto__ is refused" : null
    const problem = refused ?? envNameProblem(name) ?? controlProblem(value)
    if (problem !== null) report(c, where, problem, part)
    else if (env.has(name)) report(c, where, `${name} is given twice`, part)
    else env.set(name, value)
  }
  if (Array.isArray(written)) {
    written.forEach((line, index) => {
      const equals = line.indexOf("=")
      if (equals < 1) report(c, [...field, index], `${JSON.stringify(line)} is not KEY=VALUE`)
      else put(line.slice(0, equals), line.slice(equals + 1), [...field, index], "value")
    })
  } else if (typeof written === "string") {
    const file = await insideContext(written, field, c)
    if (file === null) return {}
    const parsed = parseDotenv(await readFile(file, "utf8"), path.join(path.dirname(c.file), written))
    c.issues.push(...parsed.issues)
    for (const [name, value] of Object.entries(parsed.env)) put(name, value, field, "value")
  } else {
    for (const [name, value] of Object.entries(written)) put(name, value ?? "", [...field, name], "key")
  }
  return Object.fromEntries(env)
}

/** The real path of a file that must lie in the context; null (and a problem) when it does not. */
async function insideContext(written: string, field: YamlPath, c: Completion): Promise<string | null> {
  const wanted = path.resolve(c.contextDir, written)
  const root = await realpath(c.contextDir)
  let real: string
  try {
    real = await realpath(wanted)
    if (!(await stat(real)).isFile()) {
      report(c, field, `${JSON.stringify(written)} is not a file`)
      return null
    }
  } catch (error) {
    const missing = isNodeError(error) && (error.code === "ENOENT" || error.code === "ENOTDIR")
    const place = `${JSON.stringify(written)} (in ${c.contextDir})`
    report(c, field, missing ? `no such file: ${place}` : `cannot read ${place}: ${reasonOf(error)}`)
    return null
  }
  const outside = (from: string, to: string): boolean => {
    const relative = path.relative(from, to)
    return relative.split(path.sep)[0] === ".." || path.isAbsolute(relative)
  }
  if (path.isAbsolute(written) || outside(c.contextDir, wanted) || outside(root, real)) {
    report(c, field, `${JSON.stringify(written)} leaves the build context`)
    return null
  }
  return real
}

function report(c: Completion, where: YamlPath, message: string, part: "key" | "value" = "value"): void {
  c.issues.push({ file: c.file, ...c.source.position(where, part), field: formatPath(where), message })
}

function problemOf(check: () => unknown): string | null {
  try {
    check()
    return null
  } catch (error) {
    if (error instanceof BentoError) return error.message
    throw error
  }
}

// Small things --------------------------------------------------------------------------------------------------

/** What a table holds itself: every object has a "constructor". */
function own(table: Readonly<Record<string, string>>, key: string): string | undefined {
  return Object.hasOwn(table, key) ? table[key] : undefined
}

function isMap(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}

function valueAt(value: unknown, where: YamlPath): unknown {
  let current = value
  for (const part of where) {
    if (Array.isArray(current) && typeof part === "number") current = current[part]
    else if (isMap(current) && typeof part === "string") current = current[part]
    else return undefined
  }
  return current
}

function kindAt(source: YamlSource, where: YamlPath): string {
  return kindOf(valueAt(source.value, where))
}

function kindOf(value: unknown): string {
  if (value === null || value === undefined) return "nothing"
  if (Array.isArray(value)) return "a list"
  const names: Readonly<Record<string, string>> = { object: "a map", string: "text", boolean: "a boolean" }
  return names[typeof value] ?? "a number"
}

function nameOfType(expected: string): string {
  const names: Readonly<Record<string, string>> = {
    string: "text",
    array: "a list",
    object: "a map",
    record: "a map",
  }
  return names[expected] ?? `a ${expected}`
}

/** The name in a tag that was checked. */
function nameOf(tag: string): string {
  return parseTagRef(tag).name
}

function sorted(issues: readonly Issue[]): Issue[] {
  return issues.toSorted((a, b) => (a.line ?? 0) - (b.line ?? 0) || (a.column ?? 0) - (b.column ?? 0))
}

function reasonOf(error: unknown): string {
  return isNodeError(error) ? (error.code ?? error.message) : String(error)
}

function isNodeError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && "code" in error
}
