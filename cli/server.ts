/** One server process: the bundle's `serve.js`, its signals, and its end. */
import { spawn, type ChildProcess } from "node:child_process"
import { constants } from "node:os"
import type { Readable, Writable } from "node:stream"
import { NODE_FLAGS } from "../store/node-flags.ts"
import type { Context } from "./context.ts"

export interface ServerCommand {
  /** The entry, and its arguments. */
  readonly args: readonly string[]
  readonly cwd: string
  /** What it reads from stdin; it may be longer than an argument. */
  readonly input?: string
}

export interface Server {
  /** The exit code, or 128 and the number of the signal that ended it. Never rejects. */
  readonly exited: Promise<number>
  readonly running: boolean
  /** It was asked to end. */
  readonly stopping: boolean
  /** Asks it to finish its requests and end; asked again, ends it at once. The server's log names the signal. */
  stop: (signal?: NodeJS.Signals) => void
}

export function startServer(context: Context, command: ServerCommand): Server {
  const child = spawn(context.nodePath, [...NODE_FLAGS, ...command.args], {
    cwd: command.cwd,
    env: context.env,
    // The channel tells the server when we are gone, however we went.
    stdio: [
      command.input === undefined ? "ignore" : "pipe",
      inherited(context.stdout),
      inherited(context.stderr),
      "ipc",
    ],
    // A group of its own: Ctrl-C on a terminal goes to the whole group, and the server would get it twice, from the
    // terminal and from us; the second one means "at once".
    detached: true,
  })
  child.stdin?.on("error", () => {}) // how it ended tells more
  child.stdin?.end(command.input)
  relay(child.stdout, context.stdout)
  relay(child.stderr, context.stderr)
  let asked = false
  return {
    exited: endOf(child, context),
    get running() {
      return child.exitCode === null && child.signalCode === null
    },
    get stopping() {
      return asked
    },
    stop: (signal) => {
      // Of others the server knows nothing.
      child.kill(asked ? "SIGKILL" : signal === "SIGINT" ? "SIGINT" : "SIGTERM")
      asked = true
    },
  }
}

function endOf(child: ChildProcess, context: Context): Promise<number> {
  return new Promise((resolve) => {
    child.on("error", (error) => {
      context.stderr.write(`Error: the server cannot be started: ${error.message}\n`)
      resolve(1)
    })
    child.on("close", (code, signal) => {
      resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal]))
    })
  })
}

/** A real stream is handed over, so that the server sees the terminal; what tests give is written to by us. */
function inherited(stream: Writable): Writable | "pipe" {
  return "fd" in stream && typeof stream.fd === "number" ? stream : "pipe"
}

function relay(from: Readable | null, to: Writable): void {
  from?.on("data", (chunk: Buffer) => to.write(chunk))
}
