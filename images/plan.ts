/**
 * What an image will be, as plain JSON. Pure: the same Bento, models, base and platform give the same plan on every
 * machine. Everything is decided here; `context.ts` reads the files that a plan names, `docker.ts` acts.
 */
import path from "node:path"
import { BentoError, IssueError } from "../store/errors.ts"
import type { Issue } from "../store/errors.ts"
import { formatBentoYaml, refusePythonBento } from "../store/bento.ts"
import type { Bento, NodePackages } from "../store/bento.ts"
import { microsecondsOf } from "../store/model.ts"
import type { Model } from "../store/model.ts"
import { formatTag } from "../store/tag.ts"
import type { ContainerConfig, CopiedFolder, DockerfileVars, NamedValue } from "../templates/render.ts"
import { cudaBaseImage, resolveCuda } from "./cuda.ts"
import {
  asOneLine,
  baseImageProblem,
  controlProblem,
  envNameProblem,
  labelKeyProblem,
  systemPackageProblem,
} from "./grammar.ts"
import { npmrcOf } from "./npmrc.ts"
import { parseImageReference } from "./reference.ts"

export type Platform = "linux/amd64" | "linux/arm64"

export const DEFAULT_BASE_IMAGE = "node:24-bookworm-slim"

/** Where the Bento lies in the image. */
export const BENTO_PATH = "/home/bentoml/bento"

/** Where a Bento keeps what says which packages it needs. */
export const PACKAGES_DIR = "env/node"

/** The program that installs them, here and in the image. */
export const INSTALLER = path.join(
  import.meta.dirname,
  `install-packages${import.meta.filename.endsWith(".ts") ? ".ts" : ".js"}`,
)

/** Where the server lies in the image. */
export const RUNTIME_PATH = "/opt/bentoctl"

/** A file or folder of the build context. `to` is its path there, with slashes. */
export type FileSource =
  /** The runtime bundle with ONNX Runtime for one platform. */
  | { readonly kind: "runtime"; readonly from: string; readonly to: string; readonly platform: Platform }
  /** All files below a folder; `except` names some of its top level. */
  | { readonly kind: "tree"; readonly from: string; readonly to: string; readonly except?: readonly string[] }
  | { readonly kind: "file"; readonly from: string; readonly to: string; readonly executable: boolean }
  | { readonly kind: "text"; readonly to: string; readonly text: string }
  /** Holds build-time values: never printed, never in a layer. */
  | { readonly kind: "secret"; readonly to: string; readonly values: readonly NamedValue[] }
  /** Credentials: as `secret`, and what is made with them does not depend on them. */
  | { readonly kind: "credentials"; readonly to: string; readonly text: string }
  | { readonly kind: "folder"; readonly to: string }

/** Where the files of a model lie in an image of the model alone: KServe looks for them there. */
export const MODELS_PATH = "/models/"

/** The label that lists the models of an image, as JSON. */
export const MODELS_LABEL = "bentoctl.models"

/** Files that one layer of the image is made of. */
export interface LayerPlan extends CopiedFolder {
  readonly cause: "runtime" | "model" | "source" | "metadata"
  /** For people: what is in it. */
  readonly name: string
  /** The tag of the model. */
  readonly model?: string
  /** Their paths begin with `from`. */
  readonly files: readonly FileSource[]
}

export interface ImagePlan {
  readonly bento: string
  /** When the Bento was built, as RFC 3339 in UTC. */
  readonly createdAt: string
  /** References that the image gets, all or none. */
  readonly tags: readonly string[]
  readonly platform: Platform
  /** Images that the build starts from; they must be in the engine, or be pulled. The last one is the image's own base. */
  readonly baseImages: readonly string[]
  /** Whether something has to run in a container while the image is made. */
  readonly runs: boolean
  readonly dockerfile: DockerfileVars
  /** Files for the steps that run; they come into no layer. */
  readonly stepFiles: readonly FileSource[]
  /** What only adds files, in the order of the Dockerfile. */
  readonly layers: readonly LayerPlan[]
}

export interface PlanOptions {
  readonly bento: Bento
  readonly bentoDir: string
  /** In the Bento's order; `dir` is the model's folder in the store. */
  readonly models: readonly { readonly model: Model; readonly dir: string }[]
  readonly runtimeDir: string
  /** Of the runtime bundle: its CUDA libraries must be of this version. */
  readonly onnxruntimeVersion: string
  readonly platform?: Platform | undefined
  /** What `docker.base_image` overrides, and what overrides `node:24-bookworm-slim`. */
  readonly baseImage?: string | undefined
  /** Default: NAME:VERSION and NAME:latest. */
  readonly tags?: readonly string[] | undefined
  /** Over those of the Bento, and not over ours. */
  readonly labels?: Readonly<Record<string, string>> | undefined
  /** Values of build-time variables that are given outside of the Bento; they win. */
  readonly buildEnv?: Readonly<Record<string, string | undefined>> | undefined
  /** Settings of npm registries, with credentials. */
  readonly npmrc?: string | undefined
}

