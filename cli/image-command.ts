/** The options of every command that makes the image of a Bento, and what they come to. */
import path from "node:path"
import { Option, UsageError } from "clipanion"
import type { BuilderName, StepOptions } from "../images/builder.ts"
import type { Platform } from "../images/plan.ts"
import { BaseCommand, oneOf } from "./command.ts"
import { BUILDER_MEANING, BUILDERS, PROGRESS } from "./report.ts"

export const PLATFORMS = ["linux/amd64", "linux/arm64"] as const satisfies readonly Platform[]

/** Shown after the options of the command itself. */
export const IMAGE_FLAGS: ReadonlySet<string> = new Set([
  "--builder",
  "--platform",
  "--pull",
  "--no-cache",
  "--cache-from",
  "--build-arg",
  "--network",
  "--sbom",
  "--progress",
])

/** What the options say, checked. */
export interface ImageChoices extends StepOptions {
  readonly builder: BuilderName | "auto"
  readonly platform?: Platform
  readonly pull: boolean
  /** A file for the bill of materials. */
  readonly sbom?: string
  readonly progress: (typeof PROGRESS)[number] | undefined
}

export abstract class ImageCommand extends BaseCommand {
  builder: string | undefined = Option.String("--builder", {
    description: `<auto|assemble|dockerfile> ${BUILDER_MEANING}`,
  })
  platform: string | undefined = Option.String("--platform", {
    description: `<${PLATFORMS.join("|")}> what the image is to run on (default: linux/amd64); another one than the engine's needs no emulator unless something has to run`,
  })
  pull: boolean = Option.Boolean("--pull", false, {
    description: "ask the registry for a newer base image, whether the engine has one or not",
  })
  noCache: boolean = Option.Boolean("--no-cache", false, {
    description: "make every layer anew; those that come out the same are not sent again",
  })
  cacheFrom: string[] = Option.Array("--cache-from", [], {
    description:
      "<IMAGE> take steps that run from this image, which was built with --build-arg BUILDKIT_INLINE_CACHE=1; repeat for more. Files are found without it",
  })
  buildArg: string[] = Option.Array("--build-arg", [], {
    description:
      "<NAME[=VALUE]> value of a build-time variable of the Bento (in no layer), of an ARG of its Dockerfile (in the image's history), or of a proxy, for steps that run; without VALUE that of the environment; repeat for more",
  })
  network: string | undefined = Option.String("--network", {
    description: "<default|none|host> the network of steps that run; other engines than Docker's know more",
  })
  sbom: string | undefined = Option.String("--sbom", {
    description:
      "<FILE> write the image's bill of materials (CycloneDX) to a file as well, with what the engine knows of the image and its base",
  })
  progress: string | undefined = Option.String("--progress", {
    description:
      "<auto|plain|json> live on a terminal and lines elsewhere (auto), lines, or one JSON event per line",
  })

  /** Throws UsageError. */
  protected async imageChoices(): Promise<ImageChoices> {
    const { builder = "auto", platform, network, progress, noCache, pull, cacheFrom } = this
    const [{ envNameProblem }, { parseImageReference }] = await Promise.all([
      import("../images/grammar.ts"),
      import("../images/reference.ts"),
    ])
    for (const image of cacheFrom) {
      if (parseImageReference(image) === null)
        throw new UsageError(`--cache-from must be an image, not ${JSON.stringify(image)}`)
    }
    if (network !== undefined && !/^[A-Za-z0-9][\w.:-]*$/.test(network)) {
      throw new UsageError(`--network must be default, none, host or a name, not ${JSON.stringify(network)}`)
    }
    return {
      builder: oneOf("--builder", builder, BUILDERS),
      ...(platform !== undefined && { platform: oneOf("--platform", platform, PLATFORMS) }),
      pull,
      noCache,
      cacheFrom,
      buildArgs: parseBuildArgs(this.buildArg, this.context.env, envNameProblem),
      network,
      ...(this.sbom !== undefined && { sbom: path.resolve(this.context.cwd, this.sbom) }),
      progress: progress === undefined ? undefined : oneOf("--progress", progress, PROGRESS),
    }
  }

  /** The options above as they were given. */
  protected imageFlags(): Readonly<Record<string, unknown>> {
    return {
      "--builder": this.builder,
      "--platform": this.platform,
      "--pull": this.pull,
      "--no-cache": this.noCache,
      "--cache-from": this.cacheFrom[0],
      "--build-arg": this.buildArg[0],
      "--network": this.network,
      "--sbom": this.sbom,
      "--progress": this.progress,
    }
  }
}

/** Of flags and their values, those that were given. */
export function givenFlags(flags: Readonly<Record<string, unknown>>): string[] {
  return Object.keys(flags).filter((flag) => flags[flag] !== undefined && flags[flag] !== false)
}

/** As docker has it: a name alone stands for the environment's value, and for nothing where that has none. */
function parseBuildArgs(
  given: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
  problemOf: (name: string) => string | null,
): Record<string, string> {
  const args = new Map<string, string>()
  for (const text of given) {
    const at = text.indexOf("=")
    const name = at === -1 ? text : text.slice(0, at)
    const problem = problemOf(name)
    if (problem !== null) throw new UsageError(`--build-arg must be NAME or NAME=VALUE: ${problem}`)
    const value = at === -1 ? env[name] : text.slice(at + 1)
    if (value !== undefined) args.set(name, value)
  }
  return Object.fromEntries(args)
}

/** Checks labels of an image. */
export async function checkLabels(
  labels: Readonly<Record<string, string>>,
): Promise<Readonly<Record<string, string>>> {
  const { controlProblem, labelKeyProblem } = await import("../images/grammar.ts")
  for (const [key, value] of Object.entries(labels)) {
    const problem = labelKeyProblem(key) ?? controlProblem(value)
    if (problem !== null) throw new UsageError(`--label ${JSON.stringify(key)}: ${problem}`)
  }
  return labels
}
