/** Finding the command, help, usage errors: what happens before a command runs. */
import assert from "node:assert/strict"
import { execFile, execFileSync } from "node:child_process"
import { existsSync, readFileSync } from "node:fs"
import path from "node:path"
import { test } from "node:test"
import { promisify } from "node:util"
import { COMMANDS } from "../../cli/app.ts"
import { root, run, start } from "./support.ts"

test("bentoctl alone prints the overview, as --help, -h and help do", async () => {
  const alone = await run([])
  assert.equal(alone.code, 0)
  assert.equal(alone.stderr, "")
  assert.match(alone.stdout, /^bentoctl 1\.2\.3: /)
  for (const type of COMMANDS) assert.ok(alone.stdout.includes(type.help.summary))
  for (const argv of [["--help"], ["-h"], ["help"]]) assert.deepEqual(await run(argv), alone)
})

test("--version and -v print the version", async () => {
  for (const flag of ["--version", "-v"]) assert.equal((await run([flag])).stdout, "bentoctl 1.2.3\n")
})

test("a group alone prints its commands", async () => {
  const { code, stdout } = await run(["models"])
  assert.equal(code, 0)
  assert.match(stdout, /bentoctl models COMMAND/)
  assert.match(stdout, /models import/)
  assert.doesNotMatch(stdout, /image prune/)
})

for (const type of COMMANDS) {
  const name = type.paths[0]?.join(" ") ?? ""
  test(`bentoctl ${name} --help explains it with examples, within 80 columns`, async () => {
    const { code, stdout, stderr } = await run([...name.split(" "), "--help"])
    assert.deepEqual({ code, stderr }, { code: 0, stderr: "" })
    assert.ok(stdout.startsWith(`${type.help.summary}.\n`))
    assert.match(stdout, new RegExp(`\n  bentoctl ${name}.* \\[OPTIONS\\]\n`))
    assert.ok(type.help.examples.length > 0)
    // Examples are for copying and may be longer.
    const prose = stdout.split("\n").filter((line) => !line.startsWith("  $ "))
    assert.deepEqual(
      prose.filter((line) => line.length > 80),
      [],
    )
    assert.deepEqual(await run(["help", ...name.split(" ")]), { code, stdout, stderr })
  })
}

test("help wins over wrong arguments", async () => {
  assert.equal((await run(["build", "a", "b", "c", "--nope", "-h"])).code, 0)
})

test("an unknown command is a usage error with the nearest names", async () => {
  const { code, stdout, stderr } = await run(["biuld"])
  assert.deepEqual({ code, stdout }, { code: 2, stdout: "" })
  assert.equal(
    stderr,
    'Error: unknown command "biuld"; did you mean `build`?\nRun `bentoctl --help` for the list of commands.\n',
  )
  assert.match((await run(["models", "imprt"])).stderr, /did you mean `models import`\?/)
  assert.match((await run(["modles"])).stderr, /did you mean `models`\?/)
  assert.match((await run(["xyzzy"])).stderr, /^Error: unknown command "xyzzy"\n/)
})

test("wrong options and arguments are usage errors that name them", async () => {
  const cases: [string[], RegExp][] = [
    [["--nope"], /unknown option --nope/],
    [["build", "--labl", "a=b"], /unknown option --labl; did you mean --label\?/],
    [["models", "get"], /TAG is missing/],
    [["models", "get", "a", "b"], /too many arguments/],
    [["models", "list", "-o"], /option -o needs a value/],
    [["models", "list", "-o", "xml"], /--output must be one of table, json, yaml, not "xml"/],
    [["build", "--label", "nope"], /--label must be KEY=VALUE, not "nope"/],
    [["serve", "-p", "70000"], /--port must be a port number from 0 to 65535, not "70000"/],
    [["serve", "-p", "3e3"], /--port must be a port number/],
    [["containerize", "x", "--progress", "loud"], /--progress must be one of auto, plain, json/],
    [["build", "--dry-run", "--containerize"], /exclude each other/],
    [["build", "--push"], /--push needs --containerize/],
    [["build", "-t", "registry.example.com/a:1"], /--image-tag needs --containerize/],
    [["containerize", "x", "--print-dockerfile", "--push"], /exclude each other/],
  ]
  for (const [argv, message] of cases) {
    const { code, stdout, stderr } = await run(argv)
    assert.match(stderr, message, argv.join(" "))
    assert.deepEqual({ code, stdout }, { code: 2, stdout: "" }, argv.join(" "))
  }
})