export function planImage(options: PlanOptions): ImagePlan {
  const { bento, bentoDir } = options
  const platform = options.platform ?? "linux/amd64"
  checkBento(bento)
  const nodeImage = nodeImageOf(options.baseImage)
  const cuda = cudaOf(bento, platform)
  const baseImage = bento.docker.baseImage ?? (cuda === null ? nodeImage : cudaBaseImage(cuda))
  const { buildEnv: outside = {} } = options
  // The environment of a process has what every object has, too.
  const given = (name: string): string | undefined =>
    Object.hasOwn(outside, name) ? outside[name] : undefined
  const buildEnv = bento.envs
    .filter(({ stage }) => stage === "build")
    .map(({ name, value }) => ({ name, value: given(name) ?? value }))
  const { docker, node } = bento
  const runs =
    docker.systemPackages.length > 0 || docker.setupScript !== null || cuda !== null || node !== undefined
  const createdAt = rfc3339(bento.creationTime)
  const layers = layersOf(options, platform)
  const only = (cause: LayerPlan["cause"]): CopiedFolder[] =>
    layers.filter((layer) => layer.cause === cause).map(({ from, to }) => ({ from, to }))
  const one = (cause: LayerPlan["cause"]): CopiedFolder => {
    const [folder] = only(cause)
    if (folder === undefined) throw new Error(`the plan has no layer for the ${cause}`)
    return folder
  }
  return {
    bento: formatTag(bento.tag),
    createdAt,
    tags: imageNames(options.tags ?? [formatTag(bento.tag), `${bento.tag.name}:latest`]),
    platform,
    baseImages: cuda === null ? [baseImage] : [nodeImage, baseImage],
    runs,
    dockerfile: {
      baseImage,
      cuda: cuda === null ? null : { nodeImage, onnxruntimeVersion: options.onnxruntimeVersion },
      env: [
        ...OUR_ENV,
        ...namedValues(bento.docker.env),
        ...bento.envs.filter(({ stage }) => stage === "all").map(pair),
      ],
      systemPackages: bento.docker.systemPackages,
      packages:
        node === undefined
          ? null
          : {
              // NVIDIA's images have no npm.
              image: cuda === null ? baseImage : nodeImage,
              command: [node.manager, node.version, platform === "linux/amd64" ? "x64" : "arm64"],
            },
      setupScript: bento.docker.setupScript !== null,
      buildEnv: runs && buildEnv.length > 0,
      runtime: one("runtime"),
      models: only("model"),
      source: one("source"),
      metadata: one("metadata"),
      config: {
        ...OUR_CONFIG,
        env: bento.envs.filter(({ stage }) => stage === "runtime").map(pair),
        labels: labelsOf({ ...bento, labels: { ...bento.labels, ...options.labels } }, baseImage, createdAt),
      },
    },
    stepFiles: [
      ...(bento.docker.setupScript === null
        ? []
        : [
            {
              kind: "file" as const,
              from: path.join(bentoDir, "env/docker/setup_script"),
              to: "setup/script",
              executable: true,
            },
          ]),
      ...(node === undefined ? [] : packageFiles(node, bentoDir, options.npmrc ?? "")),
      ...(runs && buildEnv.length > 0
        ? [{ kind: "secret" as const, to: "build-env/env", values: buildEnv }]
        : []),
    ],
    layers,
  }
}

/** What the step that installs packages needs: which, how, and with what credentials. */
function packageFiles(node: NodePackages, bentoDir: string, npmrc: string): FileSource[] {
  return [
    { kind: "tree", from: path.join(bentoDir, PACKAGES_DIR), to: "packages" },
    { kind: "text", to: "packages/.npmrc", text: npmrcOf(node.settings) },
    // TypeScript or what was made of it; both are a module of that name.
    { kind: "file", from: INSTALLER, to: "packages-step/install.mts", executable: false },
    { kind: "credentials", to: "packages-step/npmrc", text: npmrc },
  ]
}

const OUR_ENV: readonly NamedValue[] = [
  { name: "NODE_ENV", value: "production" },
  { name: "BENTO_PATH", value: BENTO_PATH },
  { name: "BENTOML_HOME", value: path.posix.dirname(BENTO_PATH) },
  { name: "BENTOML_CONTAINERIZED", value: "true" },
  { name: "ORT_DISABLE_TELEMETRY", value: "1" },
]

