/**
 * Which files of a project become `src/` of its Bento: `include`, `exclude` and every `.bentoignore`, in gitignore's
 * language as BentoML reads it.
 *
 * A file is taken when `include` matches it, `exclude` does not, no `.bentoignore` of a folder above it does, and it
 * is not on the list of things that have no place in an image. A pattern that names a folder stands for all below it,
 * the last pattern that matches decides, and a nested `.bentoignore` can only take more away.
 * Folders in which nothing can be taken are never entered.
 */
import { readFile, readdir, readlink, realpath, lstat } from "node:fs/promises"
import type { Dirent, Stats } from "node:fs"
import path from "node:path"
import ignore from "ignore"
import { BentoError } from "../store/errors.ts"
import { compareText } from "../store/tag.ts"

/** One file or link to take. `path` is relative to the context, with slashes. */
export type WalkEntry =
  | {
      readonly kind: "file"
      readonly path: string
      readonly source: string
      readonly size: number
      readonly executable: boolean
    }
  /** `target` is relative, and stays inside the context. */
  | { readonly kind: "link"; readonly path: string; readonly target: string }

export interface Walk {
  /** Sorted by path. */
  readonly entries: readonly WalkEntry[]
  /** What was left out and a user may miss. */
  readonly notes: readonly string[]
}

export interface WalkOptions {
  readonly include?: readonly string[]
  readonly exclude?: readonly string[]
  /** Absolute folders that are never taken, such as the store when it lies in the project. */
  readonly skip?: readonly string[]
  readonly signal?: AbortSignal | undefined
  /** Gets the path of what would make the walk throw, which is then left out. */
  readonly onRefused?: ((path: string) => void) | undefined
}

/** Never taken: of no use in an image. */
const JUNK = new Set([".git", ".hg", ".svn", "node_modules", ".venv", "venv", "__pycache__", ".DS_Store"])

/** Never taken: they hold secrets. Where one is left out, a note says so. */
const SECRETS = new Set([
  ".env",
  ".npmrc",
  ".yarnrc.yml",
  ".netrc",
  ".pypirc",
  ".git-credentials",
  ".ssh",
  ".aws",
  ".azure",
  ".gnupg",
  ".kube",
  ".docker",
  ".dockercfg",
  ".htpasswd",
  ".pgpass",
  ".vault-token",
  "application_default_credentials.json",
  "id_rsa",
  "id_dsa",
  "id_ecdsa",
  "id_ecdsa_sk",
  "id_ed25519",
  "id_ed25519_sk",
])
const ENV_EXAMPLES = new Set([".env.example", ".env.sample", ".env.template", ".env.dist"])

/** Files by these names are looked into: a certificate may come along, a private key may not. */
const KEY_FILE = /\.(?:pem|key)$/i
const KEY_FILE_BYTES = 64 * 1024

/** Characters that break lines, move the cursor, or turn the direction of what is read. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu

/** Below it a file can be opened in the store and in an image, whose own paths come before it. */
const MAX_PATH_BYTES = 2048

const LARGE_FILE_BYTES = 10 * 1024 * 1024

/** Lists what to take from `contextDir`. Throws CONTEXT_ESCAPE for a link that leaves it, if not `onRefused` gets it. */
export async function walkContext(contextDir: string, options: WalkOptions = {}): Promise<Walk> {
  const walker = new Walker(await realpath(contextDir), options)
  await walker.folder("", [])
  return {
    entries: walker.entries.toSorted((a, b) => compareText(a.path, b.path)),
    notes: walker.notes,
  }
}

/** Names by which the layers of an image say that a file, or all of a folder, is gone. */
export function isWhiteout(base: string): boolean {
  return base.startsWith(".wh.")
}

class Walker {
  readonly entries: WalkEntry[] = []
  readonly notes: string[] = []
  readonly #root: string
  readonly #include: Patterns
  readonly #exclude: Patterns
  readonly #named: Patterns
  readonly #skip: ReadonlySet<string>
  readonly #signal: AbortSignal | undefined
  readonly #onRefused: WalkOptions["onRefused"]

