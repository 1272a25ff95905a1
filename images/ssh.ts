/**
 * Connections to an engine through `ssh`, as docker's own client makes them: one process each, whose standard streams
 * are the connection. So the user's ssh configuration, keys, agent and known hosts apply, and no ssh is of ours.
 */
import { spawn } from "node:child_process"
import { Agent } from "node:http"
import { Duplex } from "node:stream"
import { BentoError } from "../store/errors.ts"
import type { Connection } from "./connection.ts"

type Env = Readonly<Record<string, string | undefined>>
type SshConnection = Extract<Connection, { kind: "ssh" }>

/** For HTTP over ssh. A connection takes a while to make, and serves many requests. */
export function sshAgent(connection: SshConnection, env: Env): Agent {
  // A server drops those that log in when there are ten of them.
  const agent = new Agent({ keepAlive: true, maxSockets: 4 })
  agent.createConnection = () => dial(connection, env)
  return agent
}

/** What ssh said last is enough to see why it failed. */
const MOST_WORDS = 4096

function dial({ args, where }: SshConnection, env: Env): Duplex {
  // In a session of its own, as docker does it: it asks nothing on our terminal, and Ctrl-C is ours to answer.
  const ssh = spawn("ssh", args, { env: { ...env }, stdio: ["pipe", "pipe", "pipe"], detached: true })
  let said = ""
  ssh.stderr.on("data", (chunk: Buffer) => {
    said = (said + chunk.toString()).slice(-MOST_WORDS)
  })
  const connection = new Duplex({
    read: () => void ssh.stdout.resume(),
    // After a failed write the process has ended, or is about to: its end says more.
    write: (chunk: Buffer, _encoding, done) => void ssh.stdin.write(chunk, (error) => error ?? done()),
    final: (done) => void ssh.stdin.end(() => done()),
    destroy: (error, done) => {
      ssh.kill()
      done(error)
    },
  })
  ssh.stdin.on("error", () => {})
  ssh.stdout.on("data", (chunk: Buffer) => {
    if (!connection.push(chunk)) ssh.stdout.pause()
  })
  ssh.on("error", (error) => {
    const reason = "code" in error && error.code === "ENOENT" ? "there is no program `ssh`" : error.message
    connection.destroy(unreachable(where, reason, "Install an OpenSSH client.", error))
  })
  ssh.on("close", (code) => {
    if (code === 0) connection.push(null)
    else connection.destroy(failure(where, said, code))
  })
  const streams = [ssh, ssh.stdin, ssh.stdout, ssh.stderr] as { ref?: () => void; unref?: () => void }[] // pipes have both
  // What an agent asks of a socket.
  return Object.assign(connection, {
    setKeepAlive: () => connection,
    setNoDelay: () => connection,
    setTimeout: () => connection,
    ref: () => streams.forEach((stream) => stream.ref?.()),
    unref: () => streams.forEach((stream) => stream.unref?.()),
  })
}

function failure(where: string, said: string, code: number | null): BentoError {
  const lines = said.split(/\r?\n/).filter((line) => line.trim() !== "")
  const reason = lines.at(-1)?.trim() ?? `ssh ended with exit code ${code}`
  if (/permission denied.*docker.*sock/i.test(reason)) {
    return new BentoError("ENGINE_DENIED", `the Docker Engine at ${where} refuses access: ${reason}`, {
      hint: "Let the user that ssh logs in as join the group `docker` over there.",
    })
  }
  return unreachable(
    where,
    reason,
    "bentoctl runs `docker system dial-stdio` over there. `ssh HOST docker version` must work without a question: " +
      "the host is known, a key or an agent logs in, and docker's command line is on the PATH.",
  )
}

function unreachable(where: string, reason: string, hint: string, cause?: unknown): BentoError {
  return new BentoError("ENGINE_UNREACHABLE", `no Docker Engine answers at ${where} (${reason})`, {
    hint,
    cause,
  })
}
