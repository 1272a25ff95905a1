/** A project folder → a Bento in the store: the walk of `bentoctl build`. */
import { constants } from "node:fs"
import { lstat, mkdir, open, readFile, realpath, symlink, writeFile } from "node:fs/promises"
import path from "node:path"
import { stringify } from "yaml"
import { BentoError } from "../store/errors.ts"
import { BENTO_YAML, PREPARED_DIR } from "../store/layout.ts"
import { formatBentoYaml } from "../store/bento.ts"
import type { Bento, JsonObject, NodePackages } from "../store/bento.ts"
import { formatCreationTime } from "../store/model.ts"
import { openBentoStore } from "../store/store.ts"
import { checkName, checkVersion, formatTag, makeVersion } from "../store/tag.ts"
import type { Note } from "../store/tag.ts"
import { openCache } from "./cache.ts"
import { lockedPackages, runtimeFacts, sourceBytesOf, withFacts } from "./facts.ts"
import type { ModelWithFacts, RuntimeFacts } from "./facts.ts"
import { readGit } from "./git.ts"
import {
  BENTOFILE,
  defaultPlatform,
  PACKAGES_DIR,
  SETUP_FILE,
  TEMPLATE_FILE,
  planImage,
  printablePlan,
} from "./plan.ts"
import type { ImagePlan, Platform } from "./plan.ts"
import { bentoModelOf, describeProject, openProject } from "./project.ts"
import type { Project, ProjectOptions } from "./project.ts"
import type { Description } from "./describe.ts"
import { walkContext } from "./walk.ts"
import type { Walk } from "./walk.ts"

export { packagesOfBento, serveSpecOf } from "./project.ts"

export interface BuildBentoOptions extends ProjectOptions {
  readonly name?: string | undefined
  readonly version?: string | undefined
  /** Over those of the bentofile. */
  readonly labels?: Readonly<Record<string, string>> | undefined
  readonly now: Date
  readonly random: (n: number) => Uint8Array
  /** For the Dockerfile that is kept in the Bento, and for the plan. */
  readonly baseImage?: string | undefined
  readonly platform?: Platform | undefined
  /** Checks and plans everything, and writes nothing. */
  readonly dryRun?: boolean | undefined
  /** Called when the service is described, and its process gone. */
  readonly onDescribed?: (() => void) | undefined
  /** Called when there is time for something else, while the disk takes the Bento. */
  readonly onWritten?: (() => void) | undefined
}

export interface BuiltBento {
  readonly bento: Bento
  /** What the service says of its APIs. */
  readonly openapi: JsonObject
  /** What is prepared for its server, by file name. */
  readonly prepared: Readonly<Record<string, string>>
  /** With their folders in the store. */
  readonly models: readonly ModelWithFacts[]
  /** See `sourceBytesOf`. */
  readonly sourceBytes: number
  /** The server's, for the platform of the plan. */
  readonly runtime: { readonly platform: Platform; readonly facts: RuntimeFacts }
  /** Where it is, or with `dryRun` would be. */
  readonly dir: string
  /** What a user may want to know: files that were left out, and why. */
  readonly notes: readonly string[]
  /** Paths below `src/`. */
  readonly files: readonly string[]
  /** What its image will be. */
  readonly plan: ImagePlan
  /** For an image that is built at once: see `StoredBento`. */
  readonly npmrc?: string
}

