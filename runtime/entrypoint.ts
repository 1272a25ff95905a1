/**
 * The image's entry point, as BentoML's: without arguments, or with flags, it serves; `serve …` too; `selftest` runs the examples
 * of the models; anything else is a command, which takes the place of this process.
 */
import { accessSync, constants, statSync } from "node:fs"
import path from "node:path"
import { startEarly } from "./threads.ts"

const [first, ...rest] = process.argv.slice(2)

if (first === undefined || first.startsWith("-")) await serve(process.argv.slice(2))
else if (first === "serve" || first === "serve-http") await serve(rest)
else if (first === "selftest") await serve(["--self-test", ...rest])
else execute(first, rest)

async function serve(args: readonly string[]): Promise<void> {
  // By URL, so that the bundler leaves it a program of its own.
  const program = new URL(import.meta.url.endsWith(".ts") ? "./serve.ts" : "./serve.js", import.meta.url)
  process.argv = [process.execPath, program.pathname, ...args]
  // As serve.ts does, which comes too late for a thread that starts now.
  process.env["ORT_DISABLE_TELEMETRY"] = "1"
  if (!args.includes("--print-config")) startEarly()
  await import(program.href)
}

function execute(command: string, args: readonly string[]): void {
  const file = command.includes("/") ? command : find(command)
  if (file === undefined || !isExecutable(file) || process.execve === undefined) {
    process.stderr.write(`${command}: command not found\n`)
    process.exitCode = 127
    return
  }
  process.execve(file, [command, ...args], process.env)
}

function find(command: string): string | undefined {
  const folders = (process.env["PATH"] ?? "").split(path.delimiter).filter((folder) => folder !== "")
  return folders.map((folder) => path.join(folder, command)).find(isExecutable)
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK)
    return statSync(file).isFile()
  } catch {
    return false
  }
}
