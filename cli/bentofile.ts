/** `bentoctl bentofile …`: about bentofile.yaml itself. */
import { BaseCommand, type CommandHelp } from "./command.ts"

export class BentofileSchemaCommand extends BaseCommand {
  static override paths = [["bentofile", "schema"]]
  static help: CommandHelp = {
    group: "Bentos",
    summary: "Print the JSON Schema of bentofile.yaml, for editors",
    details: [
      "Editors with a YAML language server complete and check bentofile.yaml when its first line names the schema: " +
        "`# yaml-language-server: $schema=bentofile.schema.json`. It is made from what `bentoctl build` checks with; " +
        "only what needs the disk, or looks at several keys together, is left to the build.",
    ],
    examples: [["keep it beside bentofile.yaml", "bentoctl bentofile schema > bentofile.schema.json"]],
  }

  async execute(): Promise<number> {
    const { bentofileJsonSchema } = await import("../images/bentofile.ts")
    this.printJson(bentofileJsonSchema())
    return 0
  }
}
