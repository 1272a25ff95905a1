/**
 * What an image will be, as plain JSON. Pure: the same Bento, models, base and platform give the same plan on every
 * machine. Everything is decided here; `context.ts` reads the files that a plan names, `docker.ts` acts.
 */
import path from "node:path"
import { BentoError, IssueError } from "../store/errors.ts"
import type { Issue } from "../store/errors.ts"
import { formatBentoYaml, parseBentoYaml, refusePythonBento } from "../store/bento.ts"
import type { Bento, DockerOptions, JsonObject, NodePackages, Platform } from "../store/bento.ts"
import { PREPARED_DIR } from "../store/layout.ts"
import { microsecondsOf, tensorSpecs } from "../store/model.ts"
import { NODE_FLAGS } from "../store/node-flags.ts"
import { faithfulJson, preparedName, preparedNameOf } from "../store/prepared.ts"
import { compareText, formatTag } from "../store/tag.ts"
import type { ContainerConfig, CopiedFolder, DockerfileVars, NamedValue } from "../templates/render.ts"
import { cudaBaseImage, resolveCuda } from "./cuda.ts"
import { ONNXRUNTIME_CUDA } from "./cuda-images.ts"
import { distroImage, dockerConflicts, nodeOf, nodeVersionProblem, packageManagerOf } from "./distro.ts"
import type { ModelWithFacts, RuntimeFacts } from "./facts.ts"
import {
  asOneLine,
  baseImageProblem,
  controlProblem,
  envNameProblem,
  labelKeyProblem,
  systemPackageProblem,
} from "./grammar.ts"
import { npmrcOf } from "./npmrc.ts"
import { parseImageReference, splitReference } from "./reference.ts"
import type { NpmPackage } from "./runtime-bundle.ts"
import type { SbomParts } from "./sbom.ts"

export type { Platform } from "../store/bento.ts"

export const DEFAULT_PLATFORM: Platform = "linux/amd64"

/** Where the Bento lies in the image. */
export const BENTO_PATH = "/home/bentoml/bento"

/** Where the packages of the service lie in the image. */
const NODE_MODULES_PATH = `${path.posix.dirname(BENTO_PATH)}/node_modules/`

/** The bill of materials, in the Bento's folder of an image. */
export const SBOM_FILE = "sbom.cdx.json"

/** The bentofile that a Bento was built from, among its sources; whatever its name was. */
export const BENTOFILE = "bentofile.yaml"

/** Where a Bento keeps the template of its Dockerfile. */
export const TEMPLATE_FILE = "env/docker/Dockerfile.template"

/** In a Bento: its `docker.setup_script`. */
export const SETUP_FILE = "env/docker/setup_script"

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
  /** The bill of materials. */
  | { readonly kind: "sbom"; readonly to: string; readonly parts: SbomParts }
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
  readonly cause: "runtime" | "model" | "source" | "bento"
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
  /** `auto`: assembled where the engine can take it. */
  readonly builder: "auto" | "dockerfile"
  /** Whether something has to run in a container while the image is made. */
  readonly runs: boolean
  readonly dockerfile: DockerfileVars
  /** Files for the steps that run; they come into no layer. */
  readonly stepFiles: readonly FileSource[]
  /** What only adds files, in the order of the Dockerfile. */
  readonly layers: readonly LayerPlan[]
  /** What the bill of materials says, which is one of these files. */
  readonly sbom: SbomParts
}

