/**
 * From the text of a source to checked entries: old names are brought to the new ones, what BentoML has and this
 * server has not is refused with the reason, and the schema does the rest. All problems of all sources come at once.
 */
import type * as z from "zod"
import type { Json } from "../store/bento.ts"
import type { Issue } from "../store/errors.ts"
import { nearestNames } from "../store/tag.ts"
import { type Entry, type KeyPath, type Place, RESERVED, formatKey, mustBe } from "./config-entry.ts"
import { CONFIG_SCHEMA, type RunnerValues, SETTINGS, type Setting } from "./config-schema.ts"
import {
  type Env,
  type Path,
  type Source,
  type Tree,
  emptyTree,
  formatPath,
  isTree,
  readJsonSource,
  readOptionsSource,
  readYamlSource,
} from "./config-text.ts"

/** The sources that are text, lowest precedence first. */
export interface Texts {
  readonly file: { readonly path: string; readonly text: string } | null
  readonly overrides: string | undefined
  readonly options: string | undefined
}

export interface Checked {
  /** Later ones win. */
  readonly entries: readonly Entry[]
  readonly issues: readonly Issue[]
  /** What a person should know although it works: old names. */
  readonly notes: readonly string[]
}

export function checkTexts(texts: Texts, env: Env): Checked {
  const checked: Checked[] = []
  if (texts.file !== null) {
    const { path, text } = texts.file
    checked.push(checkSource(readYamlSource(text, path, env), ({ line }) => `${path}:${line ?? 1}`))
  }
  const variables = [
    ["BENTOML_CONFIG_OVERRIDES", texts.overrides, readJsonSource],
    ["BENTOML_CONFIG_OPTIONS", texts.options, readOptionsSource],
  ] as const
  for (const [name, text, read] of variables) {
    if (text !== undefined) checked.push(checkSource(read(text, name, env), () => `env ${name}`))
  }
  return {
    entries: checked.flatMap((one) => one.entries),
    issues: checked.flatMap((one) => one.issues),
    notes: checked.flatMap((one) => one.notes),
  }
}

/** Names that BentoML once used, or that are short for ours: the section, the old key, the new path within the section. */
const RENAMED: readonly {
  readonly section: string
  readonly old: string
  readonly path: readonly string[]
  /** Just another name: not worth a note. */
  readonly quiet?: boolean
}[] = [
  { section: "api_server", old: "port", path: ["http", "port"] },
  { section: "api_server", old: "host", path: ["http", "host"] },
  { section: "api_server", old: "cors", path: ["http", "cors"] },
  { section: "api_server", old: "timeout", path: ["traffic", "timeout"] },
  { section: "runners", old: "timeout", path: ["traffic", "timeout"], quiet: true },
]

/** What BentoML can and this server cannot, by section; `runners` stands for each runner too. */
export const UNSUPPORTED: readonly (readonly [section: string, path: readonly string[], reason: string])[] = [
  ["", ["services"], "is of BentoML's v2 configuration; write the keys of v1: api_server and runners"],
  ["", ["tracing"], "is not supported yet: no traces are exported"],
  ["", ["monitoring"], "is not supported yet: inputs and outputs are not recorded"],
  ["", ["yatai"], "is not supported"],
  ["api_server", ["ssl"], "is not supported yet; end TLS in a proxy or ingress before the server"],
  ["api_server", ["grpc"], "is not supported yet: the server speaks HTTP"],
  ["api_server", ["max_request_size"], "is not supported; set api_server.http.body_limit_bytes"],
  [
    "api_server",
    ["max_runner_connections"],
    "has no meaning here: runners are threads, not reached by connections",
  ],
  ["api_server", ["runner_probe"], "has no meaning here: /readyz always covers the runners; remove it"],
  ...[
    "request_content_length",
    "request_content_type",
    "response_content_length",
    "response_content_type",
    "format",
  ].map(
    (key) =>
      [
        "api_server",
        ["logging", "access", key],
        "is not supported: the fields of the access log are fixed",
      ] as const,
  ),
  [
    "runners",
    ["workers_per_resource"],
    "is not supported; set workers, the number of threads that hold the model",
  ],
  [
    "runners",
    ["traffic", "max_concurrency"],
    "is not supported; max_queue_rows bounds what may wait for a runner",
  ],
  ["runners", ["logging"], "has no meaning here: runners serve no HTTP; see api_server.logging.access"],
  ["runners", ["metrics"], "is not supported: runners' metrics go with api_server.metrics"],
]