test("global switches may stand before the command", async () => {
  assert.match((await run(["--debug", "models", "get", "nope"])).stderr, /\n {4}at /)
  assert.match((await run(["-q", "models"])).stdout, /models import/)
})

test("with -o json an error is one JSON line on stderr, and stdout stays empty", async () => {
  const usage = await run(["models", "get", "x", "-o", "json", "--nope"])
  assert.deepEqual(JSON.parse(usage.stderr), {
    type: "error",
    error: {
      code: "USAGE",
      message: "unknown option --nope",
      hint: "Run `bentoctl models get --help` for its arguments and options.",
    },
  })
  const missing = await run(["models", "get", "x", "--output=json"])
  assert.equal((JSON.parse(missing.stderr) as { error: { code: string } }).error.code, "MODEL_NOT_FOUND")
  assert.deepEqual([usage.code, usage.stdout, missing.code, missing.stdout], [2, "", 1, ""])
})

test("a user's error has message, hint and code, and its stack only with --debug", async () => {
  const { stderr } = await run(["models", "get", "Not A Tag"])
  assert.match(stderr, /^Error: .+\nHint: .+ \[TAG_INVALID\]\n$/)
  assert.match((await run(["models", "get", "Not A Tag", "--debug"])).stderr, /\n {4}at .*tag\.ts/)
})

test("an error of ours shows its stack and asks to be reported", async () => {
  // A home that is no string is a mistake that no user can make.
  const { code, stderr } = await run(["models", "list"], { home: 7 as unknown as string })
  assert.equal(code, 1)
  assert.match(stderr, /^Internal error: .+\n {4}at [\s\S]+Please report it/)
})

test("the program itself: version, exit codes, streams", async () => {
  const { version } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8")) as { version: string }
  const shown = await start(["--version"]).ended
  assert.deepEqual([shown.code, shown.stdout, shown.stderr], [0, `bentoctl ${version}\n`, ""])
  const wrong = await start(["nope"]).ended
  assert.deepEqual([wrong.code, wrong.stdout], [2, ""])
})

test("an older Node gets told so, before anything of ours is loaded", async (context) => {
  const older = olderNode()
  if (older === undefined) return context.skip("no Node older than 24 on this machine")
  const exec = promisify(execFile)
  const failed = (await exec(older, [path.join(root, "dist/cli/main.js"), "--help"]).catch(
    (error: unknown) => error,
  )) as {
    code: number
    stderr: string
  }
  assert.equal(failed.code, 1)
  assert.match(failed.stderr, /^Error: bentoctl needs Node\.js 24 or newer; this is \d+\./)
  assert.doesNotMatch(failed.stderr, /\n {4}at /)
})

function olderNode(): string | undefined {
  const folders = (process.env["PATH"] ?? "").split(path.delimiter)
  return folders
    .map((folder) => path.join(folder, "node"))
    .filter((file) => existsSync(file))
    .find((file) => Number(/^v(\d+)/.exec(execFileSync(file, ["--version"], { encoding: "utf8" }))?.[1]) < 24)
}

test("a stdout that cannot be written to is an error without a stack, and a reader that went away is none", async () => {
  const shell = (script: string): Promise<{ stdout: string }> =>
    promisify(execFile)("sh", ["-c", script, process.execPath, path.join(root, "cli/main.ts")])
  const full = await shell('"$0" "$1" --help 2>&1 >/dev/full; echo "code $?"')
  assert.match(full.stdout, /^Error: stdout cannot be written to: .*ENOSPC.*\ncode 1\n$/)
  // The reader is gone before the program starts to write.
  const gone = await shell('{ (sleep 0.2; "$0" "$1" --help; echo "code $?" >&2) | exec 0<&- true; } 2>&1')
  assert.equal(gone.stdout, "code 141\n")
})

test("nothing heavy is loaded for --help", async () => {
  const { stdout } = await start(["--help"], {
    env: { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(LISTING)}` },
  }).ended
  const loaded = stdout.slice(stdout.indexOf("LOADED")).split("\n").slice(1)
  assert.ok(loaded.length > 0)
  assert.deepEqual(
    loaded.filter((file) => /node_modules\/(?!clipanion|typanion)|\/images\/|\/store\/store/.test(file)),
    [],
  )
})

/** Prints what was loaded when the program ends. */
const LISTING = `
import { registerHooks } from "node:module"
const loaded = []
registerHooks({ load(url, context, next) { loaded.push(url); return next(url, context) } })
process.on("exit", () => process.stdout.write("LOADED\\n" + loaded.join("\\n")))
`
