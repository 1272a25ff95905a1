/** Listing, showing and deleting what a store holds: the same for models and Bentos. */
import { readFile } from "node:fs/promises"
import path from "node:path"
import { createInterface } from "node:readline"
import { UsageError } from "clipanion"
import type { BentoError } from "../store/errors.ts"
import type { Store } from "../store/store.ts"
import { formatTag, parseTagRef, type Tag } from "../store/tag.ts"
import type { Context } from "./context.ts"
import { formatJson, formatTable, type Column } from "./output.ts"

export const LIST_OUTPUTS = ["table", "json", "yaml"] as const
export const GET_OUTPUTS = ["yaml", "json", "path"] as const

/** A row of `list`: BentoML's keys in BentoML's order, all of them text. */
export type ListRecord = Readonly<Record<string, string>>

/** All items that fit, newest first. Broken ones are named in warnings. */
export async function listRecords<T>(
  store: Store<T>,
  asked: string | undefined,
  record: (item: { tag: Tag; dir: string; info: T }) => Promise<ListRecord>,
  warn: (text: string) => void,
): Promise<ListRecord[]> {
  const { items, broken } = await store.list(asked === undefined ? undefined : parseTagRef(asked))
  for (const { path: where, reason } of broken) warn(`skipped a broken ${store.kind}, ${where}: ${reason}`)
  return mapInOrder(items, record)
}

export async function formatRecords(
  records: readonly ListRecord[],
  columns: readonly Column<ListRecord>[],
  output: (typeof LIST_OUTPUTS)[number],
  context: Context,
): Promise<string> {
  switch (output) {
    case "json":
      return formatJson(records)
    case "yaml": {
      const { formatYaml } = await import("./yaml.ts")
      return formatYaml(records)
    }
    case "table": {
      const { styleText } = await import("node:util")
      return formatTable(records, columns, {
        ...(context.terminal.stdout && { width: context.columns() }),
        ...(context.colour.stdout && {
          heading: (text: string) => styleText("bold", text, { validateStream: false }),
        }),
      })
    }
  }
}

/** The text of `get`: the manifest as it stands on disk, the same as JSON, or where the item is. */
export async function describeItem<T>(
  store: Store<T>,
  asked: string,
  output: (typeof GET_OUTPUTS)[number],
): Promise<string> {
  const tag = await store.resolve(parseTagRef(asked))
  if (output === "path") return `${store.dir(tag)}\n`
  await store.get(tag)
  const file = path.join(store.dir(tag), `${store.kind}.yaml`)
  const text = await readFile(file, "utf8")
  if (output === "yaml") return text.endsWith("\n") ? text : `${text}\n`
  const { readYaml } = await import("../store/pyyaml.ts")
  return formatJson(readYaml(text, file).value)
}

/** The tags of one target of `delete`; `whole` when the target was a bare name, which means all versions. */
interface Doomed {
  readonly tags: readonly Tag[]
  readonly whole: boolean
}

/**
 * Deletes what the targets name, after looking at all of them: a wrong target, or one that `refuse` objects to, keeps
 * everything. Each target is confirmed on the terminal unless `yes`.
 */
export async function deleteItems<T>(
  store: Store<T>,
  given: readonly string[],
  options: {
    readonly yes: boolean
    readonly context: Context
    readonly say: (text: string) => void
    readonly refuse?: (tags: readonly Tag[]) => Promise<BentoError | undefined>
  },
): Promise<void> {
  const { context, yes, say } = options
  const targets = splitTargets(given)
  if (targets.length === 0) throw new UsageError(`name the ${store.kind}s to delete`)
  const doomed: Doomed[] = []
  for (const target of targets) doomed.push(await findDoomed(store, target))
  const objection = await options.refuse?.(doomed.flatMap(({ tags }) => tags))
  if (objection !== undefined) throw objection
  if (!yes && !context.terminal.stdin) {
    throw new UsageError(
      "deleting asks for confirmation, and there is no terminal to ask on; pass --yes to delete",
    )
  }
  const prompt = yes ? undefined : openPrompt(context)
  try {
    for (const { tags, whole } of doomed) {
      context.signal.throwIfAborted()
      const question = `delete ${store.kind} ${describeDoomed(tags, whole)}? [y/N] `
      if (prompt !== undefined && !(await prompt.confirm(question))) continue
      for (const tag of tags) {
        await store.remove(tag)
        say(`${store.kind === "model" ? "Model" : "Bento"}(tag="${formatTag(tag)}") deleted.`)
      }
    }
  } finally {
    prompt?.close()
  }
}

/** Commas and white space part targets, alone or mixed. @example splitTargets(["a:1,b:2", "c"])  // a:1, b:2, c */
export function splitTargets(given: readonly string[]): string[] {
  return [...new Set(given.flatMap((word) => word.split(/[\s,]+/)).filter((word) => word !== ""))]
}

async function findDoomed<T>(store: Store<T>, target: string): Promise<Doomed> {
  const ref = parseTagRef(target)
  if (ref.version !== undefined) return { tags: [await store.resolve(ref)], whole: false }
  const { items, broken } = await store.list(ref)
  const brokenTags = broken.map((item) => ({ name: ref.name, version: path.basename(item.path) }))
  const tags = [...items.map((item) => item.tag), ...brokenTags]
  return { tags, whole: true }
}

function describeDoomed(tags: readonly Tag[], whole: boolean): string {
  const [first] = tags
  if (first === undefined) return "nothing"
  if (!whole || tags.length === 1) return formatTag(first)
  return `${first.name} (all ${tags.length} versions)`
}

/** Asks on stderr, so that stdout stays clean. The end of input is a no; Ctrl-C ends the command. */
function openPrompt(context: Context): {
  confirm: (question: string) => Promise<boolean>
  close: () => void
} {
  const lines = createInterface({ input: context.stdin, terminal: false, signal: context.signal })
  const answers = lines[Symbol.asyncIterator]()
  return {
    confirm: async (question) => {
      context.stderr.write(question)
      const answer = await answers.next()
      if (answer.done === true) context.stderr.write("\n")
      context.signal.throwIfAborted()
      return answer.done !== true && /^y(es)?$/i.test(answer.value.trim())
    },
    close: () => lines.close(),
  }
}

/** As many at once as disks like, results in the order of the input. */
async function mapInOrder<T, R>(items: readonly T[], map: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = []
  for (let at = 0; at < items.length; at += 16) {
    results.push(...(await Promise.all(items.slice(at, at + 16).map(map))))
  }
  return results
}
