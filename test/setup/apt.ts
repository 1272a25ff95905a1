/** What the set-up needs of apt: installing packages, and the machine's own mirrors for a Debian root file system. */

import { mkdir, readdir, readFile, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { run, SetupError, tail } from "./process.ts"
import type { Log, RunResult } from "./process.ts"

/** The machine's Linux distribution, as /etc/os-release names it. */
export interface Distribution {
  readonly id: string
  readonly like: readonly string[]
  readonly codename: string
  readonly name: string
}

/** Reads the text of /etc/os-release. */
export function parseOsRelease(text: string): Distribution {
  const values = new Map<string, string>()
  for (const line of text.split("\n")) {
    const match = /^([A-Z_]+)=(.*)$/.exec(line.trim())
    if (match === null) continue
    const [, key = "", raw = ""] = match
    values.set(key, raw.replace(/^(["'])(.*)\1$/, "$2"))
  }
  return {
    id: values.get("ID") ?? "unknown",
    like: (values.get("ID_LIKE") ?? "").split(/\s+/).filter((word) => word !== ""),
    codename: values.get("VERSION_CODENAME") ?? "",
    name: values.get("PRETTY_NAME") ?? values.get("ID") ?? "this system",
  }
}

export async function readDistribution(): Promise<Distribution> {
  if (process.platform !== "linux")
    return { id: process.platform, like: [], codename: "", name: process.platform }
  const text = await readFile("/etc/os-release", "utf8").catch(() => "")
  return parseOsRelease(text)
}

/** Whether the set-up knows how to install packages here (Debian, Ubuntu and what is built on them). */
export function usesApt(distribution: Distribution): boolean {
  return [distribution.id, ...distribution.like].some((id) => id === "debian" || id === "ubuntu")
}

export function isRoot(): boolean {
  return process.getuid?.() === 0
}

const aptOptions = ["-o", "DPkg::Lock::Timeout=180", "-o", "Acquire::Retries=2", "-o", "Dpkg::Use-Pty=0"]

const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C.UTF-8" }
let updating: Promise<RunResult> | undefined

/** Test files run side by side, and apt-get fails where another one has its lists or archives: they take turns. */
function aptInTurn(args: readonly string[], timeoutMs: number): Promise<RunResult> {
  // --close: a daemon that a package starts would keep the lock.
  const turn = ["--close", join(tmpdir(), "bentoctl-apt.lock"), "apt-get"]
  return run("flock", [...turn, ...args], { env, timeoutMs })
}

/** Once for each process: the mirrors do not change while it runs. */
function aptUpdate(): Promise<RunResult> {
  updating ??= aptInTurn(["update", ...aptOptions], 300_000)
  return updating
}

/**
 * Installs packages, after a fresh `apt-get update`. Names in `optional` are installed where this release has them
 * (Debian 13 split `docker-cli` from `docker.io`; Debian 12 has no such package).
 */
export async function aptInstall(
  packages: readonly string[],
  options: { log: Log; optional?: readonly string[] },
): Promise<void> {
  const updated = await aptUpdate()
  if (updated.missing) {
    throw new SetupError("There is no apt-get on this machine", `Install ${packages.join(", ")} by hand.`)
  }
  const found: string[] = []
  for (const name of options.optional ?? []) {
    const shown = await run("apt-cache", ["show", "--no-all-versions", name], { env })
    if (shown.code === 0) found.push(name)
  }
  const wanted = [...packages, ...found]
  const args = ["install", "-y", "--no-install-recommends", ...aptOptions, ...wanted]
  options.log(`apt-get install -y --no-install-recommends ${wanted.join(" ")}`)
  const installed = await aptInTurn(args, 600_000)
  if (installed.code === 0) return
  throw new SetupError(
    aptFailure(wanted, updated.stderr, installed),
    aptHint(updated.stdout + updated.stderr + installed.stderr + installed.stdout, wanted),
  )
}

/**
 * Unpacks packages, with what they need and this machine lacks, into a folder. Nothing is installed and nothing
 * started: for daemons that a test runs once. Throws SetupError.
 */
export async function aptUnpack(packages: readonly string[], folder: string): Promise<void> {
  const archives = join(folder, ".archives")
  await mkdir(join(archives, "partial"), { recursive: true })
  const updated = await aptUpdate()
  const where = ["-o", `Dir::Cache::archives=${archives}`, "-o", "Debug::NoLocking=1"]
  const args = ["install", "-y", "--download-only", "--reinstall", "--no-install-recommends", ...where]
  const fetched = await run("apt-get", [...args, ...aptOptions, ...packages], { env, timeoutMs: 300_000 })
  if (fetched.code !== 0) {
    const output = updated.stderr + fetched.stderr + fetched.stdout
    throw new SetupError(aptFailure(packages, updated.stderr, fetched), aptHint(output, packages))
  }
  for (const name of await readdir(archives)) {
    if (name.endsWith(".deb")) await run("dpkg-deb", ["-x", join(archives, name), folder])
  }
}

/**
 * Unpacks packages of another release of Debian, without what they need, from a mirror of this machine. apt keeps
 * what it learns for that below the folder. Throws SetupError.
 */
export async function aptUnpackFrom(
  suite: string,
  packages: readonly string[],
  folder: string,
): Promise<void> {
  const { id, codename, name } = await readDistribution()
  const own = (await readAptSources()).find(
    (source) => source.suite === codename && source.components.includes("main"),
  )
  if (id !== "debian" || own === undefined) {
    throw new SetupError(`${name} has no mirror of Debian`, `Unpack ${packages.join(", ")} by hand.`)
  }
  const at = (...names: string[]): string => join(folder, ".apt", ...names)
  await mkdir(at("state/lists/partial"), { recursive: true })
  await mkdir(at("cache/archives/partial"), { recursive: true })
  const signedBy = own.signedBy === undefined ? "" : `[signed-by=${own.signedBy}] `
  await writeFile(at("sources.list"), `deb ${signedBy}${own.uri} ${suite} main\n`)
  const settings = [
    `Dir::Etc::sourcelist=${at("sources.list")}`,
    "Dir::Etc::sourceparts=/dev/null",
    `Dir::State=${at("state")}`,
    "Dir::State::status=/var/lib/dpkg/status",
    `Dir::Cache=${at("cache")}`,
    "Acquire::Languages=none",
    "APT::Sandbox::User=root",
  ].flatMap((setting) => ["-o", setting])
  const env = { ...process.env, LC_ALL: "C.UTF-8" }
  const options = { env, cwd: at("cache"), timeoutMs: 120_000 }
  const updated = await run("apt-get", ["update", ...settings, ...aptOptions], options)
  const fetched = await run("apt-get", ["download", ...settings, ...aptOptions, ...packages], options)
  if (fetched.code !== 0) {
    const output = updated.stderr + fetched.stderr + fetched.stdout
    throw new SetupError(aptFailure(packages, updated.stderr, fetched), aptHint(output, packages))
  }
  for (const file of await readdir(at("cache"))) {
    if (file.endsWith(".deb")) await run("dpkg-deb", ["-x", at("cache", file), folder])
  }
}

function aptFailure(
  wanted: readonly string[],
  update: string,
  install: { stdout: string; stderr: string },
): string {
  const updateErrors = update.split("\n").filter((line) => /^[EW]: /.test(line))
  const parts = [`apt-get could not install ${wanted.join(", ")}:`, tail(install.stderr || install.stdout, 6)]
  if (updateErrors.length > 0)
    parts.push("  and apt-get update had said:", tail(updateErrors.slice(0, 2).join("\n")))
  return parts.join("\n")
}

/** What to do about a failure of apt, by what it printed. */
export function aptHint(output: string, wanted: readonly string[]): string {
  const again = `then run this again, or do it by hand: apt-get update && apt-get install ${wanted.join(" ")}`
  if (
    /Temporary failure resolving|Could not resolve|Could not connect|Connection (timed out|refused)/i.test(
      output,
    )
  ) {
    return `The package mirrors cannot be reached: check the network (or the proxy in /etc/apt/apt.conf.d), ${again}`
  }
  if (/Unable to acquire the dpkg|Could not get lock|is another process using it/i.test(output)) {
    return `Another apt or dpkg is running: let it finish, ${again}`
  }
  if (/No space left on device|not enough free space/i.test(output))
    return `The disk is full: make room, ${again}`
  if (/Unable to locate package|has no installation candidate/i.test(output)) {
    return `The apt sources of this machine do not hold the package: look at /etc/apt/sources.list*, ${again}`
  }
  if (/certificate|GPG error|NO_PUBKEY|is not signed/i.test(output)) {
    return `A mirror's certificate or key is not trusted: look at the lines above, ${again}`
  }
  return `Mend what apt names above, ${again}`
}

/** One place that packages come from: a line of sources.list, or one stanza of a .sources file taken apart. */
export interface AptSource {
  readonly uri: string
  readonly suite: string
  readonly components: readonly string[]
  readonly signedBy: string | undefined
}

/** Reads a sources.list (one line each) or a deb822 `.sources` file. Source packages and disabled entries are left out. */
export function parseAptSources(text: string, format: "list" | "sources"): AptSource[] {
  return format === "list" ? parseOneLine(text) : parseDeb822(text)
}

function parseOneLine(text: string): AptSource[] {
  const found: AptSource[] = []
  for (const raw of text.split("\n")) {
    const match = /^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)$/.exec(raw.replace(/#.*$/, "").trim())
    if (match === null) continue
    const [, options = "", uri = "", suite = "", components = ""] = match
    const signedBy = /(?:^|\s)signed-by=(\S+)/i.exec(options)?.[1]
    found.push({ uri, suite, components: components.split(/\s+/), signedBy })
  }
  return found
}

function parseDeb822(text: string): AptSource[] {
  const found: AptSource[] = []
  const clean = text.replace(/^#.*\n?/gm, "")
  for (const stanza of clean.split(/\n\s*\n/)) {
    const fields = new Map<string, string>()
    let last = ""
    for (const line of stanza.split("\n")) {
      const match = /^([A-Za-z-]+):\s*(.*)$/.exec(line)
      if (match !== null) {
        last = (match[1] ?? "").toLowerCase()
        fields.set(last, match[2] ?? "")
      } else if (/^\s/.test(line) && last !== "") {
        fields.set(last, `${fields.get(last) ?? ""}\n${line.trim()}`)
      }
    }
    const words = (key: string): string[] =>
      (fields.get(key) ?? "").split(/\s+/).filter((word) => word !== "")
    if (!words("types").includes("deb") || /^(no|false|0)$/i.test(fields.get("enabled") ?? "yes")) continue
    const key = (fields.get("signed-by") ?? "").trim()
    const signedBy = key.startsWith("/") && !key.includes("\n") ? key : undefined
    for (const uri of words("uris")) {
      for (const suite of words("suites"))
        found.push({ uri, suite, components: words("components"), signedBy })
    }
  }
  return found
}

/** All package sources that this machine's apt uses. */
export async function readAptSources(root = "/etc/apt"): Promise<AptSource[]> {
  const names: string[] = await readdir(join(root, "sources.list.d")).catch(() => [])
  const files = ["sources.list", ...names.sort().map((name) => join("sources.list.d", name))]
  const found: AptSource[] = []
  for (const file of files) {
    const format = file.endsWith(".sources") ? "sources" : file.endsWith(".list") ? "list" : undefined
    if (format === undefined) continue
    const text = await readFile(join(root, file), "utf8").catch(() => "")
    found.push(...parseAptSources(text, format))
  }
  return found
}

/**
 * The sources.list of a Debian `suite`, from the mirrors of this machine: its own entries for that suite; on another
 * Debian release the same mirrors with the suite's name; elsewhere (Ubuntu) none: mmdebstrap then takes Debian's public mirror.
 */
export function debianSourceLines(
  sources: readonly AptSource[],
  host: { id: string; codename: string },
  suite: string,
): string[] {
  const suites = ["", "-updates", "-security"]
  const lines = (codename: string): string[] =>
    suites.flatMap((suffix) =>
      sources
        .filter((source) => source.suite === codename + suffix && source.components.includes("main"))
        .map((source) => {
          // A key outside Debian's keyring package is named by its path; apt looks for it on the host.
          const key = source.signedBy === undefined ? "" : `[signed-by=${source.signedBy}] `
          return `deb ${key}${source.uri} ${suite}${suffix} main`
        }),
    )
  const own = lines(suite)
  if (own.length > 0) return [...new Set(own)]
  const moved = host.id === "debian" && host.codename !== "" ? lines(host.codename) : []
  return [...new Set(moved)]
}

const carried =
  /^Acquire::(?:https?::(?:.*::)?(?:Proxy|CAInfo|CAPath|Verify-Peer|Verify-Host)|Check-Valid-Until|Check-Date)$/i

/**
 * Of `apt-config dump`, the options that decide whether a mirror can be reached and trusted, as lines for an
 * apt.conf. A proxy with a password in it is left out: it would stay readable in the image.
 */
export function carriedAptOptions(dump: string): string[] {
  return dump.split("\n").filter((line) => {
    const match = /^(\S+)\s+"(.*)";$/.exec(line.trim())
    if (match === null) return false
    const [, key = "", value = ""] = match
    return carried.test(key) && value !== "" && !/\/\/[^/]*@/.test(value)
  })
}
