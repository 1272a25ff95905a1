/**
 * Whether models still are what they were when their examples were recorded: the same files, the same tensors, the same
 * answers. Loaded only where it is asked for: `selftest` in an image, `selftest: true`, and where models enter the store.
 */
import { createHash } from "node:crypto"
import { createReadStream } from "node:fs"
import { readdir, readFile, writeFile } from "node:fs/promises"
import { createRequire } from "node:module"
import path from "node:path"
import { pipeline } from "node:stream/promises"
import type { ExamplesRequest, ExamplesResult } from "../store/bento.ts"
import { type Issue, IssueError, formatIssue } from "../store/errors.ts"
import { MODEL_YAML, SELFTEST_JSON } from "../store/layout.ts"
import { compareText, formatTag } from "../store/tag.ts"
import {
  type Example,
  Problems,
  type RecordedSignature,
  type WrittenExamples,
  compareOutputs,
  describeSignature,
  formatExamples,
  readExamples,
  resolveExamples,
} from "./examples.ts"
import type { LoadedModelInfo, ModelRunner, SignatureSpec } from "./runner.ts"
import type { Tensors } from "./tensor.ts"

export interface ExampleReport {
  readonly signature: string
  readonly example: string
  readonly maxError: number | null
  /** What differs; null when it passed. */
  readonly problem: string | null
}

export interface ModelReport {
  readonly model: string
  /** What is wrong with the model itself. */
  readonly problems: readonly string[]
  /** The ONNX Runtime that its examples were recorded with; null: nobody wrote it down. */
  readonly recordedWith: string | null
  /** What is no failure by itself: another ONNX Runtime. Where something failed, whether that is the probable cause. */
  readonly warnings: readonly string[]
  /** Empty for a model without examples. */
  readonly examples: readonly ExampleReport[]
}

/** The ONNX Runtime that answers here. */
export function onnxruntimeVersion(): string {
  const { version } = createRequire(import.meta.url)("onnxruntime-node/package.json") as { version: string }
  return version
}

/** Tests one model. `started` is the start of its runner; its failure becomes a problem of the report. */
export async function testModel(
  { model, dir }: LoadedModelInfo,
  runner: ModelRunner,
  started: Promise<void>,
): Promise<ModelReport> {
  const report = {
    model: formatTag(model.tag),
    problems: [],
    recordedWith: null,
    warnings: [],
    examples: [],
  }
  const file = path.join(dir, SELFTEST_JSON)
  const failure = started.then(
    () => [],
    (error: unknown) => [messageOf(error)],
  )
  const bytes = await readOrNull(file)
  if (bytes === null) return { ...report, problems: await failure }
  const problems = new Problems(file)
  const written = readExamples(bytes, problems)
  if (written === null || problems.issues.length > 0)
    return { ...report, problems: [...problems.issues.map(formatIssue), ...(await failure)] }
  // While the model loads: both take their time where it is large.
  const [changedBytes, unloadable] = await Promise.all([changedFiles(dir, written.files), failure])
  const told = (problems: string[], results: ExampleReport[]): ModelReport => ({
    ...report,
    problems,
    recordedWith: written.onnxruntime,
    warnings: runtimeWarnings(written.onnxruntime, {
      failed: problems.length > 0 || results.some(({ problem }) => problem !== null),
      sameFiles: changedBytes.length === 0,
    }),
    examples: results,
  })
  if (unloadable.length > 0) return told([...changedBytes, ...unloadable], [])
  const changed = changedSignatures(written, runner.signatures)
  // A signature that changed is named once, and not again by each of its examples.
  const sound = written.examples.filter(({ signature }) => !changed.has(signature ?? "run"))
  const examples = resolveExamples(sound, runner.signatures, problems)
  const incomplete = examples.filter(({ outputs }) => outputs === null)
  const results: ExampleReport[] = []
  for (const example of problems.issues.length > 0 ? [] : examples)
    results.push(await tryExample(example, runner))
  return told(
    [
      ...changedBytes,
      ...[...changed.values()].flat(),
      ...problems.issues.map(formatIssue),
      ...incomplete.map(({ name }) => `example ${JSON.stringify(name)} has no outputs to compare with`),
    ],
    results,
  )
}

