/** `bentoctl models …`: what happens between a trained model's file and the store. */
import { existsSync } from "node:fs"
import path from "node:path"
import { Option, UsageError } from "clipanion"
import type { Bento } from "../store/bento.ts"
import { BentoError } from "../store/errors.ts"
import type { Model } from "../store/model.ts"
import type { Store, StoreItem } from "../store/store.ts"
import { formatTag, parseTagRef, type Tag } from "../store/tag.ts"
import { BaseCommand, oneOf, parseLabels, type CommandHelp } from "./command.ts"
import { PLATFORMS } from "./image-command.ts"
import { DeleteCommand, GetCommand, ListCommand, type OpenStore } from "./item-commands.ts"
import { describeItem, type ListRecord } from "./items.ts"
import { formatSize, formatTime, type Column } from "./output.ts"
import { PROGRESS, PUSH_MEANING } from "./report.ts"

const GROUP = "Models"

const open: OpenStore<Model> = async ({ home }) => (await import("../store/store.ts")).openModelStore(home)

const COLUMNS: readonly Column<ListRecord>[] = [
  { title: "Tag", cell: (row) => row["tag"] ?? "" },
  { title: "Module", cell: (row) => row["module"] ?? "", dispensable: 3 },
  { title: "Size", cell: (row) => row["size"] ?? "", dispensable: 1 },
  { title: "Creation Time", cell: (row) => row["creation_time"] ?? "", dispensable: 2 },
]

/** What makes a version of a model takes a while, and may have something to note. */
abstract class AddingCommand extends BaseCommand {
  protected async showAdding<T extends { readonly notes: readonly string[] }>(
    what: string,
    output: "text" | "tag" | "json",
    add: () => Promise<T>,
  ): Promise<T> {
    const { isLive, showWhile, stderrScreen } = await import("./report.ts")
    const added = await showWhile(
      isLive(this.context) && !this.quiet ? stderrScreen(this.context) : null,
      what,
      add(),
    )
    if (output === "text") for (const note of added.notes) this.note(`note: ${note}`)
    return added
  }
}

export class ModelsImportCommand extends AddingCommand {
  static override paths = [["models", "import"]]
  static help: CommandHelp = {
    group: GROUP,
    summary: "Put an ONNX model into the store",
    args: [
      ["PATH", "an .onnx file (its external data comes along), or a folder that BentoML saved a model in"],
    ],
    details: [
      "The model is loaded in ONNX Runtime before it enters the store, so whatever is in the store can be served. " +
        "Inputs and outputs are read from its graph. It is batchable if the first dimension of all of them is free; " +
        "--signature says otherwise.",
      "scikit-learn's exporter ends a graph in ZipMap, which makes a list of maps of an output. It is taken out: the " +
        "output keeps its name and becomes a tensor, one column per class, and the class labels go into the metadata.",
    ],
    examples: [
      ["import a model; the store gives it a version", "bentoctl models import iris.onnx --name iris"],
      [
        "say what it is, for those who list and deploy it",
        "bentoctl models import iris.onnx --name iris --label stage=prod --metadata metrics.yaml",
      ],
      [
        "a model whose batch axis is the second one",
        `bentoctl models import rnn.onnx --name rnn --signature '{"run": {"batchable": true, "batch_dim": 1}}'`,
      ],
      [
        "with examples that its images can test themselves with",
        "bentoctl models import iris.onnx --name iris --example examples.json",
      ],
      ["the tag alone, for scripts", "bentoctl models import iris.onnx --name iris -o tag"],
    ],
  }

  file: string = Option.String({ name: "PATH" })
  modelName: string | undefined = Option.String("--name", {
    description: "<NAME> name in the store; a BentoML folder brings its own",
  })
  version: string | undefined = Option.String("--version", {
    description: "<VERSION> version in the store (default: a new one, made as BentoML does)",
  })
  label: string[] = Option.Array("--label", [], {
    description: "<KEY=VALUE> attach a label; repeat for more",
  })
  metadata: string | undefined = Option.String("--metadata", {
    description: "<FILE> YAML or JSON file with a map to keep beside the model",
  })
  signature: string | undefined = Option.String("--signature", {
    description: "<JSON|FILE> how the model is called: batchable, batch_dim",
  })
  example: string | undefined = Option.String("--example", {
    description: "<FILE> examples that it must answer, and then carries: see docs/selftest.md",
  })
  output: string | undefined = Option.String("-o,--output", {
    description: "<tag|json> print the result for programs instead of people",
  })

