/**
 * The user's own npm packages: which package manager's lock file says what they are, or, for `node.packages`, the lock
 * that is made of them. What is found goes into the Bento as `env/node`; the image installs it from there.
 */
import { spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { mkdir, mkdtemp, readFile, readdir, rename, rm, stat, writeFile } from "node:fs/promises"
import path from "node:path"
import { parseAllDocuments } from "yaml"
import { BentoError, IssueError } from "../store/errors.ts"
import type { Issue } from "../store/errors.ts"
import type { NodePackages } from "../store/bento.ts"
import { removeStale, tempPrefix } from "../store/owner.ts"
import type { Bentofile } from "./bentofile.ts"
import { openCache } from "./cache.ts"
import { splitNodePackage } from "./grammar.ts"
import { npmrcOf, registrySettings } from "./npmrc.ts"
import { INSTALLER } from "./plan.ts"
import { groupStopper } from "./process-group.ts"

/** Packages that a Bento is to have. */
export interface FoundPackages extends NodePackages {
  /** What their manager needs, by name: package.json without scripts, the lock file, pnpm's workspace file. */
  readonly files: Readonly<Record<string, string>>
  /** Whether a file that the service loaded, relative to the project, is of a package that the image will have. */
  readonly holds: (file: string) => boolean
}

/** Lock file → who writes it; Yarn's two kinds are told apart by what is in it. */
const LOCKS: Readonly<Record<string, "npm" | "pnpm" | "yarn" | null>> = {
  "package-lock.json": "npm",
  "npm-shrinkwrap.json": "npm",
  "pnpm-lock.yaml": "pnpm",
  "yarn.lock": "yarn",
  // Found, and of no use.
  "bun.lock": null,
  "bun.lockb": null,
  "deno.lock": null,
}

/** Where package.json does not say which version of its manager it wants. */
const DEFAULT_VERSIONS = { pnpm: { "9.0": "10.34.9", "6.1": "8.15.9", "6.0": "8.15.9" }, yarn: "1.22.22" }
const DEFAULT_BERRY = "4.18.1"

/** What of package.json says which packages there are; a change of anything else installs nothing anew. */
const TAKEN_KEYS = (
  "name private type engines dependencies optionalDependencies devDependencies peerDependencies " +
  "peerDependenciesMeta dependenciesMeta overrides resolutions allowScripts pnpm"
).split(" ")

interface PackageJson {
  readonly [key: string]: unknown
  readonly dependencies?: Readonly<Record<string, string>>
  readonly optionalDependencies?: Readonly<Record<string, string>>
  readonly devDependencies?: Readonly<Record<string, string>>
  readonly packageManager?: string
  readonly workspaces?: unknown
}

/** The packages of a project's package.json and lock file; null where it has none. Throws PACKAGES_INVALID. */
export async function findPackages(contextDir: string): Promise<FoundPackages | null> {
  const file = path.join(contextDir, "package.json")
  const text = await readText(file)
  if (text === null) return null
  const manifest = parseManifest(file, text)
  const wanted = { ...manifest.optionalDependencies, ...manifest.dependencies }
  if (Object.keys(wanted).length === 0) return null
  const issues: Issue[] = []
  const report = (message: string, key?: string, section?: string): void => {
    issues.push({ file, line: key === undefined ? 1 : lineOf(text, key, section), message })
  }
  if (manifest.workspaces !== undefined) {
    report(
      "workspaces are not supported: build from the folder of one package, with a lock file of its own",
      "workspaces",
    )
  }
  for (const section of ["dependencies", "optionalDependencies"] as const) {
    for (const [name, range] of Object.entries(manifest[section] ?? {})) {
      const problem = sourceProblem(range)
      if (problem !== null) report(`${name} ${problem}`, name, section)
    }
  }
  const locks = (
    await Promise.all(
      Object.keys(LOCKS).map(async (name) => ({ name, text: await readText(path.join(contextDir, name)) })),
    )
  ).filter((lock): lock is { name: string; text: string } => lock.text !== null)
  const [lock] = locks
  if (lock === undefined) {
    report(
      "there is no lock file beside it, so the packages' versions are not known: `npm install --package-lock-only` makes one",
      manifest.dependencies === undefined ? "optionalDependencies" : "dependencies",
    )
    throw invalid(issues)
  }
  if (locks.length > 1) {
    report(
      `there are several lock files beside it: ${locks.map(({ name }) => name).join(", ")}; keep one of them`,
    )
    throw invalid(issues)
  }
  const lockFile = path.join(contextDir, lock.name)
  const { manager, version, problems, holds } = readLock(lock.name, lock.text, manifest)
  for (const { name, message } of problems) {
    if (name === null) issues.push({ file: lockFile, line: 1, message })
    else report(message, name, sectionOf(manifest, name))
  }
  if (issues.length > 0) throw invalid(issues)
  const kept = Object.fromEntries(
    TAKEN_KEYS.filter((key) => key in manifest).map((key) => [key, manifest[key]]),
  )
  const workspace = manager === "pnpm" ? await readText(path.join(contextDir, "pnpm-workspace.yaml")) : null
  return {
    manager,
    version,
    settings: registrySettings((await readText(path.join(contextDir, ".npmrc"))) ?? ""),
    files: {
      "package.json": `${JSON.stringify(kept, null, 2)}\n`,
      [lock.name]: lock.text,
      ...(workspace === null ? {} : { "pnpm-workspace.yaml": workspace }),
    },
    holds,
  }
}

function invalid(issues: readonly Issue[]): IssueError {
  return new IssueError("PACKAGES_INVALID", "the project's packages cannot be installed:", issues)
}

function parseManifest(file: string, text: string): PackageJson {
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value === "object" && value !== null && !Array.isArray(value)) {
      for (const section of ["dependencies", "optionalDependencies", "devDependencies"]) {
        const map: unknown = (value as Record<string, unknown>)[section] ?? {}
        const isMap = typeof map === "object" && map !== null
        if (!isMap || Object.values(map).some((range) => typeof range !== "string")) {
          throw invalid([
            { file, line: lineOf(text, section), message: `${section} is no map of names to ranges` },
          ])
        }
      }
      return value as PackageJson // its maps were checked; the rest is only passed on
    }
    throw invalid([{ file, line: 1, message: "is no JSON object" }])
  } catch (error) {
    if (error instanceof BentoError) throw error
    throw invalid([{ file, line: 1, message: error instanceof Error ? error.message : String(error) }])
  }
}

