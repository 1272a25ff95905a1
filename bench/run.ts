/** `npm run bench [-- NAME...]`: runs the benches one after the other; each prints what it measured against what. */
import { spawnSync } from "node:child_process"
import path from "node:path"

const BENCHES = {
  cli: "start-up of the command line, against a bare node process",
  http: "iris over HTTP on one core, against a node:http echo of the same bodies",
  peers: "iris against BentoML and Flask: requests per second, time to ready, memory",
  app: "a request inside the app, without sockets and model, in CPU time",
  serving: "alone, after a burst, with bad rows, at saturation, near it, far beyond it, for long",
  batcher: "the runner against bare ONNX Runtime at the same batch size",
  simulate: "batching policies in simulated time; writes the tables and the plot of docs/batching.md",
  sight: "what metrics, Server-Timing and the access log cost a request",
  workers: "a second HTTP thread on two cores, for long JSON rows and short ones",
  image: "image size by layer, container start, rebuilds, and what models of 1 and 2 GiB cost",
} as const

const asked = process.argv.slice(2)
const unknown = asked.filter((name) => !(name in BENCHES))
if (unknown.length > 0) {
  process.stderr.write(`no bench named ${unknown.join(", ")}; there are:\n`)
  for (const [name, what] of Object.entries(BENCHES)) process.stderr.write(`  ${name.padEnd(8)} ${what}\n`)
  process.exit(2)
}
let failed = 0
for (const [name, what] of Object.entries(BENCHES)) {
  if (asked.length > 0 && !asked.includes(name)) continue
  process.stdout.write(`\n# ${name}: ${what}\n`)
  const { status } = spawnSync(process.execPath, [path.join(import.meta.dirname, `${name}.ts`)], {
    stdio: "inherit",
  })
  if (status !== 0) failed++
}
process.exit(failed === 0 ? 0 : 1)
