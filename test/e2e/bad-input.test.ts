/** Bad input that only a real Docker Engine can answer, and the one that it cannot be made to: a full disk. */
import assert from "node:assert/strict"
import { cp, mkdir, readdir, readFile, writeFile } from "node:fs/promises"
import { createServer, type Server } from "node:http"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { spawn } from "node:child_process"
import { bentoctl, docker, root, run, temporaryFolder, until, type Ran } from "./support.ts"
import { assertWithin } from "../within.ts"

const { folder, remove } = await temporaryFolder()
const env = { BENTOML_HOME: path.join(folder, "bentoml") }
after(remove)

before(async () => {
  const { code, stderr } = await bentoctl(
    ["models", "import", path.join(root, "examples/iris/iris.onnx"), "--name", "iris"],
    env,
  )
  assert.equal(code, 0, stderr)
})

let made = 0

/** Builds a Bento with this `docker:` section and an optional setup script; its tag. */
async function bento(docker: string, script?: string): Promise<string> {
  made += 1
  const project = path.join(folder, `project-${made}`)
  await mkdir(project)
  await writeFile(
    path.join(project, "bentofile.yaml"),
    `models: [iris]\nname: bad_input_${made}\ninclude: ["*"]\n${docker}`,
  )
  if (script !== undefined) await writeFile(path.join(project, "setup.sh"), script, { mode: 0o755 })
  const { code, stdout, stderr } = await bentoctl(["build", project, "--version", "1", "-o", "tag"], env)
  assert.equal(code, 0, stderr)
  return stdout.trim().replace("__tag__:", "")
}

async function assertNoImage(tag: string): Promise<void> {
  assert.equal(await docker("images", "-q", tag), "", `${tag} is in the engine`)
  assert.equal(await docker("images", "-q", `${tag.split(":")[0]}:latest`), "")
}

function assertRefused(ran: Ran, code: string, ...messages: (string | RegExp)[]): void {
  assert.deepEqual([ran.code, ran.stdout], [1, ""], ran.stderr)
  assert.match(ran.stderr, new RegExp(`(^|\\n)Error: [\\s\\S]+\\nHint: .+ \\[${code}\\]\\n$`))
  assert.doesNotMatch(ran.stderr, /\n {4}at |Internal error/)
  for (const message of messages) {
    if (typeof message === "string") assert.ok(ran.stderr.includes(message), ran.stderr)
    else assert.match(ran.stderr, message)
  }
}

test("a base image that is not to be had is named, with the two ways out", async () => {
  // Nothing listens on port 1, so the engine need not wait for a registry.
  const tag = await bento("docker: {base_image: 127.0.0.1:1/no/such:base}\n")
  const ran = await bentoctl(["containerize", tag], env)
  assertRefused(
    ran,
    "BASE_IMAGE_UNAVAILABLE",
    "base image 127.0.0.1:1/no/such:base",
    "docker.base_image",
    /docker load|docker tag/,
  )
  await assertNoImage(tag)
})

test("a build that is refused at once leaves no process behind", async () => {
  // The command line as it is, with a process to describe services that never ends by itself.
  const copy = path.join(folder, "bentoctl")
  await mkdir(path.join(copy, "dist/image"), { recursive: true })
  await cp(path.join(root, "dist/cli"), path.join(copy, "dist/cli"), { recursive: true })
  await cp(path.join(root, "package.json"), path.join(copy, "package.json"))
  await writeFile(path.join(copy, "dist/image/describer.js"), "setTimeout(() => {}, 120_000)\n")
  const program = path.join(copy, "dist/cli/main.js")
  for (const args of [["--nonsense"], ["nowhere"], ["--dry-run", "--containerize"]]) {
    const { code, stderr } = await run(process.execPath, [program, "build", ...args], { env })
    assert.ok(code === 1 || code === 2, stderr)
  }
  await until("the processes to end", async () => {
    const pids = await readdir("/proc")
    const all = await Promise.all(
      pids.map((pid) => readFile(`/proc/${pid}/cmdline`, "latin1").catch(() => "")),
    )
    return !all.some((line) => line.includes(copy))
  })
})

