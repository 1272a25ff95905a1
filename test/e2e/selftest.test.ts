/** An image tests itself: `docker run IMAGE selftest`, and `selftest: true` before it is ready. */
import assert from "node:assert/strict"
import { copyFile, readFile, writeFile } from "node:fs/promises"
import path from "node:path"
import { mkdir } from "node:fs/promises"
import { after, before, test } from "node:test"
import { bentoctl, docker, root, run, temporaryFolder, until200, type Ran } from "./support.ts"

const { folder, remove } = await temporaryFolder()
const env = { BENTOML_HOME: path.join(folder, "bentoml") }
const NAME = `bentoctl-e2e-selftest-${process.pid}`
const images = { code: `${NAME}-code:1`, plain: `${NAME}-plain:1` }
const containers: string[] = []

after(async () => {
  if (containers.length > 0) await docker("rm", "-f", ...containers)
  await run("docker", ["rmi", "-f", ...Object.values(images)])
  await remove()
})

const ok = async (...args: string[]): Promise<string> => {
  const { code, stdout, stderr } = await bentoctl(args, env)
  assert.equal(code, 0, `bentoctl ${args.join(" ")} exits ${code}:\n${stdout}${stderr}`)
  return stdout.trim().replace("__tag__:", "")
}

let model: string
before(async () => {
  const iris = path.join(root, "examples/iris")
  const examples = ["--example", path.join(iris, "examples.json")]
  model = await ok(
    "models",
    "import",
    path.join(iris, "iris.onnx"),
    "--name",
    "iris_clf",
    ...examples,
    "-o",
    "tag",
  )
  const models = "models: [iris_clf]\nselftest: true\n"
  for (const [kind, bentofile] of Object.entries({
    code: `service: service.ts:svc\n${models}`,
    plain: models,
  })) {
    const project = path.join(folder, kind)
    await mkdir(project)
    await writeFile(path.join(project, "bentofile.yaml"), `name: tested\n${bentofile}`)
    if (kind === "code") await copyFile(path.join(iris, "service.ts"), path.join(project, "service.ts"))
    const tag = await ok("build", project, "-o", "tag")
    await ok("containerize", tag, "-t", images[kind === "code" ? "code" : "plain"])
  }
})

const ONNX = "saved_model.onnx"
const EXAMPLES = "selftest.json"

/** A container of which one file of the model was changed before it starts. */
async function changed(
  image: string,
  args: readonly string[],
  file: string,
  change: (bytes: Buffer) => void | string,
): Promise<Ran> {
  const place = `models/${model.replace(":", "/")}/${file}`
  const bytes = await readFile(path.join(env.BENTOML_HOME, place))
  const copy = path.join(folder, file)
  await writeFile(copy, change(bytes) ?? bytes)
  const id = await docker("create", "--network", "none", image, ...args)
  containers.push(id)
  await docker("cp", copy, `${id}:/home/bentoml/bento/${place}`)
  return run("docker", ["start", "-a", id])
}

/** One bit in the weights of a tree, where the graph still loads. */
function flipBit(bytes: Buffer): void {
  const at = bytes.length >> 1
  bytes[at] = (bytes[at] ?? 0) ^ 1
}

for (const [kind, image] of Object.entries(images)) {
  test(`an image ${kind === "code" ? "with" : "without"} code passes, without network, rights or a writable root`, async () => {
    const args = [
      "run",
      "--rm",
      "--read-only",
      "--cap-drop",
      "ALL",
      "--network",
      "none",
      "--user",
      "12345:0",
      image,
    ]
    const { code, stdout, stderr } = await run("docker", [...args, "selftest"])
    assert.equal(code, 0, stderr)
    assert.match(stdout, new RegExp(`^MODEL +SIGNATURE +EXAMPLE +RESULT\\n${model} +run +setosa +ok `))
    assert.match(stdout, /\n\n4 examples passed\.\n$/)
    const json = await run("docker", [...args, "selftest", "-o", "json"])
    assert.deepEqual([json.code, (JSON.parse(json.stdout) as { ok: boolean }).ok], [0, true])
  })

  test(`an image ${kind === "code" ? "with" : "without"} code and a changed byte in the weights fails, and says so`, async () => {
    const tested = await changed(image, ["selftest"], ONNX, flipBit)
    assert.equal(tested.code, 1)
    assert.match(tested.stdout, new RegExp(`${model} +FAILED: the file saved_model\\.onnx has changed since`))
    const served = await changed(image, [], ONNX, flipBit)
    assert.deepEqual([served.code, served.stdout], [1, ""])
    assert.match(
      served.stderr,
      /the self-test of \S+ failed:\n {2}the file saved_model\.onnx has changed .*\n.*\[SELFTEST_FAILED\]/,
    )
  })
}

test("an image whose model takes another dtype fails, and names both", async () => {
  const { code, stdout } = await changed(images.plain, ["selftest"], ONNX, (bytes) => {
    // `elem_type` of the graph's input X, the last X in the file: float becomes double.
    bytes[bytes.lastIndexOf(Buffer.from([0x0a, 1, 0x58, 0x12])) + 8] = 11
  })
  assert.equal(code, 1)
  assert.match(
    stdout,
    /FAILED: run: input "X" is float64 \[\?, 4\], and was float32 \[\?, 4\] when recorded\n/,
  )
})

test("an image with another ONNX Runtime than that of the examples says so, and names it where answers differ", async () => {
  const other = (bytes: Buffer): string =>
    bytes.toString().replace(/"onnxruntime": "[^"]*"/, '"onnxruntime": "1.2.3"')
  const both = /recorded with ONNX Runtime 1\.2\.3, running on \d+\.\d+\.\d+/.source
  const passed = await changed(images.plain, ["selftest"], EXAMPLES, other)
  assert.equal(passed.code, 0)
  assert.match(
    passed.stdout,
    new RegExp(`WARNING: ${both}; the answers agree\n\n4 examples passed, with a warning`),
  )
  const served = await changed(images.plain, [], EXAMPLES, (bytes) =>
    other(bytes).replace('"output_label":[0]', '"output_label":[7]'),
  )
  assert.equal(served.code, 1)
  assert.match(
    served.stderr,
    new RegExp(`expected 7, received 0 .*\n +probably because of another ONNX Runtime: ${both}\n`),
  )
})

test("a server that tests itself becomes ready", async () => {
  const id = await docker("run", "-d", "-p", "127.0.0.1::3000", images.plain)
  containers.push(id)
  const port = (await docker("port", id, "3000")).split(":").at(-1)
  await until200(`http://127.0.0.1:${port}/readyz`)
  const { stderr } = await run("docker", ["logs", id])
  assert.match(stderr, /iris_clf: self-test passed, 4 examples/)
})
