/** `bentoctl build`: from a project folder to a Bento in the store. */
import path from "node:path"
import { Option, UsageError } from "clipanion"
import { formatTag } from "../store/tag.ts"
import { oneOf, parseLabels, type CommandHelp } from "./command.ts"
import type { BuiltBento } from "../images/build.ts"
import type { ImageEngine } from "../images/builder.ts"
import type { Describer } from "../images/describe.ts"
import type { PushTarget } from "../images/push.ts"
import type { Built } from "./image.ts"
import { givenFlags, ImageCommand, type ImageChoices } from "./image-command.ts"
import { PUSH_MEANING } from "./report.ts"

export class BuildCommand extends ImageCommand {
  static override paths = [["build"]]
  static help: CommandHelp = {
    group: "Bentos",
    summary: "Build a Bento from a project folder",
    args: [["[CONTEXT]", "the folder with bentofile.yaml (default: .), or `service.ts:svc` of this folder"]],
    details: [
      "A Bento is the sources, the exact versions of the models, and a description of the APIs: all that an image is " +
        "made of. The service is loaded in a process of its own to see its APIs.",
    ],
    examples: [
      ["the project in this folder", "bentoctl build"],
      ["the Bento and its image", "bentoctl build --containerize"],
      [
        "the Bento and its image, into a registry",
        "bentoctl build --containerize -t registry.example.com/ml/iris:1.2 --push",
      ],
      ["the tag alone, for scripts", "bentoctl build -o tag"],
      ["what would be built, without building it", "bentoctl build --dry-run"],
    ],
  }

  contextArg: string | undefined = Option.String({ name: "CONTEXT", required: false })
  file: string | undefined = Option.String("-f,--bentofile", {
    description: "<FILE> bentofile to read (default: bentofile.yaml of the folder)",
  })
  bentoName: string | undefined = Option.String("--name", {
    description: "<NAME> name of the Bento (default: that of the bentofile, or of the service)",
  })
  version: string | undefined = Option.String("--version", {
    description: "<VERSION> version of the Bento (default: a new one, made as BentoML does)",
  })
  label: string[] = Option.Array("--label", [], {
    description:
      "<KEY=VALUE> attach a label, over those of the bentofile; its image has it too; repeat for more",
  })
  dryRun: boolean = Option.Boolean("--dry-run", false, {
    description:
      "check everything and print bento.yaml, files, builder and Dockerfile, with -o json the whole plan; write nothing",
  })
  containerize: boolean = Option.Boolean("--containerize", false, {
    description: "build its image as well; the options after -o are for it, see `bentoctl containerize`",
  })
  imageTag: string[] | undefined = Option.Array("-t,--image-tag", {
    description:
      "<NAME:TAG> with --containerize: name of the image instead of NAME:VERSION and NAME:latest; repeat for more",
  })
  push: boolean = Option.Boolean("--push", false, {
    description: `with --containerize: ${PUSH_MEANING}`,
  })
  output: string | undefined = Option.String("-o,--output", {
    description: "<tag|json> print the result for programs instead of people",
  })

  async execute(): Promise<number> {
    const output = this.output === undefined ? "text" : oneOf("--output", this.output, ["tag", "json"])
    const choices = await this.imageChoices()
    if (this.dryRun && this.containerize) {
      throw new UsageError("--dry-run and --containerize exclude each other")
    }
    const imageFlags = { "--push": this.push, "--image-tag": this.imageTag, ...this.imageFlags() }
    const [forImage] = givenFlags(imageFlags)
    if (forImage !== undefined && !this.containerize) throw new UsageError(`${forImage} needs --containerize`)
    const quiet = this.quiet || output !== "text"
    const { pushTargets } = await import("./image.ts")
    const push = await pushTargets(this.context, this.push, this.imageTag)
    const built = await this.#build()
    const tag = formatTag(built.bento.tag)
    if (!quiet) for (const note of built.notes) this.note(`note: ${note}`)
    if (output === "text") {
      if (this.dryRun) this.print(await dryRunText(built))
      else this.say(`Successfully built Bento(tag="${tag}").${this.containerize ? "" : nextSteps(tag)}`)
    }
    const image = this.containerize ? await this.#makeImage(built, choices, quiet, push) : undefined
    if (output === "tag") this.print(`__tag__:${tag}\n`)
    if (output === "json") this.printJson(await resultJson(built, image, this.dryRun))
    if (output === "text" && image !== undefined) {
      const { imageText } = await import("./image.ts")
      this.say(imageText(built.bento.tag, image))
    }
    return 0
  }

  #warm: Promise<ImageEngine> | undefined

