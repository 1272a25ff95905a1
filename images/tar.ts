/** Tars as chunks: made while they are read, one chunk at a time, so that a slow reader holds up the files' reader. */
import { once } from "node:events"
import { Readable } from "node:stream"
import { pack } from "tar-stream"

export type TarHeader =
  | {
      readonly type: "directory"
      readonly name: string
      readonly mode: number
      readonly uid: number
      readonly gid: number
    }
  | { readonly type: "symlink"; readonly name: string; readonly linkname: string }
  | { readonly type: "file"; readonly name: string; readonly mode: number; readonly size: number }

export interface TarEntry {
  readonly header: TarHeader
  /** Of a file: as many bytes as the header says. */
  readonly body?: AsyncIterable<Uint8Array> | Iterable<Uint8Array>
}

const BLOCK = 512
const END = Buffer.alloc(2 * BLOCK)

/** Every entry is as old as time itself, and belongs to root unless it says otherwise. */
export async function* tarChunks(
  entries: AsyncIterable<TarEntry> | Iterable<TarEntry>,
): AsyncGenerator<Uint8Array> {
  for await (const { header, body } of entries) {
    yield await headOf(header)
    const size = sizeOf(header)
    let bytes = 0
    for await (const chunk of body ?? []) {
      bytes += chunk.length
      yield chunk
    }
    if (bytes !== size) throw new Error(`${header.name} has ${bytes} bytes, not ${size}`)
    const padding = paddingOf(size)
    if (padding > 0) yield END.subarray(0, padding)
  }
  yield END
}

/** The same as a stream. */
export function tarStream(entries: AsyncIterable<TarEntry> | Iterable<TarEntry>): Readable {
  // One chunk is made ahead, whatever its size.
  return Readable.from(tarChunks(entries), { objectMode: false, highWaterMark: 1 })
}

/** How long the tar of these entries is. */
export async function tarBytes(headers: Iterable<TarHeader>): Promise<number> {
  let bytes = END.length
  for (const header of headers) {
    const size = sizeOf(header)
    bytes += (isPlain(header) ? BLOCK : (await headOf(header)).length) + size + paddingOf(size)
  }
  return bytes
}

function sizeOf(header: TarHeader): number {
  return header.type === "file" ? header.size : 0
}

function paddingOf(size: number): number {
  return (BLOCK - (size % BLOCK)) % BLOCK
}

/** Whether its head certainly is one block, which tells its length without making it. */
function isPlain(header: TarHeader): boolean {
  const names = header.type === "symlink" ? [header.name, header.linkname] : [header.name]
  return sizeOf(header) < 8 ** 11 && names.every((name) => /^[ -~]{1,99}$/.test(name))
}

/** The blocks before a body: one, or three where a name does not fit into it. */
async function headOf(header: TarHeader): Promise<Uint8Array> {
  const tar = pack()
  tar.on("error", () => {}) // it is broken off on purpose
  tar.entry({ mode: 0o777, uid: 0, gid: 0, uname: "", gname: "", mtime: new Date(0), ...header })
  await once(tar, "readable")
  const chunks: Uint8Array[] = []
  for (let chunk = tar.read() as Uint8Array | null; chunk !== null; chunk = tar.read() as Uint8Array | null) {
    chunks.push(chunk) // its type is any
  }
  tar.destroy()
  return chunks.length === 1 && chunks[0] !== undefined ? chunks[0] : Buffer.concat(chunks)
}
