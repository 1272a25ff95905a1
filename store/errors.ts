/** Every error a user can meet: its code, what the code means, and what to do. `docs/errors.md` is checked against it. */

/**
 * Code → [what it means, what to do]. A code never changes its meaning; a new situation gets a new code.
 * Only the command line adds exit codes (1; usage errors 2) and only the HTTP app adds statuses.
 */
export const ERROR_CODES = {
  TAG_INVALID: [
    "A name or version breaks the tag grammar.",
    "Use lower-case letters, digits, `.`, `_`, `-`; begin and end with a letter or digit; at most 63 characters.",
  ],
  TAG_AMBIGUOUS: [
    "A version prefix fits several versions.",
    "Give more characters of one of the candidates.",
  ],
  MODEL_NOT_FOUND: [
    "No such model in the store.",
    "`bentoctl models list`, or import it with `bentoctl models import`.",
  ],
  BENTO_NOT_FOUND: ["No such Bento in the store.", "`bentoctl list`, or build it with `bentoctl build`."],
  STORE_EXISTS: ["The store already holds this tag.", "Choose another version, or delete the old one first."],
  MODEL_IN_USE: [
    "A model that a stored Bento uses was to be deleted.",
    "Delete the Bentos that the message names first.",
  ],
  STORE_CORRUPT: [
    "An item of the store cannot be read.",
    "Delete it (`bentoctl models delete TAG`) and import or build it again.",
  ],
  STORE_UNUSABLE: ["The store's folder cannot be used.", "Check `BENTOML_HOME` and its permissions."],
  IMPORT_FAILED: ["A model could not be imported.", "Read the reason; the store is unchanged."],
  BENTOFILE_INVALID: ["bentofile.yaml has problems.", "Mend each line named in the message."],
  BENTOFILE_NOT_FOUND: [
    "There is no bentofile.yaml where it was looked for.",
    "Give its path with `-f`, or create one.",
  ],
  SERVICE_INVALID: [
    "The service file cannot be loaded or describes no valid service.",
    "Mend the file at the line named.",
  ],
  PACKAGES_INVALID: [
    "The npm packages of a project, or their lock file, are not such that an image could install them.",
    "Mend each line named in the message.",
  ],
  PACKAGES_FAILED: [
    "npm packages could not be locked or installed on this machine.",
    "Read what the package manager printed.",
  ],
  CONTEXT_ESCAPE: ["A path leaves the build context.", "Move the file into the context, or remove the link."],
  TEMPLATE_INVALID: ["A Dockerfile template cannot be rendered.", "Mend the template at the line named."],
  ENGINE_UNREACHABLE: ["No Docker Engine answers.", "Start it, or set `DOCKER_HOST`."],
  ENGINE_CONFIG_INVALID: [
    "What says where the Docker Engine is cannot be used: `DOCKER_HOST`, a docker context, or certificates.",
    "Mend what the message names; `docker version` takes the same settings.",
  ],
  ENGINE_TLS_FAILED: [
    "The engine and the command line do not trust each other's certificates, or only one of them speaks TLS.",
    "Compare ca.pem, cert.pem and key.pem with those of the engine; `DOCKER_TLS_VERIFY` turns TLS on.",
  ],
  ENGINE_TOO_OLD: [
    "The Docker Engine is older than 20.10.",
    "Update it, or name another with `DOCKER_HOST`.",
  ],
  ENGINE_DENIED: ["The Docker Engine refuses access.", "Join the `docker` group, or use sudo."],
  ENGINE_REFUSED: [
    "The Docker Engine, or a proxy before it, refuses a request.",
    "Its reason is in the message; the engine's own log may say more.",
  ],
  BASE_IMAGE_UNAVAILABLE: [
    "The base image is neither in the engine nor can it be pulled.",
    "Load or tag a local base, or name another with `docker.base_image`.",
  ],
  IMAGE_NOT_FOUND: ["The Docker Engine has no such image.", "`docker image ls` lists those that it has."],
  IMAGE_FOREIGN: [
    "The image is not one of a Bento, made by `bentoctl`.",
    "Name one that `bentoctl containerize` made: `docker image ls --filter label=bentoctl.bento`.",
  ],
  SBOM_UNWRITABLE: [
    "The file for the bill of materials cannot be written.",
    "Name a file in a folder that exists and is yours.",
  ],
  BUILD_FAILED: ["A step of the image build failed.", "Read the step and the last lines of its log."],
  ASSEMBLE_IMPOSSIBLE: [
    "`--builder assemble` was asked for, or a model on a base image, and the engine, the base image, or a template or setup script of the Bento does not allow it.",
    "Leave out `--builder`, or use `--builder dockerfile`.",
  ],
  ENGINE_DISK_FULL: [
    "The Docker Engine has no space left.",
    "`docker system prune`, or give it a larger disk.",
  ],
  REGISTRY_MISSING: [
    "An image was to be pushed, and its name tells no registry.",
    "Name the registry: `-t registry.example.com/team/NAME:TAG`; for Docker Hub `-t docker.io/USER/NAME:TAG`.",
  ],
  CREDENTIALS_UNAVAILABLE: [
    "The credentials for a registry cannot be read: config.json of docker, or a credential helper that it names.",
    "Mend what the message names, or log in again with `docker login`.",
  ],
  REGISTRY_DENIED: [
    "A registry wants credentials, or refuses those that it was given.",
    "`docker login REGISTRY` as a user who may push there.",
  ],
  REGISTRY_UNREACHABLE: [
    "The Docker Engine cannot connect to a registry.",
    "Check its name and that it runs; the engine connects, not this command.",
  ],
  PUSH_FAILED: [
    "An image was not pushed to the end.",
    "Read the reason; run it again, layers that arrived are not sent again.",
  ],
  OUTPUT_UNUSABLE: [
    "The folder that a build context was to be written to cannot be used.",
    "Name a folder that is empty, or not there yet.",
  ],
  RUNTIME_MISSING: ["The runtime bundle is not built.", "`npm run build`."],
  PORT_IN_USE: ["Another process listens on the port.", "Stop it, or choose another port with `-p`."],
  MODEL_LOAD_FAILED: [
    "ONNX Runtime cannot load a model.",
    "Read the reason; check the model with `bentoctl models get`.",
  ],
  EXAMPLES_INVALID: [
    "The examples of a model have problems.",
    "Mend each one that the message names; docs/selftest.md shows the form.",
  ],
  SELFTEST_FAILED: [
    "A model does not answer its examples as it did when they were recorded, or is not the same model.",
    "Read what differs. If the change is meant, record the examples again with `bentoctl models record`.",
  ],
  CONFIG_INVALID: ["The serving configuration has problems.", "Mend each key named in the message."],
  MANIFEST_INVALID: [
    "A model.yaml or bento.yaml cannot be understood.",
    "Mend it, or import or build the item again.",
  ],
  BAD_INPUT: [
    "A request's input does not fit the model or the API.",
    "Compare expected and received in the message.",
  ],
  OVERLOADED: ["The queue of a model is full.", "Ask again after `Retry-After`; add workers or replicas."],
  UNAVAILABLE: [
    "The server cannot answer in time: it drains, a model is not ready, or the deadline cannot be met.",
    "Ask again after `Retry-After`, or allow more time.",
  ],
  DEADLINE_EXCEEDED: ["A request's time ran out.", "Allow more time, or send fewer rows."],
  INFERENCE_FAILED: [
    "The model failed on this input.",
    "Read the reason in the server's log, under the request id.",
  ],
  REQUEST_INVALID: [
    "A request breaks the rules of HTTP, or its headers are too large.",
    "Send what an ordinary HTTP/1.1 client sends.",
  ],
  ROUTE_NOT_FOUND: ["The server has no such route.", "`GET /docs.json` lists the routes."],
  METHOD_NOT_ALLOWED: [
    "The route does not know this method.",
    "Use one of those in `Allow`; APIs take POST.",
  ],
  BODY_TOO_LARGE: ["A request's body is longer than the server takes.", "Send fewer rows in one request."],
  MEDIA_TYPE_UNSUPPORTED: [
    "The API does not read bodies of this content type or encoding.",
    "Send the type that the message names, not compressed.",
  ],
  REQUEST_TIMEOUT: ["A request's head or body did not arrive in time.", "Send it without long pauses."],
  API_ERROR: ["A handler refused the request.", "Read its message; the API's own documentation knows more."],
  INTERNAL: [
    "Something failed in the server or in a handler.",
    "Look into the server's log for the request id of the response.",
  ],
  CLIENT_GONE: ["The client left before its answer was ready.", "Nothing; its work was dropped."],
  CANCELLED: ["The command was interrupted.", "Nothing half-made was left behind; run it again."],
} as const satisfies Record<string, readonly [meaning: string, remedy: string]>

