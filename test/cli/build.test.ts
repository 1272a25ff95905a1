/** What `build` and `containerize` print, as far as no engine is needed. */
import assert from "node:assert/strict"
import { existsSync } from "node:fs"
import { readFile, rm, symlink, writeFile } from "node:fs/promises"
import path from "node:path"
import { before, test } from "node:test"
import { folderWith, root, run, scratch } from "./support.ts"

let home: string
let folder: string
before(async () => {
  home = await scratch()
  folder = await folderWith({ "bentofile.yaml": "models: [iris]\nname: plain\nlabels: {a: 1, b: 2}\n" })
  const iris = path.join(root, "examples/iris/iris.onnx")
  assert.equal((await run(["models", "import", iris, "--name", "iris", "--version", "v1"], { home })).code, 0)
})

test("build names the Bento and the next steps", async () => {
  const { code, stdout, stderr } = await run(["build", folder, "--version", "1"], { home })
  assert.deepEqual([code, stderr], [0, ""])
  assert.equal(
    stdout,
    'Successfully built Bento(tag="plain:1").\n\nNext steps:\n' +
      "  serve it here     bentoctl serve plain:1\n  build its image   bentoctl containerize plain:1\n",
  )
})

test("-o tag prints nothing but the tag, with a version as BentoML makes them", async () => {
  const { stdout, stderr } = await run(["build", "-o", "tag"], { home, cwd: folder })
  assert.match(stdout, /^__tag__:plain:[a-z2-7]{16}\n$/)
  assert.equal(stderr, "")
})

test("-o json prints tag, folder and bento.yaml; name, version and labels go over the bentofile's", async () => {
  const args = ["--name", "other", "--version", "2", "--label", "b=3", "--label", "c=4", "-o", "json"]
  const { stdout } = await run(["build", folder, ...args], { home })
  const result = JSON.parse(stdout) as {
    tag: string
    path: string
    bento: { name: string; labels: object; models: { tag: string }[] }
  }
  assert.deepEqual([result.tag, result.path], ["other:2", path.join(home, "bentos/other/2")])
  assert.deepEqual(result.bento.labels, { a: "1", b: "3", c: "4" })
  assert.equal(result.bento.models[0]?.tag, "iris:v1")
})

test("--dry-run shows everything and writes nothing", async () => {
  const { code, stdout } = await run(["build", folder, "--version", "dry", "--dry-run"], { home })
  assert.equal(code, 0)
  assert.match(stdout, /^Bento\(tag="plain:dry"\) would be built; nothing was written\.\n/)
  assert.match(stdout, /\nbento\.yaml\n {2}service: /)
  assert.match(stdout, /\nBuilder\n {2}assemble, where the engine can\n\nDockerfile\n {2}.*FROM /s)
  const json = JSON.parse(
    (await run(["build", folder, "--version", "dry", "--dry-run", "-o", "json"], { home })).stdout,
  )
  assert.deepEqual(Object.keys(json as object), [
    "tag",
    "dry_run",
    "notes",
    "files",
    "bento",
    "plan",
    "dockerfile",
  ])
  assert.ok(!existsSync(path.join(home, "bentos/plain/dry")))
})

test("--dry-run says why an image cannot be assembled, as far as the Bento decides it", async () => {
  const project = await folderWith({
    "bentofile.yaml": "models: [iris]\ndocker: {setup_script: setup.sh}\n",
    "setup.sh": "#!/bin/sh\nls $BENTO_PATH\n",
  })
  const { stdout } = await run(["build", project, "--dry-run"], { home })
  assert.match(
    stdout,
    /\nBuilder\n {2}dockerfile \(its docker\.setup_script reads the files of the Bento\)\n/,
  )
})

test("-f names another bentofile, relative to the working directory", async () => {
  const cwd = await folderWith({ "conf/prod.yaml": "models: [iris]\nname: prod\n" })
  assert.equal(
    (await run(["build", "-f", "conf/prod.yaml", "-o", "tag", "--version", "1"], { home, cwd })).stdout,
    "__tag__:prod:1\n",
  )
})

