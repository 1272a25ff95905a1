/** `bentoctl selftest`: what `docker run IMAGE selftest` does, here. */
import { Option } from "clipanion"
import { BaseCommand, oneOf, type CommandHelp } from "./command.ts"

export class SelfTestCommand extends BaseCommand {
  static override paths = [["selftest"]]
  static help: CommandHelp = {
    group: "Images and serving",
    summary: "Run the examples that models carry",
    args: [
      ["[TARGET]", "a folder with a bentofile.yaml (default: .), the tag of a Bento, or `service.ts:svc`"],
    ],
    details: [
      "The server's own program runs them, on the ONNX Runtime that goes into images; `docker run IMAGE selftest` does the same " +
        "in an image. Exits 0 when every answer is as it was recorded, and 1 when one is not, when a file of a model has changed, or " +
        "when there are no examples.",
    ],
    examples: [
      ["the project in this folder", "bentoctl selftest"],
      ["a Bento that was built, for programs", "bentoctl selftest iris:latest -o json"],
      ["an image", "docker run --rm iris:latest selftest"],
    ],
  }

  target: string | undefined = Option.String({ name: "TARGET", required: false })
  output: string = Option.String("-o,--output", "table", { description: "<table|json> form of the result" })

  async execute(): Promise<number> {
    const output = oneOf("--output", this.output, ["table", "json"])
    const [{ resolveTarget }, { serverCommand, serveOnce }] = await Promise.all([
      import("./target.ts"),
      import("./serve.ts"),
    ])
    const { context } = this
    const target = await resolveTarget(this.target ?? ".", context.cwd, context.home)
    return serveOnce(context, await serverCommand(context, target, ["--self-test", "-o", output]))
  }
}
