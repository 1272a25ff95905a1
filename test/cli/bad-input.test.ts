/**
 * Bad input, row by row: the message, the exit code, and that nothing is left behind. The rows that need a working
 * Docker Engine are in test/e2e/bad-input.test.ts.
 */
import assert from "node:assert/strict"
import { once } from "node:events"
import { chmod, cp, link, mkdir, readdir, readFile, symlink, writeFile } from "node:fs/promises"
import { createServer } from "node:net"
import path from "node:path"
import { before, describe, test } from "node:test"
import { assertWithin } from "../within.ts"
import { fixtures, folderWith, root, run, scratch, start, until, type Outcome } from "./support.ts"

const models = path.join(fixtures, "models")
const iris = path.join(root, "examples/iris/iris.onnx")

/** All files below a folder. */
async function filesOf(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])
  return entries
    .filter((entry) => !entry.isDirectory())
    .map((entry) => path.join(entry.parentPath, entry.name))
}

/** Exit 1, nothing on stdout, no stack, and the code at the end of the hint. */
function assertRefused(outcome: Outcome, code: string, ...messages: (string | RegExp)[]): void {
  assert.deepEqual([outcome.code, outcome.stdout], [1, ""], outcome.stderr)
  assert.match(outcome.stderr, new RegExp(`^Error: [\\s\\S]+\\nHint: .+ \\[${code}\\]\\n$`))
  assert.doesNotMatch(outcome.stderr, /\n {4}at |Internal error/)
  for (const message of messages) {
    if (typeof message === "string") assert.ok(outcome.stderr.includes(message), outcome.stderr)
    else assert.match(outcome.stderr, message)
  }
}

