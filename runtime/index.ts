/**
 * `bentoctl/runtime`: what a service file imports.
 *
 * ```ts
 * import { api, json, ndarray, runner, service, toNested } from "bentoctl/runtime"
 *
 * const iris = runner("iris_clf:latest")
 *
 * export const svc = service({
 *   name: "iris_classifier",
 *   runners: [iris],
 *   apis: [
 *     api({
 *       name: "classify",
 *       input: ndarray({ dtype: "float32", shape: [-1, 4] }),
 *       output: json<unknown>(),
 *       handler: async (rows) => {
 *         const { output_label } = await iris.run(rows)
 *         return output_label && toNested(output_label)
 *       },
 *     }),
 *   ],
 * })
 * ```
 */
export { ApiError } from "./errors.ts"
export { json, ndarray, text } from "./io.ts"
export type { Descriptor, InputDescriptor, NdarrayOptions, OutputDescriptor } from "./io.ts"
export { api, runner, service } from "./service.ts"
export type {
  Api,
  ApiContext,
  ApiOptions,
  AnyRunner,
  RunMethod,
  Runner,
  Service,
  ServiceOptions,
} from "./service.ts"
export { castTensor } from "./tensor-cast.ts"
export { fromNested, toNested } from "./tensor-json.ts"
export type { Nested } from "./tensor-json.ts"
export type { DType, Tensor, TensorData, Tensors } from "./tensor.ts"