export interface PlanOptions {
  readonly bento: Bento
  readonly bentoDir: string
  /** In the Bento's order; `dir` is the model's folder in the store. */
  readonly models: readonly ModelWithFacts[]
  readonly runtimeDir: string
  /** Of the runtime bundle, for the platform. */
  readonly runtime: RuntimeFacts
  /** What the service says of its APIs. */
  readonly openapi: JsonObject | null
  /** What the Bento has prepared for its server, by file name. */
  readonly prepared: Readonly<Record<string, string>>
  /** About what the sources take in a layer: see `sourceBytesOf`. */
  readonly sourceBytes: number
  /** What the lock file of the service's packages holds. */
  readonly locked: readonly NpmPackage[]
  readonly platform?: Platform | undefined
  /** The text of `docker.dockerfile_template`. */
  readonly dockerfileTemplate?: string | undefined
  /** The text of `docker.setup_script`. */
  readonly setupScript?: string | undefined
  /** What `docker.base_image` and `docker.node_version` override, and what overrides `node:24-bookworm-slim`. */
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
  checkBento(bento)
  const platform = platformOf(bento, options.platform)
  const { distro, nodeVersion } = bento.docker
  const nodeImage = nodeImageOf(nodeVersion, options.baseImage)
  const cuda = cudaOf(bento, platform)
  const ownImage = distro === "debian" ? nodeImage : distroImage(distro, nodeVersion)
  const baseImage = bento.docker.baseImage ?? (cuda === null ? ownImage : cudaBaseImage(cuda))
  const { buildEnv: outside = {} } = options
  // The environment of a process has what every object has, too.
  const given = (name: string): string | undefined =>
    Object.hasOwn(outside, name) ? outside[name] : undefined
  const buildEnv = bento.envs
    .filter(({ stage }) => stage === "build")
    .map(({ name, value }) => ({ name, value: given(name) ?? value }))
  const { docker, node } = bento
  const runs =
    docker.systemPackages.length > 0 ||
    docker.setupScript !== null ||
    cuda !== null ||
    node !== undefined ||
    docker.dockerfileTemplate !== null
  const createdAt = rfc3339(bento.creationTime)
  const { dockerfileTemplate } = options
  const setupScript =
    docker.setupScript === null ? null : NEEDS_FILES.test(options.setupScript ?? "") ? "last" : "first"
  // NVIDIA's images and distroless have no npm.
  const packagesImage = cuda === null && packageManagerOf(distro) !== null ? baseImage : nodeImage
  const needed = [...(cuda === null ? [] : [nodeImage]), ...(node === undefined ? [] : [packagesImage])]
  const baseImages = [...new Set(needed.filter((image) => image !== baseImage)), baseImage]
  const sbom = sbomParts(options, baseImages, createdAt)
  const layers = layersOf(options, platform, sbom)
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
    baseImages,
    builder: docker.dockerfileTemplate === null && setupScript !== "last" ? "auto" : "dockerfile",
    runs,
    dockerfile: {
      baseImage,
      cuda: cuda === null ? null : { nodeImage, onnxruntimeVersion: options.runtime.onnxruntimeVersion },
      template:
        docker.dockerfileTemplate === null || dockerfileTemplate === undefined
          ? null
          : { file: docker.dockerfileTemplate, text: dockerfileTemplate },
      env: [
        ...OUR_ENV,
        ...namedValues(bento.docker.env),
        ...bento.envs.filter(({ stage }) => stage === "all").map(pair),
      ],
      packageManager: packageManagerOf(distro),
      systemPackages: bento.docker.systemPackages,
      packages:
        node === undefined
          ? null
          : {
              image: packagesImage,
              command: [node.manager, node.version, platform === "linux/amd64" ? "x64" : "arm64"],
            },
      setupScript,
      buildEnv: runs && buildEnv.length > 0,
      runtime: one("runtime"),
      models: only("model"),
      source: only("source")[0] ?? null,
      bento: one("bento"),
      config: {
        ...ourConfig(nodeOf(distro)),
        env: bento.envs.filter(({ stage }) => stage === "runtime").map(pair),
        labels: labelsOf(options, baseImage, createdAt),
      },
    },
    stepFiles: [
      ...(bento.docker.setupScript === null
        ? []
        : [
            {
              kind: "file" as const,
              from: path.join(bentoDir, SETUP_FILE),
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
    sbom,
  }
}

/** A setup script that names where the Bento lies wants what is there. */
const NEEDS_FILES = /\bBENTO_PATH\b|\/home\/bentoml\/bento(?![\w.-])/

/** Null where the image can be assembled. What steps above our files do to them, nobody knows before they have run. */
export function whyDockerfile({ builder, dockerfile }: ImagePlan): string | null {
  if (builder === "auto") return null
  return dockerfile.template === null
    ? "its docker.setup_script reads the files of the Bento"
    : "the engine carries out its docker.dockerfile_template"
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

function ourConfig(node: string): Omit<ContainerConfig, "env" | "labels"> {
  return {
    workingDir: BENTO_PATH,
    port: 3000,
    stopSignal: "SIGTERM",
    healthcheck: {
      command: [node, `${RUNTIME_PATH}/healthcheck.js`],
      // A container counts as starting until the first check, which comes after one interval.
      intervalS: 5,
      timeoutS: 5,
      startPeriodS: 60,
      retries: 6,
    },
    user: "1034:1034",
    entrypoint: [node, ...NODE_FLAGS, `${RUNTIME_PATH}/entrypoint.js`],
  }
}

/**
 * Sources above it have a layer of their own: where they did not change, nobody sends or fetches them again. It is half of
 * what a small layer may be (layers.ts), so that below it they are one with the metadata.
 */
const LARGE_SOURCE_BYTES = 1 << 19

/** By rate of change: what changes least lies at the bottom. */
function layersOf(options: PlanOptions, platform: Platform, parts: SbomParts): LayerPlan[] {
  const { bento, bentoDir, models, runtimeDir } = options
  const served = withoutBuildValues(bento)
  const bentoYaml = formatBentoYaml(served)
  // Each layer costs the engine a process of its own: a third of what a rebuild asks of it.
  const isSourceLarge = options.sourceBytes > LARGE_SOURCE_BYTES
  const metadata = isSourceLarge ? "metadata" : "bento"
  const sourceLayer: LayerPlan = {
    cause: "source",
    name: "source",
    from: "bento/src/",
    to: `${BENTO_PATH}/src/`,
    files: [
      { kind: "folder", to: "bento/src" },
      // What bentofile.yaml says is in bento.yaml; itself it may hold build-time values.
      { kind: "tree", from: path.join(bentoDir, "src"), to: "bento/src", except: [BENTOFILE] },
    ],
  }
  // A model that is listed under two aliases is one layer.
  const byTag = new Map(
    models.map(({ model, dir }) => [formatTag(model.tag), { tag: model.tag, dir }] as const),
  )
  return [
    {
      cause: "runtime",
      name: `runtime (ONNX Runtime ${options.runtime.onnxruntimeVersion}, ${platform})`,
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
    ...(isSourceLarge ? [sourceLayer] : []),
    {
      cause: "bento",
      name: isSourceLarge ? "metadata" : "source and metadata",
      from: `${metadata}/`,
      to: `${BENTO_PATH}/`,
      files: [
        ...(isSourceLarge ? [] : sourceLayer.files),
        { kind: "text", to: `${metadata}/bento.yaml`, text: bentoYaml },
        {
          kind: "file",
          from: path.join(bentoDir, "README.md"),
          to: `${metadata}/README.md`,
          executable: false,
        },
        { kind: "tree", from: path.join(bentoDir, "apis"), to: `${metadata}/apis` },
        ...preparedFiles(options, bentoYaml, metadata),
        { kind: "sbom", to: `${metadata}/${SBOM_FILE}`, parts },
      ],
    },
  ]
}

/** What the Bento has prepared, and its manifests as JSON, which are for the version of the server that is beside them. */
function preparedFiles({ models, prepared }: PlanOptions, bentoYaml: string, into: string): FileSource[] {
  // As it is read, and not as whoever has just built it holds it: those may differ in the order of keys.
  const bento = parseBentoYaml(bentoYaml, "bento.yaml")
  const manifests = [
    { name: preparedName(bentoYaml, "json"), text: faithfulJson(bento) },
    ...models.map(({ model, facts }) => ({
      name: preparedNameOf(facts.manifest, "json"),
      text: faithfulJson(model),
    })),
  ]
  const files = new Map(Object.entries(prepared))
  for (const { name, text } of manifests) if (text !== null) files.set(name, text)
  return [...files].map(([name, text]) => ({ kind: "text", to: `${into}/${PREPARED_DIR}/${name}`, text }))
}

function sbomParts(
  { bento, models, runtime, locked }: PlanOptions,
  baseImages: readonly string[],
  createdAt: string,
): SbomParts {
  const byTag = new Map(models.map((model) => [formatTag(model.model.tag), model]))
  return {
    bento: bento.tag,
    createdAt,
    license: bento.license,
    git: bento.git,
    path: `${BENTO_PATH}/`,
    baseImages,
    runtime: { ...runtime, path: `${RUNTIME_PATH}/` },
    models: [...byTag.values()].map(({ model: { tag, module }, facts }) => {
      return { tag, module, path: `${BENTO_PATH}/models/${tag.name}/${tag.version}/`, facts }
    }),
    systemPackages: bento.docker.systemPackages,
    distro: bento.docker.distro,
    packages: bento.node === undefined ? null : { path: NODE_MODULES_PATH, locked },
  }
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

/** Debian's image with Node. A version that the bentofile names is no default, which the environment could change. */
function nodeImageOf(version: string | null, given: string | undefined): string {
  const image = version === null && given !== undefined ? given : distroImage("debian", version)
  const problem = baseImageProblem(image)
  if (problem === null) return image
  throw new BentoError("BASE_IMAGE_UNAVAILABLE", `the base image ${problem}`, {
    hint: "Mend BENTOCTL_BASE_IMAGE.",
  })
}

/** What an image is for when nobody says it. */
export function defaultPlatform({ platforms }: DockerOptions): Platform {
  return platforms[0] ?? DEFAULT_PLATFORM
}

function platformOf(bento: Bento, asked: Platform | undefined): Platform {
  const { platforms } = bento.docker
  const platform = asked ?? defaultPlatform(bento.docker)
  if (platforms.length === 0 || platforms.includes(platform)) return platform
  throw notFor(bento, platform, "docker.platforms", `it is for ${platforms.join(" and ")} only`)
}

function notFor(bento: Bento, platform: Platform, field: string, message: string): IssueError {
  const summary = `${formatTag(bento.tag)} cannot be built for ${platform}:`
  return new IssueError("BENTOFILE_INVALID", summary, [{ field, message }])
}

function cudaOf(bento: Bento, platform: Platform): string | null {
  const choice = resolveCuda(bento.docker.cudaVersion ?? "")
  if (!choice.ok || choice.version === null) return null
  if (platform === ONNXRUNTIME_CUDA.platform) return choice.version
  const message = `ONNX Runtime has CUDA libraries for ${ONNXRUNTIME_CUDA.platform} only`
  throw notFor(bento, platform, "docker.cuda_version", message)
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
  check("bentoctl.git.url", controlProblem(bento.git?.url ?? ""))
  check("bentoctl.license", controlProblem(bento.license ?? ""))
  for (const [name, value] of Object.entries(bento.docker.env)) {
    check(`docker.env.${name}`, envNameProblem(name) ?? controlProblem(value))
  }
  bento.envs.forEach(({ name, value, stage }, index) => {
    check(`envs[${index}]`, envNameProblem(name) ?? (stage === "build" ? null : controlProblem(value)))
  })
  const manager = packageManagerOf(bento.docker.distro)
  bento.docker.systemPackages.forEach((name, index) => {
    if (manager !== null) check(`docker.system_packages[${index}]`, systemPackageProblem(name, manager))
  })
  for (const { key, message } of dockerConflicts(bento.docker)) check(`docker.${key}`, message)
  if (bento.docker.nodeVersion !== null) {
    check("docker.node_version", nodeVersionProblem(bento.docker.nodeVersion))
  }
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

/** Twice as many bytes, as quoting may make of them, still are a line of a Dockerfile, which ends at 64 KiB. */
const MAX_LABEL_BYTES = 30_000

/** OCI's annotations and ours, then the user's, which win over OCI's. What is too long for a label is in the image. */
function labelsOf(
  { bento, models, runtime, openapi, labels }: PlanOptions,
  baseImage: string,
  createdAt: string,
): NamedValue[] {
  const { git } = bento
  const apis = bento.apis.map(({ name, route, input, output }) => ({
    name,
    route,
    input: input.mediaType,
    output: output.mediaType,
  }))
  const tags = bento.models.map(({ tag, alias }) => ({ tag: formatTag(tag), alias }))
  const described = tags.map((named) => {
    const found = models.find(({ model }) => formatTag(model.tag) === named.tag)
    return { ...named, ...(found !== undefined && describedModel(found)) }
  })
  const modelsLabel = [described, tags].map(labelJson).find(fitsLabel)
  const ours: Record<string, string | undefined> = {
    "bentoctl.apis": labelJson(apis),
    "bentoctl.bento": formatTag(bento.tag),
    [MODELS_LABEL]: modelsLabel,
    "bentoctl.onnxruntime": runtime.onnxruntimeVersion,
    "bentoctl.openapi": openapi === null ? undefined : labelJson(openapi),
    "bentoctl.sbom": `${BENTO_PATH}/${SBOM_FILE}`,
    "bentoctl.service": bento.service,
    "bentoctl.version": bento.bentoctlVersion,
  }
  const description = firstLine(bento.description)
  const all: Record<string, string | undefined> = {
    "org.opencontainers.image.base.name": baseImage,
    // Known only where the Bento pins it: the image must not depend on what an engine knows of its base.
    "org.opencontainers.image.base.digest": splitReference(baseImage).digest,
    "org.opencontainers.image.created": createdAt,
    "org.opencontainers.image.title": bento.tag.name,
    "org.opencontainers.image.version": bento.tag.version,
    "org.opencontainers.image.revision":
      git === null ? undefined : `${git.revision}${git.isDirty ? "-dirty" : ""}`,
    "org.opencontainers.image.source": git?.url ?? undefined,
    "org.opencontainers.image.licenses": bento.license ?? undefined,
    "org.opencontainers.image.description": description === "" ? undefined : description,
    ...bento.labels,
    ...labels,
    ...Object.fromEntries(
      Object.entries(ours).filter(([, value]) => value !== undefined && fitsLabel(value)),
    ),
  }
  return Object.entries(all)
    .flatMap(([name, value]) => (value === undefined ? [] : [{ name, value }]))
    .toSorted((a, b) => compareText(a.name, b.name))
}

/** What its signatures take and give, and the digests of its files. */
function describedModel({ model, facts }: ModelWithFacts): object {
  const { producer, opsets } = facts.origin ?? {}
  const signatures = Object.entries(model.signatures).map(([name, { batchable }]) => {
    const specs = tensorSpecs(model, name)
    return [name, { batchable, ...specs }] as const
  })
  return {
    files: Object.fromEntries(facts.files.map((file) => [file.path, `sha256:${file.sha256}`])),
    ...(producer === undefined || producer === "" ? {} : { producer }),
    ...(opsets === undefined ? {} : { opsets }),
    signatures: Object.fromEntries(signatures),
  }
}

/** JSON leaves one control character as it is, and labels hold none. */
function labelJson(value: unknown): string {
  return JSON.stringify(value).replaceAll("\u007f", "\\u007f")
}

function fitsLabel(value: string): boolean {
  return Buffer.byteLength(value) <= MAX_LABEL_BYTES
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
