import assert from "node:assert/strict"
import { test } from "node:test"
import { faithfulJson, preparedName } from "../../store/prepared.ts"
import { YamlScalar } from "../../store/pyyaml.ts"

test("what was prepared is found by the SHA-256 of the text", () => {
  // `printf abc | sha256sum`
  const sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
  assert.equal(preparedName("abc", "js"), `${sha256}.js`)
  assert.equal(preparedName(Buffer.from("abc"), "json"), `${sha256}.json`)
})

test("JSON is made only of what JSON keeps", () => {
  const kept = { a: [1, "b", true, null], "": {}, b: Object.assign(Object.create(null), { c: 1 }) as unknown }
  assert.deepEqual(JSON.parse(faithfulJson(kept) ?? ""), { ...kept, b: { c: 1 } })
  const lost = [undefined, NaN, Infinity, -0, 1n, new Date(0), new Uint8Array(1), new Map(), () => {}]
  for (const value of [...lost, new YamlScalar("float", "1.0")]) {
    assert.equal(faithfulJson({ deep: [{ value }] }), null)
  }
})
