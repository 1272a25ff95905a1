/** A Bento, and the JSON that passes between the command line, the describing child process and the server. */
import { BentoError, type Issue } from "./errors.ts"
import { asWritten, Fields, toJson } from "./manifest.ts"
import { BENTOML_VERSION, readCreationTime, readTag } from "./model.ts"
import { emitYaml } from "./pyyaml.ts"
import { formatTag, parseTag, type Tag } from "./tag.ts"

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json }
export type JsonObject = { [key: string]: Json }

/** A descriptor as data: what a request or response body is. */
export interface DescriptorInfo {
  readonly kind: "json" | "text" | "ndarray" | "tensors"
  readonly mediaType: string
  /** JSON Schema (2020-12) of the body. */
  readonly schema: JsonObject
}

/** One HTTP API of a service. `route` begins with a slash. */
export interface ApiInfo {
  readonly name: string
  readonly route: string
  readonly doc: string | null
  readonly input: DescriptorInfo
  readonly output: DescriptorInfo
}

/** One runner of a service: the model as asked for, and the signatures that it calls. */
export interface RunnerInfo {
  readonly name: string
  readonly model: string
  readonly methods: readonly string[]
}

export interface ServiceInfo {
  readonly name: string
  readonly runners: readonly RunnerInfo[]
  readonly apis: readonly ApiInfo[]
}

/** What the describing child writes on its file descriptor 3. Lines and columns count from 1, in the user's file. */
export type DescribeResult =
  | {
      readonly ok: true
      readonly service: ServiceInfo
      readonly openapi: JsonObject
      /** What importing the service read, relative to `srcDir`: a Bento must hold all of it. */
      readonly files?: readonly string[]
      /** Files for the Bento's PREPARED_DIR. */
      readonly prepared?: Readonly<Record<string, string>>
    }
  | {
      readonly ok: false
      readonly message: string
      readonly file?: string
      readonly line?: number
      readonly column?: number
    }

/** What `--check-model` writes on its file descriptor 3. */
export type CheckResult =
  | { readonly ok: true; readonly inputs: readonly string[]; readonly outputs: readonly string[] }
  | { readonly ok: false; readonly message: string }

/** What `--check-examples` is asked to do with a model that is about to enter the store. */
export interface ExamplesRequest {
  /** The model's folder; its examples are written there. */
  readonly dir: string
  /** The user's file. */
  readonly file: string
  /** Ask the model for the answers and add the examples to those that it has; else compare its answers with those given. */
  readonly record: boolean
}

/** What `--check-examples` writes on its file descriptor 3. */
export type ExamplesResult =
  | { readonly ok: true; readonly examples: readonly string[]; readonly notes: readonly string[] }
  | { readonly ok: false; readonly message: string; readonly issues: readonly Issue[] }

/** A model as the server is to load it: exact tag and the folder that holds its files. */
export interface ServeModel {
  readonly tag: string
  readonly alias?: string
  readonly dir: string
  /** The `Model` as JSON, from who has just read it; without one its manifest is read. */
  readonly manifest?: string
}

/** All that a server needs: made from a bentofile and a store by `bentoctl serve`, from `bento.yaml` in an image. */
export interface ServeSpec {
  readonly name: string
  readonly version: string | null
  /** `file.ts:export`, relative to `srcDir`; null = every signature of every model becomes an API. */
  readonly service: string | null
  readonly srcDir: string
  readonly models: readonly ServeModel[]
  readonly labels?: Readonly<Record<string, string>>
  readonly description?: string
  /** A folder whose node_modules has the packages that are not found from `srcDir`. */
  readonly packagesDir?: string
  /** Ready only after the models have answered their examples. */
  readonly selfTest?: boolean
  /** A folder with what was made beforehand of files that the server starts from (prepared.ts). */
  readonly preparedDir?: string
}

/** A model of a Bento, pinned to its exact tag. */
export interface BentoModel {
  readonly tag: Tag
  readonly module: string
  readonly creationTime: string
  readonly alias?: string
}

/** Systems that an image can be built on. */
export const DISTROS = ["debian", "distroless", "ubi9"] as const
export type Distro = (typeof DISTROS)[number]

export const PLATFORMS = ["linux/amd64", "linux/arm64"] as const
export type Platform = (typeof PLATFORMS)[number]

export type EnvStage = "all" | "build" | "runtime"

/** Where the sources of a Bento come from, as git has it. */
export interface GitFacts {
  /** Of the commit: 40 or 64 hexadecimal digits. */
  readonly revision: string
  /** Whether the folder held what that commit does not. */
  readonly isDirty: boolean
  /** Without user and password; null for a repository that is nowhere else. */
  readonly url: string | null
}

