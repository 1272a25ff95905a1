/** `bentoctl serve`: the server that goes into images, run here. */
import path from "node:path"
import { Option, UsageError } from "clipanion"
import { BaseCommand, parsePort, type CommandHelp } from "./command.ts"
import type { ServeSpec } from "../store/bento.ts"
import type { Context } from "./context.ts"
import { serverEntry } from "./runtime-child.ts"
import { startServer, type ServerCommand } from "./server.ts"
import type { Target } from "./target.ts"

export class ServeCommand extends BaseCommand {
  static override paths = [["serve"]]
  static help: CommandHelp = {
    group: "Images and serving",
    summary: "Serve a project or a Bento on this machine",
    args: [
      ["[TARGET]", "a folder with a bentofile.yaml (default: .), the tag of a Bento, or `service.ts:svc`"],
    ],
    details: [
      "It is the very server that an image holds, so what answers here answers there. Ctrl-C lets requests in flight " +
        "finish, then ends it.",
    ],
    examples: [
      ["the project in this folder", "bentoctl serve"],
      ["the same, restarted when a source or a model changes", "bentoctl serve --reload"],
      ["a Bento that was built, on another port", "bentoctl serve iris:latest -p 4000"],
      ["how it would be configured, and why", "bentoctl serve iris:latest --print-config"],
    ],
  }

  target: string | undefined = Option.String({ name: "TARGET", required: false })
  port: string | undefined = Option.String("-p,--port", {
    description: "<PORT> port to listen on (default: PORT, BENTOML_PORT, 3000)",
  })
  host: string | undefined = Option.String("--host", {
    description: "<HOST> address to listen on (default: BENTOML_HOST, 0.0.0.0)",
  })
  reload: boolean = Option.Boolean("--reload", false, {
    description: "restart when a source file or a model changes",
  })

  printConfig: boolean = Option.Boolean("--print-config", false, {
    description: "print the server's configuration, and where each value comes from, instead of serving",
  })

  async execute(): Promise<number> {
    if (this.reload && this.printConfig)
      throw new UsageError("--print-config serves nothing that could be reloaded")
    const flags = [
      ...(this.printConfig ? ["--print-config"] : []),
      ...(this.port === undefined ? [] : ["--port", String(parsePort("--port", this.port))]),
      ...(this.host === undefined ? [] : ["--host", this.host]),
    ]
    const { context } = this
    const entry = serverEntry(context.runtimeDir)
    const { resolveTarget } = await import("./target.ts")
    const target = await resolveTarget(this.target ?? ".", context.cwd, context.home)
    if (!this.reload) return serveOnce(context, await serverCommand(context, target, flags))
    if (target.kind === "bento")
      throw new UsageError("--reload needs sources to watch, and a Bento does not change")
    const [{ openProject }, { serveReloading }] = await Promise.all([
      import("./project.ts"),
      import("./reload.ts"),
    ])
    const command = (spec: ServeSpec): ServerCommand => projectCommand(entry, spec, flags)
    const tell = { note: (text: string) => this.note(text), debug: this.debug }
    return serveReloading(context, openProject(context, target), command, tell)
  }
}

/** The bundle's program on a target, with flags of its own. */
export async function serverCommand(
  context: Context,
  target: Target,
  flags: readonly string[],
): Promise<ServerCommand> {
  const entry = serverEntry(context.runtimeDir)
  if (target.kind === "bento") {
    const { packagesOfBento } = await import("../images/build.ts")
    const packagesDir = await packagesOfBento(target.dir, context)
    const packages = packagesDir === undefined ? [] : ["--packages-dir", packagesDir]
    const models = ["--models-dir", path.join(context.home, "models")]
    return { args: [entry, "--bento", target.dir, ...models, ...packages, ...flags], cwd: target.dir }
  }
  const { openProject } = await import("./project.ts")
  return projectCommand(entry, await openProject(context, target).spec(context.signal), flags)
}

function projectCommand(entry: string, spec: ServeSpec, flags: readonly string[]): ServerCommand {
  return { args: [entry, "--spec", "-", ...flags], cwd: spec.srcDir, input: JSON.stringify(spec) }
}

/** Runs the server to its end and hands signals on; its exit code is ours. */
export async function serveOnce(context: Context, command: ServerCommand): Promise<number> {
  context.signal.throwIfAborted()
  const server = startServer(context, command)
  const release = context.takeSignals((signal) => server.stop(signal))
  try {
    return await server.exited
  } finally {
    release()
  }
}
