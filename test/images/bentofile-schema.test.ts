/** The JSON Schema that editors get, against real bentofiles: what it takes and refuses, `readBentofile` does too. */
import assert from "node:assert/strict"
import { globSync, readFileSync } from "node:fs"
import path from "node:path"
import { after, describe, test } from "node:test"
import { Ajv2020 } from "ajv/dist/2020.js"
import { parse } from "yaml"
import { bentofileJsonSchema, readBentofile } from "../../images/bentofile.ts"
import { IssueError } from "../../store/errors.ts"
import { root, temporaryFolder, writeFiles } from "./support.ts"

const { folder, remove } = await temporaryFolder()
after(remove)

const schema = bentofileJsonSchema() as SchemaPart
const validate = new Ajv2020({ strict: true, allErrors: true, allowUnionTypes: true }).compile(schema)

interface SchemaPart {
  readonly $schema?: string
  readonly $id?: string
  readonly description?: string
  readonly additionalProperties?: unknown
  readonly properties?: Readonly<Record<string, SchemaPart>>
  readonly anyOf?: readonly SchemaPart[]
  readonly items?: SchemaPart
}

/** Where the schema refuses a text, as `/docker/distro`. */
function refusedAt(text: string): string[] {
  // As an editor reads it: YAML 1.2, numbers as numbers.
  if (validate(parse(text))) return []
  return [...new Set((validate.errors ?? []).map(({ instancePath }) => instancePath))]
}

describe("the JSON Schema of bentofile.yaml", () => {
  for (const name of globSync("{examples,test/fixtures/bentos}/*/bentofile.yaml", { cwd: root })) {
    test(`takes ${name}`, () => {
      assert.deepEqual(refusedAt(readFileSync(path.join(root, name), "utf8")), [])
    })
  }

  test("takes every bentofile that the documentation shows", () => {
    const page = readFileSync(path.join(root, "docs/bentofile.md"), "utf8")
    const shown = [...page.matchAll(/```yaml\n(.*?)```/gs)].map(([, text = ""]) => text)
    assert.ok(shown.length > 0)
    for (const text of shown) assert.deepEqual(refusedAt(text), [], text)
  })

  const good: Readonly<Record<string, string>> = {
    "numbers where they are read as written":
      "labels: {a: 1, b: true}\nenvs: [{name: A, value: 1}]\ndocker: {cuda_version: 12.8, node_version: 24}\nmodels: [a]\n",
    "a model with an alias": "models: [{tag: a:b, alias: c}]\n",
    "a description from a file, in both spellings": 'models: [a]\ndescription: "file: x.md"\n',
    "env as a list, a map and a file": "models: [a]\ndocker: {env: [A=1]}\n",
    "keys without a value": "models: [a]\ndocker:\nlabels:\n",
    "every distribution": "models: [a]\ndocker: {distro: ubi9, platforms: [linux/arm64]}\n",
  }
  for (const [what, text] of Object.entries(good)) {
    test(`takes ${what}, as the build does`, async () => {
      assert.deepEqual(refusedAt(text), [])
      await writeFiles(folder, { "x.md": "x", "bentofile.yaml": text })
      await readBentofile(path.join(folder, "bentofile.yaml"))
    })
  }

  const bad: readonly (readonly [what: string, text: string, at: string])[] = [
    ["a misspelt key", "sevice: a.ts:b\n", ""],
    ["a key of the wrong section", "models: [a]\nsystem_packages: [a]\n", ""],
    ["text where a list belongs", "models: [a]\ninclude: a\n", "/include"],
    ["a number where text belongs", "models: [a]\nname: 3\n", "/name"],
    ["BentoML's alpine", "models: [a]\ndocker: {distro: alpine}\n", "/docker/distro"],
    [
      "a platform that there is not",
      "models: [a]\ndocker: {platforms: [linux/mips]}\n",
      "/docker/platforms/0",
    ],
    ["a stage that there is not", "models: [a]\nenvs: [{name: A, stage: test}]\n", "/envs/0/stage"],
    ["a variable without a name", "models: [a]\nenvs: [{value: A}]\n", "/envs/0"],
    ["a variable that is none", "models: [a]\nenvs: [{name: A-B}]\n", "/envs/0/name"],
    ["a filter of BentoCloud", "models: [{tag: a, filter: b}]\n", "/models/0"],
    ["Python", "python: {packages: [numpy]}\n", ""],
  ]
  for (const [what, text, at] of bad) {
    test(`refuses ${what} at its place, as the build does`, async () => {
      assert.ok(refusedAt(text).includes(at), refusedAt(text).join(" "))
      await writeFiles(folder, { "bentofile.yaml": text })
      await assert.rejects(
        readBentofile(path.join(folder, "bentofile.yaml")),
        (error) => error instanceof IssueError,
      )
    })
  }

  test("names its dialect and itself, takes no key that it does not know, and explains each", () => {
    assert.equal(schema.$schema, "https://json-schema.org/draft/2020-12/schema")
    assert.equal(schema.$id, "urn:bentoctl:bentofile")
    const silent: string[] = []
    const look = (part: SchemaPart, at: string): void => {
      if (part.properties !== undefined) assert.equal(part.additionalProperties, false, at)
      for (const [key, inner] of Object.entries(part.properties ?? {})) {
        if (inner.description === undefined) silent.push(`${at}.${key}`)
        look(inner, `${at}.${key}`)
      }
      for (const inner of [...(part.anyOf ?? []), ...(part.items === undefined ? [] : [part.items])])
        look(inner, at)
    }
    look(schema, "")
    assert.deepEqual(silent, [])
  })
})
