/**
 * The bill of materials of an image, as CycloneDX 1.6 JSON. Every file that an image has above its base belongs to
 * the component with the longest `bentoctl:path` that its path begins with.
 *
 * It lies in the image, so it is a function of what the image is made of: no serial number, no clock. The base image
 * is named there as the Bento names it; what only an engine knows of it comes into the copy outside (`KnownImage`).
 */
import * as Enums from "@cyclonedx/cyclonedx-library/Enums"
import * as Models from "@cyclonedx/cyclonedx-library/Models"
import * as Serialize from "@cyclonedx/cyclonedx-library/Serialize"
import * as SPDX from "@cyclonedx/cyclonedx-library/SPDX"
import * as Spec from "@cyclonedx/cyclonedx-library/Spec"
import type { Distro, GitFacts } from "../store/bento.ts"
import { formatTag } from "../store/tag.ts"
import type { Tag } from "../store/tag.ts"
import type { ModelFacts, RuntimeFacts } from "./facts.ts"
import { registryOf, splitReference } from "./reference.ts"
import type { NpmPackage } from "./runtime-bundle.ts"
import { SAVED_MODEL } from "../store/layout.ts"

/** What an image is made of, as plain JSON. Paths are absolute, those of folders end in a slash. */
export interface SbomParts {
  readonly bento: Tag
  /** RFC 3339 */
  readonly createdAt: string
  readonly license: string | null
  readonly git: GitFacts | null
  /** Of the Bento: its sources and what describes it. */
  readonly path: string
  /** Images that it starts from, the base last. */
  readonly baseImages: readonly string[]
  readonly runtime: RuntimeFacts & { readonly path: string }
  readonly models: readonly {
    readonly tag: Tag
    readonly module: string
    readonly path: string
    readonly facts: ModelFacts
  }[]
  readonly systemPackages: readonly string[]
  /** Whose they are. */
  readonly distro: Distro
  /** npm packages that the service needs; null where there are none. */
  readonly packages: { readonly path: string; readonly locked: readonly NpmPackage[] } | null
}

/** What is known once there is an image. */
export interface KnownImage {
  readonly id: string
  readonly tags: readonly string[]
  readonly base: {
    readonly id: string
    /** Names with digest that registries know it under. */
    readonly repoDigests: readonly string[]
  } | null
}

const { Component } = Models
const { ComponentType } = Enums

/** The text of the file; `known` is for a copy outside of the image. */
export function formatSbom(parts: SbomParts, known: KnownImage | null = null): string {
  const { bento, runtime } = parts
  const components = [
    ...baseImages(parts, known),
    ...parts.systemPackages.map((asked) => systemPackage(asked, parts.distro)),
    ...servicePackages(parts),
    server(parts),
    ...runtime.installed.map((manifest) =>
      npmPackage(manifest, `${runtime.path}node_modules/${manifest.name}/`),
    ),
    onnxruntime(parts),
    ...parts.models.map(model),
    sources(parts),
  ]
  const image = new Component(ComponentType.Container, bento.name, {
    bomRef: "image",
    version: bento.version,
    properties: properties(
      ["bentoctl:image:id", known?.id],
      ...(known?.tags ?? []).map((tag) => ["bentoctl:image:tag", tag] as const),
    ),
  })
  for (const { bomRef } of components) image.dependencies.add(bomRef)
  const tool = new Component(ComponentType.Application, "bentoctl", { version: runtime.version })
  const bom = new Models.Bom({
    metadata: new Models.Metadata({
      timestamp: new Date(parts.createdAt),
      tools: new Models.Tools({ components: new Models.ComponentRepository([tool]) }),
      component: image,
    }),
    components: new Models.ComponentRepository(components),
  })
  const normal = new Serialize.JSON.Normalize.Factory(Spec.Spec1dot6)
  // Lists stay in our order: to sort them, the library would ask the locale.
  return `${new Serialize.JsonSerializer(normal).serialize(bom, { sortLists: false, space: 2 })}\n`
}

type Component = Models.Component

/** The last one is what the image lies on; of others, single files come along. */
function baseImages({ baseImages: all }: SbomParts, known: KnownImage | null): Component[] {
  return all.map((reference, index) => {
    const { name, tag, digest } = splitReference(reference)
    const base = index === all.length - 1 ? known?.base : null
    return new Component(ComponentType.Container, name, {
      bomRef: `image:${reference}`,
      version: digest ?? tag,
      purl: dockerPurl(name, digest ?? tag),
      properties: properties(
        ["bentoctl:reference", reference],
        ["bentoctl:image:id", base?.id],
        ...(base?.repoDigests ?? []).map((each) => ["bentoctl:image:digest", each] as const),
        // The program of another image that runs a CUDA image's server.
        ["bentoctl:path", index === all.length - 1 ? undefined : "/usr/local/bin/node"],
      ),
    })
  })
}

/** Of Debian `NAME=VERSION`; of an RPM the version cannot be told from the name. */
function systemPackage(asked: string, distro: Distro): Component {
  const isDebian = distro === "debian"
  const [name = "", version] = isDebian ? asked.split("=") : [asked]
  const type = isDebian ? "deb/debian" : "rpm/redhat"
  return new Component(ComponentType.Library, name, {
    bomRef: `package:${name}`,
    ...(version === undefined ? {} : { version }),
    purl: `pkg:${type}/${encodeURIComponent(name)}${version === undefined ? "" : `@${encodeURIComponent(version)}`}`,
  })
}