/** Settings of a runner, by the path below `runners` or the runner's name. */
const RUNNER_SETTINGS = SETTINGS.filter(({ path }) => path[0] === "runners").map((setting) => ({
  ...setting,
  path: setting.path.slice(1),
}))
const SERVER_SETTINGS = SETTINGS.filter(({ path }) => path[0] !== "runners")
/** Keys right below `runners` that are not names of runners. */
const RUNNER_KEYS: ReadonlySet<string> = new Set([
  ...RUNNER_SETTINGS.flatMap(({ path }) => path.slice(0, 1)),
  ...RESERVED,
])

function checkSource(source: Source, fromOf: (place: Place) => string): Checked {
  const issues: Issue[] = [...source.issues]
  const notes: string[] = []
  const moved: Moved[] = []
  const place = (path: Path, part: "key" | "value"): Place => source.place(original(path, moved), part)
  const report = (path: Path, part: "key" | "value", message: string): void => {
    const field = formatPath(original(path, moved))
    // One problem of a setting is enough: a variable that is not set is not also "nothing" instead of a number.
    if (!issues.some((issue) => issue.field === field)) issues.push({ ...place(path, part), field, message })
  }
  const { tree } = source
  for (const scope of scopesOf(tree)) {
    refuse(scope, report)
    rename(scope, moved, report, (old, path) => {
      const { file, line } = source.place(old, "key")
      notes.push(
        `${[file, line].filter((part) => part !== undefined).join(":")}: ${formatPath(old)} is an old name; write ${formatPath(path)}`,
      )
    })
    if (scope.section === "runners") takeResources(scope, moved, report)
  }
  dropEmptySections(tree, [])
  const parsed = CONFIG_SCHEMA.safeParse(tree)
  if (!parsed.success) {
    for (const { path, part, message } of parsed.error.issues.flatMap((issue) => explain(issue, tree))) {
      report(path, part, message)
    }
    return { entries: [], issues: issues.toSorted(byPlace), notes }
  }
  const entries = [...settingsIn(tree)].map(({ path }) => ({
    path,
    // As parsed, and not as written: a list may have been written as one text.
    value: valueAt(parsed.data as Json, path) ?? null,
    from: fromOf(place(path, "key")),
    place: place(path, "value"),
  }))
  return { entries, issues: issues.toSorted(byPlace), notes }
}

function byPlace(a: Issue, b: Issue): number {
  return (a.line ?? 0) - (b.line ?? 0) || (a.column ?? 0) - (b.column ?? 0)
}

/** A part of the tree that has keys to look at before the schema does. */
interface Scope {
  readonly section: "" | "api_server" | "runners"
  readonly path: Path
  readonly tree: Tree
}

interface Moved {
  readonly from: Path
  readonly to: Path
}

type Report = (path: Path, part: "key" | "value", message: string) => void

function scopesOf(tree: Tree): Scope[] {
  const scopes: Scope[] = [{ section: "", path: [], tree }]
  const server = tree["api_server"]
  if (isTree(server)) scopes.push({ section: "api_server", path: ["api_server"], tree: server })
  const runners = tree["runners"]
  if (!isTree(runners)) return scopes
  scopes.push({ section: "runners", path: ["runners"], tree: runners })
  for (const [name, runner] of Object.entries(runners)) {
    if (!RUNNER_KEYS.has(name) && isTree(runner)) {
      scopes.push({ section: "runners", path: ["runners", name], tree: runner })
    }
  }
  return scopes
}

/** Takes out what is not supported; says so unless it asks for nothing, as `ssl: {enabled: false}` does. */
function refuse(scope: Scope, report: Report): void {
  for (const [section, path, reason] of UNSUPPORTED) {
    if (section !== scope.section) continue
    const value = remove(scope.tree, path)
    if (value !== undefined && !asksForNothing(value)) report([...scope.path, ...path], "key", reason)
  }
}

