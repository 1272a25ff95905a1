import assert from "node:assert/strict"
import { test } from "node:test"
import fc from "fast-check"
import { IssueError } from "../../store/errors.ts"
import { emitYaml, readYaml, YamlMap, YamlScalar } from "../../store/pyyaml.ts"

const read = (text: string): unknown => readYaml(text, "some.yaml").value

function issueOf(text: string): { message: string; line: number | undefined } {
  try {
    read(text)
  } catch (error) {
    assert(error instanceof IssueError, String(error))
    assert.equal(error.code, "MANIFEST_INVALID")
    const [issue] = error.issues
    assert(issue?.file === "some.yaml")
    return { message: issue.message, line: issue.line }
  }
  assert.fail(`${JSON.stringify(text.slice(0, 50))} was read`)
}

/** Words that YAML 1.1 has a meaning for, and pieces that fold, quote and escape. */
const piece = fc.oneof(
  fc.constantFrom(
    "yes",
    "NO",
    "null",
    "~",
    "",
    "1",
    "0x1f",
    "012",
    "1e5",
    "1.5e+3",
    "1.",
    "12:30:45",
    "2024-01-02",
  ),
  fc.constantFrom(
    "<<",
    "=",
    "---",
    "...",
    "- a",
    "? a",
    "a: b",
    "a #b",
    "#",
    "é",
    "\t",
    "\n",
    " ",
    "\\",
    '"',
    "'",
    "😀",
  ),
  fc.constantFrom("\x85", "\u2028", "\ufeff", "\0", "x".repeat(90), "word ".repeat(30)),
  fc.string({ unit: "binary", maxLength: 20 }),
)
const text = fc.oneof(
  piece,
  fc.array(piece, { maxLength: 12 }).map((pieces) => pieces.join(" ")),
  fc.array(piece, { maxLength: 12 }).map((pieces) => pieces.join("")),
)
const key = text.filter((name) => name !== "__proto__" && !/^(?:0|[1-9]\d*)$/.test(name))
const { value } = fc.letrec<{ value: unknown }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 4 },
    text,
    fc.integer(),
    fc.double().filter((number) => !Number.isInteger(number)),
    fc.boolean(),
    fc.constant(null),
    fc.array(tie("value"), { maxLength: 4 }),
    fc.dictionary(key, tie("value"), { maxKeys: 4, noNullPrototype: true }),
  ),
}))

test("whatever is written is read back as it was", () => {
  fc.assert(
    fc.property(fc.dictionary(key, value, { maxKeys: 4, noNullPrototype: true }), (map) => {
      assert.deepEqual(read(emitYaml(map)), map)
    }),
    { numRuns: 300 },
  )
})

test("what is read and written again is the same text", () => {
  fc.assert(
    fc.property(fc.dictionary(key, value, { maxKeys: 4, noNullPrototype: true }), (map) => {
      const once = emitYaml(map)
      const again: unknown = read(once)
      assert(typeof again === "object" && again !== null)
      assert.equal(emitYaml(again), once)
    }),
    { numRuns: 100 },
  )
})

test("plain words have the types that PyYAML gives them", () => {
  for (const [plain, expected] of [
    ["yes", true],
    ["Off", false],
    ["y", "y"],
    ["1e5", "1e5"],
    ["123e4567", "123e4567"],
    ["1.5e+3", new YamlScalar("float", "1500.0")],
    ["1.25", 1.25],
    ["1_000", 1000],
    ["0x1F", 31],
    ["017", 15],
    ["018", "018"],
    ["0o17", "0o17"],
    ["0b11", 3],
    ["-0b11", -3],
    ["1:30", 90],
    ["1:60", "1:60"],
    ["190:20:30.5", 685_230.5],
    [".inf", Infinity],
    ["-.INF", -Infinity],
    ["~", null],
    ["", null],
    ["'yes'", "yes"],
    ["2024-01-02", new YamlScalar("timestamp", "2024-01-02")],
    ["9007199254740993", new YamlScalar("int", "9007199254740993")],
    ["!!str 1", "1"],
    ["!!binary aGk=", new Uint8Array([104, 105])],
    ["!!float 1", new YamlScalar("float", "1.0")],
  ] as const) {
    assert.deepEqual(read(`k: ${plain}`), { k: expected }, plain)
  }
  assert.deepEqual(read("k: .nan"), { k: NaN })
})

test("what JavaScript would lose is kept, and is JSON when asked", () => {
  const source = "a: 1.0\nb: 2024-01-02 03:04:05+00:00\nc: 12345678901234567890\nd:\n  2: two\n  1: one\n"
  const map: unknown = read(source)
  assert(typeof map === "object" && map !== null && "d" in map)
  assert(map.d instanceof YamlMap)
  assert.equal(emitYaml(map), source)
  assert.equal(
    JSON.stringify(map),
    '{"a":1.0,"b":"2024-01-02 03:04:05+00:00","c":12345678901234567890,"d":{"1":"one","2":"two"}}',
  )
})

test("aliases are followed, up to a bound", () => {
  assert.deepEqual(read("a: &x [1, 2]\nb: *x\n"), { a: [1, 2], b: [1, 2] })
  const bomb = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
  for (const letter of "bcdefghij") {
    const before = String.fromCharCode(letter.charCodeAt(0) - 1)
    bomb.push(`${letter}: &${letter} [${Array.from({ length: 10 }, () => `*${before}`).join(", ")}]`)
  }
  assert.match(issueOf(bomb.join("\n")).message, /more than 100000 values/)
  assert.match(issueOf("a: &a [*a]").message, /deeper than|alias/)
})

test("what is broken or dangerous is refused with its line", () => {
  for (const [source, message, line] of [
    ["a: 1\nb: [1, 2\n", /./, 3],
    ["a: 1\n__proto__: 2\n", /__proto__/, 2],
    ["a:\n  __proto__:\n    b: 1\n", /__proto__/, 2],
    ["a: 1\nb: 2\na: 3\n", /"a" stands here twice/, 3],
    ["a: 1\nb: !!python/object:os.system x\n", /tag .*python\/object:os\.system is refused/, 2],
    ["a: 1\nb: !local x\n", /refused/, 2],
    ["a: &b {c: 1}\nd:\n  <<: *b\n", /merge keys/, 3],
    ["a: 1\n? [b]\n: 2\n", /key must be a scalar/, 2],
    ["a: *none\n", /alias/i, 1],
    [`a: ${"[".repeat(100)}${"]".repeat(100)}`, /deeper than 64/, 1],
    ["a: 1\n---\nb: 2\n", /./, undefined],
  ] as const) {
    const issue = issueOf(source)
    assert.match(issue.message, message)
    if (line !== undefined) assert.equal(issue.line, line, source)
  }
  assert.match(issueOf("[".repeat(200_000)).message, /deep|nested|./)
  assert.match(issueOf("a".repeat(5 * 1024 * 1024)).message, /larger than 4 MiB/)
})

test("any text is read or refused, never anything else", () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string({ unit: "binary" }),
        fc.string({ unit: fc.constantFrom(...Array.from("ab:-?&*!|>'\"{}[],#%@ \n\t")) }),
      ),
      (source) => {
        try {
          read(source)
        } catch (error) {
          assert(error instanceof IssueError, String(error))
        }
      },
    ),
    { numRuns: 1000 },
  )
})
