/** `bentoctl --help` against a bare `node -e 0`: medians of 15 runs each, in turn. Goal: below 150 ms. */
import { spawnSync } from "node:child_process"
import { cli, median, report } from "./harness.ts"

const time = (args: readonly string[]): number => {
  const startedMs = performance.now()
  const { status, stderr } = spawnSync(process.execPath, args)
  if (status !== 0) throw new Error(`node ${args.join(" ")} failed: ${stderr.toString()}`)
  return performance.now() - startedMs
}
const help: number[] = []
const bare: number[] = []
for (let run = 0; run < 15; run++) {
  help.push(time([cli, "--help"]))
  bare.push(time(["-e", "0"]))
}
const helpMs = median(help)
report("Start-up of the command line", [
  {
    what: "bentoctl --help",
    measured: `${helpMs.toFixed(0)} ms`,
    against: `node -e 0: ${median(bare).toFixed(0)} ms (${(helpMs / median(bare)).toFixed(2)}×)`,
    goal: "< 150 ms",
    met: helpMs < 150,
  },
])
