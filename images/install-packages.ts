/**
 * A program of its own: installs the packages of the lock file in the working directory, and nothing else. It runs in
 * a stage of the image build, from the build context, and on this machine for `bentoctl serve`; so it imports only
 * what Node brings.
 *
 *   node install-packages.js MANAGER VERSION CPU CACHE [NPMRC]
 *
 * MANAGER is npm, pnpm, yarn or yarn-berry, VERSION its version (npm is taken as it is), CPU what the packages are for
 * (x64, arm64), CACHE a folder to keep downloads in, NPMRC a file with the credentials of registries, if it is there.
 */
import { spawn } from "node:child_process"
import { closeSync, existsSync, openSync, readSync } from "node:fs"
import { cp, mkdir, mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import path from "node:path"

class Refused extends Error {}

const [manager = "", version = "", cpu = "", cache = "", npmrc] = process.argv.slice(2)
/** Then nothing of a package can run here, and each must bring what the other platform needs. */
const isForeign = cpu !== process.arch
const home = await mkdtemp(path.join(tmpdir(), "bentoctl-packages-"))
try {
  await install()
  await clean()
  await check()
} catch (error) {
  if (!(error instanceof Refused)) throw error
  process.stderr.write(`bentoctl: ${error.message}\n`)
  process.exitCode = 1
} finally {
  await rm(home, { recursive: true, force: true })
}

/** The manager's own command that takes the lock file as it is, without what only development needs. */
async function install(): Promise<void> {
  await mkdir(cache, { recursive: true })
  // Where all managers look for it; it goes with the folder.
  const credentials = path.join(home, ".npmrc")
  if (npmrc !== undefined && existsSync(npmrc)) await cp(npmrc, credentials)
  const npmCache = `--cache=${path.join(cache, "npm")}`
  const foreign = (...flags: string[]): string[] => (isForeign ? flags : [])
  const platform = foreign("--os=linux", `--cpu=${cpu}`, "--libc=glibc")
  const noScripts = foreign("--ignore-scripts")
  /** A manager in its exact version, which npm fetches and keeps in the cache. */
  const through = (name: string, command: string, args: readonly string[]): string[] => {
    const own = ["exec", "--yes", npmCache, `--package=${name}@${version}`]
    return [...own, "--", command, ...args]
  }
  switch (manager) {
    case "npm":
      return npm(["ci", "--omit=dev", "--no-audit", "--no-fund", npmCache, ...platform, ...noScripts])
    case "pnpm": {
      const store = ["--store-dir", path.join(cache, "pnpm"), "--config.package-import-method=copy"]
      const args = ["install", "--prod", "--frozen-lockfile", ...store, ...noScripts]
      // Older ones have no options for it.
      const hasOptions = Number.parseInt(version) > 10
      if (isForeign && !hasOptions) await addPnpmPlatform()
      return npm(through("pnpm", "pnpm", [...args, ...(hasOptions ? platform : [])]))
    }
    case "yarn": {
      const folder = ["--cache-folder", path.join(cache, "yarn")]
      const args = ["install", "--production", "--frozen-lockfile", "--non-interactive"]
      return npm(through("yarn", "yarn", [...args, ...folder, ...foreign("--ignore-platform"), ...noScripts]))
    }
    case "yarn-berry":
      await writeFile(path.join(home, ".yarnrc.yml"), await yarnSettings(credentials))
      return npm(through("@yarnpkg/cli-dist", "yarn", ["workspaces", "focus", "--production"]))
    default:
      throw new Refused(`no such package manager: ${manager}`)
  }
}

async function addPnpmPlatform(): Promise<void> {
  const manifest = JSON.parse(await readFile("package.json", "utf8")) as { pnpm?: object }
  const supportedArchitectures = { os: ["linux"], cpu: [cpu], libc: ["glibc"] }
  const pnpm = { ...manifest.pnpm, supportedArchitectures }
  await writeFile("package.json", JSON.stringify({ ...manifest, pnpm }))
}

/** Yarn 2 and newer read no .npmrc. Its settings as JSON, which is YAML too. */
async function yarnSettings(credentials: string): Promise<string> {
  const lines = [".npmrc", credentials].map((file) => readFile(file, "utf8").catch(() => ""))
  const settings = new Map(
    (await Promise.all(lines))
      .join("\n")
      .split("\n")
      .map((line) => /^\s*([^#;=\s][^=]*?)\s*=\s*"?(.*?)"?\s*$/.exec(line))
      .filter((match) => match !== null)
      .map(([, key = "", value = ""]) => [key, value] as const),
  )
  const registries: Record<string, object> = {}
  const scopes: Record<string, object> = {}
  for (const [key, value] of settings) {
    const [, place, kind] = /^(\/\/.*?)\/?:(_authToken|_auth)$/.exec(key) ?? []
    const [, scope] = /^@(.+):registry$/.exec(key) ?? []
    if (place !== undefined) {
      const ident = Buffer.from(value, "base64").toString()
      registries[place] = kind === "_auth" ? { npmAuthIdent: ident } : { npmAuthToken: value }
    }
    if (scope !== undefined) scopes[scope] = { npmRegistryServer: value.replace(/\/$/, "") }
  }
  const registry = settings.get("registry")?.replace(/\/$/, "")
  return JSON.stringify({
    nodeLinker: "node-modules",
    enableTelemetry: false,
    enableScripts: !isForeign,
    globalFolder: path.join(cache, "yarn"),
    supportedArchitectures: { os: ["linux"], cpu: [cpu], libc: ["glibc"] },
    unsafeHttpWhitelist: ["*"],
    npmRegistries: registries,
    npmScopes: scopes,
    ...(registry === undefined ? {} : { npmRegistryServer: registry }),
  })
}

function npm(args: readonly string[]): Promise<void> {
  return run("npm", args)
}

/** Runs a program; what it prints is passed on, and searched for the package that made it fail. */
function run(file: string, args: readonly string[]): Promise<void> {
  const env = {
    ...process.env,
    HOME: home,
    NPM_CONFIG_USERCONFIG: path.join(home, ".npmrc"),
    CI: "true",
    // The Node that runs this, for managers and for install scripts.
    PATH: `${path.dirname(process.execPath)}${path.delimiter}${process.env["PATH"] ?? ""}`,
    // What the image or the machine trusts, not only what Node brings.
    NODE_USE_SYSTEM_CA: "1",
    npm_config_update_notifier: "false",
    YARN_ENABLE_IMMUTABLE_INSTALLS: "false",
  }
  return new Promise((resolve, reject) => {
    const child = spawn(file, args, { env, stdio: ["ignore", "pipe", "pipe"] })
    let printed = ""
    for (const [from, to] of [
      [child.stdout, process.stdout],
      [child.stderr, process.stderr],
    ] as const) {
      from.on("data", (chunk: Buffer) => {
        to.write(chunk)
        printed = `${printed}${chunk.toString()}`.slice(-65_536)
      })
    }
    child.on("error", () => {
      reject(
        new Refused(
          `${file} is not there, and it installs the packages; take an image with Node and npm, such as node:24-bookworm-slim`,
        ),
      )
    })
    child.on("close", (code) => {
      if (code === 0) resolve()
      else reject(new Refused(failure(printed, code)))
    })
  })
}

function failure(printed: string, code: number | null): string {
  // npm: `npm error path DIR`; Yarn 1: `error DIR: Command failed`, pnpm: `DIR install: Failed`.
  const folder =
    /(?:path|Directory:|error) \S*node_modules\/((?:@[^/\s]+\/)?[^/\s:]+)/.exec(printed)?.[1] ??
    /node_modules\/((?:@[^/\s]+\/)?[^/\s:]+) (?:pre|post)?install: Failed/.exec(printed)?.[1]
  if (folder !== undefined && /gyp|install|command/i.test(printed)) {
    return `${folder} could not be built: its install script failed (see above). Take a version with binaries for linux/${cpu}, or build on an image with a compiler (docker.base_image)`
  }
  if (
    /\b(E401|E403|ENEEDAUTH|ERR_PNPM_FETCH_40[13]|YN0041)\b|\b40[13] (Unauthorized|Forbidden)/.test(printed)
  ) {
    return "the registry refused us: put its token into ~/.npmrc, the project's .npmrc, or the file that NPM_CONFIG_USERCONFIG names"
  }
  return `${manager} ended with code ${code} (see above)`
}

/** What the managers note for themselves: times, paths of this build, addresses of registries. */
async function clean(): Promise<void> {
  await mkdir("node_modules", { recursive: true })
  for (const name of await readdir("node_modules")) {
    if (name.startsWith(".") && name !== ".bin" && name !== ".pnpm") {
      await rm(path.join("node_modules", name), { recursive: true, force: true })
    }
  }
  await rm("node_modules/.pnpm/lock.yaml", { force: true })
  // Every user may read them, and none becomes another one by them, however they were packed.
  await run("chmod", ["-R", "a+rX,u-s,g-s", "node_modules"])
}

interface Manifest {
  readonly name?: string
  readonly version?: string
  readonly os?: readonly string[]
  readonly cpu?: readonly string[]
  readonly libc?: readonly string[]
  readonly optionalDependencies?: Readonly<Record<string, string>>
  readonly scripts?: Readonly<Record<string, string>>
}

/** Refuses packages that cannot work on the platform, by name. */
async function check(): Promise<void> {
  const problems: string[] = []
  const unprepared: string[] = []
  const packages = await Promise.all((await packagesBelow("node_modules")).map(readPackage))
  const optional = new Set(
    packages.flatMap(({ manifest }) => Object.keys(manifest.optionalDependencies ?? {})),
  )
  for (const { dir, manifest } of packages) {
    const name = `${manifest.name ?? path.basename(dir)}@${manifest.version ?? "?"}`
    if (!admits(manifest.os, "linux") || !admits(manifest.cpu, cpu) || !admits(manifest.libc, "glibc")) {
      // Yarn 1 knows no `libc`, and takes the binaries of every platform where it is to take those of another one.
      if (optional.has(manifest.name ?? "")) await rm(dir, { recursive: true, force: true })
      else problems.push(`${name} is not made for linux/${cpu} with glibc`)
      continue
    }
    const { install, preinstall, postinstall } = manifest.scripts ?? {}
    // `install` is where binaries are made or fetched; the others mostly do what can be done without.
    const compiles = existsSync(path.join(dir, "binding.gyp")) || (isForeign && install !== undefined)
    if (isForeign && (preinstall ?? postinstall) !== undefined) unprepared.push(name)
    // Binaries may be in packages of their own, of which the manager took the right one.
    if (!compiles || Object.keys(manifest.optionalDependencies ?? {}).length > 0) continue
    const files = await readdir(dir, { recursive: true })
    if (files.some((file) => file.endsWith(".node") && machineOf(path.join(dir, file)) === cpu)) continue
    problems.push(
      isForeign
        ? `${name} has to be compiled or fetched by its install script, and that cannot run for linux/${cpu} on ${process.arch}`
        : `${name} holds no binary for linux/${cpu}: its install script did not run (pnpm runs those that \`onlyBuiltDependencies\` or \`allowBuilds\` names)`,
    )
  }
  if (unprepared.length > 0)
    process.stderr.write(`install scripts that were not run for linux/${cpu}: ${unprepared.join(", ")}\n`)
  if (problems.length > 0) throw new Refused(`packages that cannot be used:\n  ${problems.join("\n  ")}`)
}

async function readPackage(dir: string): Promise<{ dir: string; manifest: Manifest }> {
  const text = await readFile(path.join(dir, "package.json"), "utf8")
  return { dir, manifest: JSON.parse(text) as Manifest }
}

/** Every folder of an installed package, also those in folders of other packages and in pnpm's own. */
async function packagesBelow(modules: string): Promise<string[]> {
  const found: string[] = []
  for (const entry of await readdir(modules, { withFileTypes: true }).catch(() => [])) {
    const dir = path.join(modules, entry.name)
    if (!entry.isDirectory()) continue
    if (entry.name === ".pnpm") {
      for (const name of await readdir(dir)) {
        found.push(...(await packagesBelow(path.join(dir, name, "node_modules"))))
      }
    } else if (entry.name.startsWith("@")) found.push(...(await packagesBelow(dir)))
    else {
      if (existsSync(path.join(dir, "package.json"))) found.push(dir)
      found.push(...(await packagesBelow(path.join(dir, "node_modules"))))
    }
  }
  return found
}

/** As package.json has it: names that are allowed, or with a `!` those that are not. */
function admits(list: readonly string[] | string | undefined, value: string): boolean {
  if (list === undefined) return true
  const names = typeof list === "string" ? [list] : list
  if (names.includes(`!${value}`)) return false
  const allowed = names.filter((name) => !name.startsWith("!"))
  return allowed.length === 0 || allowed.includes(value) || allowed.includes("any")
}

/** Of an ELF file: for which processor it is. */
function machineOf(file: string): string | undefined {
  const head = Buffer.alloc(20)
  const handle = openSync(file, "r")
  try {
    readSync(handle, head, 0, 20, 0)
  } finally {
    closeSync(handle)
  }
  if (head.readUInt32BE(0) !== 0x7f454c46) return undefined
  return { 0x3e: "x64", 0xb7: "arm64" }[head.readUInt16LE(18)]
}