  constructor(root: string, { include = ["*"], exclude = [], skip = [], signal, onRefused }: WalkOptions) {
    this.#root = root
    this.#include = new Patterns(include)
    this.#exclude = new Patterns(exclude)
    // `include: [.env]` names it in so many words, `include: ["*"]` does not.
    this.#named = new Patterns(include.filter((pattern) => !/[*?[!]/.test(pattern)))
    this.#skip = new Set(skip)
    this.#signal = signal
    this.#onRefused = onRefused
  }

  /** @param vetoes the `.bentoignore` files above, each with the folder that it stands in. */
  async folder(folder: string, vetoes: readonly Veto[]): Promise<void> {
    this.#signal?.throwIfAborted()
    const absolute = path.join(this.#root, folder)
    const children = await readdir(absolute, { withFileTypes: true })
    const own = await readVeto(absolute, folder, children)
    const here = own === null ? vetoes : [...vetoes, own]
    for (const child of children.toSorted((a, b) => compareText(a.name, b.name))) {
      const name = folder === "" ? child.name : `${folder}/${child.name}`
      if (this.#skip.has(path.join(this.#root, name)) || this.#impossible(child.name, name)) continue
      try {
        await this.#child(child, name, here)
      } catch (error) {
        if (this.#onRefused === undefined || this.#signal?.aborted === true) throw error
        this.#onRefused(name)
      }
    }
  }

  async #child(child: Dirent, name: string, vetoes: readonly Veto[]): Promise<void> {
    if (child.isDirectory()) {
      if (!this.#denied(child.name, name, true) && !this.#closed(name, vetoes))
        await this.folder(name, vetoes)
    } else if (this.#wanted(child.name, name, vetoes)) {
      await this.#take(child, name)
    }
  }

  /** Notes what no image could hold under this name. */
  #impossible(base: string, name: string): boolean {
    const bytes = Buffer.byteLength(name)
    // Node replaces bytes that are no UTF-8; such a name could not be opened again.
    const reason = base.includes("\uFFFD")
      ? "its name is not UTF-8"
      : isWhiteout(base)
        ? "a layer of an image takes its name for the order to delete another file"
        : bytes > MAX_PATH_BYTES
          ? `its path has ${bytes} bytes, ${MAX_PATH_BYTES} are allowed`
          : null
    if (reason !== null) this.#note(name, `was left out: ${reason}`)
    return reason !== null
  }

  /** One line each, whatever the name. */
  #note(name: string, text: string): void {
    const shown = name.length > 200 ? `${name.slice(0, 200)}…` : name
    const quoted = JSON.stringify(shown).replace(
      UNSEEN,
      (char) => `\\u{${char.codePointAt(0)?.toString(16)}}`,
    )
    this.notes.push(`${quoted === `"${shown}"` ? shown : quoted} ${text}`)
  }

  #wanted(base: string, name: string, vetoes: readonly Veto[]): boolean {
    return (
      this.#include.match(name) &&
      !this.#exclude.match(name) &&
      !vetoes.some((veto) => veto.patterns.match(veto.relative(name))) &&
      !this.#denied(base, name, false)
    )
  }

