/**
 * A project folder as it stands: its bentofile, its models resolved to exact versions, and its service described.
 * `build` writes a Bento from it, `serve` serves it where it is.
 */
import { existsSync } from "node:fs"
import { readFile, realpath, stat } from "node:fs/promises"
import path from "node:path"
import { AmbiguousTagError, BentoError, IssueError } from "../store/errors.ts"
import type { ErrorCode, Issue } from "../store/errors.ts"
import { BENTO_YAML, SELFTEST_JSON } from "../store/layout.ts"
import { parseBentoYaml } from "../store/bento.ts"
import type { BentoModel, ServeModel, ServeSpec } from "../store/bento.ts"
import { type Model } from "../store/model.ts"
import { faithfulJson } from "../store/prepared.ts"
import { openModelStore } from "../store/store.ts"
import type { Store } from "../store/store.ts"
import { checkName, compareTags, formatTag, parseTagRef } from "../store/tag.ts"
import type { TagRef } from "../store/tag.ts"
import { EMPTY_BENTOFILE, findBentofile, readBentofile } from "./bentofile.ts"
import type { Bentofile } from "./bentofile.ts"
import { describeService } from "./describe.ts"
import type { Describer, Description } from "./describe.ts"
import type { FoundPackages, PackageTools } from "./node-packages.ts"
import { PACKAGES_DIR } from "./plan.ts"

export interface ProjectOptions {
  readonly contextDir: string
  /** Default: `bentofile.yaml` of the context. */
  readonly bentofile?: string | undefined
  /** `file.ts:export`; wins over the bentofile's. */
  readonly service?: string | undefined
  /** BENTOML_HOME. */
  readonly home: string
  readonly runtimeDir: string
  readonly nodePath: string
  readonly env: Readonly<Record<string, string | undefined>>
  readonly signal?: AbortSignal | undefined
  /** Gets what the user's module prints while it is described. */
  readonly stderr?: NodeJS.WritableStream | undefined
  readonly describeTimeoutMs?: number | undefined
  /** For the first description; a second one starts its own. */
  readonly describer?: Describer | undefined
  /** `node.packages` may stay what it was locked to before. */
  readonly keepLock?: boolean | undefined
  /** Called when there is time for something else, while the service is described. */
  readonly meanwhile?: (() => void) | undefined
}

export interface ProjectModel {
  readonly model: Model
  readonly dir: string
  readonly alias?: string
}

export interface Project {
  /** Real path of the folder. */
  readonly contextDir: string
  readonly bentofile: Bentofile
  /** `file.ts:export`, relative to the folder; null without code. */
  readonly service: string | null
  /** Those of `models:`, then those that only runners name. */
  readonly models: readonly ProjectModel[]
  /** npm packages that the service may import. */
  readonly packages: ProjectPackages | null
}

export interface ProjectPackages {
  readonly found: FoundPackages
  /** Where they are installed for this machine; null where that is the project's own business. */
  readonly dir: string | null
}

/** Reads a project and resolves the models that its bentofile lists. Runs no user code. */
export async function openProject(options: ProjectOptions): Promise<Project> {
  const contextDir = await contextOf(options.contextDir)
  const bentofile = await bentofileOf(contextDir, options)
  const written = options.service ?? bentofile.service
  const asked = options.service === undefined ? bentofile : null
  const service = written === null ? null : await serviceFile(contextDir, written, asked)
  if (service === null && bentofile.models.length === 0) {
    throw new IssueError(
      "BENTOFILE_INVALID",
      `${path.basename(bentofile.path ?? "bentofile.yaml")} has a problem:`,
      [
        {
          ...(bentofile.path === null ? {} : { file: bentofile.path, line: 1 }),
          message: "there is nothing to serve: name a `service:` or list `models:`",
        },
      ],
    )
  }
  const models = await listedModels(bentofile, openModelStore(options.home))
  if (service === null) checkWithoutCode(models, bentofile)
  const packages = await packagesOf(contextDir, bentofile, service, options)
  return { contextDir, bentofile, service, models, packages }
}

