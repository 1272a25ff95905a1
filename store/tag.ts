/** Tags: what was asked for (`TagRef`) and what it turned out to be (`Tag`). Grammar: that of BentoML. */
import { BentoError } from "./errors.ts"

/** As asked: `iris`, `iris:latest`, or `iris:ab` (a unique prefix of a version). */
export interface TagRef {
  readonly name: string
  readonly version?: string
}

/** Exact: names one item of a store. */
export interface Tag {
  readonly name: string
  readonly version: string
}

/** Told to the user as a warning; the store itself prints nothing. */
export type Note = (message: string) => void

const MAX_LENGTH = 63
const HINT =
  "Use a-z, 0-9 and, between the first and the last character, `.`, `_`, `-`; at most 63 characters."

/**
 * Parses `name` or `name:version`; upper case is lowered, as BentoML does, and `note` is told so.
 * @example parseTagRef("Iris:latest") // { name: "iris", version: "latest" }
 */
export function parseTagRef(text: string, note?: Note): TagRef {
  const colon = text.indexOf(":")
  const [rawName, rawVersion] = colon < 0 ? [text] : [text.slice(0, colon), text.slice(colon + 1)]
  if (rawVersion === "") {
    throw new BentoError("TAG_INVALID", `${quote(text)} has a colon but no version`, {
      hint: `Write ${quote(`${rawName}:latest`)} for the newest version, or leave the colon out.`,
    })
  }
  const name = lower(rawName, "name", note)
  const version = rawVersion === undefined ? undefined : lower(rawVersion, "version", note)
  const problems = [
    ...brokenRules(name).map((rule) => `the name ${rule}`),
    ...(version === undefined ? [] : brokenRules(version).map((rule) => `the version ${rule}`)),
  ]
  if (problems.length > 0) throw invalid(`${quote(text)} is not a tag`, problems)
  return version === undefined ? { name } : { name, version }
}

/** As `parseTagRef`, but null for what is not a tag. */
export function tryParseTagRef(text: string): TagRef | null {
  try {
    return parseTagRef(text)
  } catch (error) {
    if (error instanceof BentoError) return null
    throw error
  }
}

/** Parses an exact tag: the version must be there and must not be `latest`. */
export function parseTag(text: string, note?: Note): Tag {
  const { name, version } = parseTagRef(text, note)
  if (version === undefined) {
    throw new BentoError("TAG_INVALID", `${quote(text)} names no version`, {
      hint: "Write NAME:VERSION.",
    })
  }
  return { name, version: checkVersion(version) }
}

export function formatTag(tag: TagRef): string {
  return tag.version === undefined ? tag.name : `${tag.name}:${tag.version}`
}

/** By name, then version; a tag without a version comes before those with one. */
export function compareTags(a: TagRef, b: TagRef): number {
  return compareText(a.name, b.name) || compareText(a.version ?? "", b.version ?? "")
}

/** Returns the name in lower case, or throws TAG_INVALID with every rule that it breaks. */
export function checkName(name: string, note?: Note): string {
  return checkPart(name, "name", note)
}

/** Returns the version in lower case, or throws TAG_INVALID. `latest` is a pointer and no version of its own. */
export function checkVersion(version: string, note?: Note): string {
  const checked = checkPart(version, "version", note)
  if (checked === "latest") {
    throw new BentoError("TAG_INVALID", '"latest" cannot be a version: it always names the newest one', {
      hint: "Choose another version, or give none to have one made.",
    })
  }
  return checked
}

/**
 * A new version as BentoML makes them: 10 bytes of a version 1 UUID (time_low, time_mid, clock_seq, the first two of
 * node) in lower-case base32. A Date counts milliseconds, so the ticks of 100 ns below them are drawn, and the clock
 * sequence and node too: two calls in one millisecond differ.
 */
export function makeVersion(now: Date, random: (n: number) => Uint8Array): string {
  const [r0, r1, r2, r3, r4, r5] = takeBytes(random, 6)
  const ticksSince1582 = (BigInt(now.getTime()) + 12_219_292_800_000n) * 10_000n
  const ticks = ticksSince1582 + BigInt(((r0 << 8) | r1) % 10_000)
  const bytes = new Uint8Array(10)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, Number(ticks & 0xffff_ffffn))
  view.setUint16(4, Number((ticks >> 32n) & 0xffffn))
  bytes.set([(r2 & 0x3f) | 0x80, r3, r4 | 0x01, r5], 6) // RFC 9562: variant 10; a random node has the multicast bit
  return base32(bytes)
}

/**
 * The names most like `asked`, best first: "did you mean". Empty when none comes near.
 * @example nearestNames("irsi", ["iris", "digits"]) // ["iris"]
 */
export function nearestNames(asked: string, known: Iterable<string>, max = 3): string[] {
  const limit = asked.length < 4 ? 1 : Math.max(2, Math.floor(asked.length / 3))
  return [...known]
    .map((name) => ({
      name,
      distance:
        name.startsWith(asked) || (name.length >= 3 && asked.startsWith(name))
          ? 1
          : editDistance(asked, name),
    }))
    .filter(({ distance }) => distance <= limit)
    .toSorted((a, b) => a.distance - b.distance || compareText(a.name, b.name))
    .slice(0, max)
    .map(({ name }) => name)
}

function checkPart(text: string, what: "name" | "version", note: Note | undefined): string {
  const lowered = lower(text, what, note)
  const problems = brokenRules(lowered).map((rule) => `it ${rule}`)
  if (problems.length > 0) throw invalid(`${quote(text)} is not a ${what}`, problems)
  return lowered
}

function lower(text: string, what: "name" | "version", note: Note | undefined): string {
  const lowered = text.toLowerCase()
  if (lowered !== text) note?.(`${what} ${quote(text)} was lowered to ${quote(lowered)}`)
  return lowered
}

function brokenRules(text: string): string[] {
  if (text === "") return ["is empty"]
  const foreign = [...new Set(text.match(/[^a-z0-9._-]/gu) ?? [])]
  return [
    text.length > MAX_LENGTH && `has ${text.length} characters, ${MAX_LENGTH} are allowed`,
    foreign.length > 0 && `holds ${foreign.slice(0, 8).map(quote).join(", ")}`,
    /^[._-]/.test(text) && `begins with ${quote(text.charAt(0))}`,
    /[._-]$/.test(text) && `ends with ${quote(text.slice(-1))}`,
  ].filter((rule) => rule !== false)
}

function invalid(what: string, problems: readonly string[]): BentoError {
  return new BentoError("TAG_INVALID", `${what}: ${problems.join("; ")}`, { hint: HINT })
}

/** JSON's quoting shows control characters; long input is cut so that a message stays a line. */
function quote(text: string): string {
  return JSON.stringify(text.length > 100 ? `${text.slice(0, 97)}...` : text)
}

export function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0
}

function takeBytes(
  random: (n: number) => Uint8Array,
  n: 6,
): [number, number, number, number, number, number] {
  const [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0] = random(n)
  return [a, b, c, d, e, f]
}

/** RFC 4648 without padding, lower case. */
function base32(bytes: Uint8Array): string {
  const bits = [...bytes].map((byte) => byte.toString(2).padStart(8, "0")).join("")
  const digits = bits.match(/.{5}/g) ?? []
  return digits.map((digit) => "abcdefghijklmnopqrstuvwxyz234567".charAt(parseInt(digit, 2))).join("")
}

/** Levenshtein's distance by rows. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const changed = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(changed, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1))
    }
    row = next
  }
  return row[b.length] ?? 0
}