export async function buildBento(options: BuildBentoOptions): Promise<BuiltBento> {
  const opened = await openProject(options)
  // It takes a while, like the description.
  const asked = readGit(opened.contextDir, options.env, options.signal)
  asked.catch(() => {}) // told where it is awaited
  // It takes a while to load, and a child process is about to be waited for.
  const meanwhile = (): void => {
    import("./context.ts").catch(() => {}) // told below
    options.meanwhile?.()
  }
  const described = await describeProject(asBento(opened, options.name), { ...options, meanwhile })
  const { description } = described
  options.onDescribed?.()
  const project = { ...described.project, bentofile: opened.bentofile }
  const { contextDir, bentofile, service, packages } = project
  const found = await walkContext(contextDir, {
    // Without code nothing reads the sources; what `include` names comes along all the same.
    include: bentofile.include ?? (service === null ? [] : ["*"]),
    exclude: bentofile.exclude,
    skip: await realPaths([options.home, ...(bentofile.path === null ? [] : [bentofile.path])]),
    signal: options.signal,
  })
  // The one that counts takes the place of the one that has the usual name.
  const isTaken = (entry: Walk["entries"][number]): boolean =>
    bentofile.path === null || entry.path !== BENTOFILE
  const walk = { ...found, entries: found.entries.filter(isTaken) }
  const files = walk.entries.map((entry) => entry.path)
  checkTaken(project, description, files)
  const { platform = defaultPlatform(bentofile.docker) } = options
  const cache = openCache(options.home)
  const [git, license, models, runtime] = await Promise.all([
    asked,
    licenseOf(contextDir),
    withFacts(project.models, cache),
    runtimeFacts(options.runtimeDir, platform, cache),
  ])
  const notes: string[] = []
  const origin = { git, license, bentoctlVersion: runtime.version }
  const bento = bentoOf(project, description, options, origin, (note) => void notes.push(note))
  notes.push(...walk.notes)
  const { prepared } = description
  const openapi = withVersion(description.openapi, bento.tag.version)
  const store = openBentoStore(options.home)
  const dir = store.dir(bento.tag)
  const { dockerfileTemplate, setupScript } = bentofile.docker
  const [template, setup] = await Promise.all(
    [dockerfileTemplate, setupScript].map(async (file) =>
      file === null ? undefined : readFile(path.join(contextDir, file), "utf8"),
    ),
  )
  const sourceBytes = sourceBytesOf(walk.entries)
  const plan = planImage({
    bento,
    dockerfileTemplate: template,
    setupScript: setup,
    bentoDir: dir,
    models,
    runtimeDir: options.runtimeDir,
    runtime,
    openapi,
    prepared,
    sourceBytes,
    locked: lockedPackages(packages?.found.files ?? {}),
    baseImage: options.baseImage,
    platform,
  })
  const { dockerfileOf } = await import("./context.ts")
  const dockerfile = await dockerfileOf(plan)
  const npmrc =
    packages === null ? undefined : await (await import("./npmrc.ts")).readNpmrc(options.env, contextDir)
  const built = {
    bento,
    openapi,
    prepared,
    models,
    sourceBytes,
    runtime: { platform, facts: runtime },
    dir,
    notes,
    files,
    plan: printablePlan(plan),
    ...(npmrc === undefined ? {} : { npmrc }),
  }
  if (options.dryRun === true) return built
  const { signal } = options
  await store.add(
    bento.tag,
    async (draft) => {
      await copySources(walk, path.join(draft, "src"), signal)
      if (bentofile.path !== null)
        await copyFile(await realpath(bentofile.path), path.join(draft, "src", BENTOFILE), 0o644)
      await mkdir(path.join(draft, "env/docker"), { recursive: true })
      if (setupScript !== null) {
        const script = await realpath(path.join(contextDir, setupScript))
        await copyFile(script, path.join(draft, SETUP_FILE), 0o755)
      }
      const below = (folder: string, texts: Readonly<Record<string, string>>): [string, string][] =>
        Object.entries(texts).map(([name, text]) => [`${folder}/${name}`, text])
      const texts: readonly (readonly [file: string, text: string])[] = [
        ...(template === undefined ? [] : [[TEMPLATE_FILE, template] as const]),
        ["env/docker/Dockerfile", dockerfile],
        ...below(PACKAGES_DIR, packages?.found.files ?? {}),
        ["README.md", await readmeOf(project, bento)],
        ["apis/openapi.yaml", stringify(openapi, { aliasDuplicateObjects: false })],
        ...below(PREPARED_DIR, prepared),
        [BENTO_YAML, formatBentoYaml(bento)],
      ]
      // All have ended when this ends: whoever removes a broken draft must not meet one that still writes.
      const written = await Promise.allSettled(texts.map(([file, text]) => write(draft, file, text)))
      for (const result of written) if (result.status === "rejected") throw result.reason
      options.onWritten?.()
    },
    signal === undefined ? {} : { signal },
  )
  return built
}

