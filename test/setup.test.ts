/** What the set-up decides by itself: mirrors, hints, which files to test; and what `bootstrap.mjs` passes on. */

import assert from "node:assert/strict"
import { execFile, spawn } from "node:child_process"
import { chmod, cp, mkdir, mkdtemp, readFile, rm, symlink, utimes, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { delimiter, join } from "node:path"
import { after, describe, test } from "node:test"
import { pathToFileURL } from "node:url"
import { promisify } from "node:util"
import {
  aptHint,
  carriedAptOptions,
  debianSourceLines,
  parseAptSources,
  parseOsRelease,
  usesApt,
} from "./setup/apt.ts"
import { daemonHint, ensureEngine, probeEngine } from "./setup/engine.ts"
import { formatBytes, formatDuration, run } from "./setup/process.ts"
import { parseArguments, selectFiles } from "./setup/run-tests.ts"

const root = join(import.meta.dirname, "..")
const folder = await mkdtemp(join(tmpdir(), "bentoctl-setup-test-"))
after(() => rm(folder, { recursive: true, force: true }))

let made = 0
async function freshFolder(): Promise<string> {
  made += 1
  const path = join(folder, String(made))
  await mkdir(path)
  return path
}

async function executable(path: string, text: string): Promise<void> {
  await writeFile(path, text)
  await chmod(path, 0o755)
}

describe("the distribution", () => {
  test("is read from os-release, quoted or not", () => {
    const text = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_CODENAME=bookworm\nID=debian\n'
    const name = "Debian GNU/Linux 12 (bookworm)"
    assert.deepEqual(parseOsRelease(text), { id: "debian", like: [], codename: "bookworm", name })
  })

  test("uses apt when it is Debian, Ubuntu, or made from them", () => {
    assert.ok(usesApt(parseOsRelease("ID=ubuntu\nID_LIKE=debian")))
    assert.ok(usesApt(parseOsRelease('ID=linuxmint\nID_LIKE="ubuntu debian"')))
    assert.ok(!usesApt(parseOsRelease('ID=fedora\nID_LIKE="rhel"')))
    assert.ok(!usesApt(parseOsRelease("")))
  })
})

const deb822 = `Types: deb deb-src
# a comment inside
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb
URIs: https://download.example/linux
Suites: bookworm
Components: stable

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
`

describe("the mirrors of the stand-in", () => {
  test("are the machine's own for bookworm, other repositories left out", () => {
    const lines = debianSourceLines(
      parseAptSources(deb822, "sources"),
      { id: "debian", codename: "bookworm" },
      "bookworm",
    )
    assert.deepEqual(lines, [
      "deb [signed-by=/usr/share/keyrings/debian.gpg] http://mirror.example/debian bookworm main",
      "deb [signed-by=/usr/share/keyrings/debian.gpg] http://mirror.example/debian bookworm-updates main",
    ])
  })

  test("on another Debian are its mirrors, with the suite's name changed", () => {
    const list = `# deb http://old.example/debian trixie main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main non-free
deb-src http://mirror.example/debian trixie main
deb http://mirror.example/security trixie-security main # security
`
    const lines = debianSourceLines(
      parseAptSources(list, "list"),
      { id: "debian", codename: "trixie" },
      "bookworm",
    )
    assert.deepEqual(lines, [
      "deb [signed-by=/k.gpg] http://mirror.example/debian bookworm main",
      "deb http://mirror.example/security bookworm-security main",
    ])
  })

  test("on Ubuntu are left to mmdebstrap, which knows Debian's public ones", () => {
    const list = "deb http://archive.ubuntu.com/ubuntu noble main"
    const lines = debianSourceLines(
      parseAptSources(list, "list"),
      { id: "ubuntu", codename: "noble" },
      "bookworm",
    )
    assert.deepEqual(lines, [])
  })

  test("carry what reaches them, but no password", () => {
    const dump = `Acquire::http::Proxy "http://proxy.example:3128";
Acquire::https::Proxy "http://user:secret@proxy.example:3128";
Acquire::https::CAInfo "/etc/ssl/own.pem";
Acquire::Check-Valid-Until "false";
Acquire::http::Proxy::deb.example "DIRECT";
Acquire::GzipIndexes "true";
DPkg::Post-Invoke:: "rm -rf /";
`
    assert.deepEqual(carriedAptOptions(dump), [
      'Acquire::http::Proxy "http://proxy.example:3128";',
      'Acquire::https::CAInfo "/etc/ssl/own.pem";',
      'Acquire::Check-Valid-Until "false";',
    ])
  })
})

describe("hints", () => {
  test("of apt name the cause", () => {
    const hint = (output: string): string => aptHint(output, ["docker.io"])
    assert.match(hint("W: Failed to fetch ... Temporary failure resolving 'mirror.example'"), /network/)
    assert.match(hint("E: Could not get lock /var/lib/dpkg/lock-frontend"), /Another apt/)
    assert.match(hint("E: Unable to locate package docker.io"), /sources\.list/)
    assert.match(hint("something else"), /apt-get install docker\.io/)
  })

  test("of dockerd name the cause", () => {
    assert.match(
      daemonHint("failed to start daemon: pid file found, ensure docker is not running"),
      /docker\.pid/,
    )
    assert.match(daemonHint("iptables failed: iptables -t nat -N DOCKER: Permission denied"), /NET_ADMIN/)
    assert.match(daemonHint("mount: operation not permitted"), /privileged/)
    assert.match(daemonHint("out of luck"), /DOCKER_HOST/)
  })
})

describe("the engine", () => {
  const path = process.env["PATH"] ?? ""
  const withPrograms = async <T>(programs: Record<string, string>, action: () => Promise<T>): Promise<T> => {
    const bin = await freshFolder()
    for (const [name, text] of Object.entries(programs))
      await executable(join(bin, name), `#!/bin/sh\n${text}\n`)
    process.env["PATH"] = `${bin}${delimiter}${path}`
    try {
      return await action()
    } finally {
      process.env["PATH"] = path
    }
  }

  test("that answers is told by its version", async () => {
    const probe = await withPrograms({ docker: "echo 20.10.24" }, probeEngine)
    assert.deepEqual(probe, { state: "answers", version: "20.10.24" })
  })

  test("that refuses us is not the same as none", async () => {
    const denied = "echo 'permission denied while trying to connect to /var/run/docker.sock' >&2; exit 1"
    assert.equal((await withPrograms({ docker: denied }, probeEngine)).state, "denied")
    const none = "echo 'Cannot connect to the Docker daemon' >&2; exit 1"
    assert.equal((await withPrograms({ docker: none }, probeEngine)).state, "silent")
  })

  test("whose daemon dies at its start is told with the last lines of its log", async (t) => {
    if (process.getuid?.() !== 0) return t.skip("only root starts a daemon")
    if ((process.env["DOCKER_HOST"] ?? "") !== "") return t.skip("DOCKER_HOST is set")
    const programs = {
      docker: "echo 'Cannot connect to the Docker daemon' >&2; exit 1",
      dockerd: "echo first; echo 'failed to create NAT chain: iptables: Permission denied' >&2; exit 1",
      systemctl: "exit 1",
    }
    const logs = await freshFolder()
    await writeFile(join(logs, "dockerd.log"), "of an earlier run\n")
    const engine = await withPrograms(programs, () =>
      ensureEngine({ log: () => undefined, logFolders: [logs] }),
    )
    assert.equal(engine.available, false)
    const reason = engine.reason ?? ""
    assert.match(reason, /dockerd did not come up \(exit 1\)/)
    assert.match(reason, /failed to create NAT chain/)
    assert.match(reason, /-> .*NET_ADMIN/)
    assert.doesNotMatch(reason, /earlier run/)
    return undefined
  })
})

describe("a child process", () => {
  test("that takes too long is ended and says so", async () => {
    const result = await run("sleep", ["30"], { timeoutMs: 50 })
    assert.deepEqual([result.code, result.timedOut], [124, true])
  })

  test("that does not exist gives 127", async () => {
    const result = await run("no-such-program", [])
    assert.deepEqual([result.code, result.missing], [127, true])
  })
})

test("durations and sizes read well", () => {
  assert.deepEqual([45, 1234, 12_400, 125_000].map(formatDuration), ["45 ms", "1.2 s", "12 s", "2 min 05 s"])
  assert.deepEqual([12, 2048, 1024 * 1024 - 1, 208_000_000].map(formatBytes), [
    "12 B",
    "2.0 KiB",
    "1.0 MiB",
    "198.4 MiB",
  ])
})

describe("filters of npm test", () => {
  const all = [
    "test/e2e/iris.test.ts",
    "test/store/store.test.ts",
    "test/store/tag.test.ts",
    "test/tagged.test.ts",
  ]

  test("none selects all, e2e apart", () => {
    const { unit, e2e } = selectFiles(all, [])
    assert.deepEqual([unit, e2e], [all.slice(1), all.slice(0, 1)])
  })

  test("a folder selects what is in it, a file itself, other text what contains it", () => {
    assert.deepEqual(selectFiles(all, ["test/store/"]).unit, all.slice(1, 3))
    assert.deepEqual(selectFiles(all, ["./test/store/tag.test.ts"]).unit, ["test/store/tag.test.ts"])
    assert.deepEqual(selectFiles(all, ["tag"]).unit, ["test/store/tag.test.ts", "test/tagged.test.ts"])
    assert.deepEqual(selectFiles(all, ["nothing", "e2e"]), {
      unit: [],
      e2e: all.slice(0, 1),
      unmatched: ["nothing"],
    })
  })

  test("paths are taken from where the caller stands, options are few", () => {
    assert.deepEqual(parseArguments(["setup.test.ts", "--test-name-pattern=x y"], join(root, "test")), {
      filters: ["test/setup.test.ts"],
      namePattern: "x y",
    })
    assert.ok("error" in parseArguments(["--watch"], root))
  })
})

test("the report of a run counts every outcome, shows why, and ends with the sum", async () => {
  const here = await freshFolder()
  await writeFile(
    join(here, "a.test.ts"),
    `import { test, describe, it } from "node:test"
     describe("outer", () => { it("works", () => {}); it("fails", () => { throw new Error("on purpose") }); it.skip("later") })
     test("alone", () => {})`,
  )
  await writeFile(join(here, "b.test.ts"), `process.stderr.write("last words\\n"); process.exit(3)`)
  await writeFile(
    join(here, "go.ts"),
    `import { run } from "node:test"
     import { createReport } from ${JSON.stringify(pathToFileURL(join(root, "test/setup/report.ts")).href)}
     const report = createReport({ print: (text) => process.stdout.write(text + "\\n"), root: ${JSON.stringify(here)} })
     const files = ["a", "b"].map((name) => ${JSON.stringify(here)} + "/" + name + ".test.ts")
     for await (const event of run({ files, concurrency: 1 })) report.event(event)
     process.exitCode = report.finish() ? 0 : 1`,
  )
  const env = { ...process.env }
  delete env["NODE_TEST_CONTEXT"]
  const result = await run(process.execPath, [join(here, "go.ts")], { env })
  assert.equal(result.code, 1, result.stderr)
  assert.match(result.stdout, /not ok a\.test\.ts: 2 passed, 1 failed, 1 skipped/)
  assert.match(result.stdout, /a\.test\.ts > outer > fails\n +at a\.test\.ts:2\n +Error: on purpose/)
  assert.match(result.stdout, /exit code 3\n +last words/)
  assert.equal(result.stdout.trimEnd().split("\n").at(-1), "2 passed, 2 failed, 1 skipped")
})

describe("bootstrap", () => {
  interface Bootstrap {
    readonly staleInstall: (root: string) => string | undefined
    readonly staleBuild: (root: string) => string | undefined
    readonly npmHint: (output: string) => string
  }
  const script = join(root, "test/setup/bootstrap.mjs")
  // Plain JavaScript without declarations: this is what it exports.
  const load = async (): Promise<Bootstrap> => (await import(pathToFileURL(script).href)) as Bootstrap

  /** A project with one package installed and dist built, in which nothing is to be done. */
  async function project(): Promise<string> {
    const here = await freshFolder()
    const packages = {
      "node_modules/a": { version: "1.0.0", integrity: "sha512-a" },
      "node_modules/other-platform": { version: "1.0.0", integrity: "sha512-b", optional: true },
    }
    await mkdir(join(here, "node_modules/.bin"), { recursive: true })
    await symlink(process.execPath, join(here, "node_modules/.bin/node"))
    const { "node_modules/a": a } = packages
    await writeFile(
      join(here, "node_modules/.package-lock.json"),
      JSON.stringify({ packages: { "node_modules/a": a } }),
    )
    await writeFile(join(here, "package-lock.json"), JSON.stringify({ packages: { "": {}, ...packages } }))
    await writeFile(join(here, "package.json"), JSON.stringify({ scripts: { build: "node -e 1" } }))
    await mkdir(join(here, "cli/deep"), { recursive: true })
    await writeFile(join(here, "cli/deep/main.ts"), "")
    await mkdir(join(here, "dist"))
    await writeFile(join(here, "dist/metafile.json"), "{}")
    const later = new Date(Date.now() + 5000)
    await utimes(join(here, "dist/metafile.json"), later, later)
    await mkdir(join(here, "test/setup"), { recursive: true })
    await cp(script, join(here, "test/setup/bootstrap.mjs"))
    return here
  }

  test("does nothing to a project that is up to date", async () => {
    const { staleInstall, staleBuild } = await load()
    const here = await project()
    assert.deepEqual([staleInstall(here), staleBuild(here)], [undefined, undefined])
  })

  test("installs when node_modules is missing or holds other versions than the lock file", async () => {
    const { staleInstall } = await load()
    const here = await project()
    const lock = join(here, "package-lock.json")
    await writeFile(lock, (await readFile(lock, "utf8")).replace("1.0.0", "1.0.1"))
    assert.match(staleInstall(here) ?? "", /^a 1\.0\.1 .* not installed/)
    await rm(join(here, "node_modules"), { recursive: true })
    assert.equal(staleInstall(here), "node_modules is missing")
  })

  test("builds when a source is newer than dist", async () => {
    const { staleBuild } = await load()
    const here = await project()
    const later = new Date(Date.now() + 10_000)
    await utimes(join(here, "cli/deep/main.ts"), later, later)
    assert.equal(staleBuild(here), join("cli", "deep", "main.ts") + " is newer than dist")
  })

  test("names the cause of a failed npm ci", async () => {
    const { npmHint } = await load()
    assert.match(npmHint("npm error code ENOTFOUND"), /registry cannot be reached/)
    assert.match(npmHint("npm error code SELF_SIGNED_CERT_IN_CHAIN"), /NODE_EXTRA_CA_CERTS/)
  })

  test("passes on arguments, output and exit code", async () => {
    const here = await project()
    await writeFile(join(here, "go.ts"), "console.log(process.argv.slice(2).join('|')); process.exitCode = 7")
    const result = await run(process.execPath, [
      join(here, "test/setup/bootstrap.mjs"),
      "go.ts",
      "a b",
      "--c",
    ])
    assert.deepEqual([result.stdout, result.stderr, result.code], ["a b|--c\n", "", 7])
  })

  test("passes a signal on and waits for what the script makes of it", async () => {
    const here = await project()
    await writeFile(
      join(here, "go.ts"),
      `process.on("SIGTERM", () => setTimeout(() => process.exit(42), 50)); setInterval(() => {}, 1000); console.log("up")`,
    )
    const child = spawn(process.execPath, [join(here, "test/setup/bootstrap.mjs"), "go.ts"])
    child.stdout.once("data", () => child.kill("SIGTERM"))
    const code = await new Promise((done) => child.once("exit", done))
    assert.equal(code, 42)
  })

  test("runs nothing when the build fails, and says what failed", async () => {
    const here = await project()
    await rm(join(here, "dist"), { recursive: true })
    await writeFile(join(here, "package.json"), JSON.stringify({ scripts: { build: "echo broken; exit 1" } }))
    await writeFile(join(here, "go.ts"), "console.log('ran')")
    const started = promisify(execFile)(process.execPath, [join(here, "test/setup/bootstrap.mjs"), "go.ts"])
    await assert.rejects(
      started,
      ({ code, stdout, stderr }: { code: number; stdout: string; stderr: string }) => {
        assert.deepEqual([code, stdout], [1, ""])
        assert.match(stderr, /broken\n\nnpm run build failed\n {2}-> /)
        return true
      },
    )
  })
})