/** `docker:` of a bentofile after checking; empty collections instead of absent keys. */
export interface DockerOptions {
  readonly distro: Distro
  readonly baseImage: string | null
  /** Null = the version that the server is tested with. */
  readonly nodeVersion: string | null
  readonly cudaVersion: string | null
  readonly env: Readonly<Record<string, string>>
  readonly systemPackages: readonly string[]
  /** Path inside `src/`. */
  readonly setupScript: string | null
  /** Path inside the project of a template that its Dockerfile extends ours with; the Bento keeps its text. */
  readonly dockerfileTemplate: string | null
  /** What its images may be built for, the default first; empty = all. */
  readonly platforms: readonly Platform[]
}

/** How the packages that a Bento needs are installed. What they are is said by the files in its `env/node`. */
export interface NodePackages {
  readonly manager: PackageManager
  /** Of the manager; "" for npm, which is taken as it is. */
  readonly version: string
  /** Settings of the project's .npmrc, without credentials. */
  readonly settings: Readonly<Record<string, string>>
}

const PACKAGE_MANAGERS = ["npm", "pnpm", "yarn", "yarn-berry"] as const
export type PackageManager = (typeof PACKAGE_MANAGERS)[number]

/** `bento.yaml` in memory. On disk: BentoML's keys and order (spec 1), and ours under `bentoctl:`. */
export interface Bento {
  readonly tag: Tag
  /** `service.ts:svc`, or "" for a Bento without code. */
  readonly service: string
  readonly description: string
  readonly labels: Readonly<Record<string, string>>
  readonly models: readonly BentoModel[]
  readonly envs: readonly { readonly name: string; readonly value: string; readonly stage: EnvStage }[]
  readonly docker: DockerOptions
  /** Absent where the service needs no packages. */
  readonly node?: NodePackages
  /** The server is ready only after its models have answered their examples. */
  readonly selfTest: boolean
  readonly runners: readonly RunnerInfo[]
  readonly apis: readonly ApiInfo[]
  /** Null for sources that are in no git repository. */
  readonly git: GitFacts | null
  /** SPDX expression of the sources' licence; null where nobody says. */
  readonly license: string | null
  /** Version of bentoctl that built it; "" for a Bento by Python's BentoML. */
  readonly bentoctlVersion: string
  readonly creationTime: string
}

/**
 * Reads `bento.yaml`, of spec 1 and 2; `path` is for messages. What only bentoctl knows (schemas, routes, runners' methods)
 * is empty in a Bento by Python's BentoML. Throws MANIFEST_INVALID with every problem and its line.
 */
export function parseBentoYaml(text: string, path: string): Bento {
  if (lastParsed?.text !== text) lastParsed = { text, bento: parse(text, path) }
  return lastParsed.bento
}

/** A build reads what it has written: from the draft, in its place, and for the image. */
let lastParsed: { readonly text: string; readonly bento: Bento } | undefined

function parse(text: string, path: string): Bento {
  const fields = Fields.read(text, path)
  const ours = fields.map("bentoctl")
  const bento: Bento = {
    tag: readTag(fields),
    service: fields.text("service", ""),
    description: ours.text("description", ""),
    labels: fields.texts("labels"),
    models: readModels(fields),
    envs: fields.list("envs").map(readEnv),
    docker:
      ours.get("docker") === null ? readBentomlDocker(fields.map("docker")) : readDocker(ours.map("docker")),
    ...(ours.get("node") === null ? {} : { node: readNode(ours.map("node")) }),
    selfTest: ours.flag("selftest"),
    runners: ours.list("runners").map(readRunner),
    apis: ours.list("apis").map(readApi),
    git: ours.get("git") === null ? null : readGitFacts(ours.map("git")),
    license: ours.textOrNull("license"),
    bentoctlVersion: ours.text("version", ""),
    creationTime: readCreationTime(fields),
  }
  fields.finish()
  return bento
}

/** Throws for a Bento of Python's BentoML: it can be listed and read, and neither served nor made into an image. */
export function refusePythonBento(bento: Bento): void {
  if (bento.bentoctlVersion !== "") return
  throw new BentoError(
    "MANIFEST_INVALID",
    `${formatTag(bento.tag)} was built by Python's BentoML, and its service needs Python`,
    { hint: "Its models can be served: list them in a bentofile.yaml and run `bentoctl build`." },
  )
}