function bentoOf(
  project: Project,
  description: Description,
  options: BuildBentoOptions,
  origin: Pick<Bento, "git" | "license" | "bentoctlVersion">,
  note: Note,
): Bento {
  const { bentofile, service, packages } = project
  const version =
    options.version === undefined
      ? makeVersion(options.now, options.random)
      : checkVersion(options.version, note)
  return {
    tag: { name: nameOf(project, description.service.name, options.name, note), version },
    service: service ?? "",
    description: bentofile.description ?? "",
    labels: { ...bentofile.labels, ...options.labels },
    models: project.models.map(bentoModelOf),
    envs: bentofile.envs,
    docker: bentofile.docker,
    ...(packages === null ? {} : { node: nodeOf(packages.found) }),
    selfTest: bentofile.selfTest !== null,
    runners: description.service.runners,
    apis: description.service.apis,
    ...origin,
    creationTime: formatCreationTime(options.now),
  }
}

function nodeOf({ manager, version, settings }: NodePackages): NodePackages {
  return { manager, version, settings }
}

/** What package.json says, if it is an expression that SPDX can be asked about. */
async function licenseOf(contextDir: string): Promise<string | null> {
  try {
    const text = await readFile(path.join(contextDir, "package.json"), "utf8")
    const { license } = JSON.parse(text) as { readonly license?: unknown }
    const isExpression = typeof license === "string" && /^[A-Za-z0-9.+() -]{1,200}$/.test(license)
    return isExpression && !/^(UNLICENSED$|SEE LICEN[CS]E )/.test(license) ? license : null
  } catch {
    return null
  }
}

/** Without code the Bento's name is that of its service, also in the document of its APIs. */
function asBento(project: Project, asked: string | undefined): Project {
  if (project.service !== null) return project
  return { ...project, bentofile: { ...project.bentofile, name: nameOf(project, "", asked, () => {}) } }
}

/** As the server in the image tells it: the version is chosen after the service was described. */
function withVersion(openapi: JsonObject, version: string): JsonObject {
  // Our own runtime wrote it.
  const info = openapi["info"] as JsonObject | undefined
  return { ...openapi, info: { ...info, version } }
}

/** `--name`, the bentofile's, the service's, the only model's, the folder's: the first that there is. */
function nameOf(project: Project, serviceName: string, asked: string | undefined, note: Note): string {
  const { bentofile, service, models, contextDir } = project
  if (asked !== undefined) return checkName(asked, note)
  if (bentofile.name !== null) return checkName(bentofile.name, note)
  const [model, ...others] = models
  const derived =
    service !== null
      ? snakeCase(serviceName)
      : model !== undefined && others.length === 0
        ? model.model.tag.name
        : path.basename(contextDir)
  try {
    return checkName(derived, note)
  } catch (error) {
    throw new BentoError("TAG_INVALID", `${JSON.stringify(derived)} cannot name the Bento`, {
      hint: "Write `name:` into bentofile.yaml, or give one with `--name`.",
      cause: error,
    })
  }
}

/** `IrisClassifier` → `iris_classifier`, `HTTPServer` → `http_server`, as BentoML names Bentos after classes. */
export function snakeCase(name: string): string {
  return name
    .replace(/([A-Z]+)([A-Z][a-z0-9])/g, "$1_$2")
    .replace(/([a-z0-9])([A-Z]+(?=[a-z0-9]))/g, "$1_$2")
    .toLowerCase()
}

