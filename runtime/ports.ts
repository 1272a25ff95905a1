/** Who listens where, as Linux's /proc tells it; elsewhere nobody knows. */
import { readFileSync, readdirSync, readlinkSync } from "node:fs"

const LISTENING = "0A"

/** `PID (command line)` of the process that listens on a port, as far as we may see it. */
export function listenerOf(port: number): string | undefined {
  const inodes = new Set(listeningSockets().flatMap((socket) => (socket.port === port ? [socket.inode] : [])))
  if (inodes.size === 0) return undefined
  for (const pid of entries("/proc").filter((name) => /^\d+$/.test(name))) {
    if (socketsOf(pid).some((inode) => inodes.has(inode))) return `${commandOf(pid)} (pid ${pid})`
  }
  return undefined
}

/** As `listenerOf`, of another process that listens where this one does too: SO_REUSEPORT lets it, of the same user. */
export function otherListenerOf(port: number): string | undefined {
  const sockets = listeningSockets().filter((socket) => socket.port === port)
  const own = new Set(socketsOf("self"))
  const addresses = sockets.flatMap(({ inode, address }) => (own.has(inode) ? [address] : []))
  const strange = sockets.find(({ inode, address }) => !own.has(inode) && addresses.includes(address))
  if (strange === undefined) return undefined
  const pid = entries("/proc").find((name) => /^\d+$/.test(name) && socketsOf(name).includes(strange.inode))
  return pid === undefined ? "another process" : `${commandOf(pid)} (pid ${pid})`
}

/** The TCP port on which a process listens. */
export function portOf(pid: number): number | undefined {
  const own = new Set(socketsOf(String(pid)))
  return listeningSockets().find((socket) => own.has(socket.inode))?.port
}

/** Of this network namespace. Columns of /proc/net/tcp: 1 = local address, 3 = state, 9 = inode. */
function listeningSockets(): { address: string; port: number; inode: string }[] {
  return ["/proc/net/tcp", "/proc/net/tcp6"].flatMap((file) =>
    read(file)
      .split("\n")
      .slice(1)
      .flatMap((line) => {
        const columns = line.trim().split(/\s+/)
        const [address = "", hexadecimal = ""] = columns[1]?.split(":") ?? []
        const port = Number.parseInt(hexadecimal, 16)
        return columns[3] === LISTENING ? [{ address, port, inode: columns[9] ?? "" }] : []
      }),
  )
}

function socketsOf(pid: string): string[] {
  return entries(`/proc/${pid}/fd`).flatMap((descriptor) => {
    try {
      return /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${descriptor}`))?.[1] ?? []
    } catch {
      return []
    }
  })
}

function commandOf(pid: string): string {
  const command = read(`/proc/${pid}/cmdline`).split("\0").join(" ").trim()
  return command.length > 80 ? `${command.slice(0, 80)}…` : command
}

function entries(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}

function read(file: string): string {
  try {
    return readFileSync(file, "utf8")
  } catch {
    return ""
  }
}