describe("models import", () => {
  /** The import is refused, and the store holds no file afterwards. */
  async function refused(
    args: readonly string[],
    code: string,
    ...messages: (string | RegExp)[]
  ): Promise<void> {
    const home = await scratch()
    assertRefused(await run(["models", "import", ...args], { home }), code, ...messages)
    assert.deepEqual(await filesOf(home), [])
  }

  test("no such file", () =>
    refused(["/no/such.onnx", "--name", "x"], "IMPORT_FAILED", "/no/such.onnx: no such file"))

  test("a directory without a model names the .onnx files in it", async () => {
    const folder = await folderWith({ "a/b.txt": "" })
    await refused([folder, "--name", "x"], "IMPORT_FAILED", `${folder} is a folder without a model`)
    await cp(iris, path.join(folder, "iris.onnx"))
    await refused([folder, "--name", "x"], "IMPORT_FAILED", `Give the file itself: ${folder}/iris.onnx`)
  })

  for (const name of ["text.onnx", "truncated.onnx", "unknown_op.onnx"]) {
    test(`${name}`, () => {
      const file = path.join(models, name)
      const reason = {
        "text.onnx": /not an? ONNX|no ONNX/i,
        "truncated.onnx": /truncated|ends|cut/i,
        "unknown_op.onnx": /NoSuchOp/,
      }[name]
      return refused([file, "--name", "x"], "IMPORT_FAILED", file, reason ?? "")
    })
  }

  test("an empty file, and a folder named .onnx", async () => {
    const folder = await folderWith({ "empty.onnx": "", "folder.onnx/x": "" })
    await refused([path.join(folder, "empty.onnx"), "--name", "x"], "IMPORT_FAILED", "empty.onnx")
    await refused([path.join(folder, "folder.onnx"), "--name", "x"], "IMPORT_FAILED", "folder.onnx")
  })

  test("external data outside of the model's folder: by .., by absolute path, by a link", async () => {
    const dotdot = path.join(models, "external_escape_dotdot.onnx")
    await refused(
      [dotdot, "--name", "x"],
      "IMPORT_FAILED",
      dotdot,
      /external data "\.\.\/[^"]+" .* is refused/,
    )
    const absolute = path.join(models, "external_escape_absolute.onnx")
    await refused([absolute, "--name", "x"], "IMPORT_FAILED", 'external data "/etc/passwd"', "is refused")
    const folder = await folderWith({})
    await cp(path.join(models, "external_data/model.onnx"), path.join(folder, "model.onnx"))
    await symlink(path.join(models, "external_data/weights.bin"), path.join(folder, "weights.bin"))
    await refused(
      [path.join(folder, "model.onnx"), "--name", "x"],
      "IMPORT_FAILED",
      "weights.bin",
      "it is a link",
    )
  })

  test("external data that is missing", async () => {
    const folder = await folderWith({})
    await link(path.join(models, "external_data/model.onnx"), path.join(folder, "model.onnx")).catch(() =>
      cp(path.join(models, "external_data/model.onnx"), path.join(folder, "model.onnx")),
    )
    await refused([path.join(folder, "model.onnx"), "--name", "x"], "IMPORT_FAILED", "there is no such file")
  })

  test("an illegal name or version is refused with the rule", async () => {
    const rule = /Use a-z, 0-9 .*at most 63 characters/
    await refused([iris, "--name", "my model"], "TAG_INVALID", '"my model" is not a name', rule)
    await refused([iris, "--name", "x".repeat(64)], "TAG_INVALID", "64 characters", rule)
    await refused([iris, "--name", "../x"], "TAG_INVALID", rule)
    await refused([iris, "--name", "x", "--version", "1/2"], "TAG_INVALID", '"1/2" is not a version', rule)
    await refused([iris, "--name", "x", "--version", "latest"], "TAG_INVALID", "latest")
    await refused([iris], "TAG_INVALID", "needs a name", "--name")
  })

  test("an existing tag is refused, and the model that is there stays", async () => {
    const home = await scratch()
    const args = ["models", "import", iris, "--name", "x", "--version", "1"]
    assert.equal((await run([...args, "--label", "a=1"], { home })).code, 0)
    const before = await readFile(path.join(home, "models/x/1/model.yaml"), "utf8")
    assertRefused(await run(args, { home }), "STORE_EXISTS", "x:1")
    assert.equal(await readFile(path.join(home, "models/x/1/model.yaml"), "utf8"), before)
  })

  test("metadata and signatures that cannot be read", async () => {
    const folder = await folderWith({
      "list.yaml": "- 1",
      "bad.yaml": "a: [",
      "proto.json": '{"a": {\n"__proto__": {"polluted": true}}}',
      "dim.json": '{"run": {"batch_dim": "x"}}',
    })
    const of = (name: string): string => path.join(folder, name)
    const failed = (args: string[], ...messages: (string | RegExp)[]): Promise<void> =>
      refused([iris, "--name", "x", ...args], "IMPORT_FAILED", ...messages)
    await failed(["--metadata", of("none.yaml")], "none.yaml: no such file", "Check the path")
    await failed(["--metadata", of("list.yaml")], "list.yaml must hold a map")
    await failed(["--metadata", of("bad.yaml")], "bad.yaml")
    await failed(["--signature", of("dim.json")], "dim.json", "batch_dim must be an axis")
    await failed(["--signature", '{"run": {"batchabel": true}}'], 'unknown key "batchabel"')
    await failed(["--signature", '{"predict": {"batchable": true}}'], 'no signature "predict"')
    await failed(["--signature", '{"constructor": {"batchable": true}}'], 'no signature "constructor"')
    await failed(["--signature", '{"__proto__": {"batchable": true}}'], "__proto__ is refused")
    await failed(["--metadata", of("proto.json")], /proto\.json:2.*__proto__ is refused/)
  })

  test("a store that cannot be written", async () => {
    const home = path.join(await folderWith({ file: "" }), "file")
    assertRefused(await run(["models", "import", iris, "--name", "x"], { home }), "STORE_UNUSABLE", home)
  })

  test("a home that is a link to nowhere, as to a disk that is not mounted", async () => {
    const home = path.join(await folderWith({}), "link")
    await symlink("/no/such/disk", home)
    assertRefused(
      await run(["models", "import", iris, "--name", "x"], { home }),
      "STORE_UNUSABLE",
      "a file, or a link that leads nowhere, stands where a folder should be",
      home,
    )
  })

  test("a bundle that is not built", async () => {
    const home = await scratch()
    const args = ["models", "import", iris, "--name", "x"]
    assertRefused(
      await run(args, { home, runtimeDir: "/no/bundle" }),
      "RUNTIME_MISSING",
      "/no/bundle/serve.js",
    )
    assert.deepEqual(await filesOf(home), [])
  })
})

