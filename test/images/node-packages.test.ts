import assert from "node:assert/strict"
import { mkdir, readFile } from "node:fs/promises"
import path from "node:path"
import { after, describe, test } from "node:test"
import { parse } from "yaml"
import { buildBento } from "../../images/build.ts"
import { createContext } from "../../images/context.ts"
import { findPackages } from "../../images/node-packages.ts"
import { readNpmrc, registrySettings } from "../../images/npmrc.ts"
import { planImage } from "../../images/plan.ts"
import { IssueError } from "../../store/errors.ts"
import { bentoOf, buildOptions, fakeRuntime, planOptions, temporaryFolder, writeFiles } from "./support.ts"

const { folder, remove } = await temporaryFolder()
after(remove)
let count = 0

type Files = Readonly<Record<string, string>>

async function project(files: Files): Promise<string> {
  const dir = path.join(folder, `p${count++}`)
  await mkdir(dir)
  await writeFiles(dir, files)
  return dir
}

/** `file:line: message` of each problem. */
async function problems(files: Files): Promise<string[]> {
  const dir = await project(files)
  try {
    await findPackages(dir)
  } catch (error) {
    assert.ok(error instanceof IssueError && error.code === "PACKAGES_INVALID", String(error))
    return error.issues.map(
      ({ file, line, message }) => `${path.relative(dir, file ?? "")}:${line}: ${message}`,
    )
  }
  return []
}

const json = (value: unknown): string => JSON.stringify(value, null, 2)
const wants = (dependencies: object, more: object = {}): string =>
  json({ name: "demo", version: "1.2.3", scripts: { prepare: "husky" }, dependencies, ...more })
const npmLock = (root: object, packages: object = {}): string =>
  json({ lockfileVersion: 3, packages: { "": root, ...packages } })
const PNPM_LOCK = `lockfileVersion: '9.0'
importers:
  .:
    dependencies:
      ms:
        specifier: ^2.1.3
        version: 2.1.3
`
const YARN_LOCK = `# yarn lockfile v1\n\n"@a/b@1", ms@^2.1.3:\n  version "2.1.3"\n`
const BERRY_LOCK = `__metadata:\n  version: 10\n\n"ms@npm:^2.1.3":\n  version: 2.1.3\n`
const MS = wants({ ms: "^2.1.3" })

