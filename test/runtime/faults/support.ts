/** Server processes to do harm to: the bundle that is shipped, real models, real worker threads, real sockets. */
import { type ChildProcess, spawn } from "node:child_process"
import {
  cpSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import http from "node:http"
import net from "node:net"
import { tmpdir } from "node:os"
import path from "node:path"
import { after } from "node:test"
import { setTimeout as sleep } from "node:timers/promises"
import type { ServeModel, ServeSpec } from "../../../store/bento.ts"

export { sleep }

const root = path.resolve(import.meta.dirname, "../../..")
const folder = mkdtempSync(path.join(tmpdir(), "bentoctl-faults-"))
const children: ChildProcess[] = []
after(() => {
  for (const child of children) child.kill("SIGKILL")
  rmSync(folder, { recursive: true, force: true })
})

/** A copy, outside the package as in an image, so that no build replaces it under a running server. */
const bundle = path.join(folder, "image")
cpSync(path.join(root, "dist/image"), bundle, { recursive: true })
symlinkSync(path.join(root, "node_modules"), path.join(folder, "node_modules"))

export const FIXTURES = path.join(root, "test/fixtures/models")
export const IRIS = path.join(root, "examples/iris/iris.onnx")

/** A model folder as a store has it. Signature: `run`, batchable. */
export function modelOf(onnx: string, name: string): ServeModel {
  const dir = mkdtempSync(path.join(folder, `model-${name}-`))
  cpSync(path.isAbsolute(onnx) ? onnx : path.join(FIXTURES, onnx), path.join(dir, "saved_model.onnx"))
  const golden = path.join(root, "test/fixtures/bentoml-home/models/iris_sklearn/mox5xxxfsccawax4/model.yaml")
  const manifest = readFileSync(golden, "utf8")
    .replace(/^name: .*$/m, `name: ${name}`)
    .replace(/^version: .*$/m, "version: v1")
  writeFileSync(path.join(dir, "model.yaml"), manifest)
  return { tag: `${name}:v1`, dir }
}

export function specOf(models: readonly ServeModel[], code?: string): ServeSpec {
  const srcDir = mkdtempSync(path.join(folder, "src-"))
  if (code !== undefined) writeFileSync(path.join(srcDir, "service.ts"), code)
  return {
    name: "faults",
    version: "v1",
    service: code === undefined ? null : "service.ts:svc",
    srcDir,
    models,
  }
}

export interface Options {
  /** The file that BENTOML_CONFIG names. */
  readonly config?: string
  /** A file of this folder that is loaded into the process before the server. */
  readonly preload?: string
  /** Most descriptors that the process may have. */
  readonly descriptors?: number
}

export class ServerProcess {
  readonly child: ChildProcess
  readonly port: number
  readonly exit: Promise<number | string | null>
  output = ""

  constructor(child: ChildProcess, port: number) {
    this.child = child
    this.port = port
    child.stdout?.on("data", (chunk: Buffer) => (this.output += chunk.toString()))
    child.stderr?.on("data", (chunk: Buffer) => (this.output += chunk.toString()))
    this.exit = new Promise((resolve) => child.on("close", (code, signal) => resolve(code ?? signal)))
  }

  get pid(): number {
    return this.child.pid ?? 0
  }

  get alive(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null
  }

  /** Each request has a connection of its own, so that what is left open is what a test left open. */
  ask(
    method: string,
    route: string,
    body: string | Buffer = "",
    headers: http.OutgoingHttpHeaders = {},
  ): Promise<TextAnswer> {
    return new Promise((resolve, reject) => {
      const outgoing = http.request(
        { host: "127.0.0.1", port: this.port, method, path: route, headers, agent: false },
        (incoming) => {
          let text = ""
          incoming.setEncoding("utf8")
          incoming.on("data", (piece: string) => (text += piece))
          incoming.on("error", reject)
          incoming.on("end", () =>
            resolve({ status: incoming.statusCode ?? 0, headers: incoming.headers, text }),
          )
        },
      )
      outgoing.on("error", reject)
      outgoing.end(body)
    })
  }

  /** Status of a GET; 0 when nobody answers. */
  status(route: string): Promise<number> {
    return this.ask("GET", route).then(
      ({ status }) => status,
      () => 0,
    )
  }

  async post(route: string, body: unknown, headers: http.OutgoingHttpHeaders = {}): Promise<Answer> {
    const answer = await this.ask(
      "POST",
      route,
      typeof body === "string" ? body : JSON.stringify(body),
      headers,
    )
    return { ...answer, body: JSON.parse(answer.text) }
  }

  /** Until /readyz says `status`; how long that took. */
  async until(status: number, route = "/readyz", withinMs = 15_000): Promise<number> {
    const startedMs = performance.now()
    while ((await this.status(route)) !== status) {
      if (!this.alive || performance.now() - startedMs > withinMs) {
        throw new Error(`${route} never answered ${status}: ${this.output}`)
      }
      await sleep(10)
    }
    return performance.now() - startedMs
  }

  /** The sum of a metric's values, over the series that have such a label. */
  async metric(name: string, label = ""): Promise<number> {
    const { text } = await this.ask("GET", "/metrics")
    let sum = 0
    for (const [, labels = "", value] of text.matchAll(
      new RegExp(`^${name}(\\{[^\\n]*\\})? (\\S+)$`, "gm"),
    )) {
      if (labels.includes(label)) sum += Number(value)
    }
    return sum
  }

  threads(): number {
    return readdirSync(`/proc/${this.pid}/task`).length
  }

  /** Sockets that the process holds. */
  sockets(): number {
    return readdirSync(`/proc/${this.pid}/fd`).filter((descriptor) => {
      try {
        return readlinkSync(`/proc/${this.pid}/fd/${descriptor}`).startsWith("socket:")
      } catch {
        return false
      }
    }).length
  }

  /** The same, when those of the requests just answered are gone. */
  async socketsAtRest(): Promise<number> {
    for (let before = -1; ;) {
      const now = this.sockets()
      if (now === before) return now
      before = now
      await sleep(200)
    }
  }

  /** How the process ended, or "still there" after 10 s: sooner than what it would end by if it did not stop. */
  exitSoon(): Promise<number | string | null> {
    return Promise.race([this.exit, sleep(10_000, "still there", { ref: false })])
  }
}

export interface TextAnswer {
  readonly status: number
  readonly headers: http.IncomingHttpHeaders
  readonly text: string
}

export interface Answer extends TextAnswer {
  readonly body: unknown
}

export async function start(spec: ServeSpec, options: Options = {}): Promise<ServerProcess> {
  const server = await launch(spec, options)
  await server.until(200)
  return server
}

/** As `start`, but does not wait until it is ready. */
export async function launch(
  spec: ServeSpec,
  { config, preload, descriptors }: Options = {},
): Promise<ServerProcess> {
  const port = await freePort()
  const env: NodeJS.ProcessEnv = { ...process.env }
  delete env["NODE_OPTIONS"]
  if (config !== undefined) {
    env["BENTOML_CONFIG"] = path.join(mkdtempSync(path.join(folder, "config-")), "bentoml.yaml")
    writeFileSync(env["BENTOML_CONFIG"], config)
  }
  const program = [
    process.execPath,
    ...(preload === undefined ? [] : ["--import", path.join(import.meta.dirname, preload)]),
    path.join(bundle, "serve.js"),
    "--spec",
    JSON.stringify(spec),
    "--port",
    `${port}`,
    "--host",
    "127.0.0.1",
  ]
  const limit = descriptors === undefined ? [] : ["prlimit", `--nofile=${descriptors}`]
  const [command = "", ...args] = [...limit, ...program]
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], env })
  children.push(child)
  return new ServerProcess(child, port)
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, "127.0.0.1")
  await new Promise((resolve) => server.once("listening", resolve))
  const address = server.address()
  await new Promise((resolve) => server.close(resolve))
  return typeof address === "object" && address !== null ? address.port : 0
}