  /** True when nothing below this folder can be taken. */
  #closed(folder: string, vetoes: readonly Veto[]): boolean {
    return this.#exclude.closes(folder) || vetoes.some((veto) => veto.patterns.closes(veto.relative(folder)))
  }

  #denied(written: string, name: string, isFolder: boolean): boolean {
    const base = written.toLowerCase()
    const secret = SECRETS.has(base) || (base.startsWith(".env.") && !ENV_EXAMPLES.has(base))
    if (!secret && !JUNK.has(written)) return false
    if (this.#named.match(name) || (isFolder && this.#named.mentions(written))) return false
    if (secret) this.#noteSecret(name, "may hold secrets")
    return true
  }

  #noteSecret(name: string, why: string): void {
    this.#note(name, `was left out, as it ${why}; name it in \`include\` to take it`)
  }

  async #take(child: Dirent, name: string): Promise<void> {
    const source = path.join(this.#root, name)
    if (child.isSymbolicLink()) return this.#link(source, name)
    if (!child.isFile()) {
      this.#note(name, `was left out: it is a ${specialKind(child)}`)
      return
    }
    const info: Stats = await lstat(source)
    if (info.size > LARGE_FILE_BYTES) {
      this.#note(name, `is large (${Math.round(info.size / 1024 / 1024)} MiB); models belong into the store`)
    }
    if (KEY_FILE.test(name) && info.size <= KEY_FILE_BYTES && !this.#named.match(name)) {
      const text = await readFile(source, "latin1")
      if (/-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(text))
        return this.#noteSecret(name, "holds a private key")
    }
    if (info.nlink > 1) this.#note(name, "has other hard links; a copy of its content is taken")
    const executable = (info.mode & 0o111) !== 0
    this.entries.push({ kind: "file", path: name, source, size: info.size, executable })
  }

  /** A link is taken as a link, if it and all that it passes through stay inside. */
  async #link(source: string, name: string): Promise<void> {
    const written = await readlink(source)
    const target = path.resolve(path.dirname(source), written)
    const escape = (to: string): BentoError =>
      new BentoError("CONTEXT_ESCAPE", `the link ${name} leaves the build context: it leads to ${to}`, {
        hint: "Copy the file into the context, or leave the link out with `exclude`.",
      })
    if (!this.#holds(target)) throw escape(written)
    let real: string
    try {
      real = await realpath(source)
    } catch (error) {
      const loop = error instanceof Error && "code" in error && error.code === "ELOOP"
      const to = loop ? "in a loop" : `to ${JSON.stringify(written)}, which does not exist`
      this.#note(name, `was left out: it is a link ${to}`)
      return
    }
    if (!this.#holds(real)) throw escape(real)
    this.entries.push({
      kind: "link",
      path: name,
      target: toSlashes(path.relative(path.dirname(source), target)) || ".",
    })
  }

  #holds(absolute: string): boolean {
    return absolute === this.#root || absolute.startsWith(this.#root + path.sep)
  }
}

interface Veto {
  readonly patterns: Patterns
  relative(name: string): string
}

async function readVeto(absolute: string, folder: string, children: readonly Dirent[]): Promise<Veto | null> {
  if (!children.some((child) => child.name === ".bentoignore" && child.isFile())) return null
  const text = await readFile(path.join(absolute, ".bentoignore"), "utf8")
  const cut = folder === "" ? 0 : folder.length + 1
  return { patterns: new Patterns(text.split(/\r?\n/)), relative: (name) => name.slice(cut) }
}

/**
 * A list of gitignore patterns where the last that matches decides.
 *
 * Each pattern has a matcher of its own: inside one list, git (and the `ignore` package) would let a folder's verdict
 * stand for all below it, while BentoML lets a later `!` pattern bring back what lies in an ignored folder.
 */
class Patterns {
  readonly #rules: readonly {
    readonly negated: boolean
    readonly written: string
    readonly test: (name: string) => boolean
  }[]

  constructor(lines: readonly string[]) {
    this.#rules = lines
      .filter((line) => line.trim() !== "" && !line.startsWith("#"))
      .map((line) => {
        const negated = line.startsWith("!")
        const written = negated ? line.slice(1) : line
        const matcher = ignore({ ignorecase: false }).add(written)
        return { negated, written, test: (name) => matcher.ignores(name) }
      })
  }

  match(name: string): boolean {
    return this.#last(name)?.negated === false
  }

  /** The folder matches, and no later `!` pattern could bring back something in it. */
  closes(folder: string): boolean {
    const last = this.#last(`${folder}/`)
    if (last === undefined || last.negated) return false
    return !this.#rules.slice(this.#rules.indexOf(last) + 1).some((rule) => rule.negated)
  }

  /** A pattern has this word as one of its path's parts. */
  mentions(base: string): boolean {
    return this.#rules.some(({ written }) => written.split("/").includes(base))
  }

  #last(name: string) {
    return this.#rules.findLast((rule) => rule.test(name))
  }
}

function specialKind(child: Dirent): string {
  if (child.isSocket()) return "socket"
  if (child.isFIFO()) return "named pipe"
  return "device"
}

function toSlashes(relative: string): string {
  return relative.split(path.sep).join("/")
}
