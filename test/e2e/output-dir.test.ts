/** `containerize --output-dir`: a folder that anyone's `docker build` turns into the image that we would make. */
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { mkdir, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, before, test } from "node:test"
import { createDockerBuilder } from "../../images/docker.ts"
import type { BuildContext } from "../../images/context.ts"
import { bentoctl, docker, filesOf, root, run, temporaryFolder } from "./support.ts"

const { folder, remove } = await temporaryFolder()
const env = { BENTOML_HOME: path.join(folder, "bentoml") }
/** Names are ours alone, so that nothing of the user's is touched. */
const NAME = `bentoctl-e2e-output-${process.pid}`
const made = new Set<string>()
after(async () => {
  if (made.size > 0) await run("docker", ["rmi", "-f", ...made])
  await remove()
})

before(async () => {
  const model = path.join(root, "examples/iris/iris.onnx")
  assert.equal((await bentoctl(["models", "import", model, "--name", "iris_clf"], env)).code, 0)
})

/** Writes the context of a Bento, and makes our own image of it; their places. */
async function both(
  project: string,
  name: string,
  args: readonly string[] = [],
): Promise<{ context: string; ours: string; theirs: string }> {
  const tag = `${NAME}-${name}`
  const built = await bentoctl(["build", project, "--name", tag, "--version", "1"], env)
  assert.equal(built.code, 0, built.stderr)
  const context = path.join(folder, name)
  const nowhere = { ...env, DOCKER_HOST: "unix:///nonexistent.sock" }
  const written = await bentoctl(["containerize", tag, "--output-dir", context, ...args], nowhere)
  assert.equal(written.code, 0, written.stderr)
  // Whoever builds it may have another processor.
  assert.match(written.stdout, /^ {2}docker build .*--platform linux\/amd64 /m)
  const [ours, theirs] = [`${tag}:ours`, `${tag}:theirs`]
  made.add(ours).add(theirs)
  const ran = await bentoctl(["containerize", tag, "-t", ours, "--builder", "dockerfile", ...args], env)
  assert.equal(ran.code, 0, ran.stderr)
  return { context, ours, theirs }
}

/** All that a container can see; `Image` is the builder's own note. */
async function configOf(image: string): Promise<object> {
  const [found] = JSON.parse(await docker("image", "inspect", image)) as [
    { Config: object; Architecture: string; Os: string },
  ]
  const { Config, Architecture, Os } = found
  const told = Object.entries(Config).filter(
    ([key, value]) => key !== "Image" && value !== null && value !== "",
  )
  return { ...Object.fromEntries(told), Architecture, Os }
}

test("a plain docker build of it gives our files and our config", async () => {
  const { context, ours, theirs } = await both(path.join(root, "examples/iris"), "plain", [
    "--label",
    'a="b" $c',
  ])
  await docker("build", "-q", "-t", theirs, context)
  assert.deepEqual(await configOf(theirs), await configOf(ours))
  assert.deepEqual(await filesOf(theirs), await filesOf(ours))
})

test("with steps that run, BuildKit gives our files and our config", async () => {
  const project = path.join(folder, "project")
  await mkdir(project)
  const text =
    "models: [iris_clf]\ndocker: {setup_script: setup.sh}\nenvs: [{name: T, value: v, stage: build}]\n"
  await writeFile(path.join(project, "bentofile.yaml"), text)
  const script = `#!/bin/sh\n# ${NAME}\nset -eu\nprintf %s "$T" > /etc/t\nchmod 0600 /etc/t\ntouch -d @0 /etc/t\n`
  await writeFile(path.join(project, "setup.sh"), script)
  const { context, ours, theirs } = await both(project, "steps", ["--build-arg", "T=given"])
  const tar: BuildContext["tar"] = () =>
    spawn("tar", ["-C", context, "-c", "."], { stdio: ["ignore", "pipe", "inherit"] }).stdout
  const entries: BuildContext["entries"] = []
  const dockerfile = "" as BuildContext["dockerfile"]
  const build = createDockerBuilder(process.env).build(
    { dockerfile, entries, sizeBytes: 0, digest: async () => "", tar },
    { tags: [theirs], platform: "linux/amd64" },
  )
  for await (const _ of build);
  assert.deepEqual(await configOf(theirs), await configOf(ours))
  assert.deepEqual(await filesOf(theirs), await filesOf(ours))
})
