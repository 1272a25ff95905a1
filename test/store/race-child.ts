/** Adds the same tags as its siblings, at the same time, and says which it won; or takes each of its own away again. */
import { once } from "node:events"
import { BentoError } from "../../store/errors.ts"
import { openModelStore } from "../../store/store.ts"
import { formatTag } from "../../store/tag.ts"
import { writesModel } from "./support.ts"

const [, , home = "", rounds = "1", mode = "race"] = process.argv
const store = openModelStore(home)
process.stdout.write("ready\n")
await once(process.stdin, "data")
process.stdin.pause()
for (let i = 0; i < Number(rounds); i++) {
  const tag = { name: "iris", version: mode === "race" ? `v${i}` : `v${process.pid}.${i}` }
  try {
    await store.add(tag, writesModel(tag, i))
    process.stdout.write(`won ${formatTag(tag)}\n`)
    if (mode !== "race") await store.remove(tag)
  } catch (error) {
    if (!(error instanceof BentoError) || error.code !== "STORE_EXISTS") throw error
    process.stdout.write(`lost ${formatTag(tag)}\n`)
  }
}
