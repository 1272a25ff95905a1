/** Adds and deletes models and Bentos until it is killed, and says what it begins and what is done. */
import { randomBytes, randomInt } from "node:crypto"
import { writeSync } from "node:fs"
import { mkdir, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { formatBentoYaml } from "../../store/bento.ts"
import { BentoError } from "../../store/errors.ts"
import { BENTO_YAML } from "../../store/layout.ts"
import { importModel } from "../../store/import.ts"
import { formatCreationTime } from "../../store/model.ts"
import { openBentoStore, openModelStore } from "../../store/store.ts"
import { formatTag, makeVersion, type Tag } from "../../store/tag.ts"
import { aBento, FIXTURES } from "./support.ts"

const [, , home = "", rounds = "Infinity"] = process.argv
const models = openModelStore(home)
const bentos = openBentoStore(home)
const say = (line: string): unknown => writeSync(1, `${line}\n`) // in the pipe before the next step, come what may

async function add(tag: Tag): Promise<void> {
  if (randomInt(2) === 0) {
    say(`adds model ${formatTag(tag)}`)
    const path = join(FIXTURES, "models", "external_data", "model.onnx")
    const check = (): Promise<{ ok: true; inputs: []; outputs: [] }> =>
      Promise.resolve({ ok: true, inputs: [], outputs: [] })
    const checkExamples = (): Promise<{ ok: true; examples: []; notes: [] }> =>
      Promise.resolve({ ok: true, examples: [], notes: [] })
    const way = { now: new Date(), random: randomBytes, check, checkExamples }
    await importModel({ store: models, path, ...tag, ...way })
    return void say(`added model ${formatTag(tag)}`)
  }
  say(`adds bento ${formatTag(tag)}`)
  await bentos.add(tag, async (dir) => {
    await mkdir(join(dir, "src"))
    for (let i = 0; i < 4; i++) await writeFile(join(dir, "src", `${i}.ts`), `file ${i}`)
    const bento = { ...aBento(tag), creationTime: formatCreationTime(new Date()) }
    await writeFile(join(dir, BENTO_YAML), formatBentoYaml(bento))
  })
  say(`added bento ${formatTag(tag)}`)
}

async function remove(): Promise<void> {
  const store = randomInt(2) === 0 ? models : bentos
  const { items } = await store.list()
  const item = items[randomInt(Math.max(items.length, 1))]
  if (item === undefined) return
  say(`removes ${store.kind} ${formatTag(item.tag)}`)
  try {
    await store.remove(item.tag)
  } catch (error) {
    if (error instanceof BentoError && error.code.endsWith("_NOT_FOUND")) return // another was faster
    throw error
  }
  say(`removed ${store.kind} ${formatTag(item.tag)}`)
}

say("ready")
for (let round = 0; round < Number(rounds); round++) {
  const name = ["iris", "digits", "resnet"][randomInt(3)] ?? "iris"
  await add({ name, version: makeVersion(new Date(), randomBytes) })
  if (randomInt(5) < 4) await remove()
}
