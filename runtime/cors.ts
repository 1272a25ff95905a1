/**
 * Answers for browsers of other origins, as BentoML gives them (those of Starlette's middleware), but for the shape of a refusal.
 * Without them a browser neither sends what is more than a form nor shows a script the answer.
 */
import type { CorsConfig } from "./config.ts"

/** Headers as `Exchange.send` takes them: name, value, name, value. */
type Headers = string[]

/** May always be sent. */
const SAFELISTED = ["Accept", "Accept-Language", "Content-Language", "Content-Type"]

/** What a request with an `Origin` gets on its answer, whatever the answer is. */
export function corsHeaders(cors: CorsConfig, origin: string, hasCookie: boolean): Headers {
  const headers: Headers = []
  if (cors.origins.includes("*")) {
    // With cookies the browser wants its own origin there, and nothing else.
    if (hasCookie) headers.push("access-control-allow-origin", origin, "vary", "Origin")
    else headers.push("access-control-allow-origin", "*")
  } else if (isAllowed(cors, origin)) headers.push("access-control-allow-origin", origin, "vary", "Origin")
  if (cors.credentials) headers.push("access-control-allow-credentials", "true")
  if (cors.exposeHeaders.length > 0) {
    headers.push("access-control-expose-headers", cors.exposeHeaders.join(", "))
  }
  return headers
}

/** The question before a request: may it be sent? `refused` names what may not. */
export function preflight(
  cors: CorsConfig,
  origin: string,
  method: string,
  headers: string | undefined,
): { readonly headers: Headers; readonly refused: readonly string[] } {
  const any = cors.origins.includes("*")
  const anyHeader = cors.headers.includes("*")
  const refused: string[] = []
  const answer: Headers = []
  if (any && !cors.credentials) answer.push("access-control-allow-origin", "*")
  else {
    answer.push("vary", "Origin")
    if (isAllowed(cors, origin)) answer.push("access-control-allow-origin", origin)
    else refused.push("origin")
  }
  if (!cors.methods.includes("*") && !cors.methods.includes(method)) refused.push("method")
  const allowed = [...SAFELISTED, ...cors.headers].map((name) => name.toLowerCase())
  const asked = (headers ?? "").split(",").map((name) => name.trim().toLowerCase())
  if (!anyHeader && asked.some((name) => name !== "" && !allowed.includes(name))) refused.push("headers")
  const methods = cors.methods.includes("*") ? [method] : cors.methods
  answer.push("access-control-allow-methods", methods.join(", "))
  answer.push("access-control-max-age", String(cors.maxAgeS))
  if (anyHeader && headers !== undefined) answer.push("access-control-allow-headers", headers)
  else if (cors.headers.length > 0) {
    answer.push(
      "access-control-allow-headers",
      [...new Set([...SAFELISTED, ...cors.headers])].toSorted().join(", "),
    )
  }
  if (cors.credentials) answer.push("access-control-allow-credentials", "true")
  return { headers: answer, refused }
}

function isAllowed({ origins, originRegex }: CorsConfig, origin: string): boolean {
  return origins.includes("*") || origins.includes(origin) || originRegex?.test(origin) === true
}
