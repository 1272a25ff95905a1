/**
 * `npm run build`: makes dist/, all that the npm package ships.
 *
 * dist/{cli,store,images,templates,runtime}  what tsc emits (JavaScript and declarations) and the templates
 * dist/image                                 the server that goes into images: a bundle whose only external package
 *                                            is onnxruntime-node, so that an image needs no `npm install` of ours
 */
import { execFileSync } from "node:child_process"
import {
  chmodSync,
  cpSync,
  globSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs"
import { createRequire } from "node:module"
import path from "node:path"
import { build, type Metafile } from "esbuild"

const root = import.meta.dirname
const started = performance.now()
const staging = path.join(root, ".cache", `dist-${process.pid}`)
const require = createRequire(import.meta.url)
const { version } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8")) as { version: string }

rmSync(staging, { recursive: true, force: true })
mkdirSync(staging, { recursive: true })
try {
  emit()
  await bundle()
  replaceDist()
} finally {
  rmSync(staging, { recursive: true, force: true })
}
process.stdout.write(`built dist/ in ${Math.round(performance.now() - started)} ms\n`)

/** JavaScript and declarations by tsc; types are not checked again here (`npm run check` does that). */
function emit(): void {
  const config = path.join(staging, "tsconfig.json")
  writeFileSync(
    config,
    JSON.stringify({
      extends: path.join(root, "tsconfig.json"),
      compilerOptions: {
        noEmit: false,
        noCheck: true,
        declaration: true,
        allowImportingTsExtensions: false,
        rootDir: root,
        outDir: staging,
        typeRoots: [path.join(root, "node_modules/@types")],
      },
      include: ["cli", "store", "images", "templates", "runtime"].map((folder) => path.join(root, folder)),
    }),
  )
  execFileSync(path.join(root, "node_modules/.bin/tsc"), ["-p", config], { stdio: "inherit" })
  rmSync(config)
  chmodSync(path.join(staging, "cli/main.js"), 0o755)
  for (const template of globSync("templates/**/*.hbs", { cwd: root })) {
    cpSync(path.join(root, template), path.join(staging, template), { recursive: true })
  }
}

/** The server of the image; its metafile is what `test/shape.test.ts` reads. */
async function bundle(): Promise<void> {
  const entries = ["index", "serve", "worker", "http-worker", "entrypoint", "healthcheck"]
  const result = await build({
    absWorkingDir: root,
    entryPoints: entries.map((name) => `runtime/${name}.ts`),
    outdir: path.join(staging, "image"),
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "node",
    target: "node24",
    external: ["onnxruntime-node"],
    legalComments: "eof",
    metafile: true,
    logLevel: "warning",
    // Dependencies written as CommonJS call require() for Node's own modules.
    banner: {
      js: 'import { createRequire as __createRequire } from "node:module"; const require = __createRequire(import.meta.url);',
    },
  })
  const onnxruntime = require("onnxruntime-node/package.json") as { version: string }
  const manifest = {
    name: "bentoctl-runtime",
    version,
    type: "module",
    private: true,
    dependencies: { "onnxruntime-node": onnxruntime.version },
    bundled: bundledPackages(result.metafile),
  }
  writeFileSync(path.join(staging, "image/package.json"), `${JSON.stringify(manifest, null, 2)}\n`)
  writeFileSync(path.join(staging, "metafile.json"), JSON.stringify(result.metafile))
}

/** Whose code is in the bundle; an image's bill of materials lists them. */
function bundledPackages({ outputs }: Metafile): { name: string; version: string; license: string }[] {
  const inputs = Object.values(outputs).flatMap((output) => Object.keys(output.inputs))
  const folders = inputs.flatMap((input) => /^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(input)?.[1] ?? [])
  return [...new Set(folders)].toSorted().map((folder) => {
    const text = readFileSync(path.join(root, folder, "package.json"), "utf8")
    const { name, version, license } = JSON.parse(text) as { name: string; version: string; license?: string }
    if (license === undefined) throw new Error(`${folder} names no licence, and would come into images`)
    return { name, version, license }
  })
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
