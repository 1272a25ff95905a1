/** `bentoctl image …`: what we made in the Docker Engine. */
import { Option } from "clipanion"
import { BaseCommand, oneOf, type CommandHelp } from "./command.ts"
import type { Leftover } from "../images/prune.ts"

export class ImagePruneCommand extends BaseCommand {
  static override paths = [["image", "prune"]]
  static help: CommandHelp = {
    group: "Images and serving",
    summary: "Remove what image builds left in the engine",
    details: [
      "That is: foundations (what had to run for an image, kept for the next build) that no image of a Bento lies on; " +
        "images of single models, made for `--builder dockerfile`, whose model is in no image of a Bento; images of " +
        "Bentos that no name leads to. What you named yourself stays, and so does what a container uses.",
    ],
    examples: [
      ["what would be removed", "bentoctl image prune --dry-run"],
      ["remove it", "bentoctl image prune"],
    ],
  }

  dryRun: boolean = Option.Boolean("--dry-run", false, {
    description: "say what would be removed; remove nothing",
  })
  output: string | undefined = Option.String("-o,--output", {
    description: "<json> print the result for programs instead of people",
  })

  async execute(): Promise<number> {
    const output = this.output === undefined ? "text" : oneOf("--output", this.output, ["json"])
    const { env, signal } = this.context
    const [{ createDockerBuilder }, { findLeftovers, removeLeftovers }] = await Promise.all([
      import("../images/docker.ts"),
      import("../images/prune.ts"),
    ])
    const engine = createDockerBuilder(env)
    await engine.ping(signal)
    const leftovers = await findLeftovers(engine, signal)
    const removed: Leftover[] = []
    const kept: Leftover[] = []
    if (!this.dryRun) {
      for await (const { removed: done, ...leftover } of removeLeftovers(engine, leftovers, signal)) {
        ;(done ? removed : kept).push(leftover)
        if (output === "text")
          this.say(done ? `removed ${text(leftover)}` : `kept ${text(leftover)}: a container uses it`)
      }
    } else if (output === "text") {
      for (const leftover of leftovers) this.say(`would remove ${text(leftover)}`)
    }
    if (output === "json")
      this.printJson(this.dryRun ? { dry_run: true, would_remove: leftovers } : { removed, kept })
    if (output === "text" && leftovers.length === 0) this.say("Nothing to remove.")
    return 0
  }
}

const KINDS: Readonly<Record<Leftover["kind"], string>> = {
  foundation: "foundation",
  model: "model image",
  untagged: "image without a name",
  container: "container",
}

function text({ kind, reference }: Leftover): string {
  return `${KINDS[kind]} ${reference}`
}
