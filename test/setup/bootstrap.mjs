/**
 * `node test/setup/bootstrap.mjs FILE.ts [ARGUMENT...]`: from a bare clone to a running script.
 *
 * Installs the packages when they are missing or not those of package-lock.json, builds dist/ when a source is newer,
 * then runs FILE.ts on the Node 24 of node_modules with the arguments. It is plain JavaScript and imports nothing but
 * Node itself, since it starts where nothing is installed and Node is 20.
 */

import { spawn } from "node:child_process"
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs"
import { constants } from "node:os"
import { delimiter, join, resolve } from "node:path"
import { fileURLToPath, pathToFileURL } from "node:url"

/** What `npm run build` reads. */
const SOURCES = [
  "build.ts",
  "package.json",
  "package-lock.json",
  "tsconfig.json",
  "cli",
  "store",
  "images",
  "templates",
  "runtime",
]

/**
 * Why `npm ci` has to run, or undefined. Contents are compared, not times: npm writes package-lock.json after
 * node_modules, so that by time each `npm install` would call for another one.
 */
export function staleInstall(root) {
  if (!existsSync(join(root, "node_modules"))) return "node_modules is missing"
  const wanted = readPackages(join(root, "package-lock.json"))
  const present = readPackages(join(root, "node_modules/.package-lock.json"))
  if (wanted === undefined) return undefined
  if (present === undefined) return "node_modules was not made by npm"
  for (const [path, entry] of Object.entries(wanted)) {
    if (path === "" || entry.link) continue
    const found = present[path]
    if (found === undefined && (entry.optional || entry.devOptional || entry.peer)) continue // of another platform
    if (found?.version !== entry.version || found?.integrity !== entry.integrity) {
      return `${path.replace(/^.*node_modules\//, "")} ${entry.version} of package-lock.json is not installed`
    }
  }
  if (!existsSync(nodeOf(root))) return "node_modules holds no node"
  return undefined
}

function readPackages(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8")).packages
  } catch {
    return undefined
  }
}

/** Why `npm run build` has to run, or undefined. Folders count too: their time changes when a file goes away. */
export function staleBuild(root) {
  const made = timeOf(join(root, "dist/metafile.json"))
  if (made === undefined) return "dist is missing"
  const newer = (path) => {
    const time = timeOf(join(root, path))
    if (time !== undefined && time > made) return path
    if (!isFolder(join(root, path))) return undefined
    for (const name of readdirSync(join(root, path))) {
      const found = newer(join(path, name))
      if (found !== undefined) return found
    }
    return undefined
  }
  for (const source of SOURCES) {
    const found = newer(source)
    if (found !== undefined) return `${found} is newer than dist`
  }
  return undefined
}

function timeOf(path) {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs
}

function isFolder(path) {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true
}

function nodeOf(root) {
  return join(root, "node_modules/.bin/node")
}

/** What to do about a failed `npm ci`, by what npm printed. */
export function npmHint(output) {
  if (/ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|network/.test(output)) {
    return "The package registry cannot be reached: check the network (npm ping), or the proxy and registry in ~/.npmrc."
  }
  if (/SELF_SIGNED|UNABLE_TO_(GET|VERIFY)|CERT_/.test(output)) {
    return "The registry's certificate is not trusted: set NODE_EXTRA_CA_CERTS to the file of your network's certificates."
  }
  if (/can only install packages when your package.json and package-lock.json/.test(output)) {
    return "package.json and package-lock.json disagree: run npm install, and commit the lock file."
  }
  if (/ENOSPC/.test(output)) return "The disk is full: make room and run it again."
  if (/EACCES|EPERM/.test(output))
    return "Files here or in npm's cache belong to another user: look at the path above."
  return "Mend what npm names above, then run it again."
}

const log = (line) => process.stderr.write(`${line}\n`)
const seconds = (sinceMs) => `${((performance.now() - sinceMs) / 1000).toFixed(1)} s`

