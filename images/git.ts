/**
 * What git knows of a project folder: which commit its files are of, and where that commit is to be had.
 *
 * git is asked by commands that only read, with everything switched off by which a repository makes it run a program.
 * Whatever fails (no git, no repository, one that belongs to somebody else) means that there is nothing to tell.
 */
import { execFile } from "node:child_process"
import { existsSync } from "node:fs"
import path from "node:path"
import { promisify } from "node:util"
import type { GitFacts } from "../store/bento.ts"

type Env = Readonly<Record<string, string | undefined>>

/** A repository in which `git status` takes longer is not worth waiting for. */
const TIMEOUT_MS = 10_000

/** Null where git has nothing to tell. Never throws, except for the signal. */
export async function readGit(folder: string, env: Env, signal?: AbortSignal): Promise<GitFacts | null> {
  const git = async (args: readonly string[], settings: Env = {}): Promise<string | null> => {
    try {
      const { stdout } = await promisify(execFile)("git", [...READ_ONLY, ...args], {
        cwd: folder,
        // It writes no index and asks nobody for a password.
        env: { ...env, GIT_OPTIONAL_LOCKS: "0", GIT_TERMINAL_PROMPT: "0", ...settings },
        timeout: TIMEOUT_MS,
        maxBuffer: 1 << 26,
        signal,
      })
      return stdout
    } catch {
      signal?.throwIfAborted()
      return null
    }
  }
  if (!mayHaveRepository(folder, env)) return null
  const keys = await git(["config", "--list", "--show-scope", "--name-only", "-z"])
  if (keys === null) return null
  const [status, url] = await Promise.all([
    git(
      ["status", "--porcelain=v2", "--branch", "--untracked-files=normal", "-z", "--", "."],
      withoutFilters(keys, env),
    ),
    git(["config", "--get", "remote.origin.url"]),
  ])
  const lines = status?.split("\0").filter((line) => line !== "") ?? []
  const revision = lines.flatMap((line) => /^# branch\.oid ([0-9a-f]{40,64})$/.exec(line)?.[1] ?? [])[0]
  if (revision === undefined) return null
  return {
    revision,
    isDirty: lines.some((line) => !line.startsWith("# ")),
    url: url === null ? null : publicUrl(url.replace(/\n$/, "")),
  }
}

/** A program takes longer to start than this takes to look. */
function mayHaveRepository(folder: string, { GIT_DIR }: Env): boolean {
  if (GIT_DIR !== undefined || existsSync(path.join(folder, ".git"))) return true
  const above = path.dirname(folder)
  return above !== folder && mayHaveRepository(above, {})
}

/**
 * Settings, as environment, that switch off the repository's own filters: programs that git runs over files whose times have
 * changed. Those of the user stay, as git-lfs needs them. `keys`: what there is, each after its scope.
 */
function withoutFilters(keys: string, { GIT_CONFIG_COUNT: count = "0" }: Env): Env {
  const words = keys.split("\0")
  const filters = words.flatMap((key, index) => {
    const isOwn = index % 2 === 1 && ["local", "worktree", "submodule"].includes(words[index - 1] ?? "")
    return isOwn ? (/^filter\.[^]*\.(?=[a-z]+$)/.exec(key)?.[0] ?? []) : []
  })
  const settings = [...new Set(filters)].flatMap((filter) => [
    [`${filter}clean`, ""],
    [`${filter}process`, ""],
    [`${filter}required`, "false"],
  ])
  return Object.fromEntries([
    ["GIT_CONFIG_COUNT", String(Number(count) + settings.length)],
    ...settings.flatMap(([key, value], index) => [
      [`GIT_CONFIG_KEY_${Number(count) + index}`, key],
      [`GIT_CONFIG_VALUE_${Number(count) + index}`, value],
    ]),
  ]) as Env
}

/** A file system monitor is a program of the repository's choice, and so are hooks. */
const READ_ONLY = ["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]

/**
 * Where a repository is, as anybody may know it: without user, password and token. Null for what is no address to
 * others, such as a folder.
 */
export function publicUrl(remote: string): string | null {
  // git@host:path; whoever logs in by ssh shares one user with everybody else.
  if (/^[A-Za-z0-9._-]+@[A-Za-z0-9._-]+:(?!\/\/)[^\s@]+$/.test(remote)) return remote
  const url = URL.parse(remote)
  if (url === null || !["http:", "https:", "ssh:", "git:"].includes(url.protocol) || url.host === "")
    return null
  url.password = ""
  if (url.protocol !== "ssh:") url.username = ""
  url.search = ""
  url.hash = ""
  return url.href
}
