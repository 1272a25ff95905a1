/** Images on a base without a shell, by both builders, on a stand-in for Google's image. */
import assert from "node:assert/strict"
import { writeFile, mkdir, cp } from "node:fs/promises"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { makeDistroless } from "../setup/distroless.ts"
import { REAL_BASE } from "../setup/base-image.ts"
import { bentoctl, docker, root, run, temporaryFolder, until200 } from "./support.ts"

const { folder, remove } = await temporaryFolder()
const env = { BENTOML_HOME: path.join(folder, "bentoml") }
const NAME = `bentoctl-e2e-distroless-${process.pid}`
const BASE = `${NAME}-base:1`
const project = path.join(folder, "iris")
let tag: string

before(async () => {
  makeDistroless(process.env["BENTOCTL_BASE_IMAGE"] ?? REAL_BASE, BASE)
  await mkdir(project)
  await cp(path.join(root, "examples/iris/service.ts"), path.join(project, "service.ts"))
  await writeFile(
    path.join(project, "bentofile.yaml"),
    `name: ${NAME}\nservice: service.ts:svc\nmodels: [iris_clf]\ndocker: {distro: distroless, base_image: "${BASE}", env: {A: "1"}}\n`,
  )
  const iris = path.join(root, "examples/iris/iris.onnx")
  assert.equal((await bentoctl(["models", "import", iris, "--name", "iris_clf"], env)).code, 0)
  const built = await bentoctl(["build", project, "-o", "tag"], env)
  assert.equal(built.code, 0, built.stderr)
  tag = built.stdout.trim().replace("__tag__:", "")
})
after(async () => {
  await run("docker", ["rmi", "-f", `${NAME}:assemble`, `${NAME}:dockerfile`, BASE])
  await remove()
})

for (const builder of ["assemble", "dockerfile"] as const) {
  describe(`an image on distroless, made by ${builder}`, () => {
    const image = `${NAME}:${builder}`

    test("is built without anything that would need a shell", async () => {
      const made = await bentoctl(["containerize", tag, "-t", image, "--builder", builder, "-o", "json"], env)
      assert.equal(made.code, 0, made.stderr)
      assert.equal((JSON.parse(made.stdout) as { builder: string }).builder, builder)
    })

    test("serves as user 1034 on a read-only root without capabilities, and is healthy", async () => {
      const hard = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--health-interval", "1s"]
      const id = await docker("run", "-d", "--rm", "-p", "127.0.0.1::3000", ...hard, image)
      try {
        const port = (await docker("port", id, "3000")).split(":").at(-1)
        await until200(`http://127.0.0.1:${port}/readyz`)
        const answer = await fetch(`http://127.0.0.1:${port}/classify`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: "[[5.9, 3, 5.1, 1.8]]",
        })
        assert.equal(answer.status, 200, await answer.text())
        const health = (): Promise<string> => docker("inspect", "-f", "{{.State.Health.Status}}", id)
        for (let look = 0; look < 50 && (await health()) !== "healthy"; look++) {
          await new Promise((resolve) => setTimeout(resolve, 200))
        }
        assert.equal(await health(), "healthy")
        assert.equal(await docker("inspect", "-f", "{{.Config.User}}", id), "1034:1034")
      } finally {
        await docker("stop", id)
      }
    })

    test("says of a shell that there is none, and stays below 200 MB with all that it stands on", async () => {
      const asked = await run("docker", ["run", "--rm", image, "sh", "-c", "id"])
      assert.deepEqual([asked.code, asked.stderr.trim()], [127, "sh: command not found"])
      const bytes = Number(await docker("image", "inspect", "-f", "{{.Size}}", image))
      assert.ok(bytes < 200e6, `${(bytes / 1e6).toFixed(1)} MB`)
    })
  })
}

test("both builders give the same configuration", async () => {
  const config = async (builder: string): Promise<unknown> =>
    JSON.parse(await docker("image", "inspect", "-f", "{{json .Config}}", `${NAME}:${builder}`))
  const { Image: _a, ...assembled } = (await config("assemble")) as Record<string, unknown>
  const { Image: _b, ...built } = (await config("dockerfile")) as Record<string, unknown>
  for (const key of ["Entrypoint", "Env", "User", "Healthcheck", "WorkingDir", "Labels", "ExposedPorts"]) {
    assert.deepEqual(assembled[key], built[key], key)
  }
})
