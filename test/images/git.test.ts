import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { existsSync } from "node:fs"
import { chmod, mkdir, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, describe, test } from "node:test"
import { publicUrl, readGit } from "../../images/git.ts"
import { temporaryFolder } from "./support.ts"

const { folder, remove } = await temporaryFolder()
after(remove)
/** Nothing of the machine's own configuration. */
const env = {
  PATH: process.env["PATH"],
  HOME: folder,
  GIT_CONFIG_NOSYSTEM: "1",
  GIT_CEILING_DIRECTORIES: path.dirname(folder),
}
const unavailable = (() => {
  try {
    execFileSync("git", ["--version"])
    return false
  } catch {
    return "git is not installed"
  }
})()
let count = 0

/** A repository with one commit. */
async function repository(): Promise<{ dir: string; git: (...args: string[]) => string }> {
  const dir = path.join(folder, `repository${count++}`)
  await mkdir(dir)
  const user = ["-c", "user.name=n", "-c", "user.email=n@example.com"]
  const git = (...args: string[]): string =>
    execFileSync("git", [...user, ...args], { cwd: dir, env, encoding: "utf8", stdio: "pipe" })
  git("init", "-q")
  await writeFile(path.join(dir, "a.txt"), "a")
  await writeFile(path.join(dir, ".gitignore"), "ignored\n")
  git("add", ".")
  git("commit", "-q", "-m", "first")
  return { dir, git }
}

describe("what git knows of a folder", { skip: unavailable }, () => {
  test("is that of the repository that the environment names, wherever the folder lies", async () => {
    const { dir, git } = await repository()
    const elsewhere = path.join(folder, "elsewhere")
    await mkdir(elsewhere)
    assert.equal(await readGit(elsewhere, env), null)
    const named = { ...env, GIT_DIR: path.join(dir, ".git"), GIT_WORK_TREE: dir }
    assert.equal((await readGit(elsewhere, named))?.revision, git("rev-parse", "HEAD").trim())
  })

  test("is its commit, and that nothing was changed since", async () => {
    const { dir, git } = await repository()
    await writeFile(path.join(dir, "ignored"), "x")
    const revision = git("rev-parse", "HEAD").trim()
    assert.deepEqual(await readGit(dir, env), { revision, isDirty: false, url: null })
  })

  for (const [what, change] of Object.entries({
    "an edited file": (dir: string) => writeFile(path.join(dir, "a.txt"), "b"),
    "a new file": (dir: string) => writeFile(path.join(dir, "new\nfile"), "b"),
  })) {
    test(`says so of ${what}`, async () => {
      const { dir } = await repository()
      await change(dir)
      assert.equal((await readGit(dir, env))?.isDirty, true)
    })
  }

  test("is about the folder alone where the repository is larger", async () => {
    const { dir } = await repository()
    await mkdir(path.join(dir, "service"))
    await writeFile(path.join(dir, "a.txt"), "changed elsewhere")
    assert.equal((await readGit(path.join(dir, "service"), env))?.isDirty, false)
  })

  test("names the origin without its password", async () => {
    const { dir, git } = await repository()
    git("remote", "add", "origin", "https://user:t0ken@git.example.com/team/iris.git")
    assert.equal((await readGit(dir, env))?.url, "https://git.example.com/team/iris.git")
  })

  test("is nothing without a repository, without a commit, and without git", async () => {
    const plain = path.join(folder, "plain")
    await mkdir(plain)
    assert.equal(await readGit(plain, env), null)
    execFileSync("git", ["init", "-q"], { cwd: plain, env })
    assert.equal(await readGit(plain, env), null)
    const { dir } = await repository()
    assert.equal(await readGit(dir, { ...env, PATH: plain }), null)
  })

  test("is found out without running a program of the repository's choice, and without writing to it", async () => {
    const { dir, git } = await repository()
    const ran = path.join(folder, "ran")
    const hook = path.join(dir, ".git/hook")
    await writeFile(hook, `#!/bin/sh\ntouch ${ran}\n`)
    await chmod(hook, 0o755)
    for (const name of ["post-index-change", "fsmonitor-watchman", "post-checkout", "pre-commit"]) {
      await mkdir(path.join(dir, ".git/hooks"), { recursive: true })
      await writeFile(path.join(dir, ".git/hooks", name), `#!/bin/sh\ntouch ${ran}\n`)
      await chmod(path.join(dir, ".git/hooks", name), 0o755)
    }
    for (const key of ["core.fsmonitor", "core.pager", "diff.external"]) git("config", key, hook)
    for (const name of ["plain", "with.dots=signs"]) {
      for (const key of ["clean", "smudge", "process"]) git("config", `filter.${name}.${key}`, hook)
      git("config", `filter.${name}.required`, "true")
    }
    await writeFile(
      path.join(dir, ".gitattributes"),
      "a.txt filter=plain\n.gitignore filter=with.dots=signs\n",
    )
    await writeFile(path.join(dir, ".gitignore"), "ignored\n")
    // What git status would refresh the index for.
    await writeFile(path.join(dir, "a.txt"), "a")
    assert.notEqual(await readGit(dir, env), null)
    assert.equal(existsSync(ran), false)
  })

  test("ends with the signal's reason", async () => {
    const { dir } = await repository()
    await assert.rejects(readGit(dir, env, AbortSignal.abort(new Error("stop"))), /stop/)
  })
})

describe("an address of a repository, as others may know it", () => {
  for (const [remote, url] of [
    ["https://example.com/a/b.git", "https://example.com/a/b.git"],
    ["https://user:p%40ss@example.com/a/b.git", "https://example.com/a/b.git"],
    ["https://t0ken@example.com/a/b", "https://example.com/a/b"],
    ["https://example.com/a/b?access_token=t0ken#x", "https://example.com/a/b"],
    ["ssh://git:p4ss@example.com:22/a/b", "ssh://git@example.com:22/a/b"],
    ["git@example.com:a/b.git", "git@example.com:a/b.git"],
    ["/home/me/a.git", null],
    ["../a", null],
    ["file:///home/me/a", null],
    ["C:\\repositories\\a", null],
    ["ext::sh -c x", null],
    ["", null],
  ] as const) {
    test(`${JSON.stringify(remote)} is ${url === null ? "none" : url}`, () =>
      assert.equal(publicUrl(remote), url))
  }
})
