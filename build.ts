/**
 * `npm run build`: makes dist/, all that the npm package ships.
 *
 * dist/cli      the command line: a bundle, as it starts faster from few files than from the hundreds that it and its
 *               packages are written in; beside it what it reads: the templates and the installer of packages
 * dist/image    the server that goes into images: a bundle whose only external package is onnxruntime-node, so that an
 *               image needs no `npm install` of ours
 * dist/runtime  the types of `bentoctl/runtime`, and dist/store those that they are made of
 *
 * The packages in the bundles need not be installed: package.json has them as devDependencies. Their licences go along
 * in dist/licenses.txt. Nothing is minified: the stack of a defect must say where it was.
 */
import { execFileSync } from "node:child_process"
import { chmodSync, globSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { createRequire, isBuiltin } from "node:module"
import path from "node:path"
import { build, type BuildOptions, type Metafile, type Plugin } from "esbuild"
import { precompileOurs, type OurTemplate } from "./templates/compile.ts"

const root = import.meta.dirname
const started = performance.now()
const staging = path.join(root, ".cache", `dist-${process.pid}`)
const require = createRequire(import.meta.url)
const { version } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8")) as { version: string }

rmSync(staging, { recursive: true, force: true })
mkdirSync(staging, { recursive: true })
try {
  emitTypes()
  const [cli, image] = await Promise.all([bundleCommandLine(), bundleServer()])
  writeLicenses([cli, image])
  // What `test/shape.test.ts` reads.
  writeFileSync(path.join(staging, "metafile.json"), JSON.stringify({ cli, image }))
  replaceDist()
} finally {
  rmSync(staging, { recursive: true, force: true })
}
process.stdout.write(`built dist/ in ${Math.round(performance.now() - started)} ms\n`)

/** Of `bentoctl/runtime` and all that it takes; types are not checked again here (`npm run check` does that). */
function emitTypes(): void {
  const config = path.join(staging, "tsconfig.json")
  writeFileSync(
    config,
    JSON.stringify({
      extends: path.join(root, "tsconfig.json"),
      compilerOptions: {
        noEmit: false,
        noCheck: true,
        declaration: true,
        emitDeclarationOnly: true,
        allowImportingTsExtensions: false,
        rootDir: root,
        outDir: staging,
        typeRoots: [path.join(root, "node_modules/@types")],
      },
      include: [],
      files: [path.join(root, "runtime/index.ts")],
    }),
  )
  execFileSync(path.join(root, "node_modules/.bin/tsc"), ["-p", config], { stdio: "inherit" })
  rmSync(config)
}

/** One that shares its chunks, so that what a command imports late is still loaded late. */
async function bundle(options: Omit<BuildOptions, "metafile">): Promise<Metafile> {
  const { metafile } = await build({
    absWorkingDir: root,
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "node",
    target: "node24",
    legalComments: "eof",
    metafile: true,
    logLevel: "warning",
    // Dependencies written as CommonJS call require() for Node's own modules.
    banner: {
      js: 'import { createRequire as __createRequire } from "node:module"; const require = __createRequire(import.meta.url);',
    },
    ...options,
  })
  for (const file of Object.keys(metafile.outputs)) importBuiltinsByFunction(path.join(root, file))
  return metafile
}

/**
 * An `import` of one of Node's own modules reads every property of it, also those that Node loads when they are first
 * read: for the sake of `http.WebSocket` `import "node:http"` loads all of fetch, which takes 30 ms. The function
 * reads nothing. Node below 20.16 has no such function, and main.js must be able to refuse it.
 */
function importBuiltinsByFunction(file: string): void {
  const text = readFileSync(file, "utf8")
  if (text.startsWith("#!")) return
  const taken: string[] = []
  const rest = text.replace(
    /^import (?:([\w$]+)|\* as ([\w$]+))?(?:, )?(?:(\{[^}]*\}))? from "(?:node:)?([\w/]+)";\n/gm,
    (
      statement,
      whole: string | undefined,
      all: string | undefined,
      some: string | undefined,
      name: string,
    ) => {
      if (!isBuiltin(name)) return statement
      for (const pattern of [whole, all, some?.replaceAll(" as ", ": ")]) {
        if (pattern !== undefined)
          taken.push(`const ${pattern} = process.getBuiltinModule("node:${name}");\n`)
      }
      return ""
    },
  )
  // As with imports, they are there before anything of the file runs.
  writeFileSync(file, taken.join("") + rest)
}

