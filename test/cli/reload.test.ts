/** The parts of `serve --reload`: what counts as a change, and when it is seen. */
import assert from "node:assert/strict"
import { mkdir, readFile, rename, symlink, writeFile } from "node:fs/promises"
import path from "node:path"
import { test } from "node:test"
import { openProject, type Project } from "../../cli/project.ts"
import { serveReloading } from "../../cli/reload.ts"
import { watchFolders } from "../../cli/watch.ts"
import { contextOf, folderWith, scratch, until } from "./support.ts"

test("a link that leads out of the project hides no change of another file", async () => {
  const [dir, outside] = await Promise.all([
    folderWith({ "bentofile.yaml": "service: service.ts:svc\n", "a.ts": "", "z.ts": "" }),
    folderWith({ "shared.ts": "" }),
  ])
  await symlink(path.join(outside, "shared.ts"), path.join(dir, "link.ts"))
  const { context } = contextOf({ home: path.join(outside, "home") })
  const { look } = openProject(context, { kind: "project", contextDir: dir })
  const seen = [(await look())(undefined)]
  for (const file of ["a.ts", "z.ts", "link.ts"]) {
    await writeFile(path.join(dir, file), "changed")
    seen.push((await look())(undefined))
  }
  assert.equal(new Set(seen).size, seen.length, seen.join("\n\n"))
})

test("what is saved while the service is being described is described next", async () => {
  const dir = await folderWith({ "service.ts": "1" })
  const file = path.join(dir, "service.ts")
  const described: string[] = []
  const project: Project = {
    roots: [{ dir, depth: 0 }],
    spec: async () => {
      const text = await readFile(file, "utf8")
      described.push(text)
      if (text === "1") await writeFile(file, "2")
      return { name: "x", version: null, service: null, srcDir: dir, models: [], labels: {} }
    },
    look: async () => {
      const text = await readFile(file, "utf8")
      return () => text
    },
  }
  const { context, press } = contextOf({})
  const waiting = { args: ["-e", "setInterval(() => {}, 1000)"], cwd: dir }
  const voice = { note: () => {}, debug: false }
  const ended = serveReloading(context, project, () => waiting, voice)
  try {
    await until("the second description", () => described.length > 1, 5000)
    assert.deepEqual(described, ["1", "2"])
  } finally {
    press("SIGTERM")
    await ended
  }
})

test("a folder that takes the place of another one is watched", { timeout: 20_000 }, async () => {
  const [dir, elsewhere] = await Promise.all([folderWith({ "lib/a.ts": "" }), scratch()])
  const lib = path.join(dir, "lib")
  const { signal } = new AbortController()
  const watcher = await watchFolders([{ dir, depth: Infinity }], assert.fail)
  try {
    await rename(lib, path.join(elsewhere, "lib"))
    await mkdir(lib)
    assert.ok(await watcher.changed(signal))
    await watcher.refresh()
    await writeFile(path.join(lib, "a.ts"), "")
    assert.ok(await watcher.changed(signal))
  } finally {
    watcher.close()
  }
})