/** Why a package cannot come from where package.json says. */
function sourceProblem(range: string): string | null {
  if (/^\s*(file:|link:|portal:|workspace:|[./]|~\/)/.test(range)) {
    return `is a folder of this machine (${range}): publish it, or take its files into the project and import them by path`
  }
  if (/^(git[+:]|git@|github:|gitlab:|bitbucket:|gist:)|^[\w-]+\/[\w.-]+(#.*)?$|\.git(#.*)?$/.test(range)) {
    return `comes from git (${range}), and there is no git where it is installed: take a version from a registry, or the address of a tarball`
  }
  return null
}

// Lock files ----------------------------------------------------------------------------------------------------

interface ReadLock extends Pick<FoundPackages, "manager" | "version" | "holds"> {
  /** `name` is a package of package.json; null for the lock as a whole. */
  readonly problems: readonly { readonly name: string | null; readonly message: string }[]
}

function readLock(name: string, text: string, manifest: PackageJson): ReadLock {
  const asked = /^(npm|pnpm|yarn|bun)@(\d+\.\d+\.\d+[\w.-]*)/.exec(manifest.packageManager ?? "")
  const manager = LOCKS[name] ?? null
  if (manager === null) {
    const message = "is the lock file of a manager that is not supported; npm, pnpm and Yarn are"
    return { manager: "npm", version: "", holds: () => true, problems: [{ name: null, message }] }
  }
  const read = { npm: readNpmLock, pnpm: readPnpmLock, yarn: readYarnLock }[manager]
  const lock = readSafely(() => read(text, manifest, asked?.[2]))
  if (asked === null || asked[1] === manager) return lock
  const message = `is ${manager}'s, but packageManager in package.json says ${asked[0]}`
  return { ...lock, problems: [{ name: null, message }, ...lock.problems] }
}

function readSafely(read: () => ReadLock): ReadLock {
  try {
    return read()
  } catch (error) {
    const message = `cannot be read: ${error instanceof Error ? error.message : String(error)}`
    return { manager: "npm", version: "", holds: () => true, problems: [{ name: null, message }] }
  }
}

/** Every dependency in `manifest` for which `locked` knows another range, or none. */
function outdated(
  manifest: PackageJson,
  update: string,
  locked: (name: string, range: string) => string | undefined,
): ReadLock["problems"] {
  const all = { ...manifest.devDependencies, ...manifest.dependencies, ...manifest.optionalDependencies }
  return Object.entries(all).flatMap(([name, range]) => {
    const found = locked(name, range)
    if (found === range) return []
    const instead =
      found === undefined ? "the lock file does not have it" : `the lock file has it as ${found}`
    return [{ name, message: `${name}@${range}: ${instead}; \`${update}\` brings it up to date` }]
  })
}

function readNpmLock(text: string, manifest: PackageJson): ReadLock {
  const lock = JSON.parse(text) as {
    packages?: Record<string, (PackageJson & { dev?: boolean }) | undefined>
  }
  const root = lock.packages?.[""]
  if (root === undefined)
    throw new Error("it is of npm 6 or older, or empty; `npm install --package-lock-only` makes it anew")
  const locked = { ...root.devDependencies, ...root.dependencies, ...root.optionalDependencies }
  return {
    manager: "npm",
    version: "",
    problems: outdated(manifest, "npm install --package-lock-only", (name) => locked[name]),
    holds: (file) => {
      const folder = /^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/.exec(file)?.[0] ?? file
      const entry = lock.packages?.[folder]
      return entry !== undefined && entry.dev !== true
    },
  }
}

function readPnpmLock(text: string, manifest: PackageJson, asked: string | undefined): ReadLock {
  // What the project asks for stands before what it comes to, which is long; pnpm may put a document of its own first.
  const own = text.split(/^---$/m).at(-1) ?? ""
  const document = parseAllDocuments(own.split(/^(?:packages|snapshots):/m)[0] ?? "").at(-1)
  const lock = document?.toJS() as {
    lockfileVersion?: string
    importers?: Record<string, Record<string, Record<string, { specifier?: string }> | undefined>>
  } & Record<string, Record<string, { specifier?: string }> | undefined>
  const versions: Readonly<Record<string, string>> = DEFAULT_VERSIONS.pnpm
  const format = String(lock.lockfileVersion)
  const version = asked ?? versions[format]
  if (versions[format] === undefined || version === undefined) {
    throw new Error(`its format is ${format}; supported are ${Object.keys(versions).join(", ")}`)
  }
  if (lock.importers !== undefined && Object.keys(lock.importers).some((name) => name !== ".")) {
    throw new Error("it is of a workspace; build from a folder with a lock file of its own")
  }
  // Before format 9 a package alone stands at the top.
  const root = lock.importers?.["."] ?? lock
  const locked = { ...root["devDependencies"], ...root["dependencies"], ...root["optionalDependencies"] }
  return {
    manager: "pnpm",
    version,
    problems: outdated(manifest, "pnpm install --lockfile-only", (name) => locked[name]?.specifier),
    holds: () => true,
  }
}

function readYarnLock(text: string, manifest: PackageJson, asked: string | undefined): ReadLock {
  const isBerry = /^__metadata:$/m.test(text)
  if (!isBerry && !text.includes("# yarn lockfile v1")) throw new Error("it is empty or not Yarn's")
  if (isBerry && /^[23]\./.test(asked ?? "")) {
    // They need a plugin to leave out what only development needs.
    throw new Error(
      `Yarn ${asked} cannot install for production alone; \`yarn set version 4\` makes it one that can`,
    )
  }
  const keys = text.split("\n").filter((line) => /^["@\w]/.test(line) && line.endsWith(":"))
  const locked = new Set(keys.flatMap((line) => line.slice(0, -1).replaceAll('"', "").split(", ")))
  const has = (name: string, range: string): boolean =>
    [`${name}@${range}`, `${name}@npm:${range}`].some((entry) => locked.has(entry))
  return {
    manager: isBerry ? "yarn-berry" : "yarn",
    version: asked ?? (isBerry ? DEFAULT_BERRY : DEFAULT_VERSIONS.yarn),
    problems: outdated(manifest, "yarn install", (name, range) => (has(name, range) ? range : undefined)),
    holds: () => true,
  }
}

function sectionOf(manifest: PackageJson, name: string): string | undefined {
  const sections = ["dependencies", "optionalDependencies", "devDependencies"] as const
  return sections.find((section) => manifest[section]?.[name] !== undefined)
}

/** Where a key stands in JSON: the first one at or below the section. */
function lineOf(text: string, key: string, section?: string): number {
  const from = section === undefined ? 0 : Math.max(0, text.indexOf(`"${section}"`))
  const at = text.slice(from).search(new RegExp(`${escaped(JSON.stringify(key))}\\s*:`))
  return text.slice(0, at < 0 ? 0 : from + at).split("\n").length
}

function escaped(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")
}

async function readText(file: string): Promise<string | null> {
  const info = await stat(file).catch(() => null)
  return info?.isFile() === true ? readFile(file, "utf8") : null
}

// `node.packages`, and packages for this machine ------------------------------------------------------------------

export interface PackageTools {
  /** BENTOML_HOME. */
  readonly home: string
  readonly nodePath: string
  readonly env: Readonly<Record<string, string | undefined>>
  /** Settings of registries with their credentials; for the time of the command in a file that only we can read. */
  readonly npmrc: string
  /** What this project was locked to before is good enough. */
  readonly keepLock?: boolean | undefined
  readonly signal?: AbortSignal | undefined
  /** Gets what the package manager printed, if it failed. */
  readonly stderr?: NodeJS.WritableStream | undefined
}

/** Which exact versions `node.packages` means today, or meant when the project was locked before. Throws PACKAGES_FAILED. */
export async function lockPackages(
  { node: { packages, line }, path: bentofile }: Pick<Bentofile, "node" | "path">,
  contextDir: string,
  tools: PackageTools,
): Promise<FoundPackages> {
  const dependencies = Object.fromEntries(
    packages.map(splitNodePackage).map(({ name, range }) => [name, range]),
  )
  const manifest = `${JSON.stringify({ private: true, dependencies }, null, 2)}\n`
  const settings = registrySettings((await readText(path.join(contextDir, ".npmrc"))) ?? "")
  const found = (lock: string): FoundPackages => {
    const { manager, version, holds } = readNpmLock(lock, { dependencies })
    return {
      manager,
      version,
      holds,
      settings,
      files: { "package.json": manifest, "package-lock.json": lock },
    }
  }
  const cache = openCache(tools.home)
  const key = JSON.stringify([manifest, settings])
  const known = tools.keepLock === true ? await cache.read(`node.packages ${contextDir}`, key) : null
  if (known !== null) return found(known)
  return inFolder(tools, async ({ made, npmrc, env }) => {
    await writeFile(path.join(made, "package.json"), manifest)
    const options = [
      "--ignore-scripts",
      "--no-audit",
      "--no-fund",
      `--cache=${path.join(cacheOf(tools), "npm")}`,
    ]
    const settled = { ...env, NPM_CONFIG_USERCONFIG: npmrc, npm_config_update_notifier: "false" }
    const args = ["install", "--package-lock-only", ...options]
    const ended = await run("npm", args, made, { ...tools, env: settled, stderr: undefined })
    if (ended.code !== 0) {
      throw new IssueError(
        "PACKAGES_FAILED",
        "node.packages cannot be locked:",
        [
          {
            ...(bentofile === null ? {} : { file: bentofile }),
            ...(line === null ? {} : { line }),
            field: "node.packages",
            message: reasonOf(ended),
          },
        ],
        { hint: "Check names and ranges, and that the registry can be reached." },
      )
    }
    const lock = await readFile(path.join(made, "package-lock.json"), "utf8")
    await cache.write(`node.packages ${contextDir}`, key, lock)
    return found(lock)
  })
}

/** What a Bento keeps of its packages. */
export async function readPackageFiles(dir: string): Promise<Record<string, string>> {
  const names = (await readdir(dir)).toSorted()
  const texts = await Promise.all(names.map((name) => readFile(path.join(dir, name), "utf8")))
  return Object.fromEntries(names.map((name, index) => [name, texts[index] ?? ""]))
}

/** A folder of this machine whose node_modules holds the packages; installed once. Throws PACKAGES_FAILED. */
export async function installHere(
  packages: NodePackages & Pick<FoundPackages, "files">,
  tools: PackageTools,
): Promise<string> {
  const { manager, version, settings, files } = packages
  // What is compiled fits one system and one interface of Node.
  const machine = [process.platform, process.arch, process.versions.modules]
  const digest = createHash("sha256")
    .update(JSON.stringify(["2", ...machine, manager, version, settings, Object.entries(files)]))
    .digest("hex")
  const target = path.join(rootOf(tools), digest.slice(0, 32))
  if ((await stat(target).catch(() => null)) !== null) return target
  return inFolder(tools, async ({ made, npmrc, env }) => {
    for (const [name, text] of Object.entries({ ...files, ".npmrc": npmrcOf(settings) })) {
      await writeFile(path.join(made, name), text)
    }
    const args = [INSTALLER, manager, version, process.arch, cacheOf(tools), npmrc]
    const ended = await run(tools.nodePath, args, made, { ...tools, env })
    if (ended.code !== 0) {
      throw new BentoError("PACKAGES_FAILED", `the packages cannot be installed: ${reasonOf(ended)}`)
    }
    await rename(made, target).catch((error: unknown) => {
      // Someone else was faster.
      if (!(error instanceof Error && "code" in error && error.code === "ENOTEMPTY")) throw error
    })
    return target
  })
}

function rootOf({ home }: PackageTools): string {
  return path.join(home, ".bentoctl", "packages")
}

function cacheOf(tools: PackageTools): string {
  return path.join(rootOf(tools), "cache")
}

interface Workplace {
  /** An empty folder for the packages, always of the same name: npm writes it into the lock. */
  readonly made: string
  /** The file with the credentials. */
  readonly npmrc: string
  /** With it, what programs keep for themselves, credentials too, lies here as well. */
  readonly env: PackageTools["env"]
}

/** All that lies in the workplace goes afterwards; after `kill -9`, when the next one is made. */
async function inFolder<T>(tools: PackageTools, act: (workplace: Workplace) => Promise<T>): Promise<T> {
  const root = rootOf(tools)
  await mkdir(root, { recursive: true })
  const folder = await mkdtemp(path.join(root, tempPrefix()))
  const [made, secret] = [path.join(folder, "packages"), path.join(folder, "secret")]
  try {
    await removeStale(root, folder)
    await mkdir(made)
    await mkdir(secret)
    const npmrc = path.join(secret, "credentials")
    await writeFile(npmrc, tools.npmrc, { mode: 0o600 })
    return await act({ made, npmrc, env: { ...tools.env, TMPDIR: secret } })
  } finally {
    // Packages may be many, and after Ctrl-C there is little time; a program that was killed may still be leaving.
    for (const dir of [secret, folder]) await rm(dir, { recursive: true, force: true, maxRetries: 3 })
  }
}

interface Ended {
  readonly code: number | null
  readonly printed: string
}

function run(file: string, args: readonly string[], cwd: string, tools: PackageTools): Promise<Ended> {
  const { env, signal, stderr } = tools
  signal?.throwIfAborted()
  return new Promise((resolve, reject) => {
    // A group of its own: managers start programs, and these are ended with them.
    const child = spawn(file, args, { cwd, env, detached: true, stdio: ["ignore", "pipe", "pipe"] })
    const stop = groupStopper(child)
    signal?.addEventListener("abort", stop, { once: true })
    let printed = ""
    for (const stream of [child.stdout, child.stderr]) {
      stream.on("data", (chunk: Buffer) => {
        printed = `${printed}${chunk.toString()}`.slice(-65_536)
      })
    }
    child.on("error", (error) => {
      if ("code" in error && error.code === "ENOENT") {
        reject(
          new BentoError("PACKAGES_FAILED", `${file} is not on this machine, and it is needed for packages`, {
            hint: "Install Node with npm.",
          }),
        )
      } else reject(error)
    })
    // Not earlier: until then it may write.
    child.on("close", (code) => {
      signal?.removeEventListener("abort", stop)
      if (signal?.aborted === true) return reject(signal.reason as Error)
      if (code !== 0) stderr?.write(printed)
      resolve({ code, printed })
    })
  })
}

/** The line in which the manager says it; what it printed is shown above. */
function reasonOf({ code, printed }: Ended): string {
  const lines = printed.split("\n").map((line) => line.trim())
  const ours = lines.findIndex((line) => line.startsWith("bentoctl: "))
  if (ours >= 0) return lines.slice(ours).join("\n").replace("bentoctl: ", "").trim()
  const said = lines.filter((line) => /^npm (error|ERR!) /.test(line) && !/ (code|A complete log)/.test(line))
  return said[0]?.replace(/^npm (error|ERR!) (\d+ |notarget )?/, "") ?? `npm ended with code ${code}`
}