describe("the packages of a project", () => {
  test("are none without package.json, and none where it has no dependencies", async () => {
    assert.equal(await findPackages(await project({})), null)
    const types = json({ type: "module", devDependencies: { typescript: "5" } })
    assert.equal(await findPackages(await project({ "package.json": types })), null)
  })

  const locks: readonly [string, Files, manager: string, version: string][] = [
    ["npm", { "package-lock.json": npmLock({ dependencies: { ms: "^2.1.3" } }) }, "npm", ""],
    ["npm's shrinkwrap", { "npm-shrinkwrap.json": npmLock({ dependencies: { ms: "^2.1.3" } }) }, "npm", ""],
    ["pnpm", { "pnpm-lock.yaml": PNPM_LOCK }, "pnpm", "10.34.9"],
    [
      "pnpm 8",
      { "pnpm-lock.yaml": "lockfileVersion: '6.0'\ndependencies:\n  ms: {specifier: ^2.1.3}\n" },
      "pnpm",
      "8.15.9",
    ],
    ["Yarn 1", { "yarn.lock": YARN_LOCK }, "yarn", "1.22.22"],
    ["Yarn 4", { "yarn.lock": BERRY_LOCK }, "yarn-berry", "4.18.1"],
  ]
  for (const [name, lock, manager, version] of locks) {
    test(`are found by the lock file of ${name}`, async () => {
      const found = await findPackages(await project({ "package.json": MS, ...lock }))
      assert.deepEqual([found?.manager, found?.version], [manager, version])
      const [[file, text] = ["", ""]] = Object.entries(lock)
      assert.equal(found?.files[file], text)
      assert.deepEqual(Object.keys(parse(found?.files["package.json"] ?? "") as object), [
        "name",
        "dependencies",
      ])
    })
  }

  test("are installed by the version that packageManager names, with pnpm's own settings", async () => {
    const found = await findPackages(
      await project({
        "package.json": wants({ ms: "^2.1.3" }, { packageManager: "pnpm@12.21.0+sha512.abc" }),
        "pnpm-lock.yaml": PNPM_LOCK,
        "pnpm-workspace.yaml": "allowBuilds: {}\n",
      }),
    )
    assert.equal(found?.version, "12.21.0")
    assert.deepEqual(Object.keys(found?.files ?? {}), [
      "package.json",
      "pnpm-lock.yaml",
      "pnpm-workspace.yaml",
    ])
  })

  const lock = (dependencies: object): Files => ({ "package-lock.json": npmLock({ dependencies }) })
  const wrong: readonly [string, Files, string[] | RegExp][] = [
    [
      "no lock file",
      { "package.json": MS },
      /^package\.json:7: there is no lock file beside it, .* `npm install --package-lock-only` makes one$/,
    ],
    [
      "two lock files",
      { "package.json": MS, ...lock({ ms: "^2.1.3" }), "yarn.lock": YARN_LOCK },
      [
        "package.json:1: there are several lock files beside it: package-lock.json, yarn.lock; keep one of them",
      ],
    ],
    [
      "bun's lock file",
      { "package.json": MS, "bun.lock": "{}" },
      ["bun.lock:1: is the lock file of a manager that is not supported; npm, pnpm and Yarn are"],
    ],
    [
      "a lock file of npm that is out of date",
      { "package.json": wants({ ms: "^2.1.3", zod: "4" }), ...lock({ ms: "^1" }) },
      [
        "package.json:8: ms@^2.1.3: the lock file has it as ^1; `npm install --package-lock-only` brings it up to date",
        "package.json:9: zod@4: the lock file does not have it; `npm install --package-lock-only` brings it up to date",
      ],
    ],
    [
      "one of pnpm",
      { "package.json": wants({ ms: "^3" }), "pnpm-lock.yaml": PNPM_LOCK },
      [
        "package.json:8: ms@^3: the lock file has it as ^2.1.3; `pnpm install --lockfile-only` brings it up to date",
      ],
    ],
    [
      "one of Yarn",
      { "package.json": wants({ "@a/b": "1", ms: "^3" }), "yarn.lock": YARN_LOCK },
      ["package.json:9: ms@^3: the lock file does not have it; `yarn install` brings it up to date"],
    ],
    [
      "a lock file of another manager than package.json names",
      {
        "package.json": wants({ ms: "^2.1.3" }, { packageManager: "yarn@4.1.0" }),
        ...lock({ ms: "^2.1.3" }),
      },
      ["package-lock.json:1: is npm's, but packageManager in package.json says yarn@4.1.0"],
    ],
    [
      "a lock file of npm 6",
      { "package.json": MS, "package-lock.json": json({ lockfileVersion: 1 }) },
      /^package-lock\.json:1: cannot be read: it is of npm 6 or older/,
    ],
    [
      "a lock file that is no JSON",
      { "package.json": MS, "package-lock.json": "{" },
      /^package-lock\.json:1: cannot be read: /,
    ],
    [
      "a new format of pnpm",
      { "package.json": MS, "pnpm-lock.yaml": "lockfileVersion: '77.0'\n" },
      /^pnpm-lock\.yaml:1: cannot be read: its format is 77\.0; supported are /,
    ],
    [
      "pnpm's lock of a workspace",
      { "package.json": MS, "pnpm-lock.yaml": `${PNPM_LOCK}  packages/a: {}\n` },
      /it is of a workspace/,
    ],
    [
      "an empty yarn.lock",
      { "package.json": MS, "yarn.lock": "" },
      /^yarn\.lock:1: cannot be read: it is empty or not Yarn's$/,
    ],
    [
      "a Yarn that cannot leave out what only development needs",
      {
        "package.json": wants({ ms: "^2.1.3" }, { packageManager: "yarn@3.8.7" }),
        "yarn.lock": "__metadata:\n  version: 6\n",
      },
      /^yarn\.lock:1: cannot be read: Yarn 3\.8\.7 cannot install for production alone; `yarn set version 4` makes it one that can$/,
    ],
    ["package.json that is no JSON", { "package.json": "{" }, /^package\.json:1: /],
    ["package.json that is a list", { "package.json": "[]" }, ["package.json:1: is no JSON object"]],
    [
      "dependencies that are no map",
      { "package.json": json({ dependencies: { a: 1 } }) },
      ["package.json:2: dependencies is no map of names to ranges"],
    ],
    [
      "workspaces",
      { "package.json": wants({ ms: "1" }, { workspaces: ["a"] }), ...lock({ ms: "1" }) },
      /^package\.json:10: workspaces are not supported/,
    ],
    [
      "a folder of the machine",
      { "package.json": wants({ a: "file:../a" }), ...lock({ a: "file:../a" }) },
      /^package\.json:8: a is a folder of this machine \(file:\.\.\/a\)/,
    ],
    [
      "a folder whose path does not look like one",
      { "package.json": wants({ a: ".." }), ...lock({ a: ".." }) },
      /^package\.json:8: a is a folder of this machine \(\.\.\)/,
    ],
    [
      "a package from git",
      { "package.json": wants({ a: "user/repo" }), ...lock({ a: "user/repo" }) },
      /^package\.json:8: a comes from git \(user\/repo\)/,
    ],
  ]
  for (const [name, files, expected] of wrong) {
    test(`are refused for ${name}`, async () => {
      const found = await problems(files)
      if (expected instanceof RegExp) assert.match(found.join("\n"), expected)
      else assert.deepEqual(found, expected)
    })
  }
})

