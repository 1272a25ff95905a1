/** The parts of `serve --reload`: what counts as a change, and when it is seen. */
import assert from "node:assert/strict"
import { symlink, writeFile } from "node:fs/promises"
import path from "node:path"
import { test } from "node:test"
import { openProject } from "../../cli/project.ts"
import { contextOf, folderWith } from "./support.ts"

test("a link that leads out of the project hides no change of another file", async () => {
  const [dir, outside] = await Promise.all([
    folderWith({ "bentofile.yaml": "service: service.ts:svc\n", "a.ts": "", "z.ts": "" }),
    folderWith({ "shared.ts": "" }),
  ])
  await symlink(path.join(outside, "shared.ts"), path.join(dir, "link.ts"))
  const { context } = contextOf({ home: path.join(outside, "home") })
  const { fingerprint } = openProject(context, { kind: "project", contextDir: dir })
  const seen = [await fingerprint(undefined)]
  for (const file of ["a.ts", "z.ts", "link.ts"]) {
    await writeFile(path.join(dir, file), "changed")
    seen.push(await fingerprint(undefined))
  }
  assert.equal(new Set(seen).size, seen.length, seen.join("\n\n"))
})