function rename(scope: Scope, moved: Moved[], report: Report, note: (old: Path, path: Path) => void): void {
  for (const { section, old, path, quiet } of RENAMED) {
    if (section !== scope.section || !(old in scope.tree)) continue
    const from = [...scope.path, old]
    const to = [...scope.path, ...path]
    const value = remove(scope.tree, [old])
    const outcome = insert(scope.tree, path, value ?? null)
    if (outcome === "taken") {
      report(from, "key", `says the same as ${formatPath(to)}, which is there too; write only that`)
    }
    if (outcome !== "done") continue
    moved.push({ from, to })
    if (quiet !== true) note(from, to)
  }
}

/** BentoML's `resources`: `cpu` becomes the threads within a worker, as there; "system" is what happens anyway. */
function takeResources(scope: Scope, moved: Moved[], report: Report): void {
  const path = [...scope.path, "resources"]
  const resources = remove(scope.tree, ["resources"])
  if (resources === undefined || resources === null || resources === "system") return
  if (!isTree(resources))
    return report(path, "value", mustBe('a map with the key cpu, or "system"', resources))
  for (const [key, value] of Object.entries(resources)) {
    if (value === null || value === "system" || (value === 0 && key !== "cpu")) continue
    const from = [...path, key]
    if (key === "nvidia.com/gpu" || key === "gpu") {
      report(from, "key", "is not supported; CUDA_VISIBLE_DEVICES says which GPUs the server may use")
    } else if (key !== "cpu") {
      report(from, "key", "unknown key; known here is cpu")
    } else {
      const threads = cpusOf(value)
      if (threads === null) report(from, "value", mustBe("a number of CPUs such as 2, 0.5 or 500m", value))
      else if (insert(scope.tree, ["intra_op_threads"], threads) === "taken") {
        report(from, "key", "says the same as intra_op_threads, which is there too; write only that")
      } else moved.push({ from, to: [...scope.path, "intra_op_threads"] })
    }
  }
}

function cpusOf(value: Json): number | null {
  if (typeof value !== "number" && typeof value !== "string") return null
  const match = /^(\d+(?:\.\d+)?)(m?)$/.exec(`${value}`)
  const cpus = Number(match?.[1]) / (match?.[2] === "m" ? 1000 : 1)
  return cpus > 0 ? Math.ceil(cpus) : null
}

function asksForNothing(value: Json): boolean {
  if (value === null) return true
  return isTree(value) && (value["enabled"] === false || Object.values(value).every(asksForNothing))
}

/** `http:` with nothing after it is a section without settings, and not a wrong value. */
function dropEmptySections(tree: Tree, path: readonly string[]): void {
  for (const [key, value] of Object.entries(tree)) {
    const child = [...path, key]
    if (isTree(value)) dropEmptySections(value, child)
    else if (value === null && isSection(child)) delete tree[key]
  }
}

function isSection(path: KeyPath): boolean {
  const general = withoutName(path)
  if (settingAt(general) !== undefined) return false
  if (path[0] === "runners" && path.length === 2 && general.length === 1) return true
  return SETTINGS.some((setting) => general.every((part, index) => setting.path[index] === part))
}

interface Finding {
  readonly path: Path
  readonly part: "key" | "value"
  readonly message: string
}

/** A problem that zod found, in our words. */
function explain(issue: z.core.$ZodIssue, tree: Tree): Finding[] {
  const path = issue.path.map((part) => (typeof part === "number" ? part : String(part)))
  if (issue.code === "unrecognized_keys") {
    return issue.keys.map((key) => ({
      path: [...path, key],
      part: "key",
      message: unknownKey([...keysOf(path), key]),
    }))
  }
  const value = valueAt(tree, path)
  for (let length = path.length; length > 0; length--) {
    const setting = settingAt(withoutName(keysOf(path.slice(0, length))))
    if (setting !== undefined) return [{ path, part: "value", message: mustBe(setting.expected, value) }]
  }
  const keys = keysOf(path)
  if (keys[0] === "runners" && keys.length === 2) {
    const near = nearestNames(keys[1] ?? "", RUNNER_KEYS, 1)[0]
    const guess =
      near === undefined ? "a runner of this name would be a map of settings" : `did you mean ${near}?`
    return [{ path, part: "key", message: `unknown key; ${guess}` }]
  }
  return [
    { path, part: "value", message: mustBe(`a map with the keys ${keysBelow(keys).join(", ")}`, value) },
  ]
}