  async #build(): Promise<BuiltBento> {
    const labels = parseLabels(this.label)
    const { context } = this
    // Before all that reads the project is loaded: on another CPU it starts meanwhile.
    const { startDescriber } = await import("../images/describe.ts")
    const describer = context.describer ?? startDescriber(context)
    try {
      return await this.#buildWith(describer, labels)
    } finally {
      describer.stop()
    }
  }

  async #buildWith(describer: Describer, labels: Readonly<Record<string, string>>): Promise<BuiltBento> {
    const { context } = this
    const [{ buildBento }, { resolveContext }, { baseImageOf, warmUp }] = await Promise.all([
      import("../images/build.ts"),
      import("./target.ts"),
      import("./image.ts"),
    ])
    return buildBento({
      ...resolveContext(this.contextArg ?? ".", context.cwd),
      bentofile: this.file === undefined ? undefined : path.resolve(context.cwd, this.file),
      name: this.bentoName,
      version: this.version,
      labels,
      home: context.home,
      runtimeDir: context.runtimeDir,
      nodePath: context.nodePath,
      env: context.env,
      now: context.now(),
      random: context.random,
      signal: context.signal,
      stderr: context.stderr,
      describeTimeoutMs: context.describeTimeoutMs,
      describer,
      baseImage: baseImageOf(context),
      dryRun: this.dryRun,
      meanwhile: () => {
        if (this.containerize) this.#warm = warmUp(context)
        this.#warm?.catch(() => {}) // told when it is used
      },
      // Not before: to answer, the engine starts four programs.
      onDescribed: () => {
        this.#warm?.then((engine) => engine.ping(context.signal)).catch(() => {}) // whoever needs the answer asks again
      },
      onWritten: () => {
        if (this.containerize) import("../images/sbom.ts").catch(() => {}) // told when it is used
      },
    })
  }

  async #makeImage(
    built: BuiltBento,
    choices: ImageChoices,
    quiet: boolean,
    push: readonly PushTarget[] | undefined,
  ): Promise<Built> {
    const bento = built.bento.tag
    const tags = this.imageTag
    const { makeImage } = await import("./image.ts")
    if (!quiet) {
      const names = (tags ?? []).map((tag) => ` -t ${tag}`).join("")
      const again = `bentoctl containerize ${formatTag(bento)}${names}${push === undefined ? "" : " --push"}`
      this.afterword = `The Bento is in the store; to try again: ${again}`
    }
    const how = { ...choices, bento, built, quiet, push }
    return makeImage(this.context, { ...how, ...(tags !== undefined && { tags }) }, this.#warm)
  }
}

function nextSteps(tag: string): string {
  return `\n\nNext steps:\n  serve it here     bentoctl serve ${tag}\n  build its image   bentoctl containerize ${tag}`
}

/** What a Bento would hold, for people. */
async function dryRunText({ bento, files, plan }: BuiltBento): Promise<string> {
  const [{ formatBentoYaml }, { dockerfileOf }, { whyDockerfile }] = await Promise.all([
    import("../store/bento.ts"),
    import("../images/context.ts"),
    import("../images/plan.ts"),
  ])
  const reason = whyDockerfile(plan)
  const builder = reason === null ? "assemble, where the engine can" : `dockerfile (${reason})`
  const section = (title: string, text: string): string =>
    `${title}\n${text.trimEnd().replace(/^(?=.)/gm, "  ")}\n`
  return [
    `Bento(tag="${formatTag(bento.tag)}") would be built; nothing was written.\n`,
    section("bento.yaml", formatBentoYaml(bento)),
    section(`src/ (${files.length} ${files.length === 1 ? "file" : "files"})`, files.join("\n")),
    section("Builder", builder),
    section("Dockerfile", await dockerfileOf(plan)),
  ].join("\n")
}

/** What programs read: bento.yaml as JSON, and where it is. */
async function resultJson(built: BuiltBento, image: Built | undefined, dryRun: boolean): Promise<unknown> {
  const [{ formatBentoYaml }, { readYaml }, { imageJson }] = await Promise.all([
    import("../store/bento.ts"),
    import("../store/pyyaml.ts"),
    import("./image.ts"),
  ])
  const { dir, notes, files, plan } = built
  const bento = readYaml(formatBentoYaml(built.bento), "bento.yaml").value
  const tag = formatTag(built.bento.tag)
  if (dryRun) {
    const { dockerfileOf } = await import("../images/context.ts")
    return { tag, dry_run: true, notes, files, bento, plan, dockerfile: await dockerfileOf(plan) }
  }
  return { tag, path: dir, notes, bento, ...(image !== undefined && { image: imageJson(image) }) }
}
