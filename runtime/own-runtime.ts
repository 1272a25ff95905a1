/** Who imports us. */
import { registerHooks } from "node:module"

/** `import … from "bentoctl/runtime"` in a user's module is this very program's index, wherever the module lies. */
export function resolveOwnRuntime(): void {
  const index = new URL(import.meta.url.endsWith(".ts") ? "./index.ts" : "./index.js", import.meta.url).href
  registerHooks({
    resolve: (specifier, context, next) =>
      specifier === "bentoctl/runtime" ? { url: index, shortCircuit: true } : next(specifier, context),
  })
}