/** Names the right key: one that is spelt alike here, or the same one where it belongs. */
function unknownKey(path: KeyPath): string {
  const key = path.at(-1) ?? ""
  const parent = path.slice(0, -1)
  const here = keysBelow(parent)
  const [alike] = nearestNames(key, here, 1)
  if (alike !== undefined) return `unknown key; did you mean ${alike}?`
  // What was taken for a runner's name may be a section of `runners`, misspelt.
  const [section] = parent[0] === "runners" ? nearestNames(parent[1] ?? "", RUNNER_KEYS, 1) : []
  if (section !== undefined && settingAt(["runners", section, key]) !== undefined) {
    return `unknown key; did you mean ${formatKey(["runners", section, key])}?`
  }
  const elsewhere = SETTINGS.filter((setting) => setting.path.at(-1) === key)
  // Of several with this name, one of the same section.
  const [best] = elsewhere.toSorted((a, b) => Number(b.path[0] === path[0]) - Number(a.path[0] === path[0]))
  if (best === undefined) return `unknown key; known here are ${here.join(", ")}`
  const name = parent[0] === "runners" && withoutName(parent).length < parent.length ? parent.slice(1, 2) : []
  const inRunner = best.path[0] === "runners" ? ["runners", ...name, ...best.path.slice(1)] : best.path
  return `unknown key; did you mean ${formatKey(inRunner)}?`
}

function keysBelow(path: KeyPath): string[] {
  const general = withoutName(path)
  const below = SETTINGS.filter((setting) => general.every((part, index) => setting.path[index] === part))
  return [...new Set(below.flatMap((setting) => setting.path[general.length] ?? []))]
}

/** A path with the name of a runner taken out: where the setting stands in the schema. */
function withoutName(path: KeyPath): KeyPath {
  const [section, name, ...rest] = path
  return section === "runners" && name !== undefined && !RUNNER_KEYS.has(name) ? [section, ...rest] : path
}

function settingAt(general: KeyPath): Setting | undefined {
  return SETTINGS.find(
    ({ path }) => path.length === general.length && path.every((part, index) => part === general[index]),
  )
}

/** Paths of all settings that a checked tree gives. */
function* settingsIn(tree: Tree): Generator<{ path: KeyPath }> {
  for (const { path } of SERVER_SETTINGS) if (valueAt(tree, path) !== undefined) yield { path }
  for (const { section, path, tree: runner } of scopesOf(tree)) {
    if (section !== "runners") continue
    for (const setting of RUNNER_SETTINGS) {
      if (valueAt(runner, setting.path) !== undefined) yield { path: [...keysOf(path), ...setting.path] }
    }
  }
}

/** Where a path was before it was renamed. */
function original(path: Path, moved: readonly Moved[]): Path {
  const move = moved.find(({ to }) => to.every((part, index) => path[index] === part))
  return move === undefined ? path : [...move.from, ...path.slice(move.to.length)]
}

function keysOf(path: Path): string[] {
  return path.map(String)
}

function valueAt(tree: Json, path: Path): Json | undefined {
  let at: Json | undefined = tree
  for (const part of path) {
    if (Array.isArray(at) && typeof part === "number") at = at[part]
    else if (isTree(at) && Object.hasOwn(at, part)) at = at[part]
    else return undefined
  }
  return at
}

function remove(tree: Tree, path: readonly string[]): Json | undefined {
  const parent = valueAt(tree, path.slice(0, -1))
  const key = path.at(-1) ?? ""
  if (!isTree(parent)) return undefined
  const value = parent[key]
  delete parent[key]
  return value
}