describe("tags", () => {
  let home: string
  before(async () => {
    home = await scratch()
    for (const version of ["abc1", "abc2", "xyz"]) {
      assert.equal(
        (await run(["models", "import", iris, "--name", "iris", "--version", version], { home })).code,
        0,
      )
    }
  })

  test("an unknown one gets the nearest names", async () => {
    assertRefused(
      await run(["models", "get", "irsi"], { home }),
      "MODEL_NOT_FOUND",
      "no model irsi",
      "Did you mean iris?",
    )
    assertRefused(
      await run(["models", "get", "iris:q"], { home }),
      "MODEL_NOT_FOUND",
      "no model iris:q",
      "iris:xyz",
    )
    assertRefused(await run(["get", "iris"], { home }), "BENTO_NOT_FOUND", "no bento iris")
    assertRefused(await run(["containerize", "iris"], { home }), "BENTO_NOT_FOUND", "no bento iris")
    assertRefused(
      await run(["serve", "iris"], { home }),
      "BENTO_NOT_FOUND",
      '"iris" is neither a folder nor a service',
    )
    assertRefused(
      await run(["serve", "No Tag"], { home }),
      "BENTO_NOT_FOUND",
      '"No Tag" is neither a folder nor a service',
    )
  })

  test("an ambiguous prefix gets the candidates", async () => {
    assertRefused(await run(["models", "get", "iris:abc"], { home }), "TAG_AMBIGUOUS", "iris:abc1, iris:abc2")
    assertRefused(
      await run(["models", "delete", "iris:abc", "-y"], { home }),
      "TAG_AMBIGUOUS",
      "iris:abc1, iris:abc2",
    )
    assert.equal((await run(["models", "get", "iris:x", "-o", "path"], { home })).code, 0)
  })

  test("a half-written or broken version is a warning on stderr, and the others work", async () => {
    await mkdir(path.join(home, "models/iris/half"))
    await mkdir(path.join(home, "models/iris/broken"))
    await writeFile(path.join(home, "models/iris/broken/model.yaml"), "name: [")
    const { code, stdout, stderr } = await run(["models", "list", "-o", "json"], { home })
    assert.equal(code, 0)
    assert.equal((JSON.parse(stdout) as unknown[]).length, 3)
    assert.match(
      stderr,
      /Warning: skipped a broken model, \S+iris\/broken: .+\nWarning: skipped a broken model, \S+iris\/half: /,
    )
    assert.equal((await run(["models", "get", "iris"], { home })).code, 0)
    assertRefused(await run(["models", "get", "iris:half"], { home }), "STORE_CORRUPT", "iris/half")
  })
})

describe("bentofile.yaml", () => {
  async function refused(bentofile: string, ...messages: (string | RegExp)[]): Promise<Outcome> {
    const home = await scratch()
    const folder = await folderWith({ "bentofile.yaml": bentofile })
    const outcome = await run(["build", folder], { home })
    assertRefused(outcome, "BENTOFILE_INVALID", ...messages)
    assert.deepEqual(await filesOf(home), [])
    return outcome
  }

  test("empty, not a map, nothing to serve, not YAML", async () => {
    await refused("", /bentofile\.yaml:1: the file is empty/)
    await refused("- a\n- b\n", /bentofile\.yaml:1(:1)?: expected a map/)
    await refused("name: x\n", /bentofile\.yaml:1(:1)?: there is nothing to serve/)
    await refused("name: [x\n", /bentofile\.yaml:\d/)
  })

  test("unknown keys, wrong types, two of each: all at once, with lines and the nearest right key", async () => {
    const text = [
      "servce: a.ts:b",
      "name: 7.5.x!",
      "modles: []",
      "labels: [1]",
      "include: x",
      "python: {}",
    ].join("\n")
    const { stderr } = await refused(text)
    for (const line of [1, 2, 3, 4, 5, 6]) assert.match(stderr, new RegExp(`bentofile\\.yaml:${line}:`))
    assert.match(stderr, /:1:.*service/)
    assert.match(stderr, /:3:.*models/)
    assert.match(stderr, /:6:.*convert the model to ONNX/)
  })

  test("with -o json the problems are data", async () => {
    const folder = await folderWith({ "bentofile.yaml": "servce: a\nmodles: []\n" })
    const { code, stdout, stderr } = await run(["build", folder, "-o", "json"], { home: await scratch() })
    assert.deepEqual([code, stdout], [1, ""])
    const { error } = JSON.parse(stderr) as { error: { code: string; issues: { line: number }[] } }
    assert.equal(error.code, "BENTOFILE_INVALID")
    assert.deepEqual(error.issues.map((issue) => issue.line).slice(0, 2), [1, 2])
  })

  test("no bentofile, no folder, no such file", async () => {
    const home = await scratch()
    const folder = await folderWith({})
    assertRefused(
      await run(["build", folder], { home }),
      "BENTOFILE_NOT_FOUND",
      `${folder} holds no bentofile.yaml`,
    )
    assertRefused(
      await run(["build", "/no/folder"], { home }),
      "BENTOFILE_NOT_FOUND",
      "no such folder: /no/folder",
    )
    const file = path.join(await folderWith({ "other.yaml": "" }), "other.yaml")
    assertRefused(
      await run(["build", file], { home }),
      "BENTOFILE_NOT_FOUND",
      `${file} is a file, not a folder`,
      "name it with `-f`",
    )
    assertRefused(
      await run(["build", folder, "-f", "nope.yaml"], { home, cwd: folder }),
      "BENTOFILE_NOT_FOUND",
      "nope.yaml",
    )
    assert.deepEqual(await filesOf(home), [])
  })

  test("a model that is not in the store is named with its line and the import command", async () => {
    const home = await scratch()
    await run(["models", "import", iris, "--name", "iris"], { home })
    const folder = await folderWith({
      "bentofile.yaml": "name: x\nmodels:\n  - iris\n  - irsi:latest\n  - other\n",
    })
    const outcome = await run(["build", folder], { home })
    assertRefused(
      outcome,
      "MODEL_NOT_FOUND",
      /bentofile\.yaml:4: models\[1\]: no model irsi.*`bentoctl models import FILE\.onnx --name irsi` \(Did you mean iris\?\)/,
      /bentofile\.yaml:5: models\[2\]: no model other/,
    )
    assert.deepEqual(await readdir(home).then((names) => names.includes("bentos")), false)
  })
})

