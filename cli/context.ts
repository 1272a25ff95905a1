/** What a command may know of the world. `program.ts` makes the real one; tests make theirs on PassThrough streams. */
import path from "node:path"
import type { BaseContext } from "clipanion"
import type { Describer } from "../images/describe.ts"
import { BentoError } from "../store/errors.ts"

export interface Context extends BaseContext {
  readonly cwd: string
  /** The store's folder: `BENTOML_HOME` expanded, or `~/bentoml`. */
  readonly home: string
  readonly now: () => Date
  readonly random: (size: number) => Uint8Array
  /** Aborts at the first SIGINT, SIGTERM or SIGHUP; the reason is an `Interruption`. */
  readonly signal: AbortSignal
  /**
   * From now on the listener gets each signal, and `signal` no longer aborts; until the returned function is called.
   * For commands whose child process answers signals itself.
   */
  readonly takeSignals: (listener: (signal: NodeJS.Signals) => void) => () => void
  /** Which of the streams are terminals. */
  readonly terminal: { readonly stdin: boolean; readonly stdout: boolean; readonly stderr: boolean }
  readonly colour: { readonly stdout: boolean; readonly stderr: boolean }
  /** Width of the terminal now; 80 where there is none. */
  readonly columns: () => number
  /** Folder of the bundled server (`dist/image`). */
  readonly runtimeDir: string
  /** The Node that runs us, and is to run the server. */
  readonly nodePath: string
  /** For the first service that is described. Whoever made the context stops it. */
  readonly describer?: Describer | undefined
  /** How long loading a service may take. */
  readonly describeTimeoutMs: number
  readonly version: string
  /** Where defects are reported, if the package says so. */
  readonly bugs: string | null
}

/** Signals that stop us, and the exit code that a shell expects then: 128 and the signal's number. */
const SIGNALS: Readonly<Record<string, number>> = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 }

/** The user (or the system) asked us to stop. */
export class Interruption extends BentoError {
  static readonly signals: readonly string[] = Object.keys(SIGNALS)
  readonly exitCode: number

  constructor(signal: string) {
    super("CANCELLED", `Interrupted by ${signal}.`)
    this.name = "Interruption"
    this.exitCode = SIGNALS[signal] ?? 130
  }
}

type Env = Readonly<Record<string, string | undefined>>

/**
 * The folder that `BENTOML_HOME` names. As in BentoML, `~` and variables are expanded again and again until nothing
 * changes, so that a variable may hold another one. Unknown variables stay as they are.
 *
 * @example storeHome({ BENTOML_HOME: "~/b" }, "/tmp", "/root")  // "/root/b"
 */
export function storeHome(env: Env, cwd: string, userHome: string): string {
  const asked = env["BENTOML_HOME"]
  if (asked === undefined || asked.trim() === "") return path.join(userHome, "bentoml")
  let expanded = asked
  // A variable that names itself would never become stable; ten rounds are more than anyone nests on purpose.
  for (let round = 0; round < 10; round += 1) {
    const next = expandOnce(expanded, env, userHome)
    if (next === expanded) break
    expanded = next
  }
  return path.resolve(cwd, expanded)
}

function expandOnce(text: string, env: Env, userHome: string): string {
  const withHome = text.replace(/^~(?=$|\/)/, () => userHome)
  return withHome.replace(
    /\$(?:\{([^}]*)\}|(\w+))/g,
    (whole, braced: string | undefined, bare: string | undefined) => env[braced ?? bare ?? ""] ?? whole,
  )
}

/** Whether a stream gets colours. `NO_COLOR` wins over `FORCE_COLOR`, which wins over what the stream is. */
export function wantsColour(env: Env, isTerminal: boolean): boolean {
  if (env["NO_COLOR"] !== undefined && env["NO_COLOR"] !== "") return false
  const forced = env["FORCE_COLOR"]
  if (forced !== undefined) return forced !== "0" && forced !== "false"
  return isTerminal && env["TERM"] !== "dumb"
}
