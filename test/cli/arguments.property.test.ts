import assert from "node:assert/strict"
import { readdir } from "node:fs/promises"
import { test } from "node:test"
import fc from "fast-check"
import { run, scratch } from "./support.ts"

const words = [
  "models",
  "list",
  "get",
  "delete",
  "import",
  "help",
  "-o",
  "json",
  "table",
  "--output=yaml",
  "-y",
  "-q",
  "-h",
  "--",
]
const flags = [
  "--debug",
  "--name",
  "--label",
  "a=b",
  "--version",
  "latest",
  "iris",
  "iris:1",
  "-yq",
  "--no-such",
  "-",
  "=",
]

test("no arguments lead to an error of ours, to a third stream, or to a write", async () => {
  const home = await scratch()
  const word = fc.oneof(
    fc.constantFrom(...words, ...flags),
    fc.string(),
    fc.string({ unit: "binary", maxLength: 80 }),
  )
  await fc.assert(
    fc.asyncProperty(fc.array(word, { maxLength: 6 }), async (argv) => {
      const { code, stdout, stderr } = await run(argv, { home, cwd: home })
      assert.ok([0, 1, 2].includes(code))
      assert.doesNotMatch(stderr, /Internal error/)
      // Every failure is told on stderr, and only there.
      if (code !== 0) assert.deepEqual([stdout, stderr === ""], ["", false])
      assert.doesNotMatch(stderr.replaceAll("\n", ""), /[^\P{Cc}\t]/u)
    }),
    { numRuns: 500 },
  )
  assert.deepEqual(await readdir(home), [])
})