describe("the service", () => {
  const bentofile = "service: service.ts:svc\nname: x\n"

  async function refused(service: string | null, ...messages: (string | RegExp)[]): Promise<void> {
    const home = await scratch()
    const describeTimeoutMs = service?.includes("for (;;)") === true ? 1500 : 30_000
    const folder = await folderWith({
      "bentofile.yaml": bentofile,
      ...(service !== null && { "service.ts": service }),
    })
    assertRefused(await run(["build", folder], { home, describeTimeoutMs }), "SERVICE_INVALID", ...messages)
    assert.deepEqual(await filesOf(home), [])
    assertRefused(await run(["serve", folder], { home, describeTimeoutMs }), "SERVICE_INVALID", ...messages)
  }

  test("a missing file", () => refused(null, "no such file: service.ts"))
  test("a syntax error is at the user's own line", () =>
    refused("const a = 1\n\nexport const = 3\n", /service\.ts:3(:\d+)?: SyntaxError/))
  test("a missing export", () => refused("export const other = 1\n", "svc", /service\.ts/))
  test("an export that is no service", () => refused("export const svc = 1\n", /service\.ts/, /svc/))
  test("an error at import is at the user's own line", () =>
    refused(
      'const a = 1\nthrow new Error("no database")\nexport const svc = a\n',
      /service\.ts:2(:\d+)?: .*no database/,
    ))
  test("a service that never ends is stopped", () =>
    refused("for (;;) {}\nexport const svc = 1\n", "loading service.ts:svc did not end within 1.5 s"))
  test("a service that waits for nothing", () =>
    refused("await new Promise(() => {})\nexport const svc = 1\n", "never finishes loading"))
  test("a service that ends the process", () =>
    refused("process.exit(3)\nexport const svc = 1\n", /exit 3|exit code 3/))
})

describe("the engine", () => {
  let home: string
  before(async () => {
    home = await scratch()
    await run(["models", "import", iris, "--name", "iris"], { home })
    const folder = await folderWith({ "bentofile.yaml": "models: [iris]\n" })
    assert.equal((await run(["build", folder, "--version", "1"], { home })).code, 0)
  })

  test("there is none", async () => {
    for (const host of ["unix:///no/docker.sock", "tcp://127.0.0.1:1"]) {
      const outcome = await run(["containerize", "iris", "--progress", "plain"], {
        home,
        env: { DOCKER_HOST: host },
      })
      assertRefused(outcome, "ENGINE_UNREACHABLE", `no Docker Engine answers at ${host}`, "DOCKER_HOST")
    }
    const outcome = await run(["containerize", "iris"], { home, env: { DOCKER_HOST: "gopher://x" } })
    assertRefused(outcome, "ENGINE_CONFIG_INVALID", "gopher:// is not supported")
  })

  test("build --containerize without one exits 1, keeps the Bento, and says how to go on", async () => {
    const folder = await folderWith({ "bentofile.yaml": "models: [iris]\nname: kept\n" })
    const env = { DOCKER_HOST: "unix:///no/docker.sock" }
    const text = await run(["build", folder, "--version", "1", "--containerize"], { home, env })
    assert.equal(text.code, 1)
    assert.equal(text.stdout, 'Successfully built Bento(tag="kept:1").\n')
    assert.match(
      text.stderr,
      /\[ENGINE_UNREACHABLE\]\nThe Bento is in the store; to try again: bentoctl containerize kept:1\n$/,
    )
    const tag = await run(["build", folder, "--version", "2", "--containerize", "-o", "tag"], { home, env })
    assert.deepEqual([tag.code, tag.stdout], [1, ""])
  })

  test("permission denied on its socket", async () => {
    const folder = await scratch()
    const socket = path.join(folder, "docker.sock")
    const server = createServer().listen(socket)
    await once(server, "listening")
    await chmod(socket, 0o000)
    await chmod(folder, 0o755)
    await readableByAll(home)
    try {
      // Root may open any socket, so the command runs as somebody else.
      const nobody =
        process.getuid?.() === 0 ? ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] : []
      const outcome = await start(["containerize", "iris"], {
        command: [...nobody, process.execPath],
        env: { DOCKER_HOST: `unix://${socket}`, BENTOML_HOME: home },
      }).ended
      assertRefused(outcome, "ENGINE_DENIED", `${socket} refuses access to you`, "usermod -aG docker")
    } finally {
      server.close()
    }
  })
})

