/** Commands that talk to an engine, where there is none; and their arguments. What they do with one: test/e2e. */
import assert from "node:assert/strict"
import { describe, test } from "node:test"
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

describe("options of an image that cannot be meant", () => {
  for (const [args, reason] of [
    [["--platform", "linux/riscv64"], /--platform must be one of linux\/amd64, linux\/arm64/],
    [["--progress", "fancy"], /--progress must be one of/],
    [["--network=-x"], /--network must be default, none, host or a name/],
    [["--network", "a b"], /--network must be/],
    [["--network", ""], /--network must be/],
    [["--cache-from", "type=local,src=/"], /--cache-from must be an image/],
    [["--cache-from", "a\nb"], /--cache-from must be an image/],
    [["--build-arg", "=x"], /--build-arg must be NAME or NAME=VALUE/],
    [["--build-arg", "A B=x"], /--build-arg must be/],
    [["--build-arg", "BENTO_PATH=/x"], /BENTO_PATH is set by the image itself/],
  ] as const) {
    test(`${args.map((arg) => JSON.stringify(arg)).join(" ")} is an error of the command line`, async () => {
      for (const command of [
        ["containerize", "x"],
        ["build", "--containerize"],
      ]) {
        const { code, stdout, stderr } = await run([...command, ...args])
        assert.deepEqual([code, stdout], [2, ""], stderr)
        assert.match(stderr, reason)
      }
    })
  }

  for (const [label, reason] of [
    ["x", /--label must be KEY=VALUE/],
    ["=x", /--label must be KEY=VALUE/],
    ["a b=x", /no spaces/],
    ["a$b=x", /no spaces, quotes/],
    ["a=line\nbreak", /line break/],
    ["bentoctl.bento=x", /begin with bentoctl/],
  ] as const) {
    test(`--label ${JSON.stringify(label)} is an error of the command line`, async () => {
      const { code, stderr } = await run(["containerize", "x", "--label", label])
      assert.equal(code, 2)
      assert.match(stderr, reason)
    })
  }

  test("those that are about the image alone need --containerize", async () => {
    for (const args of [["--pull"], ["--no-cache"], ["--builder", "auto"], ["--build-arg", "A=1"]]) {
      const { code, stderr } = await run(["build", ...args])
      assert.equal(code, 2)
      assert.match(stderr, new RegExp(`${args[0]} needs --containerize`))
    }
  })
})

test("--output-dir builds nothing, so what only an image could have is an error of the command line", async () => {
  for (const args of [
    ["--pull"],
    ["--push"],
    ["--print-dockerfile"],
    ["--builder", "auto"],
    ["--network", "none"],
  ]) {
    const { code, stderr } = await run(["containerize", "x", "--output-dir", "/nonexistent", ...args])
    assert.equal(code, 2)
    assert.match(stderr, new RegExp(`--output-dir builds nothing: leave out ${args[0]}`))
  }
  const { code, stderr } = await run(["containerize", "x", "--output-dir="])
  assert.equal(code, 2)
  assert.match(stderr, /--output-dir needs a folder/)
})
