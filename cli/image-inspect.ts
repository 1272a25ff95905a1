/** `bentoctl image inspect` and `bentoctl image diff`: what is in images, and what makes two of them differ. */
import { Option } from "clipanion"
import type { Change, ImageDiff, ImageReport, LayerReport, ModelReport } from "../images/inspect.ts"
import type { TensorSpec } from "../store/model.ts"
import { BaseCommand, oneOf, type CommandHelp } from "./command.ts"
import type { Context } from "./context.ts"
import { cut, formatSize, plain } from "./output.ts"

const OUTPUT = {
  description: "<json> print the result for programs instead of people",
}

export class ImageInspectCommand extends BaseCommand {
  static override paths = [["image", "inspect"]]
  static help: CommandHelp = {
    group: "Images and serving",
    summary: "Show the layers, models and versions of an image",
    args: [["IMAGE", "a name or id of an image in the engine"]],
    details: ["Everything is read from the engine; nothing of the image runs."],
    examples: [
      ["for people", "bentoctl image inspect iris_classifier:latest"],
      ["for programs", "bentoctl image inspect iris_classifier:latest -o json"],
    ],
  }

  image: string = Option.String({ name: "IMAGE" })
  output: string | undefined = Option.String("-o,--output", OUTPUT)

  async execute(): Promise<number> {
    const output = this.output === undefined ? "text" : oneOf("--output", this.output, ["json"])
    const { inspectImage } = await import("../images/inspect.ts")
    const report = await inspectImage(this.image, await engineOf(this.context), this.context.signal)
    if (output === "json") this.printJson(reportJson(report))
    else this.print(reportText(report))
    return 0
  }
}

export class ImageDiffCommand extends BaseCommand {
  static override paths = [["image", "diff"]]
  static help: CommandHelp = {
    group: "Images and serving",
    summary: "Show what changed, and what a node must fetch",
    args: [
      ["BEFORE", "a name or id of an image in the engine"],
      ["AFTER", "another one"],
    ],
    details: [
      "Sizes are those before compression. containerd, which Kubernetes mostly runs on, fetches the layers that are marked; Docker's own engine also " +
        "fetches again what lies on one of them.",
    ],
    examples: [
      ["what a deployment will move", "bentoctl image diff iris_classifier:v1 iris_classifier:v2"],
      ["for programs", "bentoctl image diff iris_classifier:v1 iris_classifier:v2 -o json"],
    ],
  }

  before: string = Option.String({ name: "BEFORE" })
  after: string = Option.String({ name: "AFTER" })
  output: string | undefined = Option.String("-o,--output", OUTPUT)

  async execute(): Promise<number> {
    const output = this.output === undefined ? "text" : oneOf("--output", this.output, ["json"])
    const { diffImages } = await import("../images/inspect.ts")
    const engine = await engineOf(this.context)
    const diff = await diffImages([this.before, this.after], engine, this.context.signal)
    if (output === "json") this.printJson(diffJson(diff))
    else this.print(diffText(diff))
    return 0
  }
}

async function engineOf({ env, signal }: Context) {
  const { createDockerBuilder } = await import("../images/docker.ts")
  const engine = createDockerBuilder(env)
  await engine.ping(signal)
  return engine
}

// For people ---------------------------------------------------------------------------------------------------------

interface Node {
  readonly text: string
  readonly children?: readonly Node[]
}

function tree({ text, children = [] }: Node): string[] {
  return [
    text,
    ...children.flatMap((child, index) => {
      const isLast = index === children.length - 1
      return tree(child).map((line, at) =>
        at === 0 ? `${isLast ? "└─" : "├─"} ${line}` : `${isLast ? "  " : "│ "} ${line}`,
      )
    }),
  ]
}

/** What an image says of itself is somebody else's text. */
function printed(nodes: readonly Node[]): string {
  return `${plain(nodes.flatMap(tree).join("\n"))}\n`
}