const OUR_CONFIG: Omit<ContainerConfig, "env" | "labels"> = {
  workingDir: BENTO_PATH,
  port: 3000,
  stopSignal: "SIGTERM",
  healthcheck: {
    command: ["node", `${RUNTIME_PATH}/healthcheck.js`],
    intervalS: 30,
    timeoutS: 5,
    startPeriodS: 60,
    retries: 3,
  },
  user: "1034:1034",
  entrypoint: ["node", `${RUNTIME_PATH}/entrypoint.js`],
}

/** By rate of change: what changes least lies at the bottom. */
function layersOf(options: PlanOptions, platform: Platform): LayerPlan[] {
  const { bento, bentoDir, models, runtimeDir } = options
  // A model that is listed under two aliases is one layer.
  const byTag = new Map(
    models.map(({ model, dir }) => [formatTag(model.tag), { tag: model.tag, dir }] as const),
  )
  return [
    {
      cause: "runtime",
      name: `runtime (ONNX Runtime ${options.onnxruntimeVersion}, ${platform})`,
      from: "runtime/",
      to: `${RUNTIME_PATH}/`,
      files: [{ kind: "runtime", from: runtimeDir, to: "runtime", platform }],
    },
    ...[...byTag].map(([name, { tag, dir }]) => {
      const to = `models/${tag.name}/${tag.version}`
      return {
        cause: "model" as const,
        name: `model ${name}`,
        model: name,
        from: `${to}/`,
        to: `${BENTO_PATH}/${to}/`,
        files: [{ kind: "tree" as const, from: dir, to }],
      }
    }),
    {
      cause: "source",
      name: "source",
      from: "src/",
      to: `${BENTO_PATH}/src/`,
      files: [
        { kind: "folder", to: "src" },
        // What bentofile.yaml says is in bento.yaml; itself it may hold build-time values.
        { kind: "tree", from: path.join(bentoDir, "src"), to: "src", except: ["bentofile.yaml"] },
      ],
    },
    {
      cause: "metadata",
      name: "metadata",
      from: "bento/",
      to: `${BENTO_PATH}/`,
      files: [
        { kind: "text", to: "bento/bento.yaml", text: formatBentoYaml(withoutBuildValues(bento)) },
        { kind: "file", from: path.join(bentoDir, "README.md"), to: "bento/README.md", executable: false },
        { kind: "tree", from: path.join(bentoDir, "apis"), to: "bento/apis" },
      ],
    },
  ]
}

/** The plan with models copied from images instead of the context; `images` by the tags of the models. */
export function withModelImages(plan: ImagePlan, images: ReadonlyMap<string, string>): ImagePlan {
  const layers = plan.layers.map((layer) => {
    const image = layer.model === undefined ? undefined : images.get(layer.model)
    return image === undefined ? layer : { ...layer, from: MODELS_PATH, image }
  })
  const models = layers
    .filter(({ cause }) => cause === "model")
    .map(({ from, to, image }): CopiedFolder => ({ from, to, ...(image === undefined ? {} : { image }) }))
  return { ...plan, layers, dockerfile: { ...plan.dockerfile, models } }
}

/** The plan as it may be shown: values that live only while building are left out. */
export function printablePlan(plan: ImagePlan): ImagePlan {
  return {
    ...plan,
    stepFiles: plan.stepFiles.map((file) =>
      file.kind === "secret"
        ? { ...file, values: file.values.map(({ name }) => ({ name, value: "(not shown)" })) }
        : file.kind === "credentials"
          ? { ...file, text: "(not shown)" }
          : file,
    ),
  }
}

function nodeImageOf(given: string | undefined): string {
  const image = given ?? DEFAULT_BASE_IMAGE
  const problem = baseImageProblem(image)
  if (problem === null) return image
  throw new BentoError("BASE_IMAGE_UNAVAILABLE", `the base image ${problem}`, {
    hint: "Mend BENTOCTL_BASE_IMAGE.",
  })
}

function cudaOf(bento: Bento, platform: Platform): string | null {
  const choice = resolveCuda(bento.docker.cudaVersion ?? "")
  if (!choice.ok || choice.version === null) return null
  if (platform === "linux/amd64") return choice.version
  throw new IssueError("BENTOFILE_INVALID", `${formatTag(bento.tag)} cannot be built for ${platform}:`, [
    { field: "docker.cuda_version", message: "ONNX Runtime has CUDA libraries for linux/amd64 only" },
  ])
}

