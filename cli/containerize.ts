/** `bentoctl containerize`: from a Bento of the store to an image of the engine. */
import { Option, UsageError } from "clipanion"
import { formatTag, parseTagRef } from "../store/tag.ts"
import { oneOf, parseLabels, type CommandHelp } from "./command.ts"
import { checkLabels, ImageCommand } from "./image-command.ts"
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
      this.print(dockerfileOf(await planContainer(imageOptions(context, asked))))
      return 0
    }
    const quiet = this.quiet || output !== "text"
    const push = await pushTargets(context, this.push, this.imageTag)
    const built = await makeImage(context, { ...asked, quiet, push })
    if (output === "tag") this.print(`__tag__:${built.tags[0]}\n`)
    else if (output === "json") this.printJson({ bento: formatTag(bento), ...imageJson(built) })
    else this.say(imageText(bento, built))
    return 0
  }
}