describe("a Bento with packages", () => {
  const files = {
    "bentofile.yaml": "service: service.ts:svc\n",
    "package.json": wants({ ms: "^2.1.3" }, { devDependencies: { dev: "1" } }),
    "package-lock.json": npmLock(
      { dependencies: { ms: "^2.1.3" }, devDependencies: { dev: "1" } },
      { "node_modules/ms": {}, "node_modules/dev": { dev: true } },
    ),
    ".npmrc": "registry=https://r.example/\n//r.example/:_authToken=s3cr3t\n",
    "node_modules/ms/index.js": "",
    "node_modules/dev/index.js": "",
  }
  const reads = (file: string): string =>
    `export const svc = { name: "Demo" }\nexport const alsoRead = ["node_modules/${file}/index.js"]\n`
  const given = async () => ({
    home: path.join(folder, "home"),
    runtimeDir: await fakeRuntime(path.join(folder, String(count++))),
  })

  test("keeps package.json and the lock, no node_modules, and no credentials", async () => {
    const dir = await project({ ...files, "service.ts": reads("ms") })
    const built = await buildBento(buildOptions(dir, await given(), { env: { HOME: folder } }))
    const text = await readFile(path.join(built.dir, "bento.yaml"), "utf8")
    const { bentoctl } = parse(text) as { bentoctl: { node: unknown } }
    assert.deepEqual(bentoctl.node, {
      manager: "npm",
      version: "",
      settings: { registry: "https://r.example/" },
    })
    assert.equal(
      await readFile(path.join(built.dir, "env/node/package-lock.json"), "utf8"),
      files["package-lock.json"],
    )
    assert.deepEqual(built.files, ["package-lock.json", "package.json", "service.ts"])
    assert.doesNotMatch(JSON.stringify([built.bento, built.plan, built.files]) + text, /s3cr3t/)
    assert.match(built.npmrc ?? "", /_authToken=s3cr3t/)
  })

  test("is refused when the service imports what only development has", async () => {
    const dir = await project({ ...files, "service.ts": reads("dev") })
    await assert.rejects(
      buildBento(buildOptions(dir, await given())),
      /needs what the Bento leaves out: node_modules\/dev/,
    )
  })

  test("is refused for node.packages without code, or beside package.json", async () => {
    const beside = await project({
      ...files,
      "service.ts": reads("ms"),
      "bentofile.yaml": "service: service.ts:svc\nnode: {packages: [ms@2]}\n",
    })
    await assert.rejects(
      buildBento(buildOptions(beside, await given())),
      /bentofile\.yaml:2: node\.packages: the folder has a package\.json with dependencies/,
    )
  })

  test("has a foundation that does not depend on the credentials", async () => {
    const dir = await project({ "env/node/package.json": "{}" })
    const bento = bentoOf({}, { node: { manager: "npm", version: "", settings: {} } })
    const digest = async (npmrc: string): Promise<string> =>
      (await createContext(planImage(planOptions(bento, { bentoDir: dir, npmrc })), "foundation")).digest()
    assert.equal(await digest("//r/:_authToken=1\n"), await digest("//r/:_authToken=2\n"))
  })
})

describe(".npmrc", () => {
  test("gives a Bento what says where packages come from, and no secret", () => {
    const text = [
      "# comment",
      "registry = https://r.example/",
      "@acme:registry=https://acme.example",
      "@other:registry=https://user:pass@r.example",
      "@third:registry=${WHERE}",
      "//r.example/:_authToken=s3cr3t",
      "_auth=czNjcjN0",
      "legacy-peer-deps=true",
      "email=me@example.com",
    ]
    assert.deepEqual(registrySettings(text.join("\r\n")), {
      registry: "https://r.example/",
      "@acme:registry": "https://acme.example",
      "legacy-peer-deps": "true",
    })
  })

  test("is one text of the user's and the project's, with variables and certificates put in", async () => {
    const dir = await project({
      "home/.npmrc": "registry=https://user.example/\ncafile=${CERTS}/ca.pem\n",
      ".npmrc": "//r.example/:_authToken=${TOKEN}\n_auth=${UNKNOWN}\nprefix=/home/me\n",
      "ca.pem": "-----BEGIN\nx\n",
    })
    const env = { HOME: path.join(dir, "home"), TOKEN: "t0ken", CERTS: dir }
    assert.equal(
      await readNpmrc(env, dir),
      'registry=https://user.example/\nca="-----BEGIN\\nx\\n"\n//r.example/:_authToken=t0ken\n_auth=${UNKNOWN}\n',
    )
    assert.equal(
      await readNpmrc({ NPM_CONFIG_USERCONFIG: path.join(dir, "home/.npmrc"), CERTS: "/nowhere" }, null),
      "registry=https://user.example/\n",
    )
    assert.equal(await readNpmrc({ HOME: dir + "/nobody" }, null), "")
  })
})
