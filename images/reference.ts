/** Image references (`registry:port/path:tag@digest`): the grammar of the distribution project. */

const ALNUM = "[a-zA-Z0-9]"
const DOMAIN_PART = `(?:${ALNUM}|${ALNUM}[a-zA-Z0-9-]*${ALNUM})`
const DOMAIN = `(?:${DOMAIN_PART}(?:\\.${DOMAIN_PART})*|\\[[a-fA-F0-9:]+\\])(?::[0-9]+)?`
const PATH_PART = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*"
const NAME = `(?:${DOMAIN}/)?${PATH_PART}(?:/${PATH_PART})*`
const TAG = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
const DIGEST = "[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
const REFERENCE = new RegExp(`^(${NAME})(?::(${TAG}))?(?:@(${DIGEST}))?$`)

/** The reference in its written form, or null when it breaks the grammar. `tagged` = no digest allowed. */
export function parseImageReference(text: string, options: { tagged?: boolean } = {}): string | null {
  const match = REFERENCE.exec(text)
  if (match === null) return null
  const [, name = "", tag, digest] = match
  if (name.length > 255 || (options.tagged === true && digest !== undefined)) return null
  return `${name}${tag === undefined ? "" : `:${tag}`}${digest === undefined ? "" : `@${digest}`}`
}

/** A reference in its parts; the tag is `latest` where it has none. */
export function splitReference(reference: string): {
  readonly name: string
  readonly tag: string
  readonly digest: string | undefined
} {
  const [, name = reference, tag = "latest", digest] = REFERENCE.exec(reference) ?? []
  return { name, tag, digest }
}

/**
 * The registry that a reference names (`registry.example.com:5000`, `localhost`, `docker.io`), or null when it names
 * none: then docker means Docker Hub.
 */
export function registryOf(reference: string): string | null {
  const [first = "", ...rest] = reference.split("/")
  // As docker tells it from the first part of a path.
  return rest.length > 0 && (/[.:A-Z]/.test(first) || first === "localhost") ? first : null
}