/** What the service is made of must be in the Bento, or its image would fail to start. */
function checkTaken(project: Project, description: Description, files: readonly string[]): void {
  const { service, packages } = project
  if (service === null) return
  const taken = new Set(files)
  const entry = service.replace(/:[^:/]*$/, "")
  const missing = [...new Set([entry, ...description.files])].filter(
    (file) => !taken.has(file) && !isInstalled(file, project),
  )
  if (missing.length === 0) return
  const outside = missing.filter((file) => file.startsWith("..") || path.isAbsolute(file))
  if (outside.length > 0) {
    throw new BentoError(
      "CONTEXT_ESCAPE",
      `${entry} imports what lies outside of the build context: ${outside.join(", ")}`,
      { hint: "Move it into the context, or build from the folder above." },
    )
  }
  // Of a package one name is enough.
  const names = missing.map((file) => /^(.*?node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(file)?.[1] ?? file)
  const left = [...new Set(names)]
  const example = left.find((file) => file.includes("node_modules/"))
  throw new BentoError("SERVICE_INVALID", `${entry} needs what the Bento leaves out: ${left.join(", ")}`, {
    hint:
      example === undefined
        ? "See `include`, `exclude` and .bentoignore."
        : packages !== null
          ? `Packages come from the lock file, without those that only development needs: make ${path.basename(example)} one of \`dependencies\`.`
          : `node_modules is not taken by itself: name what is needed, \`include: ["*", "${example}/"]\`.`,
  })
}

/** Whether a file is of a package that the image installs. */
function isInstalled(file: string, { packages, contextDir }: Project): boolean {
  if (packages === null) return false
  const { dir, found } = packages
  if (dir !== null) return file.startsWith(`${path.relative(contextDir, dir)}${path.sep}`)
  return file.includes("node_modules/") && found.holds(file)
}

// Writing -------------------------------------------------------------------------------------------------------

async function copySources({ entries }: Walk, into: string, signal: AbortSignal | undefined): Promise<void> {
  await mkdir(into, { recursive: true })
  const made = new Set<string>()
  for (const entry of entries) {
    signal?.throwIfAborted()
    const target = path.join(into, entry.path)
    const folder = path.dirname(target)
    if (!made.has(folder)) await mkdir(folder, { recursive: true })
    made.add(folder)
    if (entry.kind === "link") await symlink(entry.target, target)
    else await copyFile(entry.source, target, entry.executable ? 0o755 : 0o644)
  }
}

const COPIED_AT_ONCE = 256 * 1024

/** Copies bytes only, and never through a link that took the file's place meanwhile. */
async function copyFile(from: string, to: string, mode: number): Promise<void> {
  const source = await open(from, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  try {
    if (!(await source.stat()).isFile()) throw new BentoError("CONTEXT_ESCAPE", `${from} is no longer a file`)
    const target = await open(to, "wx", mode)
    try {
      const buffer = Buffer.allocUnsafe(COPIED_AT_ONCE)
      for (;;) {
        const { bytesRead } = await source.read(buffer)
        if (bytesRead === 0) break
        await target.writeFile(buffer.subarray(0, bytesRead))
      }
      await target.chmod(mode)
    } finally {
      await target.close()
    }
  } finally {
    await source.close()
  }
}

async function write(dir: string, name: string, text: string): Promise<void> {
  const file = path.join(dir, name)
  await mkdir(path.dirname(file), { recursive: true })
  await writeFile(file, text)
}

/** The description, the project's own README.md, or a page made from what is known. */
async function readmeOf({ bentofile, contextDir }: Project, bento: Bento): Promise<string> {
  if (bentofile.description !== null) return `${bentofile.description.trimEnd()}\n`
  const own = path.join(contextDir, "README.md")
  const info = await lstat(own).catch(() => null)
  if (info?.isFile() === true) return readFile(own, "utf8")
  const apis = bento.apis.map(({ route, doc }) => `- \`POST ${route}\`${doc === null ? "" : `: ${doc}`}`)
  const models = bento.models.map(({ tag }) => `- ${formatTag(tag)}`)
  const parts = [`# ${formatTag(bento.tag)}`, "## APIs", apis.join("\n"), "## Models", models.join("\n")]
  return `${parts.filter((part) => part !== "").join("\n\n")}\n`
}

async function realPaths(paths: readonly string[]): Promise<string[]> {
  return Promise.all(paths.map((file) => realpath(file).catch(() => path.resolve(file))))
}
