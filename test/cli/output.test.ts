import assert from "node:assert/strict"
import { test } from "node:test"
import { cut, formatDuration, formatSize, formatTable, formatTime, plain, wrap } from "../../cli/output.ts"
import { formatYaml } from "../../cli/yaml.ts"
import { readYaml } from "../../store/pyyaml.ts"

test("sizes count in 1024 with two decimals, as BentoML prints them", () => {
  assert.equal(formatSize(0), "0.00 B")
  assert.equal(formatSize(1023), "1023.00 B")
  assert.equal(formatSize(1024), "1.00 KiB")
  assert.equal(formatSize(5 * 1024 ** 2), "5.00 MiB")
  assert.equal(formatSize(1.5 * 1024 ** 3), "1.50 GiB")
  assert.equal(formatSize(3000 * 1024 ** 5), "3000.00 PiB")
})

test("times are shown in the local zone", () => {
  const local = new Date(2026, 0, 2, 3, 4, 5)
  assert.equal(formatTime(local.toISOString()), "2026-01-02 03:04:05")
  assert.equal(formatTime(local.toISOString().replace(/\.000Z/, ".123456+00:00")), "2026-01-02 03:04:05")
  assert.equal(formatTime("yesterday"), "yesterday")
})

test("durations are read at a glance", () => {
  assert.equal(formatDuration(40), "0.0s")
  assert.equal(formatDuration(1234), "1.2s")
  assert.equal(formatDuration(59_960), "1m 00s")
  assert.equal(formatDuration(125_000), "2m 05s")
})

const COLUMNS = [
  { title: "Tag", cell: (row: string[]) => row[0] ?? "" },
  { title: "Module", cell: (row: string[]) => row[1] ?? "", dispensable: 2 },
  { title: "Size", cell: (row: string[]) => row[2] ?? "", dispensable: 1 },
]
const ROWS = [
  ["iris:abcdefghijklmnop", "bentoml.onnx", "1.00 KiB"],
  ["x:y", "", "2.00 B"],
]

test("a table has a column's width by its longest cell, and no space at the ends of lines", () => {
  assert.equal(
    formatTable(ROWS, COLUMNS),
    [
      "Tag                    Module        Size",
      "iris:abcdefghijklmnop  bentoml.onnx  1.00 KiB",
      "x:y                                  2.00 B",
      "",
    ].join("\n"),
  )
})

test("a narrow terminal gets fewer columns, and the tag always in full", () => {
  assert.match(formatTable(ROWS, COLUMNS, { width: 45 }), /Module/)
  assert.equal(formatTable(ROWS, COLUMNS, { width: 44 }).split("\n")[0], "Tag                    Size")
  assert.equal(formatTable(ROWS, COLUMNS, { width: 10 }).split("\n")[1], "iris:abcdefghijklmnop")
})

test("YAML has its keys in order, and strings that PyYAML would take for something else in quotes", () => {
  const rows = [{ tag: "a:b", size: "5.00 MiB", creation_time: "2026-01-01 10:00:00", module: "yes" }]
  assert.equal(
    formatYaml(rows),
    "- creation_time: '2026-01-01 10:00:00'\n  module: 'yes'\n  size: 5.00 MiB\n  tag: a:b\n",
  )
  assert.equal(formatYaml([]), "[]\n")
  const long = { tag: "x ".repeat(200) }
  assert.equal(formatYaml(long).split("\n").length, 2)
  assert.deepEqual(readYaml(formatYaml(rows), "rows.yaml").value, rows)
})

test("text is wrapped at spaces, and a longer word stands alone", () => {
  assert.deepEqual(wrap("one two  three\nfour", 9), ["one two", "three", "four"])
  assert.deepEqual(wrap("a verylongword b", 6), ["a", "verylongword", "b"])
  assert.equal(cut("abcdef", 4), "abc…")
  assert.equal(cut("abcd", 4), "abcd")
})

test("text of others cannot move the cursor or set colours", () => {
  assert.equal(plain("\u001B[31mred\u001B[0m\r\u0007 \u009B2Jx\ty\nz"), "red x\ty\nz")
})