  async execute(): Promise<number> {
    const output = this.output === undefined ? "text" : oneOf("--output", this.output, ["tag", "json"])
    const labels = parseLabels(this.label)
    const { context } = this
    const [
      { importModel },
      { openModelStore },
      { examplesChecker, modelChecker },
      { readMetadata, readSignatures },
    ] = await Promise.all([
      import("../store/import.ts"),
      import("../store/store.ts"),
      import("./runtime-child.ts"),
      import("./arguments.ts"),
    ])
    const store = openModelStore(context.home)
    const options = {
      store,
      path: path.resolve(context.cwd, this.file),
      ...(this.modelName !== undefined && { name: this.modelName }),
      ...(this.version !== undefined && { version: this.version }),
      labels,
      ...(this.metadata !== undefined && { metadata: await readMetadata(this.metadata, context.cwd) }),
      ...(this.signature !== undefined && { signatures: await readSignatures(this.signature, context.cwd) }),
      now: context.now(),
      random: context.random,
      ...(this.example !== undefined && { examples: path.resolve(context.cwd, this.example) }),
      check: modelChecker(context),
      checkExamples: examplesChecker(context),
      signal: context.signal,
    }
    const { model, notes } = await this.showAdding(`import ${this.file}`, output, () => importModel(options))
    const tag = formatTag(model.tag)
    if (output === "tag") this.print(`__tag__:${tag}\n`)
    else if (output === "json") {
      const written = JSON.parse(await describeItem(store, tag, "json")) as unknown
      this.printJson({ tag, path: store.dir(model.tag), notes, model: written })
    } else this.say(`Model(tag="${tag}") imported.`)
    return 0
  }
}

export class ModelsRecordCommand extends AddingCommand {
  static override paths = [["models", "record"]]
  static help: CommandHelp = {
    group: GROUP,
    summary: "Record what a model answers, for its self-test",
    args: [["TAG", "the model: NAME, NAME:VERSION, or NAME:PREFIX where the prefix fits one version"]],
    details: [
      "Runs the model on the inputs and keeps them with its answers, the digests of its files and the version of ONNX " +
        "Runtime, in a new version of the model: what is in the store never changes. Examples that it has already stay; one of " +
        "the same name is replaced.",
      "FILE holds the body of a request, as the model's API takes it, or a list of examples: docs/selftest.md. `docker run " +
        "IMAGE selftest` tests all examples of an image; with `selftest: true` in bentofile.yaml a server starts only if they pass.",
    ],
    examples: [
      ["one example, from the body of a request", "bentoctl models record iris --input request.json"],
      ["the new tag alone, for scripts", "bentoctl models record iris --input examples.json -o tag"],
    ],
  }

  tag: string = Option.String({ name: "TAG" })
  input: string | undefined = Option.String("--input", {
    description: "<FILE> JSON file with the inputs",
  })
  version: string | undefined = Option.String("--version", {
    description: "<VERSION> the new version (default: one made as `models import` does)",
  })
  output: string | undefined = Option.String("-o,--output", {
    description: "<tag|json> print the result for programs instead of people",
  })

