/**
 * What the values may look like that reach a Dockerfile, a label or a shell. Each function says what is wrong, or
 * null. A bentofile is checked with them, and so is a Bento from the store, which another tool may have written.
 */
import type { PackageManager } from "./distro.ts"
import { parseImageReference } from "./reference.ts"

/** Names that the image sets itself; another value would break the server or its promises. */
const RESERVED_ENV = new Set(["BENTO_PATH", "BENTOML_HOME", "BENTOML_CONTAINERIZED", "ORT_DISABLE_TELEMETRY"])

/**
 * Debian's grammar: name, architecture, version. Nothing that apt could take for an option or a pattern, and no `-` at
 * the end, which tells it to take a package away.
 */
const SYSTEM_PACKAGE = /^(?!.*-$)[a-z0-9][a-z0-9+.-]+(?::[a-z0-9-]+)?(?:=[A-Za-z0-9.+:~-]+)?$/

/** Name, and with dashes version, release and architecture. Nothing that microdnf could take for an option or a pattern. */
const RPM_PACKAGE = /^[A-Za-z0-9][A-Za-z0-9+._~^-]*$/

// oxlint-disable-next-line no-control-regex -- control characters are what is looked for
const CONTROL = /[\u0000-\u001f\u007f]/

/** Text for one line: control characters become spaces, and it ends at `length`. */
export function asOneLine(text: string, length: number): string {
  return text.slice(0, length).toWellFormed().replace(new RegExp(CONTROL, "g"), " ")
}

export function envNameProblem(name: string): string | null {
  if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) {
    return `${JSON.stringify(name)} is no name of an environment variable (letters, digits and _)`
  }
  return RESERVED_ENV.has(name) ? `${name} is set by the image itself` : null
}

/** Values stand in single lines of a Dockerfile, and in labels that other programs print. */
export function controlProblem(text: string): string | null {
  const found = CONTROL.exec(text)
  if (found !== null) {
    const name = { "\n": "a line break", "\r": "a carriage return", "\0": "a NUL", "\t": "a tab" }[found[0]]
    return `holds ${name ?? "a control character"}, which cannot stand here`
  }
  if (!text.isWellFormed()) return "is not Unicode text"
  return text.length > 8192 ? `has ${text.length} characters, 8192 are allowed` : null
}

export function labelKeyProblem(key: string): string | null {
  if (key === "") return "a label needs a key"
  const control = controlProblem(key)
  if (control !== null) return control
  if (key.startsWith("bentoctl."))
    return `${JSON.stringify(key)}: labels that begin with bentoctl. are bentoctl's own`
  return /[=\s"'\\$]/.test(key)
    ? `${JSON.stringify(key)}: a label's key has no spaces, quotes, =, $ or \\`
    : null
}

export function baseImageProblem(text: string): string | null {
  if (text === "scratch") return "scratch holds no Node; name an image that does"
  return parseImageReference(text) === null ? `${JSON.stringify(text)} is no image reference` : null
}

/** An alias of a model is a segment of routes and a label of metrics. */
export function aliasProblem(text: string): string | null {
  return /^(?=.{1,63}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$/.test(text)
    ? null
    : `${JSON.stringify(text)} is no alias: letters, digits, \`_\` and, between the first and the last character, \`.\` and \`-\`; at most 63 characters`
}

/**
 * A name of npm's, and a range of versions or a tag; the rest of what npm would take is no version. What begins with a dot
 * is a folder for npm.
 */
const NODE_PACKAGE =
  /^((?:@[a-z0-9~-][a-z0-9._~-]*\/)?[a-z0-9~-][a-z0-9._~-]*)(?:@([\w^~<>=*][\w.^~<>=|*+ -]*))?$/

export function nodePackageProblem(text: string): string | null {
  if (text.length > 300 || !NODE_PACKAGE.test(text) || text.startsWith("-")) {
    return `${JSON.stringify(text)} is no npm package: \`name\` or \`name@range\`, such as zod@^4`
  }
  return null
}

/** The parts of a package that was checked. */
export function splitNodePackage(text: string): { name: string; range: string } {
  const [, name = "", range = "latest"] = NODE_PACKAGE.exec(text) ?? []
  return { name, range }
}

export function systemPackageProblem(text: string, manager: PackageManager): string | null {
  const [grammar, kind] = manager === "apt" ? [SYSTEM_PACKAGE, "a Debian"] : [RPM_PACKAGE, "an RPM"]
  return grammar.test(text) ? null : `${JSON.stringify(text)} is no name of ${kind} package`
}
