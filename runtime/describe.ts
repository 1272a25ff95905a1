/** What the describing child process says of a user's service. */
import type { DescribeResult, ServeSpec, ServiceInfo } from "../store/bento.ts"
import {
  type SpecModel,
  findModel,
  importService,
  matchModel,
  readModels,
  serviceWithoutCode,
} from "./load.ts"
import { locate } from "./locate.ts"
import { openApi } from "./openapi.ts"
import type { ModelRunner, SignatureSpec } from "./runner.ts"
import { describeService } from "./service.ts"

/**
 * Imports the service of a spec and describes it. What is wrong with the user's code is a result, not an exception.
 * `loadSignatures` asks ONNX Runtime, for models whose manifest does not say what they take.
 */
export async function describe(
  spec: ServeSpec,
  loadSignatures: (model: SpecModel) => Promise<Readonly<Record<string, SignatureSpec>>>,
): Promise<DescribeResult> {
  try {
    const service = await describeSpec(spec, loadSignatures)
    const options = {
      version: spec.version,
      ...(spec.description === undefined ? {} : { description: spec.description }),
    }
    return { ok: true, service, openapi: openApi(service, options) }
  } catch (error) {
    return { ok: false, ...locate(error, spec) }
  }
}

async function describeSpec(
  spec: ServeSpec,
  loadSignatures: (model: SpecModel) => Promise<Readonly<Record<string, SignatureSpec>>>,
): Promise<ServiceInfo> {
  if (spec.service !== null) {
    const service = await importService({ ...spec, service: spec.service })
    const models = await readModels(spec)
    for (const handle of service.runners) {
      // A model that only a runner names is resolved in the store by our parent, which then asks again with it.
      if (matchModel(handle, models) !== undefined) findModel(handle, models)
    }
    return describeService(service)
  }
  const models = await readModels(spec)
  // It brings the YAML parser, which code does not need.
  const { tensorSpecs } = await import("../store/model.ts")
  const known = new Map<string, Pick<SignatureSpec, "inputs" | "outputs">>()
  for (const model of models) {
    let loaded: Readonly<Record<string, SignatureSpec>> | undefined
    for (const signature of Object.keys(model.model.signatures)) {
      const specs = tensorSpecs(model.model, signature) ?? (loaded ??= await loadSignatures(model))[signature]
      if (specs !== undefined) known.set(`${model.name} ${signature}`, specs)
    }
  }
  const none = (): ModelRunner => {
    throw new Error("nothing runs while a service is described")
  }
  const service = serviceWithoutCode(
    spec.name,
    models,
    none,
    (model, signature) => known.get(`${model.name} ${signature}`) ?? { inputs: [], outputs: [] },
  )
  return service.describe()
}