test("-f names another bentofile than the one beside it, and a bentofile may be a link: what counts is kept", async () => {
  const service =
    'import { api, text, service } from "bentoctl/runtime"\n' +
    'export const svc = service({ name: "hello", apis: [api({ name: "hi", input: text(), output: text(), handler: (name) => name })] })\n'
  const cwd = await folderWith({
    "service.ts": service,
    "bentofile.yaml": "service: service.ts:svc\nname: usual\n",
    "prod.yaml": "service: service.ts:svc\nname: another\n",
  })
  const build = async (...args: string[]): Promise<string> => {
    const { stdout, stderr } = await run(["build", ...args, "-o", "tag", "--version", "1"], { home, cwd })
    return stdout + stderr
  }
  assert.equal(await build("-f", "prod.yaml"), "__tag__:another:1\n")
  const kept = (name: string): Promise<string> =>
    readFile(path.join(home, "bentos", name, "1/src/bentofile.yaml"), "utf8")
  assert.match(await kept("another"), /name: another/)
  await rm(path.join(cwd, "bentofile.yaml"))
  await writeFile(path.join(cwd, "linked.yaml"), "service: service.ts:svc\nname: linked\n")
  await symlink("linked.yaml", path.join(cwd, "bentofile.yaml"))
  assert.equal(await build(), "__tag__:linked:1\n")
  assert.match(await kept("linked"), /name: linked/)
})

test("a service of the working directory can be named instead of a folder", async () => {
  const cwd = await folderWith({
    "service.ts":
      'import { api, text, service } from "bentoctl/runtime"\n' +
      'export const svc = service({ name: "hello", apis: [api({ name: "hi", input: text(), output: text(), handler: (name) => name })] })\n',
  })
  assert.equal(
    (await run(["build", "service.ts:svc", "-o", "tag", "--version", "1"], { home, cwd })).stdout,
    "__tag__:hello:1\n",
  )
})

test("what a service prints while it is described goes to stderr", async () => {
  const cwd = await folderWith({
    "bentofile.yaml": "service: service.ts:svc\n",
    "service.ts":
      'import { api, text, service } from "bentoctl/runtime"\nconsole.log("loading weights")\n' +
      'export const svc = service({ name: "loud", apis: [api({ name: "hi", input: text(), output: text(), handler: (name) => name })] })\n',
  })
  const { stdout, stderr } = await run(["build", "-o", "tag", "--version", "1"], { home, cwd })
  assert.equal(stdout, "__tag__:loud:1\n")
  assert.match(stderr, /loading weights/)
})

test("--print-dockerfile needs no engine, and BENTOCTL_BASE_IMAGE names the base", async () => {
  await run(["build", folder, "--version", "p"], { home })
  const env = { DOCKER_HOST: "unix:///no/docker.sock" }
  const plain = await run(["containerize", "plain:p", "--print-dockerfile"], { home, env })
  assert.equal(plain.code, 0)
  assert.match(plain.stdout, /^FROM node:24-bookworm-slim/m)
  const other = await run(["containerize", "plain:p", "--print-dockerfile"], {
    home,
    env: { ...env, BENTOCTL_BASE_IMAGE: "my/base:1" },
  })
  assert.match(other.stdout, /^FROM my\/base:1/m)
})

test("a Bento that lost its setup script is told so, and is no defect of ours", async () => {
  const project = await folderWith({
    "bentofile.yaml": "models: [iris]\nname: torn\ndocker: {setup_script: setup.sh}\n",
    "setup.sh": "#!/bin/sh\n",
  })
  assert.equal((await run(["build", project, "--version", "1"], { home })).code, 0)
  await rm(path.join(home, "bentos/torn/1/env/docker/setup_script"))
  const { code, stderr } = await run(["containerize", "torn:1", "--print-dockerfile"], { home })
  assert.equal(code, 1)
  assert.match(
    stderr,
    /torn\/1 lacks its env\/docker\/setup_script\nHint: .*build it again\. \[STORE_CORRUPT\]/,
  )
})