/** Those of package.json, which the user has installed, or those of `node.packages`, which are installed here. */
async function packagesOf(
  contextDir: string,
  bentofile: Bentofile,
  service: string | null,
  options: ProjectOptions,
): Promise<ProjectPackages | null> {
  const listed = bentofile.node.packages.length > 0
  const wrong = (message: string): IssueError =>
    new IssueError(
      "BENTOFILE_INVALID",
      `${path.basename(bentofile.path ?? "bentofile.yaml")} has a problem:`,
      [
        {
          ...(bentofile.path === null ? {} : { file: bentofile.path, line: bentofile.node.line ?? 1 }),
          field: "node.packages",
          message,
        },
      ],
    )
  if (service === null) {
    if (listed) throw wrong("there is no `service:` that could import them")
    return null
  }
  // Most services need none, and then this is not worth loading.
  if (!listed && !existsSync(path.join(contextDir, "package.json"))) return null
  const { findPackages, installHere, lockPackages } = await import("./node-packages.ts")
  const found = await findPackages(contextDir)
  if (!listed) return found === null ? null : { found, dir: null }
  if (found !== null) {
    throw wrong("the folder has a package.json with dependencies; name the packages there, or here")
  }
  const tools = await packageTools(options, contextDir)
  const locked = await lockPackages(bentofile, contextDir, tools)
  // As the describing child names the files that it imports.
  return { found: locked, dir: await realpath(await installHere(locked, tools)) }
}

type ToolOptions = Pick<ProjectOptions, "home" | "nodePath" | "env" | "signal" | "stderr" | "keepLock">

/** Where the packages of a Bento are installed for this machine; undefined where it needs none. */
export async function packagesOfBento(dir: string, options: ToolOptions): Promise<string | undefined> {
  if (!existsSync(path.join(dir, PACKAGES_DIR))) return undefined
  const file = path.join(dir, BENTO_YAML)
  const { node } = parseBentoYaml(await readFile(file, "utf8"), file)
  if (node === undefined) return undefined
  const { installHere, readPackageFiles } = await import("./node-packages.ts")
  const files = await readPackageFiles(path.join(dir, PACKAGES_DIR))
  return installHere({ ...node, files }, await packageTools(options, null))
}

async function packageTools(options: ToolOptions, contextDir: string | null): Promise<PackageTools> {
  const { home, nodePath, env, signal, stderr, keepLock } = options
  const { readNpmrc } = await import("./npmrc.ts")
  return { home, nodePath, env, signal, stderr, keepLock, npmrc: await readNpmrc(env, contextDir) }
}

/** The project's service described, and with it the models that only its runners name. */
export async function describeProject(
  project: Project,
  options: ProjectOptions,
): Promise<{ project: Project; description: Description }> {
  const description = await describeService({
    spec: withManifests(specOf(project), project),
    runtimeDir: options.runtimeDir,
    nodePath: options.nodePath,
    env: options.env,
    signal: options.signal,
    stderr: options.stderr,
    timeoutMs: options.describeTimeoutMs,
    describer: options.describer,
    meanwhile: options.meanwhile,
    missingHint: missingHint(project),
  })
  const store = openModelStore(options.home)
  const models = [...project.models]
  const issues: (Issue & { code: ErrorCode })[] = []
  for (const { name, model } of description.service.runners) {
    const present = models.find((listed) => isMeant(model, listed))
    const runner = `runner ${name}`
    const found = present ?? (await find(model, store, { field: runner }, issues))
    if (found === null) continue
    if (present === undefined) models.push(found)
    checkServable(found.model, runner, issues)
  }
  throwIssues(issues, project.service ?? "the models")
  // With the models that were added, the signatures that their runners call can be checked as well.
  if (models.length > project.models.length) {
    return describeProject({ ...project, models }, { ...options, describer: undefined })
  }
  await checkSelfTest(project)
  return { project, description }
}

/** How a package gets to where the service finds it. */
function missingHint({ packages }: Project): string {
  if (packages === null) {
    return "Name it in a package.json with a lock file, or under `node.packages` in bentofile.yaml."
  }
  if (packages.dir !== null) return "Name it under `node.packages` in bentofile.yaml."
  const command =
    packages.found.manager === "npm" ? "npm ci" : `${packages.found.manager.split("-")[0]} install`
  return `If package.json names it, install it here: ${command}`
}

/** What the server needs to serve the project where it stands. */
export async function serveSpecOf(options: ProjectOptions): Promise<ServeSpec> {
  const opened = await openProject({ ...options, keepLock: true })
  // Without code all models are listed; a service may name some in its runners only.
  if (opened.service === null) {
    await checkSelfTest(opened)
    return specOf(opened)
  }
  const { project, description } = await describeProject(opened, options)
  const spec = specOf(project)
  return project.bentofile.name === null ? { ...spec, name: description.service.name } : spec
}

/** Spares a process that only describes the YAML parser, which takes it as long as the rest. */
function withManifests(spec: ServeSpec, { models }: Project): ServeSpec {
  const withManifest = (model: ServeModel, index: number): ServeModel => {
    const manifest = faithfulJson(models[index]?.model)
    return manifest === null ? model : { ...model, manifest }
  }
  return { ...spec, models: spec.models.map(withManifest) }
}