async function readableByAll(folder: string): Promise<void> {
  await chmod(folder, 0o755)
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    await chmod(path.join(entry.parentPath, entry.name), entry.isDirectory() ? 0o755 : 0o644)
  }
}

describe("Ctrl-C", () => {
  /** Makes the child process that checks a model hang, as a huge model would. */
  const hang = encodeURIComponent('if (process.argv.includes("--check-model")) for (;;) {}')
  const slowCheck = { NODE_OPTIONS: `--import=data:text/javascript,${hang}` }

  async function interrupted(
    argv: readonly string[],
    options: { env: Record<string, string>; when: (output: () => Outcome) => Promise<void>; home: string },
  ): Promise<number> {
    const program = start(argv, { env: { BENTOML_HOME: options.home, ...options.env } })
    await options.when(() => ({ code: -1, ...program.output() }))
    const pressedMs = performance.now()
    program.child.kill("SIGINT")
    const { code, stdout, stderr } = await program.ended
    const tookMs = performance.now() - pressedMs
    assert.deepEqual([code, stdout], [130, ""], stderr)
    assert.match(stderr, /Interrupted by SIGINT\.\n$/)
    assert.deepEqual(await filesOf(options.home), [])
    return tookMs
  }

  test("during import stops within a second and leaves nothing", async () => {
    const home = await scratch()
    const when = () =>
      until("the draft", async () => (await filesOf(home)).some((file) => file.endsWith(".onnx")))
    await assertWithin(1000, () =>
      interrupted(["models", "import", iris, "--name", "x"], { env: slowCheck, home, when }),
    )
  })

  test("during build stops within a second and leaves nothing", async () => {
    const home = await scratch()
    const service =
      'console.log("loading")\nawait new Promise((resolve) => setTimeout(resolve, 60_000))\nexport const svc = 1\n'
    const folder = await folderWith({
      "bentofile.yaml": "service: service.ts:svc\nname: x\n",
      "service.ts": service,
    })
    const when = (output: () => Outcome) => until("the service", () => output().stderr.includes("loading"))
    await assertWithin(1000, () => interrupted(["build", folder], { env: {}, home, when }))
  })

  test("with -o json is an error like others", async () => {
    const home = await scratch()
    const service = 'console.log("loading")\nfor (;;) {}\n'
    const folder = await folderWith({
      "bentofile.yaml": "service: service.ts:svc\nname: x\n",
      "service.ts": service,
    })
    const program = start(["build", folder, "-o", "json"], { env: { BENTOML_HOME: home } })
    await until("the service", () => program.output().stderr.includes("loading"))
    program.child.kill("SIGTERM")
    const { code, stderr } = await program.ended
    assert.equal(code, 143)
    const last = JSON.parse(stderr.trimEnd().split("\n").at(-1) ?? "") as { error: { code: string } }
    assert.equal(last.error.code, "CANCELLED")
  })
})

test("a port in use: by whom, exit 1", async () => {
  const home = await scratch()
  await run(["models", "import", iris, "--name", "iris"], { home })
  const folder = await folderWith({ "bentofile.yaml": "models: [iris]\n" })
  const server = createServer().listen(0)
  await once(server, "listening")
  const { port } = server.address() as { port: number }
  try {
    const { code, stdout, stderr } = await start(["serve", folder, "-p", String(port)], {
      env: { BENTOML_HOME: home },
    }).ended
    assert.deepEqual([code, stdout], [1, ""], stderr)
    assert.match(stderr, new RegExp(`port ${port}`))
    assert.match(stderr, /PORT_IN_USE/)
    if (process.platform === "linux") assert.match(stderr, new RegExp(`pid ${process.pid}`))
  } finally {
    server.close()
  }
})
