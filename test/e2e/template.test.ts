/** The templates that docs/images.md shows, built and run; and a step above our files that needs no template. */
import assert from "node:assert/strict"
import { cp, mkdir, readFile, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, before, test } from "node:test"
import { bentoctl, docker, root, run, temporaryFolder, until200 } from "./support.ts"

const { folder, remove } = await temporaryFolder()
const env = { BENTOML_HOME: path.join(folder, "bentoml") }
const NAME = `bentoctl-e2e-template-${process.pid}`
const page = await readFile(path.join(root, "docs/images.md"), "utf8")
const templates = [...page.matchAll(/```handlebars\n(.*?)```/gs)].map(([, text = ""]) => text)

/** What each of them is for, asked of the image, and the port that its server then has. */
const proofs: readonly (readonly [script: string, answer: string, port: number])[] = [
  [
    "console.log(process.env.NODE_EXTRA_CA_CERTS, fs.existsSync('/etc/ssl/company.pem'))",
    "/etc/ssl/company.pem true",
    3000,
  ],
  ["console.log(fs.readFileSync('/opt/labels.txt', 'utf8').trim())", "setosa", 3000],
  ["console.log(process.getuid(), process.env.PORT)", "2000 8080", 8080],
]

before(async () => {
  const iris = path.join(root, "examples/iris/iris.onnx")
  assert.equal((await bentoctl(["models", "import", iris, "--name", "iris_clf"], env)).code, 0)
})
after(async () => {
  const tags = [...proofs.keys(), "reads"].map((each) => `${NAME}-${each}:latest`)
  await run("docker", ["rmi", "-f", ...tags])
  await remove()
})

test("each template of the documentation is proved here", () => assert.equal(templates.length, proofs.length))

test("a setup script that names where the Bento lies finds it there: the engine builds the image", async () => {
  const project = path.join(folder, "reads")
  await mkdir(project)
  await writeFile(
    path.join(project, "bentofile.yaml"),
    `name: ${NAME}-reads\nmodels: [iris_clf]\ndocker: {setup_script: setup.sh}\n`,
  )
  const script = '#!/bin/sh\nset -eu\nls "$BENTO_PATH/models" > /etc/models\n'
  await writeFile(path.join(project, "setup.sh"), script)
  const image = `${NAME}-reads:latest`
  const made = await bentoctl(["build", project, "--containerize", "-t", image, "-o", "json"], env)
  assert.equal(made.code, 0, made.stderr)
  const { image: told } = JSON.parse(made.stdout) as { image: { builder: string; builder_reason: string } }
  assert.deepEqual(
    [told.builder, told.builder_reason],
    ["dockerfile", "its docker.setup_script reads the files of the Bento"],
  )
  assert.equal(await docker("run", "--rm", "--entrypoint", "cat", image, "/etc/models"), "iris_clf")
})

for (const [index, [script, answer, port]] of proofs.entries()) {
  test(`template ${index + 1} of docs/images.md is built by the engine, and does what it says`, async () => {
    const project = path.join(folder, `project${index}`)
    await mkdir(project)
    await cp(path.join(root, "examples/iris/service.ts"), path.join(project, "service.ts"))
    await writeFile(path.join(project, "company.pem"), "")
    await writeFile(path.join(project, "image.hbs"), templates[index] ?? "")
    await writeFile(
      path.join(project, "bentofile.yaml"),
      `name: ${NAME}-${index}\nservice: service.ts:svc\nmodels: [iris_clf]\ndocker: {dockerfile_template: image.hbs}\n`,
    )
    const image = `${NAME}-${index}:latest`
    const made = await bentoctl(["build", project, "--containerize", "-t", image, "-o", "json"], env)
    assert.equal(made.code, 0, made.stderr)
    const result = JSON.parse(made.stdout) as { image: { builder: string } }
    assert.equal(result.image.builder, "dockerfile")
    const id = await docker("run", "-d", "-p", `127.0.0.1::${port}`, image)
    try {
      assert.equal(await docker("exec", id, "node", "-e", script), answer)
      const url = `http://127.0.0.1:${(await docker("port", id, String(port))).split(":").at(-1)}`
      await until200(`${url}/readyz`)
      const response = await fetch(`${url}/classify`, { method: "POST", body: "[[5.9, 3, 5.1, 1.8]]" })
      const { labels } = (await response.json()) as { labels: string[] }
      assert.deepEqual([response.status, labels], [200, ["virginica"]])
    } finally {
      await docker("rm", "-f", id)
    }
  })
}
