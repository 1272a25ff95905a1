/**
 * What was found out once and can be found out again: digests of layers, facts of base images. In BENTOML_HOME, since
 * it is about what lies there. A value is given back only for the key that it was written with; a file that is
 * missing, broken or cannot be written costs time and nothing else.
 */
import { createHash } from "node:crypto"
import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises"
import path from "node:path"

export interface Cache {
  /** `name` is what the value is about, one value for each; `key` is all that it depends on. */
  read(name: string, key: string): Promise<string | null>
  write(name: string, key: string, value: string): Promise<void>
}

export function openCache(home: string): Cache {
  const folder = path.join(home, ".bentoctl", "cache")
  const fileOf = (name: string): string => path.join(folder, `${sha256(name).slice(0, 32)}.json`)
  return {
    async read(name, key) {
      try {
        const kept = JSON.parse(await readFile(fileOf(name), "utf8")) as Partial<Record<string, unknown>>
        const { value } = kept
        if (typeof value !== "string" || kept["sum"] !== sumOf(name, key, value)) return null
        return value
      } catch {
        return null
      }
    },
    async write(name, key, value) {
      const file = fileOf(name)
      const temporary = `${file}.${process.pid}-${sequence++}`
      try {
        await mkdir(folder, { recursive: true })
        await writeFile(temporary, `${JSON.stringify({ name, value, sum: sumOf(name, key, value) })}\n`)
        await rename(temporary, file)
      } catch {
        await rm(temporary, { force: true }).catch(() => {})
      }
    },
  }
}

let sequence = 0

/** Covers the value too, so that no edit of a file can pass for what we wrote. */
function sumOf(name: string, key: string, value: string): string {
  return sha256(JSON.stringify([name, key, value]))
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex")
}
