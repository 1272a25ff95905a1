/** npm packages of a service: from lock file to running container, with each package manager, and with a private registry. */
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { once } from "node:events"
import { cp, mkdir, readFile, readdir, symlink, writeFile } from "node:fs/promises"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { networkInterfaces } from "node:os"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { makeDistroless } from "../setup/distroless.ts"
import { bentoctl, docker, loadImage, root, run, searchImage, temporaryFolder, until200 } from "./support.ts"
import type { Ran } from "./support.ts"

const NAME = `bentoctl-e2e-packages-${process.pid}`
/** The base that the other tests use, with npm where it has none. */
const BASE = `${NAME}-base:1`
const DISTROLESS = `${NAME}-distroless:1`
/** A base for the other platform: nothing but a folder, since none of it runs. */
const FOREIGN_BASE = `${NAME}-foreign:1`
const FOREIGN = process.arch === "x64" ? "arm64" : "x64"
const ENGINE = { x64: "amd64", arm64: "arm64" } as const
const FOREIGN_BENTOFILE = `service: service.ts:svc\ndocker: {distro: distroless, base_image: "${FOREIGN_BASE}"}\n`
const NPM = "npm@11.19.1"
const TOKEN = `t0ken-${process.pid}-never-in-an-image`

const { folder, remove } = await temporaryFolder()
const home = path.join(folder, "bentoml")
const env = { BENTOML_HOME: home, BENTOCTL_BASE_IMAGE: BASE, HOME: folder, NPM_CONFIG_USERCONFIG: "" }
const made = new Set<string>([BASE])
const containers = new Set<string>()
const unavailable =
  (await run("docker", ["version"])).code === 0 ? false : ("no Docker Engine answers" as const)

after(async () => {
  if (containers.size > 0) await run("docker", ["rm", "-f", ...containers])
  await run("docker", ["rmi", "-f", ...made])
  await remove()
})

const SERVICE = `import ms from "ms"
import { api, json, service } from "bentoctl/runtime"
export const svc = service({
  name: "packages",
  apis: [api({ name: "ms", input: json<string>(), output: json(), handler: (value) => ms(value as "1s") })],
})
`

let projects = 0

/** A project with the packages of a fixture, installed here by the program that installs them in images. */
async function project(
  fixture: string | null,
  files: Readonly<Record<string, string>> = {},
): Promise<string> {
  const dir = path.join(folder, `project-${fixture ?? "none"}-${projects++}`)
  await mkdir(dir)
  if (fixture !== null) await cp(path.join(root, "test/fixtures/packages", fixture), dir, { recursive: true })
  const all = { "bentofile.yaml": "service: service.ts:svc\n", "service.ts": SERVICE, ...files }
  for (const [name, text] of Object.entries(all)) await writeFile(path.join(dir, name), text)
  return dir
}

function install(dir: string, manager: string, version: string, cpu: string = process.arch): Promise<Ran> {
  const program = path.join(root, "dist/cli/install-packages.js")
  const args = [program, manager, version, cpu, path.join(folder, "downloads"), path.join(dir, ".npmrc")]
  return run(process.execPath, args, { cwd: dir })
}

async function foundations(): Promise<string[]> {
  const listed = await docker("images", "--format", "{{.Repository}}:{{.Tag}}", "bentoctl/foundation")
  return listed.split("\n").filter((tag) => tag !== "")
}

/** Builds Bento and image; the names of both are ours alone. */
async function build(
  dir: string,
  more: Readonly<Record<string, string>> = {},
  builder = "auto",
  flags: readonly string[] = [],
): Promise<Ran & { readonly image: string }> {
  const name = `${NAME}-${path.basename(dir).toLowerCase()}`
  const args = ["build", dir, "--name", name, "--containerize", "--builder", builder, "-o", "json", ...flags]
  const ran = await bentoctl(args, { ...env, ...more })
  if (ran.code !== 0) return { ...ran, image: "" }
  const { image } = JSON.parse(ran.stdout) as { image: { tags: string[]; image_id: string } }
  for (const tag of image.tags) made.add(tag)
  return { ...ran, image: image.tags[0] ?? "" }
}

