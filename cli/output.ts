/** What goes to the terminal as text: tables, sizes, times and JSON in BentoML's shapes. Pure functions. */
import { stripVTControlCharacters } from "node:util"

const SIZE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] as const

/** @example formatSize(5 * 1024 * 1024)  // "5.00 MiB" */
export function formatSize(bytes: number): string {
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < SIZE_UNITS.length - 1) {
    value /= 1024
    unit += 1
  }
  return `${value.toFixed(2)} ${SIZE_UNITS[unit]}`
}

/** `YYYY-MM-DD HH:MM:SS` in the local zone; what cannot be read as a time is shown as it is. */
export function formatTime(iso: string): string {
  const date = new Date(iso)
  if (Number.isNaN(date.getTime())) return iso
  const two = (value: number): string => String(value).padStart(2, "0")
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join("-")
  return `${day} ${[date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(":")}`
}

/** @example formatDuration(1234)  // "1.2s" */
export function formatDuration(ms: number): string {
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)}s`
  const seconds = Math.round(ms / 1000)
  return `${Math.floor(seconds / 60)}m ${String(seconds % 60).padStart(2, "0")}s`
}

/** One JSON value, indented by two as BentoML does, ending in a newline. */
export function formatJson(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`
}

export interface Column<Row> {
  readonly title: string
  readonly cell: (row: Row) => string
  /** Columns that may go when the terminal is too narrow, the highest number first. */
  readonly dispensable?: number
}

/**
 * A table without borders. With `width`, columns that may go are left out until it fits; cells are never cut, so that
 * a tag can always be copied.
 */
export function formatTable<Row>(
  rows: readonly Row[],
  columns: readonly Column<Row>[],
  options: { readonly width?: number; readonly heading?: (text: string) => string } = {},
): string {
  const shown = fitColumns(rows, columns, options.width ?? Infinity)
  const widths = shown.map((column) => columnWidth(rows, column))
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, index) => cell.padEnd(widths[index] ?? 0))
      .join("  ")
      .trimEnd()
  const heading = options.heading ?? ((text: string) => text)
  const lines = [
    heading(line(shown.map((column) => column.title))),
    ...rows.map((row) => line(shown.map((column) => column.cell(row)))),
  ]
  return `${lines.join("\n")}\n`
}

function fitColumns<Row>(
  rows: readonly Row[],
  columns: readonly Column<Row>[],
  width: number,
): readonly Column<Row>[] {
  const total = columns.reduce((sum, column) => sum + columnWidth(rows, column) + 2, -2)
  const dispensable = columns.filter((column) => column.dispensable !== undefined)
  if (total <= width || dispensable.length === 0) return columns
  const least = dispensable.reduce((a, b) => ((b.dispensable ?? 0) > (a.dispensable ?? 0) ? b : a))
  return fitColumns(
    rows,
    columns.filter((column) => column !== least),
    width,
  )
}

function columnWidth<Row>(rows: readonly Row[], column: Column<Row>): number {
  return rows.reduce((width, row) => Math.max(width, column.cell(row).length), column.title.length)
}

/** Breaks text into lines of at most `width` characters at spaces; a longer word stands alone. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = []
  let line = ""
  for (const word of text.split(/\s+/).filter((part) => part !== "")) {
    if (line !== "" && line.length + 1 + word.length > width) {
      lines.push(line)
      line = word
    } else {
      line = line === "" ? word : `${line} ${word}`
    }
  }
  if (line !== "") lines.push(line)
  return lines
}

/** At most `width` characters, the end replaced by an ellipsis. */
export function cut(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, Math.max(0, width - 1))}…`
}

/** Without control characters: names and log lines of others must not move the cursor or set colours. */
export function plain(text: string): string {
  return stripVTControlCharacters(text).replace(/[^\P{Cc}\n\t]/gu, "")
}