describe("a RUN step that fails", () => {
  const script =
    "#!/bin/sh\nfor line in 1 2 3; do echo looking for the thing $line; done\necho it is not here >&2\nexit 7\n"
  let tag: string
  before(async () => {
    tag = await bento("docker: {setup_script: setup.sh}\n", script)
  })

  test("fails the command with the step, the exit code and the last lines of its log", async () => {
    const ran = await bentoctl(["containerize", tag], env)
    assertRefused(
      ran,
      "BUILD_FAILED",
      /the image build failed at .*RUN .*setup.*: exit code 7/,
      "looking for the thing 3",
      "it is not here",
    )
    await assertNoImage(tag)
  })

  test("and build --containerize", async () => {
    const project = path.join(folder, `project-${made}`)
    const ran = await bentoctl(["build", project, "--version", "2", "--containerize", "-o", "tag"], env)
    assertRefused(ran, "BUILD_FAILED", "exit code 7")
    await assertNoImage(tag.replace(/:1$/, ":2"))
  })

  test("as NDJSON the error is the last event, with step and log", async () => {
    const { code, stdout, stderr } = await bentoctl(["containerize", tag, "--progress", "json"], env)
    assert.deepEqual([code, stdout], [1, ""])
    const events = stderr
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as { type: string; state?: string; error?: object })
    const last = events.at(-1)
    assert.equal(last?.type, "error")
    const { error } = last as { error: { code: string; step: string; log: string[] } }
    assert.equal(error.code, "BUILD_FAILED")
    assert.match(error.step, /RUN .*setup/)
    assert.ok(error.log.includes("it is not here"), JSON.stringify(error.log))
    assert.ok(events.some((event) => event.type === "step" && event.state === "failed"))
  })
})

describe("Ctrl-C during containerize", () => {
  // A number that no other process sleeps for.
  const seconds = 86_000 + (process.pid % 400)
  let tag: string
  before(async () => {
    tag = await bento(
      "docker: {setup_script: setup.sh}\n",
      `#!/bin/sh\necho sleeping now\nexec sleep ${seconds}\n`,
    )
  })

  for (const builder of ["assemble", "dockerfile"])
    test(`stops within a second with exit 130; no image, and nothing left running in the engine (${builder})`, async () => {
      const interrupt = async (): Promise<number> => {
        const args = ["containerize", tag, "--no-cache", "--builder", builder]
        const child = spawn(process.execPath, [path.join(root, "dist/cli/main.js"), ...args], {
          env: { ...process.env, ...env },
          stdio: ["ignore", "pipe", "pipe"],
        })
        let stdout = ""
        let stderr = ""
        child.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()))
        child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()))
        const closed = new Promise<number | null>((resolve) => child.on("close", resolve))
        await until("the step to run", () => Promise.resolve(stderr.includes("sleeping now")))
        const pressedMs = performance.now()
        child.kill("SIGINT")
        assert.equal(await closed, 130, stderr)
        const tookMs = performance.now() - pressedMs
        assert.equal(stdout, "")
        assert.match(stderr, /Interrupted by SIGINT\.\n$/)
        await until(
          "the engine to stop the step",
          async () => (await run("pgrep", ["-f", `sleep ${seconds}`])).code !== 0,
        )
        await assertNoImage(tag)
        return tookMs
      }
      await assertWithin(1000, interrupt)
    })
})

describe("a full disk of the engine", () => {
  let fake: Server
  let socket: string

  before(async () => {
    const version = { Version: "20.10.24", ApiVersion: "1.41", Os: "linux", Arch: "amd64" }
    const base = { Id: "sha256:1", Os: "linux", Architecture: "amd64", Size: 1 }
    fake = createServer((request, response) => {
      const asked = request.url ?? ""
      request.resume().on("end", () => {
        response.setHeader("content-type", "application/json")
        if (asked.endsWith("/version")) response.end(JSON.stringify(version))
        else if (/\/images\/.+\/json/.test(asked)) response.end(JSON.stringify(base))
        else
          response.end(
            `${JSON.stringify({ error: "write /var/lib/docker/tmp/x: no space left on device" })}\n`,
          )
      })
    })
    socket = path.join(folder, "fake.sock")
    await new Promise<void>((resolve) => fake.listen(socket, resolve))
  })
  after(() => fake.close())

  test("is said in its own words, with the way out", async () => {
    const tag = await bento("")
    const ran = await bentoctl(["containerize", tag], { ...env, DOCKER_HOST: `unix://${socket}` })
    assertRefused(ran, "ENGINE_DISK_FULL", "no space left", "docker system prune")
  })
})

test("nothing half-made is left in the store", async () => {
  assert.deepEqual(await readdir(path.join(env.BENTOML_HOME, "tmp")), [])
})
