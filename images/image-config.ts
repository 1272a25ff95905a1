/**
 * The config of an image that we write ourselves: what the engine would have made of the Dockerfile, with times of the
 * Bento instead of the clock's. Pure: the same base and layers give the same bytes, and so the same image id.
 */
import { createHash } from "node:crypto"
import { compareText } from "../store/tag.ts"
import type { ContainerConfig, NamedValue } from "../templates/render.ts"
import type { HistoryEntry, ImageInfo } from "./builder.ts"

/** What an image starts from: an image of the engine, or nothing. */
export interface Base extends Pick<ImageInfo, "os" | "architecture" | "variant" | "layers" | "config"> {
  readonly history: readonly HistoryEntry[]
}

export interface WrittenLayer {
  /** Of the uncompressed tar: `sha256:…`. */
  readonly digest: string
  /** A line of `docker history`. */
  readonly createdBy: string
}

export interface ImageConfig {
  readonly bytes: Buffer
  /** `sha256:…`, the id of the image. */
  readonly id: string
}

/** As a Dockerfile's instructions change the config of its base. */
export function containerConfig(
  base: Base["config"],
  env: readonly NamedValue[],
  config: ContainerConfig,
): Record<string, unknown> {
  const { healthcheck } = config
  const nanoseconds = (seconds: number): number => seconds * 1e9
  return {
    ...kept(base, LASTING),
    User: config.user,
    ExposedPorts: { ...mapOf(base["ExposedPorts"]), [`${config.port}/tcp`]: {} },
    Env: withEnv(listOf(base["Env"]), [...env, ...config.env]),
    Entrypoint: config.entrypoint,
    WorkingDir: config.workingDir,
    StopSignal: config.stopSignal,
    Healthcheck: {
      Test: ["CMD", ...healthcheck.command],
      Interval: nanoseconds(healthcheck.intervalS),
      Timeout: nanoseconds(healthcheck.timeoutS),
      StartPeriod: nanoseconds(healthcheck.startPeriodS),
      Retries: healthcheck.retries,
    },
    Labels: withLabels(base, config.labels),
  }
}

/** The base's labels and these, sorted. */
export function withLabels(base: Base["config"], labels: readonly NamedValue[]): Record<string, unknown> {
  const all = new Map(Object.entries(mapOf(base["Labels"])))
  for (const { name, value } of labels) all.set(name, value)
  return Object.fromEntries([...all].toSorted(([a], [b]) => compareText(a, b)))
}

export function imageConfig(
  base: Base,
  image: {
    /** RFC 3339 */
    readonly createdAt: string
    readonly config: Record<string, unknown>
    readonly layers: readonly WrittenLayer[]
  },
): ImageConfig {
  const { createdAt, config, layers } = image
  const bytes = Buffer.from(
    JSON.stringify({
      architecture: base.architecture,
      ...(base.variant === null ? {} : { variant: base.variant }),
      os: base.os,
      created: createdAt,
      config,
      rootfs: { type: "layers", diff_ids: [...base.layers, ...layers.map(({ digest }) => digest)] },
      history: [
        ...baseHistory(base),
        ...layers.map(({ createdBy }) => ({
          created: createdAt,
          created_by: createdBy,
          comment: "bentoctl",
        })),
        { created: createdAt, created_by: "container config", comment: "bentoctl", empty_layer: true },
      ],
    }),
  )
  return { bytes, id: `sha256:${createHash("sha256").update(bytes).digest("hex")}` }
}

/**
 * Instructions of the base without files count as empty: an engine tells sizes, not which lines made layers. Where
 * that cannot be told apart, each layer of the base is one line.
 */
function baseHistory({ history, layers }: Base): object[] {
  const isEmpty = ({ sizeBytes }: HistoryEntry): boolean =>
    history.length !== layers.length && sizeBytes === 0
  if (history.filter((entry) => !isEmpty(entry)).length !== layers.length) {
    return layers.map(() => ({ created: "1970-01-01T00:00:00Z", created_by: "base image" }))
  }
  return history.map((entry) => ({
    created: new Date(entry.createdS * 1000).toISOString(),
    created_by: entry.createdBy,
    ...(entry.comment === "" ? {} : { comment: entry.comment }),
    ...(isEmpty(entry) ? { empty_layer: true } : {}),
  }))
}

/** What a base's config says on all that a Dockerfile without any instruction leaves as it is. */
export function inherited(base: Base["config"]): Record<string, unknown> {
  const changed = [
    "User",
    "ExposedPorts",
    "Env",
    "Cmd",
    "Entrypoint",
    "WorkingDir",
    "StopSignal",
    "Healthcheck",
  ]
  return kept(base, changed.concat(LASTING))
}

/** What no instruction of ours changes. A new entry point makes the base's command void. */
const LASTING = ["Volumes", "StopTimeout", "Shell", "ArgsEscaped"]

function kept(base: Base["config"], names: readonly string[]): Record<string, unknown> {
  const isSet = (value: unknown): boolean => ![undefined, null, false, ""].includes(value as string)
  return Object.fromEntries(names.filter((name) => isSet(base[name])).map((name) => [name, base[name]]))
}

const DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/** A variable keeps its place when it gets a new value. */
function withEnv(base: readonly string[], values: readonly NamedValue[]): string[] {
  const hasPath = base.some((pair) => pair.startsWith("PATH="))
  const env = hasPath ? [...base] : [...base, DEFAULT_PATH]
  for (const { name, value } of values) {
    const at = env.findIndex((pair) => pair.startsWith(`${name}=`))
    env.splice(at === -1 ? env.length : at, 1, `${name}=${value}`)
  }
  return env
}

function listOf(value: unknown): string[] {
  return Array.isArray(value) ? value.map(String) : []
}

function mapOf(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null ? { ...value } : {}
}