async function loadForeignBase(): Promise<void> {
  made.add(FOREIGN_BASE)
  const folder = { type: "directory", name: "srv", mode: 0o755, uid: 0, gid: 0 } as const
  await loadImage(FOREIGN_BASE, {}, [folder], ENGINE[FOREIGN])
}

/** Asks the service of an image in a container that may do nothing. */
async function ask(image: string, route: string, body: unknown): Promise<unknown> {
  const limits = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
  const id = await docker("run", "-d", "-P", ...limits, image)
  containers.add(id)
  const port = (await docker("port", id, "3000/tcp")).split("\n")[0]?.split(":").at(-1)
  const url = `http://127.0.0.1:${port}`
  await until200(`${url}/readyz`)
  const answer = await fetch(`${url}/${route}`, { method: "POST", body: JSON.stringify(body) })
  const value: unknown = await answer.json()
  await docker("rm", "-f", id)
  containers.delete(id)
  return value
}

/** Asks the service of a project or a Bento that `bentoctl serve` serves here. */
async function askServed(target: string, body: unknown): Promise<unknown> {
  const main = path.join(root, "dist/cli/main.js")
  const child = spawn(process.execPath, [main, "serve", target, "-p", "0"], {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "inherit"],
  })
  const ended = once(child, "close")
  try {
    let printed = ""
    for await (const chunk of child.stdout.setEncoding("utf8")) {
      printed += String(chunk)
      const url = /on (http:\/\/\S+)/.exec(printed)?.[1]
      if (url === undefined) continue
      const answer = await fetch(`${url}/ms`, { method: "POST", body: JSON.stringify(body) })
      return await answer.json()
    }
    return assert.fail(`bentoctl serve ${target} ended: ${printed}`)
  } finally {
    child.kill()
    await ended
  }
}

before(async () => {
  if (unavailable !== false) return
  const base = process.env["BENTOCTL_BASE_IMAGE"] ?? "node:24-bookworm-slim"
  if ((await run("docker", ["run", "--rm", "--entrypoint", "npm", base, "--version"])).code === 0) {
    await docker("tag", base, BASE)
    return
  }
  // A stand-in has only Node: npm comes from its own package.
  const modules = path.join(folder, "base/usr/local/lib/node_modules")
  await mkdir(path.join(folder, "base/usr/local/bin"), { recursive: true })
  await mkdir(modules, { recursive: true })
  const packed = await run("npm", ["pack", NPM, "--silent", "--pack-destination", folder])
  assert.equal(packed.code, 0, packed.stderr)
  const archive = path.join(folder, packed.stdout.trim().split("\n").at(-1) ?? "")
  assert.equal((await run("tar", ["-xzf", archive, "-C", modules])).code, 0)
  assert.equal((await run("mv", [path.join(modules, "package"), path.join(modules, "npm")])).code, 0)
  await symlink("../lib/node_modules/npm/bin/npm-cli.js", path.join(folder, "base/usr/local/bin/npm"))
  const id = await docker("create", base)
  containers.add(id)
  await docker("cp", `${path.join(folder, "base")}/.`, `${id}:/`)
  await docker("commit", id, BASE)
  await docker("rm", "-f", id)
  containers.delete(id)
})