async function bundleCommandLine(): Promise<Metafile> {
  const outdir = path.join(staging, "cli")
  const metafile = await bundle({
    entryPoints: ["cli/main.ts"],
    outdir,
    // What packages look for and do without: the CycloneDX library to write XML, which we do not, debug for colours.
    // They are no dependencies of ours, and whether they lie here by chance must not matter.
    external: ["xmlbuilder2", "supports-color"],
    plugins: [withoutUnused(), compiledTemplates()],
  })
  chmodSync(path.join(outdir, "main.js"), 0o755)
  // Each is read as a file: no part of the bundle.
  await build({ absWorkingDir: root, entryPoints: ["images/install-packages.ts"], outdir, target: "node24" })
  return metafile
}

/**
 * Most of dockerode by time and size is gRPC, for sessions beside a build, an SSH client with native parts, and a packer of
 * folders. None is ever called: images/docker.ts needs no sessions, images/ssh.ts runs the user's own ssh, and
 * images/tar.ts packs.
 */
function withoutUnused(): Plugin {
  const files =
    /[\\/](dockerode[\\/]lib[\\/](session|buildkit)|docker-modem[\\/]lib[\\/]ssh|node_modules[\\/]tar-fs[\\/]index)\.js$/
  return {
    name: "without-unused",
    setup(bundler) {
      bundler.onLoad({ filter: files }, ({ path: file }) => ({
        contents: `module.exports = () => { throw new Error("${path.basename(file)} is not in the bundle") }`,
      }))
    },
  }
}

/** Our templates as code, in the place of templates/ours.ts. */
function compiledTemplates(): Plugin {
  const names = globSync("*.hbs", { cwd: path.join(root, "templates") }).map((file) => path.parse(file).name)
  const compiled = names.toSorted().map((name) => `${name}: ${precompileOurs(name as OurTemplate)},`)
  const contents = `import Handlebars from "handlebars/runtime"
const compiled = {\n${compiled.join("\n")}\n}
export { Handlebars }
export const ourTemplate = (handlebars, name) => handlebars.template(compiled[name])
`
  return {
    name: "compiled-templates",
    setup(bundler) {
      bundler.onLoad({ filter: /[\\/]templates[\\/]ours\.ts$/ }, () => ({
        contents,
        loader: "js",
        resolveDir: path.join(root, "templates"),
      }))
    },
  }
}

/** The server of the image. */
async function bundleServer(): Promise<Metafile> {
  const entries = ["index", "serve", "describer", "worker", "http-worker", "entrypoint", "healthcheck"]
  const metafile = await bundle({
    entryPoints: entries.map((name) => `runtime/${name}.ts`),
    outdir: path.join(staging, "image"),
    external: ["onnxruntime-node"],
  })
  const onnxruntime = require("onnxruntime-node/package.json") as { version: string }
  const manifest = {
    name: "bentoctl-runtime",
    version,
    type: "module",
    private: true,
    dependencies: { "onnxruntime-node": onnxruntime.version },
    // An image's bill of materials lists them.
    bundled: [...bundledPackages(metafile).values()],
  }
  writeFileSync(path.join(staging, "image/package.json"), `${JSON.stringify(manifest, null, 2)}\n`)
  return metafile
}

interface BundledPackage {
  readonly name: string
  readonly version: string
  readonly license: string
}

/** Whose code is in a bundle, by folder. */
function bundledPackages({ outputs }: Metafile): Map<string, BundledPackage> {
  const inputs = Object.values(outputs).flatMap((output) => Object.keys(output.inputs))
  const folders = inputs.flatMap((input) => /^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(input)?.[1] ?? [])
  return new Map(folders.toSorted().map((folder) => [folder, readPackage(folder)]))
}

function readPackage(folder: string): BundledPackage {
  const text = readFileSync(path.join(root, folder, "package.json"), "utf8")
  const { name, version, license } = JSON.parse(text) as { name: string; version: string; license?: string }
  if (license === undefined) throw new Error(`${folder} names no licence, and would be shipped`)
  return { name, version, license }
}

/** Licences ask to be passed on with the code, and with bundles nothing else would bring them. */
function writeLicenses(metafiles: readonly Metafile[]): void {
  const packages = new Map(metafiles.flatMap((metafile) => [...bundledPackages(metafile)]))
  const texts = [...packages].map(([folder, { name, version, license }]) => {
    const files = globSync(["LICEN[CS]E*", "licen[cs]e*", "NOTICE*"], { cwd: path.join(root, folder) })
    const own = files.toSorted().map((file) => readFileSync(path.join(root, folder, file), "utf8").trim())
    return [`${name} ${version}: ${license}`, ...own].join("\n\n")
  })
  writeFileSync(path.join(staging, "licenses.txt"), `${texts.join(`\n\n${"-".repeat(80)}\n\n`)}\n`)
}

/** In one rename, so that a reader sees the old dist or the new one. */
function replaceDist(): void {
  const dist = path.join(root, "dist")
  const old = `${staging}-old`
  try {
    renameSync(dist, old)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error
  }
  renameSync(staging, dist)
  rmSync(old, { recursive: true, force: true })
}
