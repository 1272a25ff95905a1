/** The packages that are installed on this machine: what an interrupted installation leaves, and when they are taken again. */
import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { once } from "node:events"
import { mkdir, readFile, readdir, writeFile } from "node:fs/promises"
import { createServer, type IncomingMessage } from "node:http"
import type { AddressInfo } from "node:net"
import path from "node:path"
import { after, test } from "node:test"
import { promisify } from "node:util"
import { installHere, type PackageTools } from "../../images/node-packages.ts"
import { tempPrefix } from "../../store/owner.ts"
import { root, temporaryFolder } from "./support.ts"

const { folder, remove } = await temporaryFolder()
after(remove)
let count = 0

/** A machine with a home and a place for temporary files, both below `dir`. */
async function machine(): Promise<{ dir: string; packages: string; tools: PackageTools }> {
  const dir = path.join(folder, `machine${count++}`)
  const [home, tmp] = [path.join(dir, "bentoml"), path.join(dir, "tmp")]
  await mkdir(tmp, { recursive: true })
  const env = { PATH: process.env["PATH"], HOME: dir, TMPDIR: tmp }
  const tools = { home, nodePath: process.execPath, env, npmrc: "" }
  return { dir, packages: path.join(home, ".bentoctl/packages"), tools }
}

/** An installer that has nothing to do. */
const IDLE = "true"
const NONE = { manager: "npm", version: "", settings: {}, files: { "package.json": "{}" } } as const

async function filesWith(text: string, dir: string): Promise<string[]> {
  const entries = await readdir(dir, { recursive: true, withFileTypes: true })
  const files = entries
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => path.join(parentPath, name))
  const texts = await Promise.all(files.map((file) => readFile(file, "latin1").catch(() => "")))
  return files.filter((_, index) => texts[index]?.includes(text))
}

for (const manager of ["npm", "yarn-berry"] as const) {
  const name = `an installation by ${manager} that is interrupted leaves no credentials and no program`
  test(name, { timeout: 60_000 }, async (t) => {
    const { dir, packages, tools } = await machine()
    const registry = createServer(() => {}) // never answers
    registry.listen(0, "127.0.0.1")
    await once(registry, "listening")
    t.after(() => {
      registry.closeAllConnections()
      registry.close()
    })
    const place = `//127.0.0.1:${(registry.address() as AddressInfo).port}/`
    const token = "t0ken-of-the-registry"
    const dependencies = { ms: "2.1.3" }
    const ms = { version: "2.1.3", resolved: `http:${place}ms/-/ms-2.1.3.tgz` }
    const lock = { lockfileVersion: 3, packages: { "": { dependencies }, "node_modules/ms": ms } }
    const files = {
      "package.json": JSON.stringify({ private: true, dependencies }),
      "package-lock.json": JSON.stringify(lock),
    }
    const user = new AbortController()
    const npmrc = `registry=http:${place}\n${place}:_authToken=${token}\n`
    const asked = { ...NONE, manager, version: manager === "npm" ? "" : "4.18.1", files }
    const installing = installHere(asked, { ...tools, npmrc, signal: user.signal })
    const [request] = (await Promise.race([
      once(registry, "request"),
      installing.then(() => assert.fail("it was installed from nowhere")),
    ])) as [IncomingMessage]
    assert.equal(request.headers.authorization, `Bearer ${token}`)
    const [work = ""] = (await readdir(packages)).filter((entry) => entry.startsWith(tempPrefix()))
    assert.deepEqual(await filesWith(token, path.join(packages, work, "packages")), [], "they would stay")
    const hungUp = once(request.socket, "close")

    user.abort(new Error("Ctrl-C"))
    await assert.rejects(installing, /Ctrl-C/)

    assert.deepEqual(await filesWith(token, dir), [])
    await hungUp
  })
}

test("what a killed installation left goes with the next one, and another's that goes on stays", async () => {
  const { packages, tools } = await machine()
  const owner = path.join(root, "store/owner.ts")
  const script = `import { tempPrefix } from ${JSON.stringify(owner)}; process.stdout.write(tempPrefix())`
  const { stdout: dead } = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", script])
  for (const name of [`${dead}x`, `${tempPrefix()}x`]) {
    await mkdir(path.join(packages, name), { recursive: true })
    await writeFile(path.join(packages, name, "credentials"), "")
  }
  const installed = await installHere(NONE, { ...tools, nodePath: IDLE })
  assert.deepEqual(
    (await readdir(packages)).toSorted(),
    [`${tempPrefix()}x`, path.basename(installed)].toSorted(),
  )
})

test("packages are installed once, and anew for another system, processor or interface of Node", async () => {
  const { tools } = await machine()
  const install = (): Promise<string> => installHere(NONE, { ...tools, nodePath: IDLE })
  const first = await install()
  assert.equal(await install(), first)
  const places = [first]
  for (const [key, value] of [
    ["platform", "plan9"],
    ["arch", "vax"],
    ["versions", { ...process.versions, modules: "1" }],
  ] as const) {
    const real = Object.getOwnPropertyDescriptor(process, key)
    assert.ok(real !== undefined)
    Object.defineProperty(process, key, { ...real, value })
    try {
      places.push(await install())
    } finally {
      Object.defineProperty(process, key, real)
    }
  }
  assert.equal(new Set(places).size, 4, places.join("\n"))
})