/** The bundle is one program; the packages in it have no files of their own. */
function server({ runtime }: SbomParts): Component {
  return new Component(ComponentType.Application, "bentoctl-runtime", {
    bomRef: "bentoctl-runtime",
    version: runtime.version,
    licenses: licenses("Apache-2.0"),
    properties: properties(["bentoctl:path", runtime.path]),
    components: new Models.ComponentRepository(runtime.bundled.map((manifest) => npmPackage(manifest))),
  })
}

/** As the lock file has them; one that is in the server too is named once more, in another place. */
function servicePackages({ packages }: SbomParts): Component[] {
  if (packages === null) return []
  return [
    new Component(ComponentType.Library, "node_modules", {
      bomRef: "node_modules",
      properties: properties(["bentoctl:path", packages.path]),
      components: new Models.ComponentRepository(
        packages.locked.map((manifest) => npmPackage(manifest, undefined, "node_modules:")),
      ),
    }),
  ]
}

function npmPackage({ name, version, license }: NpmPackage, path?: string, scope = ""): Component {
  const purl = `pkg:npm/${name.replace(/^@/, "%40")}@${encodeURIComponent(version)}`
  return new Component(ComponentType.Library, name, {
    bomRef: `${scope}${purl}`,
    version,
    purl,
    licenses: licenses(license),
    properties: properties(["bentoctl:path", path]),
  })
}

/** The inference engine, which onnxruntime-node brings along as compiled files. */
function onnxruntime({ runtime }: SbomParts): Component {
  const version = runtime.onnxruntimeVersion
  return new Component(ComponentType.Library, "onnxruntime", {
    bomRef: "onnxruntime",
    version,
    purl: `pkg:github/microsoft/onnxruntime@v${version}`,
    licenses: licenses("MIT"),
    properties: properties(["bentoctl:path", `${runtime.path}node_modules/onnxruntime-node/bin/`]),
    components: files(runtime.path, runtime.binaries),
  })
}

function model({ tag, module, path, facts }: SbomParts["models"][number]): Component {
  const saved = facts.files.find((file) => file.path === SAVED_MODEL)
  const { producer = "", opsets = {} } = facts.origin ?? {}
  return new Component(ComponentType.MachineLearningModel, tag.name, {
    bomRef: `model:${formatTag(tag)}`,
    version: tag.version,
    hashes: hashes(saved?.sha256),
    properties: properties(
      ["bentoctl:path", path],
      ["bentoctl:model:module", module],
      ["bentoctl:model:producer", producer === "" ? undefined : producer],
      ...Object.entries(opsets).map(
        ([domain, version]) => ["bentoctl:model:opset", `${domain} ${version}`] as const,
      ),
    ),
    components: files(path, facts.files),
  })
}

function sources({ bento, license, git, path }: SbomParts): Component {
  return new Component(ComponentType.Application, bento.name, {
    bomRef: `bento:${formatTag(bento)}`,
    version: bento.version,
    licenses: licenses(license),
    externalReferences: new Models.ExternalReferenceRepository(
      git === null || git.url === null
        ? []
        : [new Models.ExternalReference(git.url, Enums.ExternalReferenceType.VCS)],
    ),
    properties: properties(
      ["bentoctl:path", path],
      ["bentoctl:git:revision", git?.revision],
      ["bentoctl:git:dirty", git === null ? undefined : String(git.isDirty)],
    ),
  })
}

function files(folder: string, facts: RuntimeFacts["binaries"]): Models.ComponentRepository {
  return new Models.ComponentRepository(
    facts.map(({ path, sha256 }) => {
      const name = `${folder}${path}`
      return new Component(ComponentType.File, name, { bomRef: `file:${name}`, hashes: hashes(sha256) })
    }),
  )
}

function hashes(sha256: string | undefined): Models.HashDictionary {
  return new Models.HashDictionary(sha256 === undefined ? [] : [[Enums.HashAlgorithm["SHA-256"], sha256]])
}

function licenses(license: string | null): Models.LicenseRepository {
  if (license === null) return new Models.LicenseRepository()
  if (SPDX.isSupportedSpdxId(license)) return new Models.LicenseRepository([new Models.SpdxLicense(license)])
  const expression = /^\(|\b(AND|OR|WITH)\b/.test(license)
  return new Models.LicenseRepository([
    expression ? new Models.LicenseExpression(license) : new Models.NamedLicense(license),
  ])
}

/** Those that have a value. */
function properties(
  ...pairs: readonly (readonly [name: string, value: string | undefined])[]
): Models.PropertyRepository {
  return new Models.PropertyRepository(
    pairs.flatMap(([name, value]) => (value === undefined ? [] : [new Models.Property(name, value)])),
  )
}

function dockerPurl(name: string, version: string): string {
  const host = registryOf(name)
  const repository = host === null ? name : name.slice(host.length + 1)
  const where = host === null ? "" : `?repository_url=${encodeURIComponent(host)}`
  return `pkg:docker/${repository}@${encodeURIComponent(version)}${where}`
}
