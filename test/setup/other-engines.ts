/** Other ways to an engine, and other engines, for tests, all on this machine: an ssh server, Podman, a newer Docker. */
import { spawn } from "node:child_process"
import type { ChildProcess } from "node:child_process"
import { existsSync } from "node:fs"
import { chmod, mkdir, readFile, rmdir, writeFile } from "node:fs/promises"
import { createConnection } from "node:net"
import path from "node:path"
import { aptInstall, aptUnpack, aptUnpackFrom, isRoot, readDistribution, usesApt } from "./apt.ts"
import { run, SetupError, sleep, tail } from "./process.ts"
import type { Log } from "./process.ts"

/** Why they cannot be had here, or false; for `skip`. */
export async function noOtherEngines(): Promise<string | false> {
  if ((process.env["DOCKER_HOST"] ?? "") !== "") return "DOCKER_HOST is set: the engine is elsewhere"
  return isRoot() && usesApt(await readDistribution()) ? false : "only root on Debian or Ubuntu gets one"
}

export interface Stoppable {
  readonly stop: () => Promise<void>
}

function stopper(child: ChildProcess): () => Promise<void> {
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()))
  return async () => {
    child.kill()
    await ended
  }
}

async function whenAnswers(
  what: string,
  child: ChildProcess,
  address: { port: number } | { path: string },
): Promise<void> {
  for (let tries = 0; ; tries += 1) {
    const answers = await new Promise<boolean>((resolve) => {
      const socket = createConnection({ host: "127.0.0.1", ...address })
      socket.once("connect", () => resolve(true)).once("error", () => resolve(false))
      socket.once("connect", () => socket.destroy())
    })
    if (answers) return
    if (child.exitCode !== null || tries > 200) throw new Error(`${what} does not answer`)
    await sleep(50)
  }
}

/** Debian's ssh server, unpacked and not installed, with keys of its own; `PATH` has an `ssh` that knows it. */
export async function startSshd(
  folder: string,
  port: number,
): Promise<Stoppable & { readonly path: string; readonly forgetHost: () => Promise<void> }> {
  const root = path.join(folder, "ssh-root")
  await aptUnpack(["openssh-server", "openssh-client"], root)
  const at = (name: string): string => path.join(folder, name)
  const libraries = ["usr/lib", "lib"].flatMap((lib) => [
    path.join(root, lib, `${process.arch === "arm64" ? "aarch64" : "x86_64"}-linux-gnu`),
  ])
  const env = { ...process.env, LD_LIBRARY_PATH: libraries.join(":") }
  for (const key of ["host", "user"]) {
    const made = await run(
      path.join(root, "usr/bin/ssh-keygen"),
      ["-q", "-t", "ed25519", "-N", "", "-f", at(key)],
      { env },
    )
    if (made.code !== 0) throw new SetupError(`ssh-keygen: ${made.stderr}`, "")
  }
  const host = (await readFile(at("host.pub"), "utf8")).trim()
  await writeFile(at("known_hosts"), `[127.0.0.1]:${port} ${host}\n`)
  await writeFile(
    at("sshd_config"),
    [
      `Port ${port}`,
      "ListenAddress 127.0.0.1",
      `HostKey ${at("host")}`,
      "PidFile none",
      `AuthorizedKeysFile ${at("user.pub")}`,
      "StrictModes no",
      "UsePAM no",
      "PermitRootLogin yes",
      "PasswordAuthentication no",
      "KbdInteractiveAuthentication no",
      "",
    ].join("\n"),
  )
  // It wants a user `sshd`, and root's account not locked: in a file system view of its own, the machine's stays.
  const passwd = await readFile("/etc/passwd", "utf8")
  const isKnown = /^sshd:/m.test(passwd)
  await writeFile(
    at("passwd"),
    isKnown ? passwd : `${passwd}sshd:x:65000:65534::/run/sshd:/usr/sbin/nologin\n`,
  )
  await writeFile(at("shadow"), (await readFile("/etc/shadow", "utf8")).replace(/^root:[^:]*/m, "root:*"))
  const madeRun = !existsSync("/run/sshd")
  if (madeRun) await mkdir("/run/sshd", { mode: 0o755 })
  const script = 'mount --bind "$1" /etc/passwd; mount --bind "$2" /etc/shadow; shift 2; exec "$@"'
  const sshd = [path.join(root, "usr/sbin/sshd"), "-D", "-e", "-f", at("sshd_config")]
  const args = ["-m", "sh", "-euc", script, "sh", at("passwd"), at("shadow"), ...sshd]
  const child = spawn("unshare", args, { env, stdio: ["ignore", "ignore", "pipe"] })
  await whenAnswers("sshd", child, { port })
  const bin = at("bin")
  await mkdir(bin)
  await writeFile(
    at("ssh_config"),
    `IdentityFile ${at("user")}\nIdentitiesOnly yes\nUserKnownHostsFile ${at("known_hosts")}\nStrictHostKeyChecking yes\n`,
  )
  const client = `LD_LIBRARY_PATH='${libraries.join(":")}' exec '${path.join(root, "usr/bin/ssh")}' -F '${at("ssh_config")}' "$@"`
  await writeFile(path.join(bin, "ssh"), `#!/bin/sh\n${client}\n`)
  await chmod(path.join(bin, "ssh"), 0o755)
  const stop = stopper(child)
  return {
    path: `${bin}:${process.env["PATH"]}`,
    forgetHost: () => writeFile(at("known_hosts"), ""),
    stop: async () => {
      await stop()
      if (madeRun) await rmdir("/run/sshd").catch(() => {})
    },
  }
}