async function tryExample(example: Example, runner: ModelRunner): Promise<ExampleReport> {
  const report = { signature: example.signature, example: example.name, maxError: null }
  try {
    const answer = await runner.run(example.signature, example.inputs)
    return { ...report, ...compareOutputs(example.outputs ?? {}, answer, example.tolerance) }
  } catch (error) {
    return { ...report, problem: causesOf(error) }
  }
}

/**
 * Another ONNX Runtime fails nothing by itself, since every newer bentoctl may bring one: the answers say whether it matters.
 * Where they do, and the model's bytes are the same, it is what is left to blame.
 */
function runtimeWarnings(
  recorded: string | null,
  { failed, sameFiles }: { readonly failed: boolean; readonly sameFiles: boolean },
): string[] {
  const here = onnxruntimeVersion()
  if (recorded === null || recorded === here) return []
  const runtimes = `recorded with ONNX Runtime ${recorded}, running on ${here}`
  if (!failed) return [`${runtimes}; the answers agree`]
  return [sameFiles ? `probably because of another ONNX Runtime: ${runtimes}` : runtimes]
}

/** What is said of each signature that is not as it was. */
function changedSignatures(
  { signatures }: WrittenExamples,
  now: Readonly<Record<string, SignatureSpec>>,
): Map<string, string[]> {
  const changed = new Map<string, string[]>()
  for (const [name, recorded] of Object.entries(signatures)) {
    const spec = Object.hasOwn(now, name) ? now[name] : undefined
    const problems =
      spec === undefined
        ? [`signature ${JSON.stringify(name)} is gone`]
        : [
            ...changedTensors(name, "input", recorded, describeSignature(spec)),
            ...changedTensors(name, "output", recorded, describeSignature(spec)),
          ]
    if (problems.length > 0) changed.set(name, problems)
  }
  return changed
}

function changedTensors(
  signature: string,
  what: "input" | "output",
  recorded: RecordedSignature,
  now: RecordedSignature,
): string[] {
  const side = `${what}s` as const
  const names = new Set([...Object.keys(recorded[side]), ...Object.keys(now[side])])
  return [...names]
    .filter((name) => recorded[side][name] !== now[side][name])
    .map((name) => {
      const is = now[side][name] ?? "gone"
      return `${signature}: ${what} ${JSON.stringify(name)} is ${is}, and was ${recorded[side][name] ?? "not there"} when recorded`
    })
}

// ---------------------------------------------------------------------------------------------------- files

/** The model's files with their digests: all in its folder but model.yaml and the examples. */
async function digestFiles(dir: string): Promise<Record<string, string>> {
  const digests: Record<string, string> = {}
  for (const name of await modelFiles(dir)) digests[name] = await digestOf(path.join(dir, name))
  return digests
}

async function modelFiles(dir: string): Promise<string[]> {
  const entries = await readdir(dir, { recursive: true, withFileTypes: true })
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(dir, path.join(entry.parentPath, entry.name)))
    .filter((name) => name !== MODEL_YAML && name !== SELFTEST_JSON)
    .toSorted(compareText)
}

async function digestOf(file: string): Promise<string> {
  const hash = createHash("sha256")
  await pipeline(createReadStream(file, { highWaterMark: 1 << 20 }), hash)
  return `sha256:${hash.digest("hex")}`
}

async function changedFiles(dir: string, recorded: Readonly<Record<string, string>>): Promise<string[]> {
  const present = await modelFiles(dir)
  const problems = present
    .filter((name) => !Object.hasOwn(recorded, name) && Object.keys(recorded).length > 0)
    .map((name) => `the file ${name} was not there when the examples were recorded`)
  for (const [name, digest] of Object.entries(recorded)) {
    if (!present.includes(name)) problems.push(`the file ${name} is missing`)
    else {
      const problem = await changedFile(path.join(dir, name), digest)
      if (problem !== null) problems.push(`the file ${name} ${problem}`)
    }
  }
  return problems
}

async function changedFile(file: string, recorded: string): Promise<string | null> {
  try {
    const now = await digestOf(file)
    if (now === recorded) return null
    return `has changed since the examples were recorded: it is ${now}, and was ${recorded}`
  } catch (error) {
    return `cannot be read: ${messageOf(error)}`
  }
}

// ---------------------------------------------------------------------------------------------------- entering the store

/**
 * Runs the examples of a model that is about to enter the store, and writes them into its folder with what they were made
 * with. The file that is there already is tested as it is when it is the one asked for: it came along with the model.
 */
