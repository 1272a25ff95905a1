/** Who listens where, as Linux's /proc tells it; elsewhere nobody knows. */
import { readFileSync, readdirSync, readlinkSync } from "node:fs"

const LISTENING = "0A"

/** `PID (command line)` of the process that listens on a port, as far as we may see it. */
export function listenerOf(port: number): string | undefined {
  const inodes = new Set(listeningSockets().flatMap((socket) => (socket.port === port ? [socket.inode] : [])))
  if (inodes.size === 0) return undefined
  for (const pid of processes()) {
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
  const pid = processes().find((name) => socketsOf(name).includes(strange.inode))
  return pid === undefined ? "another process" : `${commandOf(pid)} (pid ${pid})`
}

/** Where a listening socket can be reached from this machine. */
export interface Listener {
  readonly host: string
  readonly port: number
}

/** Where a process and its descendants listen. */
export function listenersOf(pid: number): Listener[] {
  const own = new Set(familyOf(String(pid)).flatMap(socketsOf))
  const listeners = new Map<string, Listener>()
  for (const { inode, address, port } of listeningSockets()) {
    if (!own.has(inode)) continue
    for (const host of hostsOf(address)) listeners.set(`${host} ${port}`, { host, port })
  }
  return [...listeners.values()]
}

/** A process, its children, theirs, and so on. */
function familyOf(pid: string): string[] {
  const children = Map.groupBy(processes(), parentOf)
  const family = [pid]
  for (const member of family) family.push(...(children.get(member) ?? []))
  return family
}

/** `PID (COMMAND) STATE PARENT …`, and a command can be any text. */
function parentOf(pid: string): string | undefined {
  const stat = read(`/proc/${pid}/stat`)
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]
}

/** Of an address as /proc/net has it: each four bytes of it as the number that they are to this machine. */
function hostsOf(address: string): string[] {
  const words = Uint32Array.from(address.match(/.{8}/g) ?? [], (word) => Number.parseInt(word, 16))
  const bytes = Buffer.from(words.buffer)
  const isV4 = bytes.length === 4
  if (bytes.every((byte) => byte === 0)) return isV4 ? ["127.0.0.1"] : ["127.0.0.1", "::1"]
  return [isV4 ? bytes.join(".") : bytes.toString("hex").replace(/.{4}(?=.)/g, "$&:")]
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

const processes = (): string[] => entries("/proc").filter((name) => /^\d+$/.test(name))

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
