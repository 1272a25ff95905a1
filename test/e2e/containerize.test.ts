/** What `containerize` prints and tags when all is well. */
import assert from "node:assert/strict"
import { mkdir, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, before, test } from "node:test"
import { bentoctl, docker, root, temporaryFolder } from "./support.ts"

const { folder, remove } = await temporaryFolder()
const env = { BENTOML_HOME: path.join(folder, "bentoml") }
const names = ["printed:1", "printed:latest", "127.0.0.1:1/ml/printed:a", "printed_too:b"]

after(async () => {
  await docker("rmi", "-f", ...names).catch(() => "")
  await remove()
})

before(async () => {
  const model = path.join(root, "examples/iris/iris.onnx")
  assert.equal((await bentoctl(["models", "import", model, "--name", "iris"], env)).code, 0)
  await mkdir(path.join(folder, "project"))
  await writeFile(path.join(folder, "project/bentofile.yaml"), "models: [iris]\nname: printed\n")
})

test("build --containerize names Bento and image, and how to run it; progress is on stderr", async () => {
  const args = ["build", path.join(folder, "project"), "--version", "1", "--containerize"]
  const { code, stdout, stderr } = await bentoctl(args, env)
  assert.equal(code, 0, stderr)
  assert.match(
    stdout,
    /^Successfully built Bento\(tag="printed:1"\)\.\nSuccessfully built the image of Bento\(tag="printed:1"\)\.\n {2}printed:1\n {2}printed:latest\n {2}[\d.]+ MiB, in [\d.]+s\n\nRun it:\n {2}docker run --rm -p 3000:3000 printed:1\n$/,
  )
  assert.match(stderr, /^builder: assemble\n#1 /)
})

test("-t names the image, more than once; -o json prints its id and size, and nothing else", async () => {
  const args = [
    "containerize",
    "printed",
    "-t",
    "127.0.0.1:1/ml/printed:a",
    "-t",
    "printed_too:b",
    "-o",
    "json",
  ]
  const { code, stdout, stderr } = await bentoctl(args, env)
  assert.deepEqual([code, stderr], [0, ""])
  const result = JSON.parse(stdout) as Record<string, unknown>
  assert.deepEqual(Object.keys(result), [
    "bento",
    "image_id",
    "builder",
    "builder_reason",
    "tags",
    "size_bytes",
    "duration_ms",
  ])
  assert.deepEqual(
    [result["bento"], result["tags"]],
    ["printed:1", ["127.0.0.1:1/ml/printed:a", "printed_too:b"]],
  )
  for (const tag of ["127.0.0.1:1/ml/printed:a", "printed_too:b"]) {
    assert.equal(await docker("image", "inspect", "-f", "{{.Id}}", tag), result["image_id"])
  }
})

test("-o tag prints the image's first name", async () => {
  const { stdout, stderr } = await bentoctl(["containerize", "printed:1", "-o", "tag"], env)
  assert.deepEqual([stdout, stderr], ["__tag__:printed:1\n", ""])
})

test("a second build takes its layers from the cache, and NDJSON ends in the image", async () => {
  const { stdout, stderr } = await bentoctl(
    ["containerize", "printed", "--progress", "json", "-o", "tag"],
    env,
  )
  assert.equal(stdout, "__tag__:printed:1\n")
  const events = stderr
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as { type: string; name?: string; state?: string })
  assert.equal(events.at(-1)?.type, "built")
  const ends = events.filter((event) => event.type === "step" && event.state !== "started")
  const layers = ends.filter((event) => event.name?.startsWith("layer "))
  assert.equal(layers.length, 3)
  assert.deepEqual(
    layers.filter((event) => event.state !== "cached"),
    [],
  )
})

test("a name that is no image reference is refused before anything is built", async () => {
  const { code, stdout, stderr } = await bentoctl(["containerize", "printed", "-t", "Not A Name"], env)
  assert.deepEqual([code, stdout], [1, ""])
  assert.match(stderr, /Not A Name/)
})
