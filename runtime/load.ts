/** From a Bento (or what `bentoctl serve` made of a folder) to a service whose runners have their models. */
import { readFile } from "node:fs/promises"
import { createRequire, registerHooks } from "node:module"
import path from "node:path"
import { pathToFileURL } from "node:url"
import type { Bento, ServeModel, ServeSpec, ServiceInfo } from "../store/bento.ts"
import { BentoError } from "../store/errors.ts"
import { BENTO_YAML, MODEL_YAML, PREPARED_DIR } from "../store/layout.ts"
import type { Model } from "../store/model.ts"
import { formatTag, parseTag, tryParseTagRef } from "../store/tag.ts"
import { tensors } from "./io.ts"
import { importPrepared, readPrepared } from "./prepared.ts"
import type { LoadedModelInfo, ModelRunner, SignatureSpec } from "./runner.ts"
import {
  type AnyRunner,
  type Api,
  type CallScope,
  RESERVED_ROUTES,
  Service,
  api,
  bindRunner,
  describeService,
  runInScope,
} from "./service.ts"

/** The spec of a built Bento: `bento.yaml` beside `src/`, models in `models/` or a store. */
export async function readBentoSpec(dir: string, modelsDir = path.join(dir, "models")): Promise<ServeSpec> {
  const file = path.join(dir, BENTO_YAML)
  const preparedDir = path.join(dir, PREPARED_DIR)
  const text = await readText(file, "BENTO_NOT_FOUND", `no Bento in ${dir}`)
  const bento = await readManifest<Bento>(preparedDir, text, async () => {
    const { parseBentoYaml, refusePythonBento } = await import("../store/bento.ts")
    const parsed = parseBentoYaml(text, file)
    refusePythonBento(parsed)
    return parsed
  })
  return {
    name: bento.tag.name,
    version: bento.tag.version,
    service: bento.service === "" ? null : bento.service,
    srcDir: path.join(dir, "src"),
    models: bento.models.map(({ tag, alias }) => ({
      tag: formatTag(tag),
      dir: path.join(modelsDir, tag.name, tag.version),
      ...(alias === undefined ? {} : { alias }),
    })),
    labels: bento.labels,
    description: bento.description,
    preparedDir,
    ...(bento.selfTest ? { selfTest: true } : {}),
  }
}

/** A manifest as it was prepared for this very text, or as it is parsed: the parser takes a tenth of the time to start. */
async function readManifest<T>(
  preparedDir: string | undefined,
  text: string,
  parse: () => Promise<T>,
): Promise<T> {
  const prepared = readPrepared(preparedDir, text, "json")
  return prepared === undefined ? parse() : (JSON.parse(prepared) as T) // made of the same by our own plan
}

/** A model of the spec, read, under the name that its runner has in routes, metrics and configuration. */
export interface SpecModel extends LoadedModelInfo {
  readonly name: string
  readonly spec: ServeModel
}

/** The models of a spec. A runner is named by the alias, else by the model's name, else (two versions) by the whole tag. */
export async function readModels(spec: ServeSpec): Promise<SpecModel[]> {
  const short = (model: ServeModel): string => model.alias ?? parseTag(model.tag).name
  return Promise.all(
    spec.models.map(async (model) => {
      const unique = spec.models.filter((other) => short(other) === short(model)).length === 1
      return {
        name: unique ? short(model) : model.tag,
        spec: model,
        model: await readModel(model, spec.preparedDir),
        dir: model.dir,
      }
    }),
  )
}

async function readModel(
  { tag, dir, manifest }: ServeModel,
  preparedDir: string | undefined,
): Promise<Model> {
  if (manifest !== undefined) return JSON.parse(manifest) as Model // written by our own command line
  const file = path.join(dir, MODEL_YAML)
  const text = await readText(file, "MODEL_NOT_FOUND", `model ${tag} is not in ${dir}`)
  return readManifest<Model>(preparedDir, text, async () => {
    const { parseModelYaml } = await import("../store/model.ts")
    return parseModelYaml(text, file)
  })
}

