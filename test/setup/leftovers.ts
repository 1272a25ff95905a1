/** What a run of tests leaves in the engine beside the images that it names: those of no use but to the next build. */

import { run } from "./process.ts"

/** Foundations and models that bentoctl keeps for itself; images that lost their name to a newer one. */
const KINDS = [
  ["reference=bentoctl/foundation", "reference=bentoctl/model"],
  ["dangling=true", "label=bentoctl.bento"],
  ["dangling=true", "label=bentoctl.foundation"],
]

/** Remembers what of them the engine has; the result removes those that came since. */
export async function watchLeftovers(): Promise<() => Promise<void>> {
  const before = new Set(await leftovers())
  return async () => {
    const since = (await leftovers()).filter((image) => !before.has(image))
    if (since.length > 0) await run("docker", ["image", "rm", ...since])
  }
}

async function leftovers(): Promise<string[]> {
  const format = '{{if eq .Tag "<none>"}}{{.ID}}{{else}}{{.Repository}}:{{.Tag}}{{end}}'
  const asked = KINDS.map((filters) =>
    run("docker", ["images", "--format", format, ...filters.flatMap((filter) => ["--filter", filter])]),
  )
  const found = await Promise.all(asked)
  return found.flatMap(({ stdout }) => stdout.split("\n").filter((image) => image !== ""))
}