/** One connection as a test wants it, byte by byte. */
export class Wire {
  received = ""
  /** The end of the connection: undefined while it is open, else how it ended. */
  ended: "closed" | "refused" | "reset" | undefined
  readonly #socket: net.Socket
  #notify: () => void = () => {}

  constructor(port: number) {
    this.#socket = net.connect({ host: "127.0.0.1", port, noDelay: true })
    this.#socket.on("data", (chunk: Buffer) => {
      this.received += chunk.toString("latin1")
      this.#notify()
    })
    this.#socket.on("error", (error: NodeJS.ErrnoException) => {
      this.ended ??= error.code === "ECONNREFUSED" ? "refused" : "reset"
    })
    this.#socket.on("close", () => {
      this.ended ??= "closed"
      this.#notify()
    })
  }

  send(bytes: string | Buffer): void {
    this.#socket.write(bytes)
  }

  destroy(): void {
    this.#socket.destroy()
  }

  /** Reads nothing from here on. */
  pause(): void {
    this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }

  /** Half of the connection: nothing more will come from here. */
  end(): void {
    this.#socket.end()
  }

  /** Until what was received satisfies, or the connection ends. */
  async until(satisfied: (received: string) => boolean): Promise<string> {
    while (!satisfied(this.received) && this.ended === undefined) {
      await new Promise<void>((resolve) => (this.#notify = resolve))
    }
    return this.received
  }

  /** Everything that comes until the connection ends. */
  rest(): Promise<string> {
    return this.until(() => false)
  }

  /** One request and its whole answer; null when the connection ended before. */
  async ask(route: string, body: string): Promise<{ status: number; closes: boolean; body: string } | null> {
    this.received = ""
    this.send(request(route, body))
    const whole = /^HTTP\/1\.1 (\d+)[^]*?\r\n\r\n/
    const lengthOf = (head: string): number => Number(/content-length: (\d+)/i.exec(head)?.[1])
    await this.until((received) => {
      const [head] = whole.exec(received) ?? []
      return head !== undefined && received.length >= head.length + lengthOf(head)
    })
    const match = whole.exec(this.received)
    if (match === null) return null
    const [head, status] = match
    const answer = this.received.slice(head.length)
    return { status: Number(status), closes: /^connection: close/im.test(head), body: answer }
  }
}

export const request = (route: string, body: string, more = ""): string =>
  `POST ${route} HTTP/1.1\r\nhost: x\r\ncontent-length: ${Buffer.byteLength(body)}\r\n${more}\r\n${body}`

/** Waits for something that takes as long as it takes. */
export async function eventually(what: () => boolean | Promise<boolean>, withinMs = 15_000): Promise<void> {
  const startedMs = performance.now()
  while (!(await what())) {
    if (performance.now() - startedMs > withinMs)
      throw new Error(`not within ${withinMs} ms: ${what.toString()}`)
    await sleep(20)
  }
}