/** What is to be served, with what its definition says of itself. */
export interface LoadedService {
  readonly name: string
  readonly apis: readonly Api[]
  /** The models that the service calls. */
  readonly runners: readonly ModelRunner[]
  readonly describe: () => ServiceInfo
}

/** Binds the runners of a user's service to the models that they ask for. */
export function bindService(
  service: Service,
  models: readonly SpecModel[],
  runnerOf: (model: SpecModel) => ModelRunner,
): LoadedService {
  const bound = service.runners.map((handle) => {
    const target = runnerOf(findModel(handle, models))
    bindRunner(handle, target)
    return target
  })
  return {
    name: service.name,
    apis: service.apis,
    runners: [...new Set(bound)],
    describe: () => describeService(service),
  }
}

/** The model that `runner("…")` asks for: by alias, or by tag, whose version may be `latest`, a prefix or left out. */
export function matchModel({ model: asked }: AnyRunner, models: readonly SpecModel[]): SpecModel | undefined {
  const ref = tryParseTagRef(asked)
  const version = ref?.version === "latest" ? "" : (ref?.version ?? "")
  return (
    models.find((model) => model.spec.alias === asked || model.spec.tag === asked) ??
    models.find(({ model: { tag } }) => tag.name === ref?.name && tag.version.startsWith(version))
  )
}

/** As `matchModel`; throws when there is none, or when it has not the signatures that the runner calls. */
export function findModel(handle: AnyRunner, models: readonly SpecModel[]): SpecModel {
  const asked = handle.model
  const found = matchModel(handle, models)
  if (found === undefined) {
    const available = models.map(({ spec }) =>
      spec.alias === undefined ? spec.tag : `${spec.alias} (${spec.tag})`,
    )
    throw new BentoError("SERVICE_INVALID", `runner(${JSON.stringify(asked)}): the Bento has no such model`, {
      hint: `It has ${available.length === 0 ? "none" : available.join(", ")}; see \`models:\` in bentofile.yaml.`,
    })
  }
  const signatures = Object.keys(found.model.signatures)
  const strange = handle.methods.filter((method) => !signatures.includes(method))
  if (strange.length > 0) {
    throw new BentoError(
      "SERVICE_INVALID",
      `runner(${JSON.stringify(asked)}): ${found.spec.tag} has no signature ${strange.map((name) => JSON.stringify(name)).join(", ")}`,
      { hint: `It has ${signatures.map((name) => JSON.stringify(name)).join(", ")}.` },
    )
  }
  return found
}

/**
 * A service without code: every signature of every model is an API. `specsOf` says what a signature takes and gives; it is
 * asked when a request or a description needs it.
 */
export function serviceWithoutCode(
  name: string,
  models: readonly SpecModel[],
  runnerOf: (model: SpecModel) => ModelRunner,
  specsOf: (model: SpecModel, signature: string) => Pick<SignatureSpec, "inputs" | "outputs">,
): LoadedService {
  const several = models.length > 1
  const apis = models.flatMap((model) =>
    Object.keys(model.model.signatures).map((signature) => {
      const short = `/${signature}`
      const long = `/${model.name.replace(":", "/")}/${signature}`
      const descriptor = tensors(() => specsOf(model, signature))
      const definition = api({
        name: (several ? `${model.name}__${signature}` : signature).replaceAll(/[^A-Za-z0-9_-]/g, "_"),
        route: several || RESERVED_ROUTES.includes(short) ? long : short,
        doc: `Runs ${JSON.stringify(signature)} of the model ${model.spec.tag}.`,
        input: descriptor,
        output: descriptor,
        // The context that the app gives is the scope of the call.
        handler: (inputs, context) =>
          runInScope(runnerOf(model), signature, inputs, context as unknown as CallScope),
      })
      return { ...definition, knowsScope: true }
    }),
  )
  const described = new Service({ name, apis })
  return {
    name,
    apis,
    // Asked for by who serves; describing needs no runner, and has none.
    get runners() {
      return models.map(runnerOf)
    },
    describe: () => ({
      ...describeService(described),
      runners: models.map((model) => ({
        name: model.name,
        model: model.spec.tag,
        methods: Object.keys(model.model.signatures),
      })),
    }),
  }
}