  async execute(): Promise<number> {
    const output = this.output === undefined ? "text" : oneOf("--output", this.output, ["tag", "json"])
    if (this.input === undefined) throw new UsageError("--input FILE is needed: what the model is to answer")
    const { context } = this
    const [{ recordExamples }, { openModelStore }, { examplesChecker }] = await Promise.all([
      import("../store/import.ts"),
      import("../store/store.ts"),
      import("./runtime-child.ts"),
    ])
    const store = openModelStore(context.home)
    const options = {
      store,
      tag: await store.resolve(parseTagRef(this.tag)),
      input: path.resolve(context.cwd, this.input),
      ...(this.version !== undefined && { version: this.version }),
      now: context.now(),
      random: context.random,
      checkExamples: examplesChecker(context),
      signal: context.signal,
    }
    const { model, examples, notes } = await this.showAdding(`record ${this.tag}`, output, () =>
      recordExamples(options),
    )
    const tag = formatTag(model.tag)
    if (output === "tag") this.print(`__tag__:${tag}\n`)
    else if (output === "json") this.printJson({ tag, path: store.dir(model.tag), examples, notes })
    else {
      const count = `${examples.length} ${examples.length === 1 ? "example" : "examples"}`
      this.say(`Model(tag="${tag}") recorded; it has ${count}.`)
    }
    return 0
  }
}

export class ModelsListCommand extends ListCommand<Model> {
  static override paths = [["models", "list"]]
  static help: CommandHelp = {
    group: GROUP,
    summary: "List the models of the store, newest first",
    args: [["[NAME]", "only the versions of this model"]],
    examples: [
      ["all models", "bentoctl models list"],
      ["the tags alone, for scripts", "bentoctl models list -o json | jq -r '.[].tag'"],
    ],
  }

  protected readonly open = open
  protected readonly columns = COLUMNS

  protected async record({ tag, info }: StoreItem<Model>, store: Store<Model>): Promise<ListRecord> {
    return {
      tag: formatTag(tag),
      module: info.module,
      size: formatSize(await store.size(tag)),
      creation_time: formatTime(info.creationTime),
    }
  }

  protected whenEmpty(root: string): string {
    return `No models in ${root} yet; \`bentoctl models import PATH --name NAME\` puts one there.`
  }
}

export class ModelsGetCommand extends GetCommand<Model> {
  static override paths = [["models", "get"]]
  static help: CommandHelp = {
    group: GROUP,
    summary: "Show what the store knows of a model",
    args: [["TAG", "NAME, NAME:VERSION, or NAME:PREFIX where the prefix fits one version"]],
    examples: [
      ["model.yaml of the newest version", "bentoctl models get iris"],
      ["the folder that holds its files", "bentoctl models get iris:latest -o path"],
    ],
  }

  protected readonly open = open
}

export class ModelsContainerizeCommand extends BaseCommand {
  static override paths = [["models", "containerize"]]
  static help: CommandHelp = {
    group: GROUP,
    summary: "Build an image of a model alone",
    args: [["TAG", "the model: NAME, NAME:VERSION, or NAME:PREFIX where the prefix fits one version"]],
    details: [
      "For KServe and Kubernetes image volumes. The image holds the files of the model in /models, as one layer, and nothing to run: what KServe fetches from " +
        "`storageUri: oci://IMAGE`, and what Kubernetes mounts as an image volume. KServe's modelcar sidecar starts a " +
        "shell in the image; for it, lay the model on a small image that has one with --base-image.",
    ],
    examples: [
      ["the newest version; the image is NAME:VERSION", "bentoctl models containerize iris"],
      ["a name for a registry", "bentoctl models containerize iris -t registry.example.com/models/iris:1.2"],
      [
        "into a registry as well",
        "bentoctl models containerize iris -t registry.example.com/models/iris:1.2 --push",
      ],
      [
        "for KServe's modelcar",
        "bentoctl models containerize iris --base-image busybox -t team/iris-modelcar:1.2",
      ],
    ],
  }

  tag: string = Option.String({ name: "TAG" })
  imageTag: string[] | undefined = Option.Array("-t,--image-tag", {
    description: "<NAME:TAG> name of the image instead of NAME:VERSION; repeat for more",
  })
  baseImage: string | undefined = Option.String("--base-image", {
    description: "<IMAGE> lay the model on this image instead of nothing",
  })
  platform: string | undefined = Option.String("--platform", {
    description: `<${PLATFORMS.join("|")}> the nodes that take the image (default: linux/amd64); the files are the same`,
  })
  push: boolean = Option.Boolean("--push", false, { description: PUSH_MEANING })
  progress: string | undefined = Option.String("--progress", {
    description: `<${PROGRESS.join("|")}> as for \`bentoctl containerize\``,
  })
  output: string | undefined = Option.String("-o,--output", {
    description:
      "<tag|json> print the result for programs instead of people; shows no progress unless asked to",
  })

