/**
 * What a server would otherwise make of a file each time that it starts, made beforehand: TypeScript without its types (in the
 * Bento, by `build`), manifests as JSON (in the image, by its plan, so that they are of the same version as its server).
 *
 * Each is named by the SHA-256 of what it was made of. A file that was changed, mounted over or added since has another one: then
 * the server does the work itself.
 */
import { createHash } from "node:crypto"

export type PreparedKind = "js" | "json"

/** The file in PREPARED_DIR for what was made of this text. */
export function preparedName(text: string | Uint8Array, kind: PreparedKind): string {
  return preparedNameOf(createHash("sha256").update(text).digest("hex"), kind)
}

/** As `preparedName`, of a text whose digest is known. */
export function preparedNameOf(sha256: string, kind: PreparedKind): string {
  return `${sha256}.${kind}`
}

/** The JSON of a value, from which the same value is read again; null where JSON would lose something of it. */
export function faithfulJson(value: unknown): string | null {
  return isJson(value) ? JSON.stringify(value) : null
}

function isJson(value: unknown): boolean {
  if (value === null || typeof value === "string" || typeof value === "boolean") return true
  if (typeof value === "number") return Number.isFinite(value) && !Object.is(value, -0)
  if (Array.isArray(value)) return value.every(isJson)
  if (typeof value !== "object") return false
  const prototype: unknown = Object.getPrototypeOf(value)
  return (prototype === null || prototype === Object.prototype) && Object.values(value).every(isJson)
}