/** "blocked": a section on the way is not a map, which is a problem of its own. */
function insert(tree: Tree, path: readonly string[], value: Json): "done" | "taken" | "blocked" {
  const [key = "", ...rest] = path
  if (rest.length === 0) {
    if (key in tree) return "taken"
    tree[key] = value
    return "done"
  }
  const next = (tree[key] ??= emptyTree())
  return isTree(next) ? insert(next, rest, value) : "blocked"
}

/** The settings that have to fit together, as they are after all sources were merged. */
export interface Together {
  readonly duration: {
    readonly buckets: readonly number[] | null
    readonly min: number | null
    readonly max: number | null
    readonly factor: number | null
  }
  readonly cors: {
    readonly enabled: boolean
    readonly access_control_allow_origins: readonly string[]
    readonly access_control_allow_origin_regex: string | null
    readonly access_control_allow_credentials: boolean
  }
  /** All, and then each that has settings of its own, by the path that these have. */
  readonly runners: readonly { readonly path: KeyPath; readonly values: RunnerValues }[]
}

/** @param entryOf the source of a setting; undefined for a default */
export function checkTogether(together: Together, entryOf: (path: KeyPath) => Entry | undefined): Issue[] {
  const issues: Issue[] = []
  const blame = (section: KeyPath, keys: readonly KeyPath[], message: string): void => {
    const paths = keys.map((key) => [...section, ...key])
    const entry = paths.map(entryOf).find((found) => found !== undefined)
    issues.push({ ...entry?.place, field: formatKey(entry?.path ?? paths[0] ?? section), message })
  }

  const { duration, cors } = together
  const section = ["api_server", "metrics", "duration"]
  const rule = [duration.min, duration.max, duration.factor]
  const given = rule.filter((value) => value !== null).length
  const keys = [["factor"], ["min"], ["max"]]
  if (given > 0 && given < 3) blame(section, keys, "min, max and factor go together: give all three, or none")
  if (given === 3) {
    const [min = 0, max = 0, factor = 0] = rule.map((value) => value ?? 0)
    if (max <= min) blame(section, [["max"], ["min"]], `max (${max}) must be above min (${min})`)
    else if (Math.log(max / min) / Math.log(factor) > 100) {
      blame(section, keys, "min, max and factor make more than 100 buckets; take a larger factor")
    }
    if (duration.buckets !== null && entryOf([...section, "buckets"]) !== undefined) {
      blame(section, [["buckets"]], "is given beside min, max and factor; write one or the other")
    }
  }

  const corsSection = ["api_server", "http", "cors"]
  const origins = cors.access_control_allow_origins
  if (cors.enabled && origins.length === 0 && cors.access_control_allow_origin_regex === null) {
    blame(corsSection, [["enabled"]], "is on, but no origin is allowed; set access_control_allow_origins")
  }
  if (cors.enabled && cors.access_control_allow_credentials && origins.includes("*")) {
    const either = [["access_control_allow_credentials"], ["access_control_allow_origins"]]
    blame(corsSection, either, "credentials cannot be allowed to every origin (*); name the origins")
  }

  for (const { path, values } of together.runners) {
    const { batching } = values
    if (batching.batch_wait_ms >= batching.max_latency_ms) {
      const either = [
        ["batching", "batch_wait_ms"],
        ["batching", "max_latency_ms"],
      ]
      blame(
        path,
        either,
        `batch_wait_ms (${batching.batch_wait_ms}) must be below max_latency_ms (${batching.max_latency_ms})`,
      )
    }
    if (values.max_queue_rows < batching.max_batch_size) {
      blame(
        path,
        [["max_queue_rows"], ["batching", "max_batch_size"]],
        `max_queue_rows (${values.max_queue_rows}) must not be below max_batch_size (${batching.max_batch_size})`,
      )
    }
  }
  return issues
}

/** For a check against the names that the service has. */
export function unknownRunner(name: string, known: readonly string[]): string {
  const near = nearestNames(name, [...known, ...RUNNER_KEYS], 1)[0]
  if (near !== undefined) return `the service has no runner of this name; did you mean ${near}?`
  return `the service has no runner of this name; it has ${known.length === 0 ? "none" : known.join(", ")}`
}
