import assert from "node:assert/strict"
import { randomBytes } from "node:crypto"
import { test } from "node:test"
import fc from "fast-check"
import { BentoError } from "../../store/errors.ts"
import {
  checkName,
  checkVersion,
  compareTags,
  formatTag,
  makeVersion,
  nearestNames,
  parseTag,
  parseTagRef,
  tryParseTagRef,
} from "../../store/tag.ts"

const long = (n: number): string => "a".repeat(n)

function problemOf(run: () => unknown): BentoError {
  try {
    run()
  } catch (error) {
    assert(error instanceof BentoError, String(error))
    return error
  }
  assert.fail("no error was thrown")
}

test("a tag is a name, or a name and a version", () => {
  for (const [text, expected] of [
    ["iris", { name: "iris" }],
    ["iris:latest", { name: "iris", version: "latest" }],
    ["iris:u2swufhfec6rgax4", { name: "iris", version: "u2swufhfec6rgax4" }],
    ["a:b", { name: "a", version: "b" }],
    ["0", { name: "0" }],
    ["a.b_c-d:1.0.0", { name: "a.b_c-d", version: "1.0.0" }],
    [`${long(63)}:${long(63)}`, { name: long(63), version: long(63) }],
    ["a..b", { name: "a..b" }],
  ] as const) {
    assert.deepEqual(parseTagRef(text), expected)
    assert.equal(formatTag(parseTagRef(text)), text)
  }
})

test("each rule that a tag breaks is named", () => {
  for (const [text, ...said] of [
    ["", "the name is empty"],
    [":v1", "the name is empty"],
    ["a:b:c", 'the version holds ":"'],
    ["foo bar", 'the name holds " "'],
    ["a\n", String.raw`the name holds "\n"`],
    ["a:v\n", String.raw`the version holds "\n"`],
    ["../etc", 'the name holds "/"', 'the name begins with "."'],
    ["..", 'begins with "."', 'ends with "."'],
    ["a/b", 'holds "/"'],
    ["a\0b", String.raw`holds "\u0000"`],
    ["-a:b-", 'the name begins with "-"', 'the version ends with "-"'],
    [`${long(64)}:${long(65)}`, "the name has 64 characters, 63 are allowed", "the version has 65"],
    ["größe", 'holds "ö", "ß"'],
    ["a😀", 'holds "😀"'],
    ["a ", 'holds " "'],
  ] as const) {
    const error = problemOf(() => parseTagRef(text))
    assert.equal(error.code, "TAG_INVALID")
    for (const part of said) assert(error.message.includes(part), `${error.message} should say ${part}`)
    assert.equal(tryParseTagRef(text), null)
  }
})

test("a colon without a version suggests latest", () => {
  const error = problemOf(() => parseTagRef("iris:"))
  assert.equal(error.code, "TAG_INVALID")
  assert.match(error.hint ?? "", /iris:latest/)
})

test("upper case is lowered, once told for each part", () => {
  const notes: string[] = []
  assert.deepEqual(
    parseTagRef("Iris:V1", (note) => notes.push(note)),
    { name: "iris", version: "v1" },
  )
  assert.deepEqual(notes, ['name "Iris" was lowered to "iris"', 'version "V1" was lowered to "v1"'])
  assert.deepEqual(parseTagRef("IRIS"), { name: "iris" })
})

test("an exact tag needs a version, and latest is none", () => {
  assert.deepEqual(parseTag("a:b"), { name: "a", version: "b" })
  assert.match(problemOf(() => parseTag("a")).message, /names no version/)
  assert.match(problemOf(() => parseTag("a:latest")).message, /cannot be a version/)
  assert.match(problemOf(() => checkVersion("LATEST")).message, /cannot be a version/)
})

test("names and versions are checked on their own", () => {
  assert.equal(checkName("Iris"), "iris")
  assert.equal(checkVersion("1.0"), "1.0")
  assert.match(problemOf(() => checkName("a:b")).message, /"a:b" is not a name: it holds ":"/)
  assert.match(problemOf(() => checkVersion("")).message, /it is empty/)
})

test("tags are ordered by name, then version, none first", () => {
  const tags = ["b:1", "a:2", "a", "a:10", "b"].map((text) => parseTagRef(text))
  assert.deepEqual(tags.toSorted(compareTags).map(formatTag), ["a", "a:10", "a:2", "b", "b:1"])
})

test("whatever parses is formatted back and is safe as two path segments", () => {
  const part = fc.stringMatching(/^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$/)
  fc.assert(
    fc.property(part, fc.option(part, { nil: undefined }), (name, version) => {
      const text = version === undefined ? name : `${name}:${version}`
      assert.equal(formatTag(parseTagRef(text)), text)
    }),
  )
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string({ unit: "binary" }),
        fc.string({ unit: fc.constantFrom(...Array.from("aZ.:/-\\0\n ")) }),
      ),
      (text) => {
        const ref = tryParseTagRef(text)
        if (ref === null) return
        for (const segment of [ref.name, ref.version ?? "x"]) {
          assert.match(segment, /^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$/)
          assert(segment.length <= 63 && segment !== "." && segment !== "..")
        }
        assert.equal(formatTag(ref), text.toLowerCase())
      },
    ),
  )
})

test("a version is 16 characters that hold the time as BentoML writes it", () => {
  // From Python: b32encode of time_low and time_mid of that moment, then 80 00 01 00.
  const zeros = (n: number): Uint8Array => new Uint8Array(n)
  const version = makeVersion(new Date("2024-05-06T07:08:09.000Z"), zeros)
  assert.match(version, /^[a-z2-7]{16}$/)
  assert.equal(version, "msxvfaalo6aaaaia")
})

test("versions made in one millisecond differ, and each is a legal version", () => {
  const now = new Date()
  const versions = new Set(Array.from({ length: 1000 }, () => makeVersion(now, randomBytes)))
  assert.equal(versions.size, 1000)
  for (const version of versions) assert.equal(checkVersion(version), version)
})

test("the nearest names are those a typist meant", () => {
  const known = ["iris_clf", "iris", "digits", "resnet50"]
  assert.deepEqual(nearestNames("irsi", known), ["iris"])
  assert.deepEqual(nearestNames("iris_cfl", known), ["iris", "iris_clf"])
  assert.deepEqual(nearestNames("res", known), ["resnet50"])
  assert.deepEqual(nearestNames("unrelated", known), [])
})
