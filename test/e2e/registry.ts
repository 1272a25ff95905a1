/** A registry that holds one image at a time, for an engine on this machine to pull from. */
import { createHash } from "node:crypto"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { buffer } from "node:stream/consumers"
import { gzipSync } from "node:zlib"
import { tarStream } from "../../images/tar.ts"

export interface Registry {
  /** Of the image: `127.0.0.1:PORT/base:1`. Engines talk to such a registry without TLS. */
  readonly reference: string
  /** From now on it holds an image with this config and two empty folders. */
  readonly hold: (config: Readonly<Record<string, unknown>>, architecture?: string) => Promise<void>
  readonly close: () => void
}

export async function startRegistry(): Promise<Registry> {
  const blobs = new Map<string, Buffer>()
  let current = ""
  const keep = (bytes: Buffer): { digest: string; size: number } => {
    const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`
    blobs.set(digest, bytes)
    return { digest, size: bytes.length }
  }
  const TYPE = "application/vnd.docker.distribution.manifest.v2+json"
  const server = createServer((request, response) => {
    const [, kind, name = ""] = /^\/v2\/base\/(manifests|blobs)\/(.+)$/.exec(request.url ?? "") ?? []
    if (kind === undefined) return void response.end("{}")
    const digest = name.startsWith("sha256:") ? name : current
    const found = blobs.get(digest)
    if (found === undefined) return void response.writeHead(404).end("{}")
    response.setHeader("content-type", kind === "manifests" ? TYPE : "application/octet-stream")
    response.setHeader("docker-content-digest", digest)
    response.setHeader("content-length", found.length)
    response.end(request.method === "HEAD" ? undefined : found)
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const { port } = server.address() as AddressInfo
  return {
    reference: `127.0.0.1:${port}/base:1`,
    hold: async (config, architecture = "amd64") => {
      const folders = ["home", "opt"].map((name) => ({
        header: { type: "directory", name, mode: 0o755, uid: 0, gid: 0 } as const,
      }))
      const layer = await buffer(tarStream(folders))
      const diffId = `sha256:${createHash("sha256").update(layer).digest("hex")}`
      const rootfs = { type: "layers", diff_ids: [diffId] }
      const image = { architecture, os: "linux", created: "2026-01-01T00:00:00Z", config, rootfs }
      const made = keep(Buffer.from(JSON.stringify({ ...image, history: [{ created_by: "base" }] })))
      const manifest = {
        schemaVersion: 2,
        mediaType: TYPE,
        config: { mediaType: "application/vnd.docker.container.image.v1+json", ...made },
        layers: [
          { mediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip", ...keep(gzipSync(layer)) },
        ],
      }
      current = keep(Buffer.from(JSON.stringify(manifest))).digest
    },
    close: () => {
      server.closeAllConnections()
      server.close()
    },
  }
}
