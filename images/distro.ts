/** The systems that an image can be built on: where they come from, and what they can and cannot do. */
import { DISTROS } from "../store/bento.ts"
import type { Distro, DockerOptions } from "../store/bento.ts"
import { ONNXRUNTIME_CUDA } from "./cuda-images.ts"

interface DistroFacts {
  /** The image with this version of Node. */
  readonly image: (node: string) => string
  /** What a version of Node may look like in the tags of that image. */
  readonly nodeVersion: RegExp
  /** As an entry point names it: where there is no shell, PATH may not hold it either. */
  readonly node: string
  /** Null: there is no shell, and so nothing can be run while the image is made. */
  readonly packages: PackageManager | null
}

export type PackageManager = "apt" | "microdnf"

const FACTS: Readonly<Record<Distro, DistroFacts>> = {
  debian: {
    image: (node) => `node:${node}-bookworm-slim`,
    nodeVersion: /^\d+(?:\.\d+){0,2}$/,
    node: "node",
    packages: "apt",
  },
  distroless: {
    image: (node) => `gcr.io/distroless/nodejs${node}-debian12`,
    nodeVersion: /^\d+$/,
    node: "/nodejs/bin/node",
    packages: null,
  },
  ubi9: {
    image: (node) => `registry.access.redhat.com/ubi9/nodejs-${node}-minimal`,
    nodeVersion: /^\d+$/,
    node: "node",
    packages: "microdnf",
  },
}

/** The server is built and tested with it, and uses what older ones do not have. */
export const DEFAULT_NODE = "24"

/** BentoML's others, and why not. */
const REFUSED: Readonly<Record<string, string>> = {
  alpine: "ONNX Runtime is built for glibc, and alpine has musl; use debian, or distroless for a small image",
  ubi8: "there is no image of it with Node 24; use ubi9",
  amazonlinux: "there is no image of it with Node 24; use debian, distroless or ubi9",
}

export function distroProblem(text: string): string | null {
  if (DISTROS.some((distro) => distro === text)) return null
  const reason = Object.hasOwn(REFUSED, text) ? REFUSED[text] : undefined
  return reason ?? `no such distribution ${JSON.stringify(text)}; use one of ${DISTROS.join(", ")}`
}

export function nodeVersionProblem(text: string): string | null {
  const [major = ""] = text.split(".")
  if (!FACTS.debian.nodeVersion.test(text))
    return `${JSON.stringify(text)} is no version of Node, as 24 or 24.11.1`
  return Number(major) < Number(DEFAULT_NODE) ? `the server needs Node ${DEFAULT_NODE} or newer` : null
}

export function distroImage(distro: Distro, nodeVersion: string | null): string {
  return FACTS[distro].image(nodeVersion ?? DEFAULT_NODE)
}

/** How an entry point there starts Node. */
export function nodeOf(distro: Distro): string {
  return FACTS[distro].node
}

export function packageManagerOf(distro: Distro): PackageManager | null {
  return FACTS[distro].packages
}

/** Pairs that cannot be, each with the key to mend, as it is written in a bentofile. */
export function dockerConflicts(docker: DockerOptions): { readonly key: string; readonly message: string }[] {
  const { distro, nodeVersion } = docker
  const found: { key: string; message: string }[] = []
  const refuse = (key: string, message: string): void => void found.push({ key, message })
  if (docker.cudaVersion !== null) {
    if (distro !== "debian") refuse("cuda_version", `NVIDIA has no image of CUDA for ${distro}; use debian`)
    if (docker.platforms.some((platform) => platform !== ONNXRUNTIME_CUDA.platform)) {
      refuse("platforms", `ONNX Runtime has CUDA libraries for ${ONNXRUNTIME_CUDA.platform} only`)
    }
  }
  if (nodeVersion !== null) {
    if (docker.baseImage !== null && docker.cudaVersion === null)
      refuse("node_version", "the base image decides which Node there is; leave out one of the two")
    else if (!FACTS[distro].nodeVersion.test(nodeVersion))
      refuse("node_version", `images of ${distro} are named by the major version alone, as 24`)
  }
  if (packageManagerOf(distro) === null) {
    const why = `${distro} has no shell, so that nothing can be run while the image is made; use debian`
    if (docker.systemPackages.length > 0) refuse("system_packages", why)
    if (docker.setupScript !== null) refuse("setup_script", why)
  }
  return found
}
