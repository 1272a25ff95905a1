/** What `list`, `get` and `delete` of models and of Bentos have in common. */
import { Option } from "clipanion"
import type { BentoError } from "../store/errors.ts"
import type { Store, StoreItem } from "../store/store.ts"
import type { Tag } from "../store/tag.ts"
import { BaseCommand, oneOf } from "./command.ts"
import type { Context } from "./context.ts"
import {
  deleteItems,
  describeItem,
  formatRecords,
  GET_OUTPUTS,
  LIST_OUTPUTS,
  listRecords,
  type ListRecord,
} from "./items.ts"
import type { Column } from "./output.ts"

/** Opens the store that the command is about; its code is loaded then, and not for `--help`. */
export type OpenStore<T> = (context: Context) => Promise<Store<T>>

export abstract class ListCommand<T> extends BaseCommand {
  name: string | undefined = Option.String({ name: "NAME", required: false })
  output: string = Option.String("-o,--output", "table", {
    description: "<table|json|yaml> form of the list",
  })

  protected abstract readonly open: OpenStore<T>
  protected abstract readonly columns: readonly Column<ListRecord>[]
  protected abstract record(item: StoreItem<T>, store: Store<T>): Promise<ListRecord>
  /** What to tell somebody whose store holds nothing. */
  protected abstract whenEmpty(root: string): string

  async execute(): Promise<number> {
    const output = oneOf("--output", this.output, LIST_OUTPUTS)
    const store = await this.open(this.context)
    const records = await listRecords(
      store,
      this.name,
      (item) => this.record(item, store),
      (text) => this.warn(text),
    )
    this.print(await formatRecords(records, this.columns, output, this.context))
    if (records.length === 0 && output === "table" && this.context.terminal.stdout) {
      this.note(this.whenEmpty(store.root))
    }
    return 0
  }
}

export abstract class GetCommand<T> extends BaseCommand {
  tag: string = Option.String({ name: "TAG" })
  output: string = Option.String("-o,--output", "yaml", { description: "<yaml|json|path> what to print" })

  protected abstract readonly open: OpenStore<T>

  async execute(): Promise<number> {
    const output = oneOf("--output", this.output, GET_OUTPUTS)
    this.print(await describeItem(await this.open(this.context), this.tag, output))
    return 0
  }
}

export abstract class DeleteCommand<T> extends BaseCommand {
  tags: string[] = Option.Rest({ name: "TAG", required: 1 })
  yes: boolean = Option.Boolean("-y,--yes,--assume-yes", false, { description: "do not ask" })

  protected abstract readonly open: OpenStore<T>
  /** Why these must stay, if they must. */
  protected refuse(_tags: readonly Tag[]): Promise<BentoError | undefined> {
    return Promise.resolve(undefined)
  }

  async execute(): Promise<number> {
    await deleteItems(await this.open(this.context), this.tags, {
      yes: this.yes,
      context: this.context,
      say: (text) => this.say(text),
      refuse: (tags) => this.refuse(tags),
    })
    return 0
  }
}
