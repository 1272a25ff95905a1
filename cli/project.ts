/** A project folder as `serve` sees it: what to serve, and whether anything that matters has changed. */
import { readdir, stat } from "node:fs/promises"
import path from "node:path"
import { findBentofile, readBentofile } from "../images/bentofile.ts"
import { serveSpecOf } from "../images/build.ts"
import { walkContext } from "../images/walk.ts"
import type { ServeSpec } from "../store/bento.ts"
import type { Context } from "./context.ts"
import type { Target } from "./target.ts"
import type { Root } from "./watch.ts"

export interface Project {
  /** What to watch. */
  readonly roots: readonly Root[]
  /** Reads the bentofile, resolves the models, and loads the service in a child process: throws what is wrong. */
  readonly spec: (signal: AbortSignal) => Promise<ServeSpec>
  /** Looks at all that the project may be made of. */
  readonly look: () => Promise<Fingerprint>
}

/**
 * A text that differs when something that the project was made of does: a file that `include`, `exclude` and
 * .bentoignore let through, the bentofile, or the versions of the models that `served` names (of all, without it).
 */
export type Fingerprint = (served: ServeSpec | undefined) => string

export function openProject(context: Context, target: Target & { readonly kind: "project" }): Project {
  const { contextDir } = target
  const models = path.join(context.home, "models")
  return {
    roots: [
      { dir: contextDir, depth: Infinity },
      { dir: models, depth: 1 },
    ],
    spec: (signal) =>
      serveSpecOf({
        contextDir,
        service: target.service,
        home: context.home,
        runtimeDir: context.runtimeDir,
        nodePath: context.nodePath,
        env: context.env,
        signal,
        stderr: context.stderr,
        describeTimeoutMs: context.describeTimeoutMs,
      }),
    look: async () => {
      const [sources, versions] = await Promise.all([sourcesOf(contextDir, context.home), versionsOf(models)])
      return (served) => {
        const names = served?.models.map(({ tag }) => tag.split(":")[0] ?? tag) ?? [...versions.keys()]
        return [...sources, ...names.map((name) => `${name} ${versions.get(name) ?? ""}`)].join("\n")
      }
    },
  }
}

/** While the bentofile is being edited it may be wrong; then its patterns are not known, and every file counts. */
async function sourcesOf(contextDir: string, home: string): Promise<string[]> {
  const file = await findBentofile(contextDir)
  const bentofile = file === null ? null : await readBentofile(file).catch(() => null)
  const refused: string[] = []
  const walk = await walkContext(contextDir, {
    include: bentofile?.include ?? ["*"],
    exclude: bentofile?.exclude ?? [],
    skip: [home],
    // A build would say so; it must not hide what else changes.
    onRefused: (name) => refused.push(path.join(contextDir, name)),
  }).catch(() => ({ entries: [] }))
  const files = walk.entries.map((entry) =>
    entry.kind === "file" ? entry.source : path.join(contextDir, entry.path),
  )
  return Promise.all([...(file === null ? [] : [file]), ...files, ...refused].map(stampOf))
}

async function stampOf(file: string): Promise<string> {
  const info = await stat(file).catch(() => null)
  return `${file} ${info?.size} ${info?.mtimeMs}`
}

async function versionsOf(root: string): Promise<ReadonlyMap<string, string>> {
  const names = await readdir(root).catch(() => [])
  const versions = await Promise.all(names.map((name) => readdir(path.join(root, name)).catch(() => [])))
  return new Map(names.map((name, index) => [name, versions[index]?.toSorted().join(" ") ?? ""]))
}
