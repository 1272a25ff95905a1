/** `bentoctl list|get|delete`: the Bentos of the store. */
import type { Bento } from "../store/bento.ts"
import type { Model } from "../store/model.ts"
import type { Store, StoreItem } from "../store/store.ts"
import { formatTag } from "../store/tag.ts"
import type { CommandHelp } from "./command.ts"
import { DeleteCommand, GetCommand, ListCommand, type OpenStore } from "./item-commands.ts"
import type { ListRecord } from "./items.ts"
import { formatSize, formatTime, type Column } from "./output.ts"

const GROUP = "Bentos"

const open: OpenStore<Bento> = async ({ home }) => (await import("../store/store.ts")).openBentoStore(home)

const COLUMNS: readonly Column<ListRecord>[] = [
  { title: "Tag", cell: (row) => row["tag"] ?? "" },
  { title: "Size", cell: (row) => row["size"] ?? "", dispensable: 2 },
  { title: "Model Size", cell: (row) => row["model_size"] ?? "", dispensable: 3 },
  { title: "Creation Time", cell: (row) => row["creation_time"] ?? "", dispensable: 1 },
]

export class BentosListCommand extends ListCommand<Bento> {
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

  protected readonly open = open
  protected readonly columns = COLUMNS

  protected async record({ tag, info }: StoreItem<Bento>, store: Store<Bento>): Promise<ListRecord> {
    const { openModelStore } = await import("../store/store.ts")
    const models = openModelStore(this.context.home)
    return {
      tag: formatTag(tag),
      size: formatSize(await store.size(tag)),
      model_size: formatSize(await modelSize(info, models, (text) => this.warn(text))),
      creation_time: formatTime(info.creationTime),
    }
  }

  protected whenEmpty(root: string): string {
    return `No Bentos in ${root} yet; \`bentoctl build\` makes one of a folder with a bentofile.yaml.`
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

export class BentosGetCommand extends GetCommand<Bento> {
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

  protected readonly open = open
}

export class BentosDeleteCommand extends DeleteCommand<Bento> {
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

  protected readonly open = open
}