function reportText(report: ImageReport): string {
  const { versions, base, git, layers } = report
  const facts: readonly (readonly [string, string | null])[] = [
    ["Bento", report.bento],
    ["created", report.createdAt],
    ["commit", git.revision],
    ["repository", git.url],
    ["platform", report.platform],
    ["bentoctl", versions.bentoctl],
    ["ONNX Runtime", versions.onnxruntime],
    ["base image", base.name],
  ]
  const widest = Math.max(...facts.map(([name]) => name.length))
  const above = layers.filter(({ cause }) => cause !== "base")
  const inBase = layers.filter(({ cause }) => cause === "base")
  const bytes = (some: readonly LayerReport[]): string =>
    formatSize(some.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0))
  const count = inBase.length === 1 ? "1 layer" : `${inBase.length} layers`
  return printed([
    {
      text: `${report.reference} (${report.id})`,
      children: [
        ...facts.flatMap(([name, value]) =>
          value === null ? [] : [{ text: `${name.padEnd(widest)}  ${value}` }],
        ),
        {
          text: `layers: ${formatSize(report.sizeBytes)}, ${bytes(above)} above the base`,
          children: [
            { text: `${bytes(inBase).padStart(12)}  base image (${count})` },
            ...above.map((layer) => ({ text: layerText(layer) })),
          ],
        },
        { text: "models", children: report.models.map(modelNode) },
      ],
    },
  ])
}

function layerText({ name, digest, sizeBytes }: LayerReport): string {
  const short = digest === null ? "" : `  ${digest.slice(0, "sha256:".length + 12)}`
  return `${formatSize(sizeBytes).padStart(12)}  ${cut(name, 60)}${short}`
}

function modelNode({ tag, alias, producer, opsets = {}, files = {}, signatures = {} }: ModelReport): Node {
  const operators = Object.entries(opsets).map(([domain, version]) => `${domain} ${version}`)
  const origin = [producer, ...operators].filter((part) => part !== undefined).join(", ")
  return {
    text: `${tag}${alias === undefined ? "" : ` as ${alias}`}${origin === "" ? "" : ` (${origin})`}`,
    children: [
      ...Object.entries(files).map(([name, digest]) => ({ text: `${name}  ${digest}` })),
      ...Object.entries(signatures).map(([name, { inputs = [], outputs = [], batchable }]) => ({
        text: `${name}(${tensors(inputs)}) → ${tensors(outputs)}${batchable ? ", in batches" : ""}`,
      })),
    ],
  }
}

function tensors(specs: readonly TensorSpec[]): string {
  return specs
    .map(({ name, dtype, shape }) => `${name}: ${dtype}[${shape.map((dim) => dim ?? "?").join(", ")}]`)
    .join(", ")
}

function diffText(diff: ImageDiff): string {
  const { before, after, layers, fetchBytes } = diff
  const sections = (["base", "runtime", "models", "source", "env", "labels"] as const).map((name) => ({
    text: diff[name].length === 0 ? `${name}: the same` : name,
    children: diff[name].map(changeNode),
  }))
  const fetched =
    fetchBytes === null
      ? "the engine does not tell which layers are the same"
      : `${formatSize(fetchBytes)} to fetch with ${before.reference} at hand`
  return printed([
    {
      text: `${before.reference} (${before.id}) → ${after.reference} (${after.id})`,
      children: [
        ...sections,
        {
          text: `layers: ${fetched}`,
          children: layers.map((layer) => ({
            text: `${layer.isFetched ? "fetch" : "     "}  ${layerText(layer)}`,
          })),
        },
      ],
    },
  ])
}

function changeNode({ name, before, after }: Change): Node {
  const short = (value: string): string => cut(value.replace(/\s+/g, " "), 60)
  if (before === null) return { text: `+ ${name}  ${short(after ?? "")}` }
  if (after === null) return { text: `- ${name}  ${short(before)}` }
  return { text: `~ ${name}`, children: [{ text: `- ${short(before)}` }, { text: `+ ${short(after)}` }] }
}

// For programs -------------------------------------------------------------------------------------------------------

function reportJson(report: ImageReport): Record<string, unknown> {
  const { createdAt, sizeBytes, layers, ...rest } = report
  return {
    ...rest,
    created_at: createdAt,
    size_bytes: sizeBytes,
    layers: layers.map((layer) => layerJson(layer)),
  }
}

function layerJson({ sizeBytes, ...layer }: LayerReport): Record<string, unknown> {
  return { ...layer, size_bytes: sizeBytes }
}

function diffJson({ before, after, layers, fetchBytes, ...changed }: ImageDiff): Record<string, unknown> {
  const named = ({ reference, id }: ImageReport): object => ({ reference, id })
  return {
    before: named(before),
    after: named(after),
    ...changed,
    layers: layers.map(({ isFetched, ...layer }) => ({ ...layerJson(layer), fetched: isFetched })),
    fetch_bytes: fetchBytes,
  }
}