/**
 * The Docker Engine of Debian's next release, unpacked and not installed, with containerd's image store. It has views
 * of its own of network, mounts and processes, so that it touches no other engine and leaves with its first process;
 * its builds have no network. Throws SetupError where it cannot be had.
 */
export async function startContainerdEngine(
  folder: string,
): Promise<Stoppable & { readonly client: readonly string[]; readonly DOCKER_HOST: string }> {
  await aptUnpackFrom("sid", ["docker.io", "containerd"], folder)
  const at = (name: string): string => path.join(folder, name)
  await writeFile(at("daemon.json"), '{"features": {"containerd-snapshotter": true}}')
  const DOCKER_HOST = `unix://${at("docker.sock")}`
  const args = [
    `--config-file=${at("daemon.json")}`,
    `--pidfile=${at("docker.pid")}`,
    `--host=${DOCKER_HOST}`,
    `--data-root=${at("data")}`,
    `--exec-root=${at("exec")}`,
    "--bridge=none",
    "--iptables=false",
    "--ip6tables=false",
  ]
  const views = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
  const env = { ...process.env, PATH: `${at("usr/sbin")}:${at("usr/bin")}:${process.env["PATH"]}` }
  const child = spawn("unshare", [...views, "dockerd", ...args], { env, stdio: ["ignore", "ignore", "pipe"] })
  let said = ""
  child.stderr.on("data", (chunk) => (said = `${said}${chunk}`.slice(-4000)))
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()))
  const stop = async (): Promise<void> => {
    // unshare passes no signal on, and ends with the engine; what the engine started goes with it.
    const children = await readFile(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").catch(() => "")
    for (const pid of children.trim().split(" ")) if (pid !== "") process.kill(Number(pid))
    await ended
  }
  await whenAnswers("dockerd", child, { path: at("docker.sock") }).catch(async () => {
    await stop()
    throw new SetupError(`Debian's next Docker Engine does not start here:\n${tail(said, 3)}`, "")
  })
  return { stop, DOCKER_HOST, client: ["docker", "-H", DOCKER_HOST] }
}

/** Debian's Podman with images and containers of its own, answering on a socket. */
export async function startPodman(
  folder: string,
  log: Log,
): Promise<Stoppable & { readonly socket: string; readonly args: readonly string[] }> {
  if ((await run("podman", ["--version"])).missing) await aptInstall(["podman"], { log })
  const socket = path.join(folder, "podman.sock")
  const args = ["--root", path.join(folder, "podman-root"), "--runroot", path.join(folder, "podman-run")]
  const all = [...args, "--cgroup-manager", "cgroupfs"]
  const child = spawn("podman", [...all, "system", "service", "--time", "0", `unix://${socket}`], {
    stdio: "ignore",
  })
  await whenAnswers("podman", child, { path: socket })
  const stop = stopper(child)
  return {
    socket,
    args: all,
    stop: async () => {
      await stop()
      await run("podman", [...all, "system", "reset", "--force"])
    },
  }
}