/**
 * `bento.yaml` with BentoML's keys in the order of spec 1, nulls written out, and ours under `bentoctl:` at the end.
 * BentoML knows closed lists of distributions and CUDA versions and fails on others, so ours stand under `bentoctl:` only.
 */
export function formatBentoYaml(bento: Bento): string {
  return emitYaml({
    service: bento.service,
    name: bento.tag.name,
    version: bento.tag.version,
    bentoml_version: BENTOML_VERSION,
    creation_time: bento.creationTime,
    labels: asWritten(bento.labels),
    models: bento.models.map((model) => ({
      tag: formatTag(model.tag),
      module: model.module,
      creation_time: model.creationTime,
      alias: model.alias,
    })),
    entry_service: "",
    services: [],
    envs: bento.envs.map(({ name, value, stage }) => ({ name, value, stage })),
    schema: {},
    args: {},
    spec: 1,
    runners: bento.runners.map((runner) => ({
      name: runner.name,
      runnable_type: "ONNXRunnable",
      embedded: false,
      models: bento.models
        .filter((model) => isMeant(runner.model, model))
        .map((model) => formatTag(model.tag)),
      resource_config: null,
    })),
    apis: bento.apis.map((api) => ({
      name: api.name,
      input_type: BENTOML_DESCRIPTORS[api.input.kind],
      output_type: BENTOML_DESCRIPTORS[api.output.kind],
    })),
    docker: {
      distro: "debian",
      python_version: null,
      cuda_version: null,
      env: nullIfEmpty(bento.docker.env),
      system_packages: nullIfEmpty(bento.docker.systemPackages),
      setup_script: bento.docker.setupScript,
      base_image: bento.docker.baseImage,
      dockerfile_template: null,
    },
    ...BENTOML_PYTHON,
    bentoctl: {
      version: bento.bentoctlVersion,
      description: bento.description,
      git: bento.git && { revision: bento.git.revision, dirty: bento.git.isDirty, url: bento.git.url },
      license: bento.license,
      selftest: bento.selfTest ? true : undefined,
      runners: bento.runners.map(({ name, model, methods }) => ({ name, model, methods })),
      apis: bento.apis.map((api) => ({
        name: api.name,
        route: api.route,
        doc: api.doc,
        input: formatDescriptor(api.input),
        output: formatDescriptor(api.output),
      })),
      docker: {
        distro: bento.docker.distro,
        base_image: bento.docker.baseImage,
        node_version: bento.docker.nodeVersion,
        cuda_version: bento.docker.cudaVersion,
        env: bento.docker.env,
        system_packages: bento.docker.systemPackages,
        setup_script: bento.docker.setupScript,
        dockerfile_template: bento.docker.dockerfileTemplate,
        platforms: bento.docker.platforms,
      },
      ...(bento.node === undefined ? {} : { node: { ...bento.node } }),
    },
  })
}

/** Our descriptors under the names of BentoML's classes. */
const BENTOML_DESCRIPTORS = { json: "JSON", text: "Text", ndarray: "NumpyNdarray", tensors: "JSON" } as const

/** BentoML's defaults of what has no meaning here. */
const BENTOML_PYTHON = {
  python: {
    requirements_txt: null,
    packages: null,
    lock_packages: true,
    pack_git_packages: true,
    index_url: null,
    no_index: null,
    trusted_host: null,
    find_links: null,
    extra_index_url: null,
    pip_args: null,
    wheels: null,
    is_src_layout: false,
  },
  conda: { environment_yml: null, channels: null, dependencies: null, pip: null },
}

/** Whether a runner that asked for `asked` (an alias, `name`, `name:latest`, `name:prefix`) got this model. */
function isMeant(asked: string, model: BentoModel): boolean {
  const { name } = model.tag
  if (asked === model.alias || asked === name || asked === `${name}:latest`) return true
  return asked.includes(":") && formatTag(model.tag).startsWith(asked)
}

function nullIfEmpty<T extends object>(value: T): T | null {
  return Object.keys(value).length === 0 ? null : value
}

function formatDescriptor(descriptor: DescriptorInfo): object {
  return { kind: descriptor.kind, media_type: descriptor.mediaType, schema: descriptor.schema }
}

function readModels(fields: Fields): BentoModel[] {
  if (fields.values("models").some((value) => typeof value === "string")) return readOldModels(fields)
  return fields.list("models").map((model) => {
    const alias = model.textOrNull("alias")
    return {
      tag: readTagText(model, "tag", model.text("tag")),
      module: model.text("module", ""),
      creationTime: readCreationTime(model),
      ...(alias === null ? {} : { alias }),
    }
  })
}

