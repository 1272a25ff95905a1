/** Commands that talk to an engine, where there is none; and their arguments. What they do with one: test/e2e. */
import assert from "node:assert/strict"
import { test } from "node:test"
import { pythonStore, run } from "./support.ts"

const env = { DOCKER_HOST: "unix:///nonexistent/docker.sock" }

test("image prune and models containerize say that no engine answers, and where it was looked for", async () => {
  const home = await pythonStore()
  for (const argv of [
    ["image", "prune"],
    ["image", "prune", "--dry-run", "-o", "json"],
    ["models", "containerize", "iris_sklearn"],
  ]) {
    const { code, stdout, stderr } = await run(argv, { home, env })
    assert.deepEqual([code, stdout], [1, ""], argv.join(" "))
    assert.match(stderr, /ENGINE_UNREACHABLE/)
    assert.match(stderr, /nonexistent\/docker\.sock/)
  }
})

test("a model that is not there, and a name that is no image reference, are found out before", async () => {
  const home = await pythonStore()
  const missing = await run(["models", "containerize", "nothing"], { home, env })
  assert.equal(missing.code, 1)
  assert.match(missing.stderr, /MODEL_NOT_FOUND/)
  const misnamed = await run(["models", "containerize", "iris_sklearn", "-t", "Not A Name"], { home, env })
  assert.equal(misnamed.code, 1)
  assert.match(misnamed.stderr, /TAG_INVALID/)
})

test("an unknown builder is an error of the command line", async () => {
  for (const command of [
    ["containerize", "x"],
    ["build", "--containerize"],
  ]) {
    const { code, stderr } = await run([...command, "--builder", "kaniko"])
    assert.equal(code, 2)
    assert.match(stderr, /--builder must be one of auto, assemble, dockerfile, not "kaniko"/)
  }
})
