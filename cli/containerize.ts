/** `bentoctl containerize`: from a Bento of the store to an image of the engine. */
import path from "node:path"
import { Option, UsageError } from "clipanion"
import type { PlanContainerOptions } from "../images/containerize.ts"
import { formatTag, parseTagRef, type Tag } from "../store/tag.ts"
import { oneOf, parseLabels, type CommandHelp } from "./command.ts"
import { checkLabels, givenFlags, ImageCommand } from "./image-command.ts"
import { formatSize } from "./output.ts"
import { PUSH_MEANING } from "./report.ts"

export class ContainerizeCommand extends ImageCommand {
  static override paths = [["containerize"]]
  static help: CommandHelp = {
    group: "Images and serving",
    summary: "Build the image of a Bento with a Docker Engine",
    args: [["TAG", "the Bento: NAME, NAME:VERSION, or NAME:PREFIX where the prefix fits one version"]],
    details: [
      "The image holds the server, the sources and the models, and no Python; it runs as user 1034, listens on port " +
        "3000, and needs no writable file system. It starts from docker.base_image of the bentofile, else from the image " +
        "that BENTOCTL_BASE_IMAGE names, else from node:24-bookworm-slim. The engine is the one that docker's own client would use: " +
        "DOCKER_HOST, else DOCKER_CONTEXT or the current docker context, over a socket, TLS or ssh; Podman's service will do.",
      "Progress goes to stderr, the result to stdout.",
    ],
    examples: [
      ["the newest version; the image is NAME:VERSION and NAME:latest", "bentoctl containerize iris"],
      ["a name for a registry", "bentoctl containerize iris:latest -t registry.example.com/ml/iris:1.2"],
      ["into a registry as well", "bentoctl containerize iris -t registry.example.com/ml/iris:1.2 --push"],
      [
        "on a newer base, with a token for the set-up script from the environment",
        "bentoctl containerize iris --pull --build-arg TOKEN",
      ],
      [
        "a folder for a machine that builds images: docker build DIR",
        "bentoctl containerize iris --output-dir context",
      ],
      ["the Dockerfile alone; no engine is needed", "bentoctl containerize iris --print-dockerfile"],
    ],
  }

  tag: string = Option.String({ name: "TAG" })
  imageTag: string[] | undefined = Option.Array("-t,--image-tag", {
    description: "<NAME:TAG> name of the image instead of NAME:VERSION and NAME:latest; repeat for more",
  })
  label: string[] = Option.Array("--label", [], {
    description: "<KEY=VALUE> label of the image, over those of the Bento; repeat for more",
  })
  push: boolean = Option.Boolean("--push", false, { description: PUSH_MEANING })
  printDockerfile: boolean = Option.Boolean("--print-dockerfile", false, {
    description: "print the Dockerfile and build nothing",
  })
  outputDir: string | undefined = Option.String("--output-dir", {
    description:
      "<DIR> write all that the image is built from into this folder, models too, for `docker build DIR`; build nothing",
  })
  output: string | undefined = Option.String("-o,--output", {
    description:
      "<tag|json> print the result for programs instead of people; shows no progress unless asked to",
  })

  async execute(): Promise<number> {
    const output = this.output === undefined ? "text" : oneOf("--output", this.output, ["tag", "json"])
    const choices = await this.imageChoices()
    const labels = await checkLabels(parseLabels(this.label))
    if (this.printDockerfile && this.push) {
      throw new UsageError("--print-dockerfile and --push exclude each other")
    }
    if (this.outputDir !== undefined) this.#refuseWithoutImage()
    const { context } = this
    const [{ imageJson, imageOptions, imageText, makeImage, pushTargets }, { openBentoStore }] =
      await Promise.all([import("./image.ts"), import("../store/store.ts")])
    const bento = await openBentoStore(context.home).resolve(parseTagRef(this.tag))
    const asked = { ...choices, bento, labels, ...(this.imageTag !== undefined && { tags: this.imageTag }) }
    if (this.printDockerfile) {
      const [{ planContainer }, { dockerfileOf }] = await Promise.all([
        import("../images/containerize.ts"),
        import("../images/context.ts"),
      ])
      this.print(await dockerfileOf(await planContainer(imageOptions(context, asked))))
      return 0
    }
    if (this.outputDir !== undefined) {
      return this.#writeContext(
        bento,
        path.resolve(context.cwd, this.outputDir),
        imageOptions(context, asked),
      )
    }
    const quiet = this.quiet || output !== "text"
    const push = await pushTargets(context, this.push, this.imageTag)
    const built = await makeImage(context, { ...asked, quiet, push })
    if (output === "tag") this.print(`__tag__:${built.tags[0]}\n`)
    else if (output === "json") this.printJson({ bento: formatTag(bento), ...imageJson(built) })
    else this.say(imageText(bento, built))
    return 0
  }

  /** What only an image could have. */
  #refuseWithoutImage(): void {
    if (this.outputDir === "") throw new UsageError("--output-dir needs a folder")
    const { "--platform": _, "--build-arg": __, ...others } = this.imageFlags()
    const flags = { "--print-dockerfile": this.printDockerfile, "--push": this.push, ...others }
    const [flag] = givenFlags(flags)
    if (flag !== undefined) throw new UsageError(`--output-dir builds nothing: leave out ${flag}`)
    if (this.output === "tag") throw new UsageError("--output-dir names no image: use -o json")
  }

  async #writeContext(bento: Tag, folder: string, options: PlanContainerOptions): Promise<number> {
    const { containerizeInto } = await import("../images/containerize.ts")
    const { signal } = this.context
    const written = await containerizeInto(folder, { ...options, signal })
    const { platform, tags, fileCount, sizeBytes, secrets, buildArgs } = written
    if (secrets.length > 0) {
      this.warn(
        `what only the build may know is in ${secrets.join(" and ")}: give this folder to nobody else`,
      )
    }
    if (this.output === "json") {
      const how = { platform, tags, files: fileCount, size_bytes: sizeBytes, secrets, build_args: buildArgs }
      this.printJson({ bento: formatTag(bento), output_dir: folder, ...how })
      return 0
    }
    const args = [
      ...tags.map((tag) => `-t ${tag}`),
      // Elsewhere the base would be taken for a processor that the files are not for.
      `--platform ${platform}`,
      ...buildArgs.map((name) => `--build-arg ${name}`),
      shellText(folder),
    ]
    this.say(
      `Successfully wrote the build context of Bento(tag="${formatTag(bento)}").\n  ${folder}\n` +
        `  ${fileCount} files, ${formatSize(sizeBytes)}\n\nBuild it:\n  docker build ${args.join(" ")}`,
    )
    return 0
  }
}

/** A word of a command that people copy. */
function shellText(text: string): string {
  return /^[\w./@:+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`
}
