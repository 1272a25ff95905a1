/** One setting from one source: what every way of configuring the server comes down to. */
import { isIP } from "node:net"
import type { Json } from "../store/bento.ts"

/** `["api_server", "http", "port"]`; under `runners` the second part may be a runner's name. */
export type KeyPath = readonly string[]

/** A setting as one source gave it, already of the right type. */
export interface Entry {
  readonly path: KeyPath
  readonly value: Json
  /** `file:LINE`, `env NAME` or `flag --x`. */
  readonly from: string
  /** Where to point when the setting turns out to be wrong together with another. */
  readonly place: Place
}

/** A file or variable, and where in it. Lines and columns count from 1. */
export interface Place {
  readonly file: string
  readonly line?: number
  readonly column?: number
}

/** Keys below `runners` that are no settings of ours and yet no names of runners: they get an answer of their own. */
export const RESERVED = ["resources", "timeout", "workers_per_resource", "logging", "metrics"]

/** Bounds that both the schema and the check of flags use. Timers of Node end at 2^31 - 1 ms. */
export const LIMITS = {
  port: [0, 65_535],
  workers: [1, 256],
  seconds: [0.001, 2_147_483],
} as const satisfies Record<string, readonly [number, number]>

/** What is wrong with a setting, for every source in the same words. */
export function mustBe(expected: string, value: unknown): string {
  return `must be ${expected}, not ${show(value)}`
}

export function wholeNumber(min: number, max: number): string {
  return `a whole number from ${min} to ${max}`
}

export function seconds(min: number = LIMITS.seconds[0]): string {
  return `a number of seconds from ${min} to ${LIMITS.seconds[1]}`
}

export const HOST = "an IP address or a host name"

/** An IP literal, or labels of letters, digits and hyphens of which the last is not a number. */
export function isHost(text: string): boolean {
  if (isIP(text) !== 0) return true
  const labels = text.split(".")
  return (
    text.length <= 253 &&
    labels.every((label) => /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/i.test(label)) &&
    !/^\d+$/.test(labels.at(-1) ?? "")
  )
}

/** A key as it is written in `BENTOML_CONFIG_OPTIONS`; `formatKey(["runners", "a.b"])` is `runners."a.b"`. */
export function formatKey(path: KeyPath): string {
  return path.map((part) => (/^[\w-]+$/.test(part) ? part : JSON.stringify(part))).join(".")
}

/** The reverse of `formatKey`, with either kind of quotes; null for what is not a key. */
export function parseKey(text: string): string[] | null {
  const parts: string[] = []
  const part = /\s*(?:"((?:[^"\\]|\\["\\])*)"|'([^']*)'|([^\s."'=]+))\s*(\.|$)/y
  for (;;) {
    const match = part.exec(text)
    if (match === null) return null
    parts.push(match[1]?.replace(/\\(["\\])/g, "$1") ?? match[2] ?? match[3] ?? "")
    if (match[4] === "") return parts
  }
}

function show(value: unknown): string {
  if (value === null || value === undefined) return "nothing"
  if (typeof value === "object" && !Array.isArray(value)) return "a map"
  const text = typeof value === "number" ? `${value}` : JSON.stringify(value)
  return text.length > 60 ? `${text.slice(0, 57)}…` : text
}