export async function checkExamples(
  { dir, file, record }: ExamplesRequest,
  { model, runner }: { readonly model: LoadedModelInfo; readonly runner: ModelRunner },
): Promise<ExamplesResult> {
  const target = path.join(dir, SELFTEST_JSON)
  if (file === target) return resultOf(await testModel(model, runner, runner.start()))
  await runner.start()
  const problems = new Problems(file)
  const failed = (message: string): ExamplesResult => ({ ok: false, message, issues: problems.issues })
  const written = readExamples(await readFile(file), problems, record)
  const examples = resolveExamples(written?.examples ?? [], runner.signatures, problems)
  written?.examples.forEach(({ at, outputs }) => {
    if (record && outputs !== null)
      problems.add(`${at}.outputs`, "leave it out: the model's answers are recorded")
    if (!record && outputs === null)
      problems.add(at, "has no `outputs`; `bentoctl models record` asks the model for them")
  })
  if (problems.issues.length > 0) return failed("the examples cannot be used:")
  const complete: Example[] = []
  for (const [index, example] of examples.entries()) {
    const at = `examples[${index}]`
    const answered = record
      ? await recordExample(example, runner).catch((error: unknown) => causesOf(error))
      : example
    const problem = typeof answered === "string" ? answered : (await tryExample(answered, runner)).problem
    if (problem !== null) problems.add(at, `${JSON.stringify(example.name)}: ${problem}`)
    else if (typeof answered !== "string") complete.push(answered)
  }
  if (problems.issues.length > 0) {
    return failed(record ? "the answers cannot be recorded:" : "the model does not answer as expected:")
  }
  const old = record ? await present(target, runner) : NOTHING_RECORDED
  const all = record ? merged(old.examples, complete, written?.examples ?? []) : complete
  const spoilt = await changedFiles(dir, old.files)
  for (const example of old.examples.filter((kept) => all.includes(kept))) {
    const { problem } = await tryExample(example, runner)
    if (problem !== null) spoilt.push(`its example ${JSON.stringify(example.name)} fails: ${problem}`)
  }
  for (const problem of spoilt) problems.add("", problem)
  if (spoilt.length > 0) return failed("the model is not as its examples say any more:")
  const head = {
    onnxruntime: onnxruntimeVersion(),
    files: await digestFiles(dir),
    signatures: Object.fromEntries(
      [...new Set(all.map(({ signature }) => signature))].flatMap((name) => {
        const spec = runner.signatures[name]
        return spec === undefined ? [] : [[name, describeSignature(spec)]]
      }),
    ),
  }
  await writeFile(target, formatExamples(head, all))
  return { ok: true, examples: all.map(({ name }) => name), notes: [] }
}

/** Asked a second time right after, a model whose answers are chance does not pass. */
async function recordExample(example: Example, runner: ModelRunner): Promise<Example> {
  const outputs: Tensors = await runner.run(example.signature, example.inputs)
  return { ...example, outputs }
}

interface Recorded {
  readonly files: WrittenExamples["files"]
  readonly examples: readonly Example[]
}

const NOTHING_RECORDED: Recorded = { files: {}, examples: [] }

/** What the model carries already. */
async function present(file: string, runner: ModelRunner): Promise<Recorded> {
  const bytes = await readOrNull(file)
  if (bytes === null) return NOTHING_RECORDED
  const problems = new Problems(file)
  const written = readExamples(bytes, problems)
  const examples = resolveExamples(written?.examples ?? [], runner.signatures, problems)
  if (problems.issues.length > 0)
    throw new IssueError("EXAMPLES_INVALID", "the model's examples cannot be read:", problems.issues)
  return { files: written?.files ?? {}, examples }
}

/** New ones come last; one of the same name takes the place of the old. Those without a name of their own are counted on. */
function merged(
  old: readonly Example[],
  added: readonly Example[],
  written: WrittenExamples["examples"],
): Example[] {
  const names = new Set(old.map(({ name }) => name))
  const named = added.map((example, index) => {
    if (!(written[index]?.isNumbered === true)) return example
    let number = 1
    while (names.has(String(number))) number++
    names.add(String(number))
    return { ...example, name: String(number) }
  })
  const replaced = old.filter(({ name }) => !named.some((example) => example.name === name))
  return [...replaced, ...named]
}

function resultOf(report: ModelReport): ExamplesResult {
  const issues = issuesOf(report)
  if (issues.length > 0)
    return { ok: false, message: "the self-test that came along with the model fails:", issues }
  return {
    ok: true,
    examples: report.examples.map(({ example }) => example),
    notes: report.warnings.map((warning) => `self-test: ${warning}`),
  }
}

