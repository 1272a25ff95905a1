/** `bentoctl list|get|delete`: the Bentos of the store. */
import { Option } from "clipanion"
import type { Bento } from "../store/bento.ts"
import type { Model } from "../store/model.ts"
import type { Store } from "../store/store.ts"
import { formatTag } from "../store/tag.ts"
import { BaseCommand, oneOf, type CommandHelp } from "./command.ts"
import {
  deleteItems,
  describeItem,
  formatRecords,
  GET_OUTPUTS,
  LIST_OUTPUTS,
  listRecords,
  type ListRecord,
} from "./items.ts"
import { formatSize, formatTime, type Column } from "./output.ts"

const GROUP = "Bentos"

const COLUMNS: readonly Column<ListRecord>[] = [
  { title: "Tag", cell: (row) => row["tag"] ?? "" },
  { title: "Size", cell: (row) => row["size"] ?? "", dispensable: 2 },
  { title: "Model Size", cell: (row) => row["model_size"] ?? "", dispensable: 3 },
  { title: "Creation Time", cell: (row) => row["creation_time"] ?? "", dispensable: 1 },
]

export class BentosListCommand extends BaseCommand {
  static override paths = [["list"]]
  static help: CommandHelp = {
    group: GROUP,
    summary: "List the Bentos of the store, newest first",
    args: [["[NAME]", "only the versions of this Bento"]],
    examples: [
      ["all Bentos", "bentoctl list"],
      ["the tag of the newest version", "bentoctl list iris -o json | jq -r '.[0].tag'"],
    ],
  }

  name: string | undefined = Option.String({ name: "NAME", required: false })
  output: string = Option.String("-o,--output", "table", {
    description: "<table|json|yaml> form of the list",
  })

  async execute(): Promise<number> {
    const output = oneOf("--output", this.output, LIST_OUTPUTS)
    const { openBentoStore, openModelStore } = await import("../store/store.ts")
    const store = openBentoStore(this.context.home)
    const models = openModelStore(this.context.home)
    const warn = (text: string): void => this.warn(text)
    const records = await listRecords(
      store,
      this.name,
      async ({ tag, info }) => ({
        tag: formatTag(tag),
        size: formatSize(await store.size(tag)),
        model_size: formatSize(await modelSize(info, models, warn)),
        creation_time: formatTime(info.creationTime),
      }),
      warn,
    )
    this.print(await formatRecords(records, COLUMNS, output, this.context))
    if (records.length === 0 && output === "table" && this.context.terminal.stdout) {
      this.note(
        `No Bentos in ${store.root} yet; \`bentoctl build\` makes one of a folder with a bentofile.yaml.`,
      )
    }
    return 0
  }
}

/** Models stay in their own store; one that is gone is worth a warning, but not the whole list. */
async function modelSize(bento: Bento, models: Store<Model>, warn: (text: string) => void): Promise<number> {
  const sizes = await Promise.all(
    bento.models.map(({ tag }) =>
      models.size(tag).catch(() => {
        warn(`${formatTag(bento.tag)} uses the model ${formatTag(tag)}, which is not in the store`)
        return 0
      }),
    ),
  )
  return sizes.reduce((sum, size) => sum + size, 0)
}

export class BentosGetCommand extends BaseCommand {
  static override paths = [["get"]]
  static help: CommandHelp = {
    group: GROUP,
    summary: "Show what a Bento is made of",
    args: [["TAG", "NAME, NAME:VERSION, or NAME:PREFIX where the prefix fits one version"]],
    examples: [
      ["bento.yaml of the newest version", "bentoctl get iris"],
      ["the folder that holds it", "bentoctl get iris:latest -o path"],
    ],
  }

  tag: string = Option.String({ name: "TAG" })
  output: string = Option.String("-o,--output", "yaml", { description: "<yaml|json|path> what to print" })

  async execute(): Promise<number> {
    const output = oneOf("--output", this.output, GET_OUTPUTS)
    const { openBentoStore } = await import("../store/store.ts")
    this.print(await describeItem(openBentoStore(this.context.home), this.tag, output))
    return 0
  }
}

export class BentosDeleteCommand extends BaseCommand {
  static override paths = [["delete"]]
  static help: CommandHelp = {
    group: GROUP,
    summary: "Delete Bentos from the store; models and images stay",
    args: [["TAG...", "what to delete, parted by spaces or commas; a bare name means all its versions"]],
    examples: [
      ["one version, after a question", "bentoctl delete iris:u2swufhfec6rgax4"],
      ["all versions, without a question", "bentoctl delete iris --yes"],
    ],
  }

  tags: string[] = Option.Rest({ name: "TAG", required: 1 })
  yes: boolean = Option.Boolean("-y,--yes,--assume-yes", false, { description: "do not ask" })

  async execute(): Promise<number> {
    const { openBentoStore } = await import("../store/store.ts")
    await deleteItems(openBentoStore(this.context.home), this.tags, {
      yes: this.yes,
      context: this.context,
      say: (text) => this.say(text),
    })
    return 0
  }
}
