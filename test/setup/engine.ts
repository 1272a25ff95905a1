/** A Docker Engine for tests and the quickstart: look for one, or install Debian's and start it. */

import { spawn } from "node:child_process"
import { accessSync, constants, existsSync, fstatSync, openSync, readFileSync, rmSync } from "node:fs"
import { readFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { delimiter, join } from "node:path"
import { aptInstall, isRoot, readDistribution, usesApt } from "./apt.ts"
import { explain, formatDuration, run, SetupError, sleep, tail } from "./process.ts"
import type { Log } from "./process.ts"

export { ensureBaseImage } from "./base-image.ts"

export type EngineProbe =
  | { readonly state: "answers"; readonly version: string }
  /** Something is there and refuses us. */
  | { readonly state: "denied"; readonly detail: string }
  /** No `docker` command; whether a daemon runs is not known. */
  | { readonly state: "no-client" }
  | { readonly state: "silent"; readonly detail: string }

/** Asks the engine that `docker` is set up for. Never throws, ends within ten seconds. */
export async function probeEngine(): Promise<EngineProbe> {
  const asked = await run("docker", ["version", "--format", "{{.Server.Version}}"], { timeoutMs: 10_000 })
  if (asked.missing) return { state: "no-client" }
  const version = asked.stdout.trim()
  if (asked.code === 0 && version !== "") return { state: "answers", version }
  if (asked.timedOut) return { state: "silent", detail: "docker version did not answer within 10 s" }
  const detail = asked.stderr.trim().split("\n").at(-1) ?? ""
  return /permission denied/i.test(asked.stderr) ? { state: "denied", detail } : { state: "silent", detail }
}

/** How a user gets a Docker Engine, in one line. */
export function engineAdvice(): string {
  return (
    "Install Docker (https://docs.docker.com/engine/install/; on Debian or Ubuntu: sudo apt-get install docker.io) " +
    "and start it, or set DOCKER_HOST."
  )
}

/** Whether `ensureEngine` could install and start one here, or why not. */
export async function canInstallEngine(env = process.env): Promise<{ able: boolean; reason?: string }> {
  if ((env["DOCKER_HOST"] ?? "") !== "") {
    return { able: false, reason: `DOCKER_HOST is ${env["DOCKER_HOST"]}, and no engine answers there` }
  }
  const distribution = await readDistribution()
  if (!usesApt(distribution)) {
    return {
      able: false,
      reason: `no Docker Engine answers, and one is installed for you on Debian and Ubuntu only`,
    }
  }
  if (!isRoot())
    return { able: false, reason: "no Docker Engine answers, and only root can install and start one" }
  return { able: true }
}

/**
 * Makes sure that a Docker Engine answers. Where none does, as root on Debian or Ubuntu, it installs `docker.io` and
 * starts the daemon, which goes on running afterwards. Otherwise says why not, with the way out.
 */
export async function ensureEngine(options: {
  log: Log
  signal?: AbortSignal
  /** Where dockerd's log may go: the first folder that can be written. */
  logFolders?: readonly string[]
}): Promise<{ available: boolean; reason?: string }> {
  const { log } = options
  const probe = await probeEngine()
  if (probe.state === "answers") {
    log(`Docker Engine ${probe.version} answers`)
    return { available: true }
  }
  if (probe.state === "denied" && !isRoot()) {
    return {
      available: false,
      reason: `The Docker Engine refused us: ${probe.detail}\n  -> Run this with sudo, or join the group: sudo usermod -aG docker "$USER", then log in again.`,
    }
  }
  const can = await canInstallEngine()
  if (!can.able) return { available: false, reason: `${can.reason ?? "No engine"}\n  -> ${engineAdvice()}` }
  try {
    if (probe.state === "no-client" || findProgram("dockerd") === undefined) {
      const started = performance.now()
      log("installing docker.io with apt-get (a minute or so)")
      await aptInstall(["docker.io"], { log, optional: ["docker-cli"] })
      log(`docker.io is installed (${formatDuration(performance.now() - started)})`)
    }
    options.signal?.throwIfAborted()
    await startEngine(log, options.logFolders ?? ["/var/log", tmpdir()], options.signal)
    return { available: true }
  } catch (error) {
    options.signal?.throwIfAborted()
    return { available: false, reason: explain(error) }
  }
}

const systemDirs = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]

function searchPath(): string[] {
  return [
    ...new Set([...(process.env["PATH"] ?? "").split(delimiter).filter((dir) => dir !== ""), ...systemDirs]),
  ]
}

function findProgram(name: string): string | undefined {
  return searchPath()
    .map((dir) => join(dir, name))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK)
        return true
      } catch {
        return false
      }
    })
}

