/** What the end-to-end tests share: the built command line, the engine's own client, and folders that go afterwards. */
import { execFile, spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { mkdtemp, rm } from "node:fs/promises"
import net from "node:net"
import { tmpdir } from "node:os"
import path from "node:path"
import { promisify } from "node:util"
import { buffer } from "node:stream/consumers"
import { extract } from "tar-stream"
import { createDockerBuilder } from "../../images/docker.ts"
import { tarStream } from "../../images/tar.ts"
import type { TarHeader } from "../../images/tar.ts"

export const root = path.resolve(import.meta.dirname, "../..")
const exec = promisify(execFile)

export interface Ran {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** Runs a program to its end; never throws for an exit code. */
export async function run(
  file: string,
  args: readonly string[],
  options: { cwd?: string; env?: Readonly<Record<string, string | undefined>>; timeoutMs?: number } = {},
): Promise<Ran> {
  try {
    const { stdout, stderr } = await exec(file, args, {
      cwd: options.cwd,
      env: { ...process.env, ...options.env },
      timeout: options.timeoutMs ?? 240_000,
      maxBuffer: 2 ** 26,
    })
    return { code: 0, stdout, stderr }
  } catch (error) {
    const failed = error as { code?: unknown; stdout?: string; stderr?: string; message: string }
    return {
      code: typeof failed.code === "number" ? failed.code : 1,
      stdout: failed.stdout ?? "",
      stderr: failed.stderr ?? failed.message,
    }
  }
}

/** The packed command line (`npm run build`), with a store of its own. */
export function bentoctl(
  args: readonly string[],
  env: Readonly<Record<string, string>>,
  cwd = root,
): Promise<Ran> {
  return run(process.execPath, [path.join(root, "dist/cli/main.js"), ...args], { env, cwd })
}

/** The engine's own client; throws when it fails, since the tests only ask it for what must work. */
export async function docker(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run("docker", args)
  if (code !== 0) throw new Error(`docker ${args.join(" ")}: ${stderr}`)
  return stdout.trim()
}

/** Each entry of the image's file system: path → type, mode, owner, link target, content. */
export async function filesOf(
  image: string,
  keep: (name: string) => boolean = () => true,
  [client = "", ...before]: readonly string[] = ["docker"],
): Promise<Map<string, string>> {
  const created = await run(client, [...before, "create", "--entrypoint", "none", image])
  if (created.code !== 0) throw new Error(`${client} create: ${created.stderr}`)
  const id = created.stdout.trim()
  const found = new Map<string, string>()
  try {
    // Podman opens its output by name, which only works for a pipe that a shell has made.
    const args = ["-c", '"$@" | cat', "sh", client, ...before, "export", id]
    const child = spawn("sh", args, { stdio: ["ignore", "pipe", "inherit"] })
    const reader = extract()
    child.stdout.pipe(reader)
    for await (const entry of reader) {
      const { name, type, mode, uid, gid, linkname } = entry.header
      const hash = createHash("sha256")
      for await (const chunk of entry) hash.update(chunk as Uint8Array)
      const digest = type === "file" ? hash.digest("hex") : ""
      if (keep(name))
        found.set(
          name,
          [type, ((mode ?? 0) & 0o7777).toString(8), `${uid}:${gid}`, linkname ?? "", digest].join(" "),
        )
    }
  } finally {
    await run(client, [...before, "rm", id])
  }
  return found
}

/** An image of one layer, for any platform: nothing of it has to run. */
export async function loadImage(
  reference: string,
  config: Readonly<Record<string, unknown>>,
  entries: readonly TarHeader[],
  architecture = "amd64",
): Promise<void> {
  const layer = await buffer(tarStream(entries.map((header) => ({ header }))))
  const digest = `sha256:${createHash("sha256").update(layer).digest("hex")}`
  const rootfs = { type: "layers", diff_ids: [digest] }
  const json = { architecture, os: "linux", created: "2026-01-01T00:00:00Z", config, rootfs, history: [] }
  const manifest = [{ Config: "config.json", RepoTags: [reference], Layers: ["layer.tar"] }]
  const files = {
    "layer.tar": layer,
    "config.json": Buffer.from(JSON.stringify(json)),
    "manifest.json": Buffer.from(JSON.stringify(manifest)),
  }
  const archive = Object.entries(files).map(([file, bytes]) => ({
    header: { type: "file", name: file, mode: 0o644, size: bytes.length } as const,
    body: [bytes],
  }))
  for await (const _ of createDockerBuilder(process.env).load(tarStream(archive), {}));
}

/** For images that a user would keep under a name of his own: the result removes those that came since, and gives a name back that was taken. */
export async function watchNames(repository: string): Promise<() => Promise<void>> {
  const list = async (): Promise<Map<string, string>> => {
    const listed = await docker("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}", repository)
    const lines = listed.split("\n").filter((line) => line !== "")
    return new Map(lines.map((line) => line.split(" ") as [name: string, id: string]))
  }
  const before = await list()
  return async () => {
    for (const [name, id] of await list()) {
      const had = before.get(name)
      if (had === undefined) await docker("image", "rm", name)
      else if (had !== id) await docker("tag", had, name)
    }
  }
}

/** Looks for texts in all that an image is: every layer, config and manifest, as `docker save` gives them. */
export async function searchImage(
  tag: string,
  texts: readonly string[],
): Promise<{ found: string[]; bytes: number }> {
  const found = new Set<string>()
  let bytes = 0
  const child = spawn("docker", ["save", tag], { stdio: ["ignore", "pipe", "inherit"] })
  const reader = extract()
  child.stdout.pipe(reader)
  const longest = Math.max(...texts.map((text) => text.length))
  for await (const entry of reader) {
    let rest = Buffer.alloc(0)
    for await (const chunk of entry) {
      const seen = Buffer.concat([rest, chunk as Buffer])
      for (const text of texts) if (seen.includes(text)) found.add(`${text} in ${entry.header.name}`)
      rest = seen.subarray(-longest)
      bytes += (chunk as Buffer).length
    }
  }
  return { found: [...found], bytes }
}

/** A folder for one test file; give `remove` to `after`. */
export async function temporaryFolder(): Promise<{ folder: string; remove: () => Promise<void> }> {
  const folder = await mkdtemp(path.join(tmpdir(), "bentoctl-e2e-"))
  return { folder, remove: () => rm(folder, { recursive: true, force: true }) }
}

/** Resolves when the URL answers 200. */
export async function until200(url: string, timeoutMs = 20_000): Promise<void> {
  const deadlineMs = performance.now() + timeoutMs
  for (;;) {
    const ready = await fetch(url).then(
      (response) => response.status === 200,
      () => false,
    )
    if (ready) return
    if (performance.now() > deadlineMs) throw new Error(`${url} does not answer 200 after ${timeoutMs} ms`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** Resolves when it holds. */
export async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
  const deadlineMs = performance.now() + 30_000
  while (!(await holds())) {
    if (performance.now() > deadlineMs) throw new Error(`waited in vain for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

/** A port that nobody listens on now. */
export function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = net.createServer().listen(0, "127.0.0.1", () => {
      const address = server.address()
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0))
    })
  })
}
