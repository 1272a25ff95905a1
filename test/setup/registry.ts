/** A registry for tests: Debian's `docker-registry`, installed where it is not there, one process per registry. */
import { spawn } from "node:child_process"
import { mkdir, writeFile } from "node:fs/promises"
import path from "node:path"
import { aptInstall, isRoot, readDistribution, usesApt } from "./apt.ts"
import { explain, run, sleep } from "./process.ts"
import type { Log } from "./process.ts"

export interface Registry {
  /** `127.0.0.1:PORT`; the engine asks no TLS of it. */
  readonly host: string
  readonly stop: () => Promise<void>
}

/** Makes sure that there are programs, which Debian has in packages of the same names; or says why not. */
export async function ensurePrograms(
  names: readonly string[],
  log: Log = () => {},
): Promise<{ available: boolean; reason?: string }> {
  const found = await Promise.all(names.map((name) => run(name, ["--version"])))
  const missing = names.filter((_, index) => found[index]?.missing)
  if (missing.length === 0) return { available: true }
  if (!usesApt(await readDistribution()) || !isRoot()) {
    return {
      available: false,
      reason: `there is no ${missing.join(", no ")}, and only root on Debian or Ubuntu gets it`,
    }
  }
  try {
    await aptInstall(missing, { log })
    return { available: true }
  } catch (error) {
    return { available: false, reason: explain(error) }
  }
}

/** The user `me` of registries with a password. */
export const PASSWORD = "correct horse"
const HTPASSWD = "me:$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n"

/** Starts one that keeps everything below `folder`, and waits until it answers. */
export async function startRegistry(
  folder: string,
  port: number,
  options: { readonly password?: boolean; readonly storage?: string } = {},
): Promise<Registry> {
  await mkdir(folder, { recursive: true })
  const htpasswd = path.join(folder, "htpasswd")
  const config = {
    version: "0.1",
    log: { level: "warn", accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: options.storage ?? path.join(folder, "storage") } },
    http: { addr: `127.0.0.1:${port}` },
    ...(options.password === true && { auth: { htpasswd: { realm: "test", path: htpasswd } } }),
  }
  await writeFile(htpasswd, HTPASSWD)
  const file = path.join(folder, "config.yml")
  await writeFile(file, JSON.stringify(config)) // JSON is YAML
  const child = spawn("docker-registry", ["serve", file], { stdio: "ignore" })
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()))
  const host = `127.0.0.1:${port}`
  for (let tries = 0; ; tries += 1) {
    const answer = await fetch(`http://${host}/v2/`).catch(() => null)
    if (answer !== null) break
    if (child.exitCode !== null || tries > 100) throw new Error(`docker-registry does not answer at ${host}`)
    await sleep(50)
  }
  const stop = async (): Promise<void> => {
    child.kill("SIGKILL")
    await ended
  }
  return { host, stop }
}