  async execute(): Promise<number> {
    const output = this.output === undefined ? "text" : oneOf("--output", this.output, ["tag", "json"])
    const progress = this.progress === undefined ? undefined : oneOf("--progress", this.progress, PROGRESS)
    const platform = this.platform === undefined ? undefined : oneOf("--platform", this.platform, PLATFORMS)
    const { context } = this
    const [{ imageJson, pushedText, pushTargets, showBuild }, { containerizeModel }, { openModelStore }] =
      await Promise.all([
        import("./image.ts"),
        import("../images/containerize.ts"),
        import("../store/store.ts"),
      ])
    const { home } = context
    const model = await openModelStore(home).resolve(parseTagRef(this.tag))
    const options = { model, home, tags: this.imageTag, baseImage: this.baseImage, platform }
    const push = await pushTargets(context, this.push, this.imageTag)
    const shown = { progress, quiet: this.quiet || output !== "text", push }
    const built = await showBuild(context, shown, (common) => containerizeModel({ ...options, ...common }))
    if (output === "tag") this.print(`__tag__:${built.tags[0]}\n`)
    else if (output === "json") this.printJson({ model: formatTag(model), ...imageJson(built) })
    else {
      const size = formatSize(built.sizeBytes)
      const names = built.tags.map((name) => `\n  ${name}`).join("")
      const text = `Successfully built the image of Model(tag="${formatTag(model)}").${names}\n  ${size}`
      this.say([text, ...pushedText(built)].join("\n"))
    }
    return 0
  }
}

export class ModelsDeleteCommand extends DeleteCommand<Model> {
  static override paths = [["models", "delete"]]
  static help: CommandHelp = {
    group: GROUP,
    summary: "Delete models from the store",
    args: [["TAG...", "what to delete, parted by spaces or commas; a bare name means all its versions"]],
    details: ["A model that a Bento of the store uses is kept: delete the Bento first."],
    examples: [
      ["one version, after a question", "bentoctl models delete iris:u2swufhfec6rgax4"],
      ["all versions of two models, without a question", "bentoctl models delete iris,digits --yes"],
    ],
  }

  protected readonly open = open

  protected override async refuse(tags: readonly Tag[]): Promise<BentoError | undefined> {
    const { openBentoStore } = await import("../store/store.ts")
    return refuseUsed(tags, openBentoStore(this.context.home), (text) => this.warn(text))
  }
}

/** Bentos refer to models by tag, so a model must outlive them; those that carry their models along do not count. */
async function refuseUsed(
  models: readonly Tag[],
  bentos: Store<Bento>,
  warn: (text: string) => void,
): Promise<BentoError | undefined> {
  const { items, broken } = await bentos.list()
  for (const { path: where } of broken) warn(`cannot tell which models a broken bento uses: ${where}`)
  const uses = models
    .map((model) => ({
      model: formatTag(model),
      bentos: items
        .filter(
          ({ dir, info }) =>
            info.models.some(({ tag }) => formatTag(tag) === formatTag(model)) &&
            !existsSync(path.join(dir, "models")),
        )
        .map(({ tag }) => formatTag(tag)),
    }))
    .filter((use) => use.bentos.length > 0)
  if (uses.length === 0) return undefined
  const lines = uses.map((use) => `model ${use.model} is used by ${use.bentos.join(", ")}`)
  return new BentoError(
    "MODEL_IN_USE",
    lines.length === 1 ? lines.join("") : `Bentos use these models:\n  ${lines.join("\n  ")}`,
    {
      hint: `Nothing was deleted. First: bentoctl delete ${[...new Set(uses.flatMap((use) => use.bentos))].join(" ")}`,
    },
  )
}