function specOf({ contextDir, bentofile, service, models, packages }: Project): ServeSpec {
  const { name } = bentofile
  return {
    name: name === null ? (models[0]?.model.tag.name ?? path.basename(contextDir)) : checkName(name),
    version: null,
    service,
    srcDir: contextDir,
    models: models.map(({ model, dir, alias }) => ({
      tag: formatTag(model.tag),
      dir,
      ...(alias === undefined ? {} : { alias }),
    })),
    labels: bentofile.labels,
    ...(typeof packages?.dir === "string" ? { packagesDir: packages.dir } : {}),
    ...(bentofile.selfTest === null ? {} : { selfTest: true }),
    ...(bentofile.description === null ? {} : { description: bentofile.description }),
  }
}

/** A self-test that is asked for must have something to test. */
async function checkSelfTest({ bentofile, models }: Project): Promise<void> {
  if (bentofile.path === null || bentofile.selfTest === null) return
  for (const { dir } of models) {
    if ((await stat(path.join(dir, SELFTEST_JSON)).catch(() => null)) !== null) return
  }
  const tags = models.map(({ model }) => formatTag(model.tag))
  const [first] = tags
  throw new IssueError(
    "BENTOFILE_INVALID",
    `${path.basename(bentofile.path)} has a problem:`,
    [
      {
        file: bentofile.path,
        ...bentofile.selfTest,
        field: "selftest",
        message: `there is nothing to test: ${first === undefined ? "there is no model" : `${tags.join(", ")} has no examples`}`,
      },
    ],
    first === undefined ? {} : { hint: `Record some: \`bentoctl models record ${first} --input FILE\`.` },
  )
}

export function bentoModelOf({ model, alias }: ProjectModel): BentoModel {
  return {
    tag: model.tag,
    module: model.module,
    creationTime: model.creationTime,
    ...(alias === undefined ? {} : { alias }),
  }
}

// The folder and its files --------------------------------------------------------------------------------------

async function contextOf(folder: string): Promise<string> {
  const info = await stat(folder).catch(() => null)
  if (info?.isDirectory() === true) return realpath(folder)
  throw new BentoError("BENTOFILE_NOT_FOUND", `${folder} is ${info === null ? "not there" : "no folder"}`, {
    hint: "Give the folder that holds bentofile.yaml.",
  })
}

async function bentofileOf(contextDir: string, options: ProjectOptions): Promise<Bentofile> {
  const file = options.bentofile ?? (await findBentofile(contextDir))
  if (file !== null) return readBentofile(file, { contextDir })
  if (options.service !== undefined) return EMPTY_BENTOFILE
  throw new BentoError("BENTOFILE_NOT_FOUND", `${contextDir} holds no bentofile.yaml`, {
    hint: "Create one that names a `service:` or lists `models:`, or give a service such as `service.ts:svc`.",
  })
}

const SCRIPT = /\.[cm]?[jt]s$/

/** `path/service.ts:svc` with the path checked: it is there, it is a script, and it lies in the context. */
async function serviceFile(contextDir: string, written: string, from: Bentofile | null): Promise<string> {
  const where =
    from === null || from.path === null ? {} : { file: from.path, field: "service", ...from.serviceAt }
  const invalid = (message: string, hint?: string): BentoError =>
    new IssueError(
      "SERVICE_INVALID",
      `the service ${JSON.stringify(written)} cannot be used:`,
      [{ message, ...where }],
      hint === undefined ? {} : { hint },
    )
  const colon = written.lastIndexOf(":")
  const [file, name] = colon < 0 ? [written, ""] : [written.slice(0, colon), written.slice(colon)]
  if (file.endsWith(".py")) {
    throw invalid("services are written in TypeScript or JavaScript", "Write `service: service.ts:svc`.")
  }
  if (file === "" || name === ":")
    throw invalid("expected a file and an export", "Write `service: service.ts:svc`.")
  const absolute = path.resolve(contextDir, file)
  const info = await stat(absolute).catch(() => null)
  if (info?.isFile() !== true) {
    const ending = [".ts", ".mts", ".js", ".mjs"].find(() => !SCRIPT.test(file))
    const candidates =
      ending === undefined ? [] : [".ts", ".mts", ".js", ".mjs"].map((end) => `${file}${end}`)
    for (const candidate of candidates) {
      if ((await stat(path.resolve(contextDir, candidate)).catch(() => null)) === null) continue
      throw invalid(`no such file: ${file}`, `Did you mean \`service: ${candidate}${name}\`?`)
    }
    throw invalid(`no such file: ${path.relative(contextDir, absolute) || file} (in ${contextDir})`)
  }
  if (!SCRIPT.test(file)) throw invalid(`${file} is neither TypeScript nor JavaScript`)
  const real = await realpath(absolute)
  for (const place of [absolute, real]) {
    if (!place.startsWith(contextDir + path.sep)) {
      throw new BentoError("CONTEXT_ESCAPE", `the service ${file} lies outside of ${contextDir}: ${place}`)
    }
  }
  return `${path.relative(contextDir, absolute).split(path.sep).join("/")}${name}`
}