async function startEngine(log: Log, logFolders: readonly string[], signal?: AbortSignal): Promise<void> {
  const started = performance.now()
  if (existsSync("/run/systemd/system") && findProgram("systemctl") !== undefined) {
    // Where systemd runs the machine, the daemon is its business; it stays up, and starts again after a reboot.
    const unit = await run("systemctl", ["start", "docker"], { timeoutMs: 60_000 })
    if (unit.code === 0 && (await waitForEngine(20_000, () => undefined, signal)) === undefined) {
      log(`Docker Engine started by systemd (${formatDuration(performance.now() - started)})`)
      return
    }
    log("systemctl could not start docker; starting dockerd directly")
  }
  const program = findProgram("dockerd")
  if (program === undefined) throw new SetupError("docker.io brought no dockerd", engineAdvice())
  removeStalePidFile("/var/run/docker.pid")
  const { path: logPath, fd, start } = openLog(logFolders)
  log("starting dockerd")
  const child = spawn(program, [], {
    detached: true, // a session of its own: it outlives us, and our Ctrl-C does not reach it
    stdio: ["ignore", fd, fd],
    env: { ...process.env, PATH: searchPath().join(delimiter) },
  })
  let ended: string | undefined
  child.once("error", (error) => (ended = error.message))
  child.once("exit", (code, signal) => (ended = `exit ${code ?? signal}`))
  child.unref()
  const problem = await waitForEngine(60_000, () => ended, signal)
  if (problem === undefined) {
    log(
      `dockerd started, log in ${logPath}; it stays running (${formatDuration(performance.now() - started)})`,
    )
    return
  }
  const written = (await readFile(logPath)).subarray(start).toString()
  throw new SetupError(
    `dockerd did not come up (${problem}); the last lines of ${logPath}:\n${tail(withoutChatter(written), 6)}`,
    daemonHint(written),
  )
}

/** Waits until the engine answers. Returns undefined then, otherwise why the wait ended. */
async function waitForEngine(
  limitMs: number,
  ended: () => string | undefined,
  signal?: AbortSignal,
): Promise<string | undefined> {
  const until = performance.now() + limitMs
  for (;;) {
    signal?.throwIfAborted()
    const probe = await probeEngine()
    if (probe.state === "answers") return undefined
    const reason = ended()
    if (reason !== undefined) return reason
    if (performance.now() > until) return `no answer within ${formatDuration(limitMs)}`
    await sleep(200)
  }
}

/** dockerd's log without what it says in passing, if anything is left then. */
function withoutChatter(log: string): string {
  const serious = log.split("\n").filter((line) => !/level="?(info|debug)/.test(line))
  return serious.some((line) => line.trim() !== "") ? serious.join("\n") : log
}

/** What to do about a daemon that died, by what it wrote. */
export function daemonHint(log: string): string {
  if (/pid file found|ensure docker is not running/i.test(log)) {
    return "Another dockerd seems to run: stop it, or remove /var/run/docker.pid when there is none, and try again."
  }
  if (/No space left on device/i.test(log))
    return "The disk is full: make room below /var/lib/docker and try again."
  if (/iptables|nf_tables|nat table/i.test(log)) {
    return "The kernel or this container does not let dockerd set up its network: try `update-alternatives --set iptables /usr/sbin/iptables-legacy`, or run on a machine with NET_ADMIN."
  }
  if (/operation not permitted|permission denied|cgroup|mount/i.test(log)) {
    return "This machine does not let dockerd mount or use cgroups (an unprivileged container?): use a privileged one, or set DOCKER_HOST to an engine elsewhere."
  }
  return "Mend what the log names, or set DOCKER_HOST to an engine elsewhere."
}

/** A pid file that outlived its daemon (a copied or killed machine) keeps the next one from starting. */
function removeStalePidFile(path: string): void {
  if (!existsSync(path)) return
  const pid = readFileSync(path, "utf8").trim()
  const name = /^\d+$/.test(pid) ? readText(`/proc/${pid}/comm`) : ""
  if (name.trim() !== "dockerd") rmSync(path, { force: true })
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

/** Opens the log to write on at its end; `start` is where that is. */
function openLog(folders: readonly string[]): { path: string; fd: number; start: number } {
  for (const folder of folders) {
    const path = join(folder, "dockerd.log")
    try {
      const fd = openSync(path, "a")
      return { path, fd, start: fstatSync(fd).size }
    } catch {
      continue
    }
  }
  throw new SetupError(
    `dockerd's log cannot be written in ${folders.join(" or ")}`,
    "Make one of them writable.",
  )
}