let child
let interrupted

/** The child decides what a signal means; we wait for its end and pass its exit code on. */
function forwardSignals() {
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
    process.on(signal, () => {
      interrupted = signal
      child?.kill(signal)
    })
  }
}

/** Runs a program to its end: its exit code, and what it printed when that was asked for. */
function start(program, args, { capture = false, env = process.env, cwd } = {}) {
  return new Promise((done) => {
    let output = ""
    const stdio = capture ? ["ignore", "pipe", "pipe"] : "inherit"
    child = spawn(program, args, { stdio, env, cwd })
    for (const stream of capture ? [child.stdout, child.stderr] : []) {
      stream.setEncoding("utf8").on("data", (text) => (output += text))
    }
    child.once("error", (error) => done({ code: 127, output: `${output}${error.message}\n` }))
    child.once("close", (code, signal) => {
      done({ code: code ?? 128 + (constants.signals[signal] ?? 0), output })
    })
  })
}

/** npm as it was called for this script (`npm test` says where its own program is), else the one on PATH. */
function npm(args, root, env) {
  const path = process.env.npm_execpath
  const own = path !== undefined && /npm-cli\.c?js$/.test(path) && existsSync(path)
  const options = { capture: true, cwd: root, env }
  return own ? start(process.execPath, [path, ...args], options) : start("npm", args, options)
}

function fail(what, output, hint) {
  if (interrupted !== undefined) process.exit(128 + constants.signals[interrupted])
  log(output.trimEnd())
  log(`\n${what} failed`)
  log(`  -> ${hint}`)
  process.exit(1)
}

async function install(root, reason) {
  const startedMs = performance.now()
  log(`npm ci (${reason}) ...`)
  // onnxruntime-node's install script would fetch CUDA libraries where it finds CUDA; nothing here uses them.
  const env = { ...process.env, ONNXRUNTIME_NODE_INSTALL: "skip", ONNXRUNTIME_NODE_INSTALL_CUDA: "skip" }
  const args = ["ci", "--no-audit", "--no-fund", "--engine-strict=false", "--include=dev"]
  const { code, output } = await npm(args, root, env)
  if (code !== 0)
    fail("npm ci", output, code === 127 ? "Install Node.js 20 or later with npm." : npmHint(output))
  if (!existsSync(nodeOf(root))) {
    fail("npm ci", output, "It installed no node: allow install scripts (npm config delete ignore-scripts).")
  }
  log(`npm ci: ${seconds(startedMs)}`)
}

async function build(root, reason, env) {
  const startedMs = performance.now()
  log(`npm run build (${reason}) ...`)
  const { code, output } = await npm(["run", "-s", "build"], root, env)
  if (code !== 0) fail("npm run build", output, "Mend what the compiler names above.")
  log(`npm run build: ${seconds(startedMs)}`)
}

async function main([file, ...args]) {
  const root = resolve(fileURLToPath(import.meta.url), "../../..")
  if (file === undefined) {
    log("usage: node test/setup/bootstrap.mjs FILE.ts [ARGUMENT...]")
    process.exit(2)
  }
  const major = Number(process.versions.node.split(".")[0])
  if (major < 20) fail("bootstrap", `This is Node ${process.versions.node}.`, "Install Node.js 20 or later.")
  forwardSignals()
  const missing = staleInstall(root)
  if (missing !== undefined) await install(root, missing)
  const env = { ...process.env, PATH: join(root, "node_modules/.bin") + delimiter + (process.env.PATH ?? "") }
  const old = staleBuild(root)
  if (old !== undefined) await build(root, old, env)
  if (interrupted !== undefined) process.exit(128 + constants.signals[interrupted])
  const { code } = await start(nodeOf(root), [join(root, file), ...args], { env })
  process.exit(code)
}

if (process.argv[1] !== undefined && pathToFileURL(resolve(process.argv[1])).href === import.meta.url) {
  await main(process.argv.slice(2))
}