// Models --------------------------------------------------------------------------------------------------------

async function listedModels(bentofile: Bentofile, store: Store<Model>): Promise<ProjectModel[]> {
  const models: ProjectModel[] = []
  const issues: (Issue & { code: ErrorCode })[] = []
  for (const [index, { tag, alias, line }] of bentofile.models.entries()) {
    const where = {
      ...(bentofile.path === null ? {} : { file: bentofile.path, line }),
      field: `models[${index}]`,
    }
    const found = await find(tag, store, where, issues)
    if (found === null) continue
    const added = alias === undefined ? found : { ...found, alias }
    const first = models.findIndex((other) => isSame(other, added))
    if (first < 0) models.push(added)
    else {
      const message = `${formatTag(found.model.tag)} is listed twice (first in models[${first}])`
      issues.push({ ...where, code: "BENTOFILE_INVALID", message })
    }
  }
  throwIssues(issues, path.basename(bentofile.path ?? "bentofile.yaml"))
  return models
}

function isSame(a: ProjectModel, b: ProjectModel): boolean {
  return compareTags(a.model.tag, b.model.tag) === 0 && a.alias === b.alias
}

/** Without code the models are all there is: each must be one that can be served, and one must have a signature. */
function checkWithoutCode(models: readonly ProjectModel[], bentofile: Bentofile): void {
  const issues: (Issue & { code: ErrorCode })[] = []
  for (const { model } of models) checkServable(model, formatTag(model.tag), issues)
  throwIssues(issues, path.basename(bentofile.path ?? "bentofile.yaml"))
  if (models.some(({ model }) => Object.keys(model.signatures).length > 0)) return
  const tags = models.map(({ model }) => formatTag(model.tag)).join(", ")
  throw new IssueError(
    "BENTOFILE_INVALID",
    `${path.basename(bentofile.path ?? "bentofile.yaml")} has a problem:`,
    [
      {
        ...(bentofile.path === null ? {} : { file: bentofile.path, line: bentofile.models[0]?.line ?? 1 }),
        field: "models",
        message: `there is nothing to serve: ${tags} has no signature; name a \`service:\`, or list a model that has one`,
      },
    ],
  )
}

/** The model that is asked for; when there is none, the problem goes to `issues` and null comes back. */
async function find(
  asked: string,
  store: Store<Model>,
  where: Partial<Issue>,
  issues: (Issue & { code: ErrorCode })[],
): Promise<ProjectModel | null> {
  let ref: TagRef | undefined
  try {
    ref = parseTagRef(asked)
    const tag = await store.resolve(ref)
    return { model: await store.get(tag), dir: store.dir(tag) }
  } catch (error) {
    if (!(error instanceof BentoError)) throw error
    const way =
      error.code === "MODEL_NOT_FOUND"
        ? `; import it with \`bentoctl models import FILE.onnx --name ${ref?.name ?? "NAME"}\``
        : ""
    const near =
      error.code === "MODEL_NOT_FOUND" || error instanceof AmbiguousTagError ? (error.hint ?? "") : ""
    issues.push({
      ...where,
      code: error.code,
      message: `${error.message}${way}${near === "" ? "" : ` (${near.replace(/\.$/, "")})`}`,
    })
    return null
  }
}

/** Whether a runner that asks for `asked` gets this model: by alias, by name, or by a prefix of the version. */
function isMeant(asked: string, { model: { tag }, alias }: ProjectModel): boolean {
  if (asked === alias) return true
  const [name, version = "latest"] = asked.toLowerCase().split(":", 2)
  return name === tag.name && (version === "latest" || tag.version.startsWith(version))
}

function checkServable(model: Model, who: string, issues: (Issue & { code: ErrorCode })[]): void {
  if (model.module === "" || model.module === "bentoml.onnx") return
  issues.push({
    code: "SERVICE_INVALID",
    field: who,
    message: `${formatTag(model.tag)} was saved by ${model.module}; only ONNX models are served: convert it and import it`,
  })
}

function throwIssues(issues: readonly (Issue & { code: ErrorCode })[], what: string): void {
  const [first] = issues
  if (first === undefined) return
  const summary = `${what} names ${issues.length === 1 ? "a model" : "models"} that cannot be used:`
  throw new IssueError(
    first.code,
    summary,
    issues.map(({ code, ...issue }) =>
      code === first.code ? issue : { ...issue, message: `${issue.message} [${code}]` },
    ),
  )
}