export type ErrorCode = keyof typeof ERROR_CODES

/** An error that a user can act on: printed without a stack. Anything else that is thrown is a bug of ours. */
export class BentoError extends Error {
  readonly code: ErrorCode
  /** What to do, for this very case; the general remedy of the code stands in `ERROR_CODES`. */
  readonly hint: string | undefined

  constructor(code: ErrorCode, message: string, options: { hint?: string; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = "BentoError"
    this.code = code
    this.hint = options.hint
  }
}

/** One problem of a file. `line` and `column` count from 1; `field` is a dotted path such as `docker.env`. */
export interface Issue {
  readonly message: string
  readonly file?: string
  readonly line?: number
  readonly column?: number
  readonly field?: string
}

/** All problems of one file at once. */
export class IssueError extends BentoError {
  readonly issues: readonly Issue[]

  constructor(
    code: ErrorCode,
    summary: string,
    issues: readonly Issue[],
    options: { hint?: string; cause?: unknown } = {},
  ) {
    super(code, [summary, ...issues.map((issue) => `  ${formatIssue(issue)}`)].join("\n"), options)
    this.name = "IssueError"
    this.issues = issues
  }
}

/** `file:line:column: field: message`, leaving out what is not known. */
export function formatIssue(issue: Issue): string {
  const where = [issue.file, issue.line, issue.column].filter((part) => part !== undefined).join(":")
  return [where, issue.field, issue.message].filter((part) => part !== undefined && part !== "").join(": ")
}

/** A tag whose version prefix fits several versions. */
export class AmbiguousTagError extends BentoError {
  readonly candidates: readonly string[]

  constructor(asked: string, candidates: readonly string[]) {
    super("TAG_AMBIGUOUS", `"${asked}" fits ${candidates.length} versions: ${candidates.join(", ")}`, {
      hint: "Give more characters of one of them.",
    })
    this.name = "AmbiguousTagError"
    this.candidates = candidates
  }
}

/** A step of an image build that failed. `logTail` holds the last lines that the step printed. */
export class BuildError extends BentoError {
  readonly step: string | undefined
  readonly logTail: readonly string[]

  constructor(
    message: string,
    details: { step?: string; logTail?: readonly string[]; hint?: string; cause?: unknown } = {},
  ) {
    super("BUILD_FAILED", message, details)
    this.name = "BuildError"
    this.step = details.step
    this.logTail = details.logTail ?? []
  }
}
