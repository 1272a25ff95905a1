/** What `bentoctl serve` and `bentoctl build` were pointed at. */
import { existsSync, statSync } from "node:fs"
import path from "node:path"
import { BentoError } from "../store/errors.ts"
import { openBentoStore } from "../store/store.ts"
import { parseTagRef, tryParseTagRef } from "../store/tag.ts"

export type Target =
  /** A folder with a bentofile.yaml, or with `service` (`file.ts:export`) instead of what its bentofile names. */
  | { readonly kind: "project"; readonly contextDir: string; readonly service?: string }
  /** A Bento that was built. */
  | { readonly kind: "bento"; readonly dir: string }

/** `service.ts:svc`: a script file, and the name that it exports. */
const SERVICE = /^(.+\.[cm]?[jt]s):([\w$]+)$/

/** A folder, `service.ts:svc`, or the tag of a Bento; in this order, because only the last one needs the store. */
export async function resolveTarget(given: string, cwd: string, home: string): Promise<Target> {
  const folder = path.resolve(cwd, given)
  if (isFolder(folder)) {
    return existsSync(path.join(folder, "bento.yaml"))
      ? { kind: "bento", dir: folder }
      : { kind: "project", contextDir: folder }
  }
  if (SERVICE.test(given)) return { kind: "project", contextDir: cwd, service: given }
  const store = openBentoStore(home)
  try {
    return { kind: "bento", dir: store.dir(await store.resolve(parseTagRef(given))) }
  } catch (error) {
    const isUnknown = error instanceof BentoError && ["BENTO_NOT_FOUND", "TAG_INVALID"].includes(error.code)
    if (!isUnknown) throw error
    const notTag = tryParseTagRef(given) === null ? "no tag" : `no Bento in ${store.root}`
    throw new BentoError(
      "BENTO_NOT_FOUND",
      `"${given}" is neither a folder nor a service (\`service.ts:svc\`), and ${notTag}`,
      {
        cause: error,
        ...(error.hint !== undefined && error.code === "BENTO_NOT_FOUND" && { hint: error.hint }),
      },
    )
  }
}

/** `build` takes a folder, or a service of the working directory, as BentoML does. */
export function resolveContext(given: string, cwd: string): { contextDir: string; service?: string } {
  const folder = path.resolve(cwd, given)
  if (isFolder(folder)) return { contextDir: folder }
  if (SERVICE.test(given)) return { contextDir: cwd, service: given }
  const isFile = statSync(folder, { throwIfNoEntry: false }) !== undefined
  throw new BentoError(
    "BENTOFILE_NOT_FOUND",
    isFile ? `${given} is a file, not a folder` : `no such folder: ${given}`,
    {
      hint: isFile
        ? "Give the folder that holds it; if it is a bentofile of another name, name it with `-f`."
        : "Give the folder that holds bentofile.yaml, or a service such as `service.ts:svc`.",
    },
  )
}

function isFolder(file: string): boolean {
  return statSync(file, { throwIfNoEntry: false })?.isDirectory() ?? false
}
