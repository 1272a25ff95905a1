import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { chmod, link, mkdir, rename, symlink, writeFile } from "node:fs/promises"
import { createServer } from "node:net"
import path from "node:path"
import { after, describe, test } from "node:test"
import { walkContext } from "../../images/walk.ts"
import type { WalkOptions } from "../../images/walk.ts"
import { BentoError } from "../../store/errors.ts"
import { temporaryFolder, writeFiles } from "./support.ts"

const { folder, remove } = await temporaryFolder()
after(remove)
let count = 0

async function project(...names: string[]): Promise<string> {
  const dir = path.join(folder, String(count++))
  await mkdir(dir)
  await writeFiles(dir, Object.fromEntries(names.map((name) => [name, name])))
  return dir
}

async function paths(dir: string, options: WalkOptions = {}): Promise<string[]> {
  return (await walkContext(dir, options)).entries.map((entry) => entry.path)
}

describe("a project is taken", () => {
  test("whole by default, sorted", async () => {
    assert.deepEqual(await paths(await project("b.ts", "a/c.ts", "a.ts", ".hidden")), [
      ".hidden",
      "a.ts",
      "a/c.ts",
      "b.ts",
    ])
  })

  test("without what has no place in an image, at any depth", async () => {
    const dir = await project(
      "a.ts",
      ".git/config",
      "node_modules/x/index.js",
      "sub/node_modules/y.js",
      ".venv/a",
      "venv/a",
      "__pycache__/a",
      "sub/.DS_Store",
    )
    assert.deepEqual(await paths(dir), ["a.ts"])
  })

  test("without what may hold secrets, and says so", async () => {
    const dir = await project(
      "a.ts",
      ".env",
      "sub/.env.production",
      ".env.example",
      ".npmrc",
      ".ssh/id_rsa",
      "id_ed25519",
    )
    const { entries, notes } = await walkContext(dir)
    assert.deepEqual(
      entries.map((entry) => entry.path),
      [".env.example", "a.ts"],
    )
    assert.deepEqual(
      notes.map((note) => note.split(" ")[0]),
      [".env", ".npmrc", ".ssh", "id_ed25519", "sub/.env.production"],
    )
  })

  test("without credentials by any of their names, and without private keys in files of certificates", async () => {
    const secrets = [
      ".ENV",
      ".aws/credentials",
      ".docker/config.json",
      ".htpasswd",
      ".kube/config",
      ".vault-token",
      "application_default_credentials.json",
      "id_ecdsa",
      "id_ed25519_sk",
    ]
    const dir = await project("a.ts", "id_card.png", ...secrets)
    await writeFiles(dir, {
      "ca.pem": "-----BEGIN CERTIFICATE-----\nx\n",
      "server.key": "-----BEGIN PRIVATE KEY-----\nx\n",
      "sub/all.pem": "-----BEGIN CERTIFICATE-----\nx\n-----BEGIN RSA PRIVATE KEY-----\nx\n",
    })
    const { entries, notes } = await walkContext(dir)
    assert.deepEqual(
      entries.map((entry) => entry.path),
      ["a.ts", "ca.pem", "id_card.png"],
    )
    const left = [...secrets, "server.key", "sub/all.pem"].map((name) => name.replace(/(^\..*)\/.*/, "$1"))
    assert.deepEqual(new Set(notes.map((note) => note.split(" ")[0])), new Set(left))
    assert.ok((await paths(dir, { include: ["*", "server.key"] })).includes("server.key"))
  })

  test("with a secret that include names in so many words", async () => {
    const dir = await project(".env", "a.ts", "node_modules/x.js", "sub/.env")
    assert.deepEqual(await paths(dir, { include: ["*.ts", "/.env", "node_modules/"] }), [
      ".env",
      "a.ts",
      "node_modules/x.js",
    ])
  })

  const tree = [
    "service.ts",
    "lib/a.ts",
    "lib/b.log",
    "lib/deep/c.log",
    "data/x.csv",
    "data/y.csv",
    "README.md",
  ]
  const cases: readonly (readonly [what: string, options: WalkOptions, expected: string[]])[] = [
    ["a name matches at any depth", { include: ["*.ts"] }, ["lib/a.ts", "service.ts"]],
    ["a leading slash anchors", { include: ["/*.ts"] }, ["service.ts"]],
    ["a folder takes its tree", { include: ["lib/"] }, ["lib/a.ts", "lib/b.log", "lib/deep/c.log"]],
    ["! takes a folder out of include", { include: ["*", "!lib/", "!data"] }, ["README.md", "service.ts"]],
    [
      "exclude wins over include",
      { include: ["*"], exclude: ["*.log", "data/"] },
      ["README.md", "lib/a.ts", "service.ts"],
    ],
    [
      "! brings back from an ignored folder",
      { exclude: ["lib/", "!lib/deep/c.log"] },
      ["README.md", "data/x.csv", "data/y.csv", "lib/deep/c.log", "service.ts"],
    ],
    ["the last pattern decides", { include: ["*.csv", "!x.csv", "x.csv"] }, ["data/x.csv", "data/y.csv"]],
    ["case counts", { include: ["readme.md"] }, []],
    ["comments and blank lines say nothing", { include: ["# *", "", "*.md"] }, ["README.md"]],
    ["** crosses folders", { include: ["lib/**/*.log"] }, ["lib/b.log", "lib/deep/c.log"]],
  ]
  for (const [what, options, expected] of cases) {
    test(`by gitignore's language: ${what}`, async () => {
      assert.deepEqual(await paths(await project(...tree), options), expected)
    })
  }

  test("less what each .bentoignore vetoes, which a nested one cannot take back", async () => {
    const dir = await project("a.txt", "b.log", "keep/me.log", "sub/x.tmp", "sub/y.txt", "sub/deep/z.tmp")
    await writeFile(path.join(dir, ".bentoignore"), "*.log\r\n!keep/me.log\n*.tmp\n")
    await writeFile(path.join(dir, "sub/.bentoignore"), "!x.tmp\n/y.txt\n")
    assert.deepEqual(await paths(dir), [".bentoignore", "a.txt", "keep/me.log", "sub/.bentoignore"])
  })

  test("without entering a folder in which nothing can be taken", async () => {
    // Were they entered, a note would name the folders of secrets in them.
    const dir = await project("a.ts", "closed/.ssh/b", "node_modules/c/.ssh/d", "open/.ssh/e")
    const { entries, notes } = await walkContext(dir, { exclude: ["closed/"] })
    assert.deepEqual(
      entries.map((entry) => entry.path),
      ["a.ts"],
    )
    assert.deepEqual(
      notes.map((note) => note.split(" ")[0]),
      ["open/.ssh"],
    )
  })

  test("without the folders that are skipped, such as a store that lies in it", async () => {
    const dir = await project("a.ts", "bentoml/models/x")
    assert.deepEqual(await paths(dir, { skip: [path.join(dir, "bentoml")] }), ["a.ts"])
  })

  test("with the execute bit, and with names that are trouble", async () => {
    const names = ["with space", "line\nbreak", "$(x)`y`", "-rf", "ünï", "a\\b", "'q\"", "\u2028"]
    const dir = await project(...names)
    await chmod(path.join(dir, "-rf"), 0o700)
    const { entries } = await walkContext(dir)
    assert.deepEqual(new Set(entries.map((entry) => entry.path)), new Set(names))
    assert.deepEqual(
      entries.filter((entry) => entry.kind === "file" && entry.executable).map((entry) => entry.path),
      ["-rf"],
    )
  })
})