/** Before 1.0.0a7 a model was a plain tag. */
function readOldModels(fields: Fields): BentoModel[] {
  return fields.values("models").map((value) => ({
    tag: readTagText(fields, "models", typeof value === "string" ? value : ""),
    module: "unknown",
    creationTime: "0001-01-01T00:00:00+00:00",
  }))
}

function readTagText(fields: Fields, key: string, text: string): Tag {
  try {
    return parseTag(text)
  } catch (error) {
    fields.issue([key], error instanceof Error ? error.message : String(error))
    return { name: "", version: "" }
  }
}

function readEnv(env: Fields): Bento["envs"][number] {
  return {
    name: env.text("name"),
    value: env.text("value", ""),
    stage: readChoice(env, "stage", ["all", "build", "runtime"]),
  }
}

function readGitFacts(git: Fields): GitFacts {
  const revision = git.text("revision")
  if (!/^([0-9a-f]{40}|[0-9a-f]{64})$/.test(revision)) {
    git.issue(["revision"], `must be the id of a commit, is ${JSON.stringify(revision)}`)
  }
  return { revision, isDirty: git.flag("dirty"), url: git.textOrNull("url") }
}

/** Its distributions are others, and no image is ever made of that Bento. */
function readBentomlDocker(docker: Fields): DockerOptions {
  return {
    ...readDockerBase(docker),
    distro: "debian",
    nodeVersion: null,
    dockerfileTemplate: null,
    platforms: [],
  }
}

function readDocker(docker: Fields): DockerOptions {
  return {
    ...readDockerBase(docker),
    distro: readChoice(docker, "distro", DISTROS),
    nodeVersion: docker.textOrNull("node_version"),
    dockerfileTemplate: docker.textOrNull("dockerfile_template"),
    platforms: readTexts(docker, "platforms").map((text, index) =>
      choiceOf(docker, ["platforms", String(index)], text, PLATFORMS),
    ),
  }
}

function readDockerBase(
  docker: Fields,
): Omit<DockerOptions, "distro" | "nodeVersion" | "dockerfileTemplate" | "platforms"> {
  return {
    baseImage: docker.textOrNull("base_image"),
    cudaVersion: docker.textOrNull("cuda_version"),
    env: docker.texts("env"),
    systemPackages: readTexts(docker, "system_packages"),
    setupScript: docker.textOrNull("setup_script"),
  }
}

function readNode(node: Fields): NodePackages {
  const version = node.text("version", "")
  if (!/^(\d+\.\d+\.\d+[\w.-]*)?$/.test(version)) node.issue(["version"], "is no version")
  const settings = node.texts("settings")
  // Each becomes a line of a file.
  const broken = Object.entries(settings).filter((pair) => /[\r\n]/.test(pair.join("")))
  for (const [key] of broken) node.issue(["settings", key], "holds a line break")
  return { manager: readChoice(node, "manager", PACKAGE_MANAGERS), version, settings }
}

function readRunner(runner: Fields): RunnerInfo {
  return { name: runner.text("name"), model: runner.text("model"), methods: readTexts(runner, "methods") }
}

function readApi(api: Fields): ApiInfo {
  return {
    name: api.text("name"),
    route: api.text("route"),
    doc: api.textOrNull("doc"),
    input: readDescriptor(api.map("input")),
    output: readDescriptor(api.map("output")),
  }
}

function readDescriptor(descriptor: Fields): DescriptorInfo {
  return {
    kind: readChoice(descriptor, "kind", ["json", "text", "ndarray", "tensors"]),
    mediaType: descriptor.text("media_type"),
    schema: toJson(descriptor.record("schema")) as JsonObject, // toJson leaves JSON and binary data; a schema has none
  }
}

/** One of the words; the first where it is absent. */
function readChoice<T extends string>(fields: Fields, key: string, words: readonly [T, ...T[]]): T {
  return choiceOf(fields, [key], fields.text(key, words[0]), words)
}

function choiceOf<T extends string>(
  fields: Fields,
  where: string[],
  text: string,
  words: readonly [T, ...T[]],
): T {
  const word = words.find((known) => known === text)
  if (word === undefined)
    fields.issue(where, `must be one of ${words.join(", ")}, is ${JSON.stringify(text)}`)
  return word ?? words[0]
}

function readTexts(fields: Fields, key: string): string[] {
  return fields.values(key).map((value, index) => {
    if (typeof value === "string") return value
    fields.issue([key, String(index)], "must be text")
    return ""
  })
}
