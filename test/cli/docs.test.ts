import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { page, reference } from "./docs.ts"

test("docs/cli.md is what the commands' definitions say (`npm run docs` writes it)", () => {
  assert.equal(readFileSync(page, "utf8"), reference())
})