describe("the packages of a lock file are in the image", { skip: unavailable }, () => {
  const managers: readonly [fixture: string, manager: string, version: string][] = [
    ["pnpm", "pnpm", "10.34.9"],
    ["yarn", "yarn", "1.22.22"],
  ]
  for (const [fixture, manager, version] of managers) {
    test(`by ${manager}`, async () => {
      const dir = await project(fixture)
      const installed = await install(dir, manager, version)
      assert.equal(installed.code, 0, installed.stdout + installed.stderr)
      const { code, stderr, image } = await build(dir)
      assert.equal(code, 0, stderr)
      const names = await docker("run", "--rm", image, "ls", "-A", "/home/bentoml/node_modules")
      assert.deepEqual(
        names.split("\n").filter((name) => !name.startsWith(".")),
        ["ms"],
      )
      const asked = ["run", "--rm", "--user", "12345:0", "-w", "/home/bentoml/bento/src", image]
      assert.equal(await docker(...asked, "node", "-p", 'require("ms")("2 days")'), "172800000")
    })
  }

  test("by npm, native ones too, in a layer of their own that other builds share", async () => {
    const service = SERVICE.replace(
      'import ms from "ms"',
      'import ms from "ms"\nimport { crc32 } from "@node-rs/crc32"',
    ).replace('ms(value as "1s")', '[ms(value as "1s"), crc32(value)]')
    const dir = await project("npm", { "service.ts": service })
    const without = await build(dir)
    assert.equal(without.code, 1)
    assert.match(without.stderr, /service\.ts:1:\d+: Cannot find package 'ms'[\s\S]*npm ci/)
    const installed = await install(dir, "npm", "")
    assert.equal(installed.code, 0, installed.stdout + installed.stderr)
    const first = await build(dir)
    assert.equal(first.code, 0, first.stderr)
    assert.deepEqual(await ask(first.image, "ms", "2 days"), [172_800_000, 4077980539])
    const layers = async (image: string): Promise<string[]> =>
      JSON.parse(await docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", image)) as string[]
    const base = (await layers(BASE)).length
    // Other code, and the other builder.
    await writeFile(path.join(dir, "service.ts"), `${service}// changed\n`)
    const second = await build(dir, {}, "dockerfile")
    assert.equal(second.code, 0, second.stderr)
    assert.equal((await layers(second.image))[base], (await layers(first.image))[base])
  })

  test("on distroless, which has no npm: a stage that has it installs them", async () => {
    const bentofile = `service: service.ts:svc\ndocker: {distro: distroless, base_image: "${DISTROLESS}"}\n`
    const dir = await project("npm", { "bentofile.yaml": bentofile })
    const installed = await install(dir, "npm", "")
    assert.equal(installed.code, 0, installed.stdout + installed.stderr)
    makeDistroless(BASE, DISTROLESS)
    made.add(DISTROLESS)
    const { code, stderr, image } = await build(dir)
    assert.equal(code, 0, stderr)
    assert.equal(await ask(image, "ms", "2 days"), 172_800_000)
    const listing = ["-p", 'fs.readdirSync("/home/bentoml/node_modules").join()']
    const names = await docker("run", "--rm", "--entrypoint", "/nodejs/bin/node", image, ...listing)
    assert.equal(names, "@node-rs,ms")
  })

  test("for another platform, without an emulator: its own binaries", async () => {
    await loadForeignBase()
    const dir = await project("npm", { "bentofile.yaml": FOREIGN_BENTOFILE })
    const installed = await install(dir, "npm", "")
    assert.equal(installed.code, 0, installed.stdout + installed.stderr)
    const { code, stderr, image } = await build(dir, {}, "assemble", [
      "--platform",
      `linux/${ENGINE[FOREIGN]}`,
    ])
    assert.equal(code, 0, stderr)
    assert.equal(await docker("image", "inspect", "-f", "{{.Architecture}}", image), ENGINE[FOREIGN])
    const id = await docker("create", "--platform", `linux/${ENGINE[FOREIGN]}`, image)
    containers.add(id)
    const out = path.join(folder, "foreign-modules")
    await docker("cp", `${id}:/home/bentoml/node_modules`, out)
    assert.deepEqual((await readdir(out)).toSorted(), ["@node-rs", "ms"])
    const packages = (await readdir(path.join(out, "@node-rs"))).toSorted()
    assert.deepEqual(packages, ["crc32", `crc32-linux-${FOREIGN}-gnu`])
    const name = `crc32.linux-${FOREIGN}-gnu.node`
    const binary = await readFile(path.join(out, "@node-rs", `crc32-linux-${FOREIGN}-gnu`, name))
    assert.equal(
      binary.readUInt16LE(18),
      { x64: 0x3e, arm64: 0xb7 }[FOREIGN],
      "the machine of its ELF header",
    )
  })

  test("by node.packages, which bentoctl installs for itself as well", async () => {
    const dir = await project(null, {
      "bentofile.yaml": "service: service.ts:svc\nnode: {packages: [ms@^2.1.0]}\n",
    })
    const { code, stderr, stdout, image } = await build(dir)
    assert.equal(code, 0, stderr)
    const { path: bento } = JSON.parse(stdout) as { path: string }
    assert.deepEqual((await readdir(path.join(bento, "env/node"))).toSorted(), [
      "package-lock.json",
      "package.json",
    ])
    assert.match(
      await readFile(path.join(bento, "env/node/package-lock.json"), "utf8"),
      /"version": "2\.1\.3"/,
    )
    assert.equal(await ask(image, "ms", "1 min"), 60_000)
    for (const target of [dir, image]) assert.equal(await askServed(target, "1 min"), 60_000)
  })
})

// A private registry ------------------------------------------------------------------------------------------------

interface Registry {
  /** As containers see it. */
  readonly url: string
  token: string
  readonly close: () => void
}

/** Serves packages of the scope @acme, to who has the token. */
async function startRegistry(
  host: string,
  packages: Readonly<Record<string, Readonly<Record<string, string>>>>,
): Promise<Registry> {
  const archives = new Map<string, { bytes: Buffer; manifest: object }>()
  for (const [name, files] of Object.entries(packages)) {
    const dir = path.join(folder, "registry", name)
    await mkdir(dir, { recursive: true })
    for (const [file, text] of Object.entries(files)) await writeFile(path.join(dir, file), text)
    const packed = await run("npm", ["pack", "--silent", "--ignore-scripts"], { cwd: dir })
    assert.equal(packed.code, 0, packed.stderr)
    const bytes = await readFile(path.join(dir, packed.stdout.trim()))
    archives.set(name, { bytes, manifest: JSON.parse(files["package.json"] ?? "{}") as object })
  }
  const registry = { url: "", token: TOKEN, close: () => server.close() }
  const server = createServer((request, response) => {
    if (request.headers.authorization !== `Bearer ${registry.token}`) return response.writeHead(401).end("{}")
    const asked = decodeURIComponent(request.url ?? "").slice("/@acme/".length)
    const found = archives.get(asked.replace(/\/.*$/, ""))
    if (found === undefined) return response.writeHead(404).end("{}")
    if (asked.endsWith(".tgz")) return response.end(found.bytes)
    const integrity = `sha512-${createHash("sha512").update(found.bytes).digest("base64")}`
    const dist = { integrity, tarball: `${registry.url}@acme/${asked}/-/1.0.0.tgz` }
    const versions = { "1.0.0": { ...found.manifest, dist } }
    return response.end(
      JSON.stringify({ name: `@acme/${asked}`, "dist-tags": { latest: "1.0.0" }, versions }),
    )
  })
  await new Promise<void>((resolve) => server.listen(0, "0.0.0.0", resolve))
  registry.url = `http://${host}:${(server.address() as AddressInfo).port}/`
  return registry
}

const manifest = (name: string, more: object = {}): string =>
  JSON.stringify({ name: `@acme/${name}`, version: "1.0.0", ...more })

/** An address of this machine that containers reach too. */
const address = Object.values(networkInterfaces())
  .flat()
  .find((found) => found?.family === "IPv4" && !found.internal)?.address
const unreachable =
  unavailable !== false ? unavailable : address === undefined && "this machine has no address in a network"

describe("a private registry", { skip: unreachable }, () => {
  let registry: Registry
  before(async () => {
    registry = await startRegistry(address ?? "", {
      greeting: { "package.json": manifest("greeting"), "index.js": 'module.exports = () => "hello"' },
      native: {
        "package.json": manifest("native", { scripts: { install: "exit 3" } }),
        "binding.gyp": "{}",
        "index.js": "",
      },
      fetched: {
        "package.json": manifest("fetched", { scripts: { install: "true" } }),
        "index.js": "",
      },
    })
  })
  after(() => registry.close())
  const npmrc = (token: string): string =>
    `@acme:registry=${registry.url}\n${registry.url.slice("http:".length)}:_authToken=${token}\n`

  test("serves packages to the build, and its token is nowhere afterwards", async () => {
    const service = SERVICE.replace('import ms from "ms"', 'import greet from "@acme/greeting"').replace(
      'ms(value as "1s")',
      "greet()",
    )
    const dir = await project(null, {
      "service.ts": service,
      "package.json": JSON.stringify({ dependencies: { "@acme/greeting": "^1.0.0" } }),
      ".npmrc": npmrc("${ACME_TOKEN}"),
    })
    const locked = await run("npm", ["install", "--no-audit", "--no-fund"], {
      cwd: dir,
      env: { ACME_TOKEN: TOKEN },
    })
    assert.equal(locked.code, 0, locked.stderr)

    const refused = await build(dir, { ACME_TOKEN: "wrong" })
    assert.equal(refused.code, 1)
    assert.match(refused.stderr, /the registry refused us: put its token into ~\/\.npmrc/)

    const { code, stderr, stdout, image } = await build(dir, { ACME_TOKEN: TOKEN })
    assert.equal(code, 0, stderr)
    assert.equal(await ask(image, "ms", 1), "hello")

    const { path: bento } = JSON.parse(stdout) as { path: string }
    const places: Readonly<Record<string, string>> = {
      "the Bento": (await run("grep", ["-rl", TOKEN, bento])).stdout,
      "the store's cache": (await run("grep", ["-rl", TOKEN, path.join(home, ".bentoctl")])).stdout,
      "what was printed": stdout + stderr,
      "the image's config": await docker("image", "inspect", image, ...(await foundations())),
      "the image's history": await docker("history", "--no-trunc", image),
      "the engine's account of its build cache": (
        await run("docker", ["system", "df", "-v", "--format", "{{json .BuildCache}}"])
      ).stdout,
    }
    for (const [place, text] of Object.entries(places)) assert.ok(!text.includes(TOKEN), place)
    const packaged = 'module.exports = () => "hello"'
    const { found } = await searchImage(image, [TOKEN, packaged])
    assert.equal(found.length, 1, found.join())
    assert.ok(found[0]?.startsWith(packaged))

    // Another token changes nothing about the packages.
    registry.token = "the one after"
    const rotated = await bentoctl(["containerize", image, "--progress", "plain"], { ...env, ACME_TOKEN: "" })
    assert.equal(rotated.code, 0, rotated.stderr)
    registry.token = TOKEN
  })

  test("names the package that cannot be had for a platform", async () => {
    await loadForeignBase()
    const dir = await project(null, {
      "bentofile.yaml": FOREIGN_BENTOFILE,
      "service.ts": SERVICE.replace(/^.*"ms"\n/, "").replace('ms(value as "1s")', "value"),
      "package.json": JSON.stringify({ dependencies: { "@acme/native": "1.0.0", "@acme/fetched": "1.0.0" } }),
      ".npmrc": npmrc(TOKEN),
    })
    const locked = await run("npm", ["install", "--package-lock-only"], { cwd: dir })
    assert.equal(locked.code, 0, locked.stderr)
    const other = await build(dir, {}, "assemble", ["--platform", `linux/${ENGINE[FOREIGN]}`])
    assert.equal(other.code, 1)
    for (const name of ["native", "fetched"]) {
      const why = "has to be compiled or fetched by its install script, and that cannot run for linux/"
      assert.match(other.stderr, new RegExp(`@acme/${name}@1\\.0\\.0 ${why}`))
    }
    const own = await install(dir, "npm", "")
    assert.equal(own.code, 1)
    assert.match(own.stderr, /bentoctl: @acme\/native could not be built: its install script failed/)
  })
})

test("Yarn 2 and newer install into node_modules, too", async () => {
  const dir = path.join(folder, "yarn4")
  await cp(path.join(root, "test/fixtures/packages/yarn4"), dir, { recursive: true })
  const { code, stderr, stdout } = await install(dir, "yarn-berry", "4.18.1")
  assert.equal(code, 0, stdout + stderr)
  assert.deepEqual(await readdir(path.join(dir, "node_modules")), ["ms"])
})