const EXTENSIONS = [".ts", ".mts", ".js", ".mjs"]

/** Imports the user's module and takes the service from it. Errors of the user's own code pass through as they are. */
export async function importService(spec: ServeSpec & { readonly service: string }): Promise<Service> {
  if (spec.packagesDir !== undefined) resolvePackagesIn(spec.packagesDir)
  if (spec.preparedDir !== undefined) importPrepared(spec.preparedDir)
  const { file, exported } = parseEntry(spec.service)
  const module = await importModule(path.resolve(spec.srcDir, file), file)
  const names = Object.keys(module)
  const services = names.filter((name) => module[name] instanceof Service)
  const name = exported ?? (services.length === 1 ? services[0] : undefined)
  const value = name === undefined ? undefined : module[name]
  if (value instanceof Service) return value
  const hint =
    services.length > 0
      ? `Services that it exports: ${services.join(", ")}.`
      : `It exports ${names.length === 0 ? "nothing" : names.join(", ")}; a service is made by \`export const svc = service({ … })\`.`
  const problem =
    name === undefined
      ? `${file} exports ${services.length} services: say which, as ${file}:NAME`
      : value === undefined
        ? `${file} has no export ${JSON.stringify(name)}`
        : `export ${JSON.stringify(name)} of ${file} was not made by service()`
  throw new BentoError("SERVICE_INVALID", problem, { hint })
}

/** What is not found as usual is looked for in the node_modules of this folder. */
function resolvePackagesIn(dir: string): void {
  const inside = path.join(dir, "module.js")
  registerHooks({
    resolve: (specifier, context, next) => {
      try {
        return next(specifier, context)
      } catch (error) {
        const isPackage = /^(?!node:)(@[^/]+\/)?[^./@][^:]*$/.test(specifier)
        if (!isPackage || context.parentURL?.startsWith(pathToFileURL(dir).href) === true) throw error
        try {
          // `require` takes its parent from elsewhere.
          if (context.conditions.includes("require")) {
            return { url: pathToFileURL(createRequire(inside).resolve(specifier)).href, shortCircuit: true }
          }
          return next(specifier, { ...context, parentURL: pathToFileURL(inside).href })
        } catch {
          // The first error names the file that asks for it.
          throw error
        }
      }
    },
  })
}

/** `service.ts:svc`, `service.ts`, or as BentoML writes it `service:svc`. */
function parseEntry(entry: string): { file: string; exported: string | undefined } {
  const colon = entry.lastIndexOf(":")
  return colon === -1
    ? { file: entry, exported: undefined }
    : { file: entry.slice(0, colon), exported: entry.slice(colon + 1) }
}

async function importModule(absolute: string, file: string): Promise<Record<string, unknown>> {
  const candidates =
    path.extname(file) === "" ? EXTENSIONS.map((extension) => absolute + extension) : [absolute]
  for (const candidate of candidates) {
    const exists = await readFile(candidate).then(
      () => true,
      () => false,
    )
    // A namespace of a module, whose members are only known here.
    if (exists) return (await import(pathToFileURL(candidate).href)) as Record<string, unknown>
  }
  throw new BentoError("SERVICE_INVALID", `there is no service file ${file}`, {
    hint: `Looked for ${candidates.join(", ")}.`,
  })
}

async function readText(
  file: string,
  code: "BENTO_NOT_FOUND" | "MODEL_NOT_FOUND",
  message: string,
): Promise<string> {
  try {
    return await readFile(file, "utf8")
  } catch (error) {
    throw new BentoError(code, message, { cause: error })
  }
}
