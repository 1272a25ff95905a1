/** The program on a real (pseudo) terminal, made by `script` of util-linux. */
import assert from "node:assert/strict"
import { execFileSync, spawn } from "node:child_process"
import path from "node:path"
import { test } from "node:test"
import { pythonStore, root, until } from "./support.ts"

const ESC = "\u001B"
const hasScript = (() => {
  try {
    return execFileSync("script", ["--version"], { encoding: "utf8" }).includes("util-linux")
  } catch {
    return false
  }
})()
const skip = hasScript ? false : "`script` of util-linux is not installed"

/** Starts the program on a terminal of 80 columns. */
function onTerminal(args: string, env: Record<string, string> = {}) {
  const command = `stty cols 80; exec '${process.execPath}' '${path.join(root, "cli/main.ts")}' ${args}`
  const child = spawn("script", ["-qec", command, "/dev/null"], {
    env: { ...process.env, TERM: "xterm", NO_COLOR: "", ...env },
    stdio: ["pipe", "pipe", "pipe"],
  })
  let screen = ""
  child.stdout.on("data", (chunk: Buffer) => {
    screen += chunk.toString()
  })
  const ended = new Promise<number | null>((resolve) => child.on("close", resolve))
  return { screen: () => screen, type: (text: string) => child.stdin.write(text), ended }
}

test("help is coloured on a terminal, unless NO_COLOR is set", { skip }, async () => {
  const coloured = onTerminal("--help")
  assert.equal(await coloured.ended, 0)
  assert.ok(coloured.screen().includes(`${ESC}[1mUsage`))
  const plain = onTerminal("--help", { NO_COLOR: "1" })
  assert.equal(await plain.ended, 0)
  assert.ok(!plain.screen().includes(ESC))
})

test("deleting asks, takes the typed answer, and Ctrl-C there is exit 130", { skip }, async () => {
  const home = await pythonStore()
  const asked = onTerminal("models delete digits_sklearn", { BENTOML_HOME: home })
  await until("the question", () => asked.screen().includes("[y/N]"))
  asked.type("\u0003")
  assert.equal(await asked.ended, 130)
  assert.match(asked.screen(), /Interrupted by SIGINT/)
  const again = onTerminal("models delete digits_sklearn", { BENTOML_HOME: home })
  await until("the question", () => again.screen().includes("[y/N]"))
  again.type("y\n")
  assert.equal(await again.ended, 0)
  assert.match(again.screen(), /Model\(tag="digits_sklearn:\w+"\) deleted\./)
})

test("a long message is broken between words", { skip }, async () => {
  const home = await pythonStore()
  const failed = onTerminal("models get iris_sklearn:mo", { BENTOML_HOME: home, NO_COLOR: "1" })
  assert.equal(await failed.ended, 1)
  for (const line of failed.screen().split("\r\n")) assert.ok(line.length < 80, line)
  assert.match(failed.screen(), /\[TAG_AMBIGUOUS\]/)
})