// ---------------------------------------------------------------------------------------------------- telling

/** Did all pass, and was there anything to pass? */
export function isPassed(reports: readonly ModelReport[]): boolean {
  return (
    reports.some(({ examples }) => examples.length > 0) &&
    reports.every((report) => issuesOf(report).length === 0)
  )
}

/** Throws SELFTEST_FAILED with all that differs. */
export function throwUnlessPassed(report: ModelReport): void {
  const issues = issuesOf(report)
  if (issues.length === 0) return
  throw new IssueError("SELFTEST_FAILED", `the self-test of ${report.model} failed:`, issues)
}

/** For the log of a server. */
export function passedText({ examples }: ModelReport): string {
  return examples.length === 0
    ? "no examples to test"
    : `self-test passed, ${countOf(examples.length, "example")}`
}

function issuesOf({ problems, warnings, examples }: ModelReport): Issue[] {
  const failed = examples.flatMap(({ signature, example, problem }) =>
    problem === null ? [] : [{ message: `${signature}, example ${JSON.stringify(example)}: ${problem}` }],
  )
  const issues = [...problems.map((message) => ({ message })), ...failed]
  return issues.length === 0 ? [] : [...issues, ...warnings.map((message) => ({ message }))]
}

/** For programs. */
export function reportJson(reports: readonly ModelReport[]): string {
  const models = reports.map((report) => ({
    model: report.model,
    ok: issuesOf(report).length === 0,
    problems: report.problems,
    recorded_with: report.recordedWith,
    warnings: report.warnings,
    examples: report.examples.map(({ signature, example, maxError, problem }) => ({
      signature,
      example,
      ok: problem === null,
      max_error: maxError,
      problem,
    })),
  }))
  return `${JSON.stringify({ ok: isPassed(reports), onnxruntime: onnxruntimeVersion(), models }, null, 2)}\n`
}

/** For people: a line for each example, and for each thing that is wrong with a model. */
export function reportTable(reports: readonly ModelReport[]): string {
  const rows = reports.flatMap(({ model, problems, warnings, examples }) => [
    ...problems.map((problem) => [model, "", "", `FAILED: ${problem}`]),
    ...examples.map(({ signature, example, maxError, problem }) => [
      model,
      signature,
      example,
      problem === null ? `ok (max error ${Number((maxError ?? 0).toPrecision(2))})` : `FAILED: ${problem}`,
    ]),
    ...(problems.length + examples.length === 0 ? [[model, "", "", "no examples"]] : []),
    ...warnings.map((warning) => [model, "", "", `WARNING: ${warning}`]),
  ])
  const head = ["MODEL", "SIGNATURE", "EXAMPLE", "RESULT"]
  const widths = head.map((_, column) => Math.max(...[head, ...rows].map((row) => row[column]?.length ?? 0)))
  const lines = [head, ...rows].map((row) =>
    row
      .map((cell, column) => (column === row.length - 1 ? cell : cell.padEnd(widths[column] ?? 0)))
      .join("  "),
  )
  return `${lines.join("\n")}\n\n${summary(reports)}\n`
}

function summary(reports: readonly ModelReport[]): string {
  const examples = reports.flatMap((report) => report.examples)
  const warnings = reports.flatMap((report) => report.warnings).length
  const but = warnings === 0 ? "" : `, with ${warnings === 1 ? "a warning" : countOf(warnings, "warning")}`
  if (isPassed(reports)) return `${countOf(examples.length, "example")} passed${but}.`
  const failures = reports.flatMap(({ problems, examples: all }) => [
    ...problems,
    ...all.filter(({ problem }) => problem !== null),
  ])
  if (failures.length > 0) return `The self-test failed: ${countOf(failures.length, "problem")}.`
  return "There is nothing to test: no model has examples. `bentoctl models record` makes some."
}

function countOf(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`
}

async function readOrNull(file: string): Promise<Uint8Array | null> {
  try {
    return await readFile(file)
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return null
    throw error
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** With what ONNX Runtime said, which stands behind the runner's own message. */
function causesOf(error: unknown): string {
  const cause = error instanceof Error ? error.cause : undefined
  return cause === undefined ? messageOf(error) : `${messageOf(error)}: ${messageOf(cause)}`
}