describe("links and special files", () => {
  test("a link that stays inside is taken as a relative link", async () => {
    const dir = await project("a.txt", "sub/b.txt")
    await symlink("../a.txt", path.join(dir, "sub/to-a"))
    await symlink(path.join(dir, "sub"), path.join(dir, "to-sub"))
    const links = (await walkContext(dir)).entries.filter((entry) => entry.kind === "link")
    assert.deepEqual(links, [
      { kind: "link", path: "sub/to-a", target: "../a.txt" },
      { kind: "link", path: "to-sub", target: "sub" },
    ])
  })

  for (const [what, target] of [
    ["by ..", "../outside"],
    ["by an absolute path", "/etc/passwd"],
    ["through a folder outside and back", `../${"x/.."}/../${"0"}`],
  ] as const) {
    test(`a link that leaves the context ${what} is refused by name`, async () => {
      const dir = await project("a.txt")
      await symlink(target, path.join(dir, "leak"))
      await assert.rejects(
        walkContext(dir),
        (error) =>
          error instanceof BentoError &&
          error.code === "CONTEXT_ESCAPE" &&
          error.message.includes("the link leak"),
      )
    })
  }

  test("a link to a link that leaves the context is refused", async () => {
    const dir = await project("a.txt")
    await symlink("/etc", path.join(dir, "etc"))
    await symlink("etc/passwd", path.join(dir, "pw"))
    await assert.rejects(walkContext(dir, { include: ["pw"] }), /the link pw leaves the build context/)
  })

  test("a link that is left out harms nobody", async () => {
    const dir = await project("a.txt")
    await symlink("/etc/passwd", path.join(dir, "leak"))
    assert.deepEqual(await paths(dir, { exclude: ["leak"] }), ["a.txt"])
  })

  test("broken links, links in a loop, pipes and sockets are left out with a note", async () => {
    const dir = await project("a.txt")
    await symlink("nowhere", path.join(dir, "broken"))
    await symlink("loop-b", path.join(dir, "loop-a"))
    await symlink("loop-a", path.join(dir, "loop-b"))
    execFileSync("mkfifo", [path.join(dir, "pipe")])
    const server = createServer().listen(path.join(dir, "socket"))
    await new Promise((resolve) => server.once("listening", resolve))
    const { entries, notes } = await walkContext(dir)
    server.close()
    assert.deepEqual(
      entries.map((entry) => entry.path),
      ["a.txt"],
    )
    assert.deepEqual(notes, [
      'broken was left out: it is a link to "nowhere", which does not exist',
      "loop-a was left out: it is a link in a loop",
      "loop-b was left out: it is a link in a loop",
      "pipe was left out: it is a named pipe",
      "socket was left out: it is a socket",
    ])
  })

  test("a name that deletes another file in a layer is left out with a note, and so is all below it", async () => {
    const dir = await project("a.txt", ".wh.a.txt", ".wh..wh..opq", "sub/.wh.b/c.txt", "sub/wh.d")
    const { entries, notes } = await walkContext(dir)
    assert.deepEqual(
      entries.map((entry) => entry.path),
      ["a.txt", "sub/wh.d"],
    )
    const reason = "was left out: a layer of an image takes its name for the order to delete another file"
    assert.deepEqual(notes, [`.wh..wh..opq ${reason}`, `.wh.a.txt ${reason}`, `sub/.wh.b ${reason}`])
  })

  test("a note is one line and moves no cursor, whatever the name", async () => {
    const names = ["x\n::error::y", "x\ry", "x\u2028y", "x\u001b[2Jy", "x\u202ey"]
    const dir = await project(...names)
    for (const [index, name] of names.entries()) {
      await link(path.join(dir, name), path.join(folder, `line-${index}`))
    }
    const { notes } = await walkContext(dir)
    assert.equal(notes.length, names.length)
    for (const note of notes)
      assert.match(note, /^"x.*y" has other hard links; a copy of its content is taken$/)
    assert.doesNotMatch(notes.join(""), /[\p{Cc}\p{Cf}\p{Zl}]/u)
  })

  test("paths that are longer than a system can open are left out, however deep they lie", async () => {
    const dir = await project("a.txt")
    // 5 KB, which no single call could name.
    const half = Array(10).fill("d".repeat(250)).join("/")
    await mkdir(path.join(dir, half), { recursive: true })
    await mkdir(path.join(dir, "x", half), { recursive: true })
    await rename(path.join(dir, "x"), path.join(dir, half, "x"))
    try {
      const { entries, notes } = await walkContext(dir)
      assert.deepEqual(
        entries.map((entry) => entry.path),
        ["a.txt"],
      )
      assert.equal(notes.length, 1)
      assert.match(notes[0] ?? "", /^d{200}… was left out: its path has 2258 bytes, 2048 are allowed$/)
    } finally {
      execFileSync("rm", ["-rf", dir])
    }
  })

  test("a name that is not UTF-8 is left out with a note", async () => {
    const dir = await project("a.txt")
    await writeFile(Buffer.concat([Buffer.from(`${dir}/b`), Buffer.of(0xff)]), "")
    const { notes } = await walkContext(dir)
    assert.match(notes.join(), /was left out: its name is not UTF-8/)
  })

  test("a file with other hard links is copied, and says so", async () => {
    const dir = await project("a.txt")
    await link(path.join(dir, "a.txt"), path.join(folder, `hard-${count}`))
    const { entries, notes } = await walkContext(dir)
    assert.equal(entries.length, 1)
    assert.match(notes.join(), /a\.txt has other hard links/)
  })
})