/** Names for an image, each once. Throws TAG_INVALID. */
export function imageNames(names: readonly string[]): readonly string[] {
  for (const name of names) {
    if (parseImageReference(name, { tagged: true }) !== null) continue
    throw new BentoError("TAG_INVALID", `${JSON.stringify(name)} cannot name an image`, {
      hint: "Give another name with `-t NAME:TAG`: lower case, with single `.`, `_` or `-` between letters and digits.",
    })
  }
  return [...new Set(names)]
}

/** A Bento from the store may come from another tool: what goes into a Dockerfile is checked again. */
function checkBento(bento: Bento): void {
  refusePythonBento(bento)
  const issues: Issue[] = []
  const check = (field: string, problem: string | null): void => {
    if (problem !== null) issues.push({ field, message: problem })
  }
  check("service", controlProblem(bento.service))
  check("bentoctl.version", controlProblem(bento.bentoctlVersion))
  for (const [key, value] of Object.entries(bento.labels)) {
    check(`labels.${key}`, labelKeyProblem(key) ?? controlProblem(value))
  }
  for (const [name, value] of Object.entries(bento.docker.env)) {
    check(`docker.env.${name}`, envNameProblem(name) ?? controlProblem(value))
  }
  bento.envs.forEach(({ name, value, stage }, index) => {
    check(`envs[${index}]`, envNameProblem(name) ?? (stage === "build" ? null : controlProblem(value)))
  })
  bento.docker.systemPackages.forEach((name, index) => {
    check(`docker.system_packages[${index}]`, systemPackageProblem(name))
  })
  if (bento.docker.baseImage !== null) check("docker.base_image", baseImageProblem(bento.docker.baseImage))
  const cuda = resolveCuda(bento.docker.cudaVersion ?? "")
  if (!cuda.ok) check("docker.cuda_version", cuda.reason)
  if (issues.length > 0) {
    throw new IssueError("MANIFEST_INVALID", `${formatTag(bento.tag)} cannot become an image:`, issues)
  }
}

function withoutBuildValues(bento: Bento): Bento {
  return {
    ...bento,
    envs: bento.envs.map((env) => (env.stage === "build" ? { ...env, value: "" } : env)),
  }
}

/** Longer values would make `docker inspect` unreadable, and lines of a Dockerfile end at 64 KiB. */
const MAX_LABEL_LENGTH = 16_384

/** OCI's annotations and ours, then the user's, which win over OCI's. */
function labelsOf(bento: Bento, baseImage: string, createdAt: string): NamedValue[] {
  const models = bento.models.map(({ tag, alias }) => ({
    tag: formatTag(tag),
    ...(alias === undefined ? {} : { alias }),
  }))
  const apis = bento.apis.map(({ name, route, input, output }) => ({
    name,
    route,
    input: input.mediaType,
    output: output.mediaType,
  }))
  const ours: Record<string, string> = {
    "bentoctl.apis": JSON.stringify(apis),
    "bentoctl.bento": formatTag(bento.tag),
    [MODELS_LABEL]: JSON.stringify(models),
    "bentoctl.service": bento.service,
    "bentoctl.version": bento.bentoctlVersion,
  }
  const description = firstLine(bento.description)
  const all: Record<string, string> = {
    "org.opencontainers.image.base.name": baseImage,
    "org.opencontainers.image.created": createdAt,
    "org.opencontainers.image.title": bento.tag.name,
    "org.opencontainers.image.version": bento.tag.version,
    ...(description === "" ? {} : { "org.opencontainers.image.description": description }),
    ...bento.labels,
    ...Object.fromEntries(Object.entries(ours).filter(([, value]) => value.length <= MAX_LABEL_LENGTH)),
  }
  return namedValues(all)
}

/** In UTC with microseconds; a time that nobody can read is the beginning of all. */
export function rfc3339(creationTime: string): string {
  const microseconds = microsecondsOf(creationTime)
  const date = new Date(Math.floor(microseconds / 1000))
  if (Number.isNaN(date.getTime())) return "1970-01-01T00:00:00Z"
  const fraction = String(microseconds - date.getTime() * 1000).padStart(3, "0")
  return date.toISOString().replace("Z", `${fraction}Z`)
}

/** The first line with words in it, without markdown's marks: a description is a page, a label is a line. */
function firstLine(markdown: string): string {
  const line = markdown.split(/\r?\n/).find((text) => text.trim() !== "") ?? ""
  return asOneLine(line.replace(/^[#>\s*-]+/, "").trim(), 500)
}

function namedValues(map: Readonly<Record<string, string>>): NamedValue[] {
  return Object.entries(map)
    .map(([name, value]) => ({ name, value }))
    .toSorted((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0))
}

function pair({ name, value }: NamedValue): NamedValue {
  return { name, value }
}
