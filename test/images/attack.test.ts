/**
 * Hostile values in every field that reaches a Dockerfile, a path, a label or a shell: each is refused with its line, or
 * arrives as exactly the value that was given, and changes nothing else. What a real engine makes of them is
 * in test/e2e/attack.test.ts.
 */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { mkdir, rm, symlink, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, describe, test } from "node:test"
import { bentofileJsonSchema, readBentofile } from "../../images/bentofile.ts"
import type { Bentofile } from "../../images/bentofile.ts"
import { readFiles } from "../../images/context.ts"
import { imageNames, planImage } from "../../images/plan.ts"
import type { ImagePlan } from "../../images/plan.ts"
import { walkContext } from "../../images/walk.ts"
import { formatBentoYaml, parseBentoYaml } from "../../store/bento.ts"
import type { Bento } from "../../store/bento.ts"
import { BentoError, IssueError } from "../../store/errors.ts"
import { parseDockerfile, parsePair } from "./dockerfile.ts"
import { CONTROLS, HOSTILE, LINES } from "./hostile.ts"
import type { Hostile } from "./hostile.ts"
import { bentoOf, planned, planOptions, temporaryFolder } from "./support.ts"
import { renderDockerfile } from "../../templates/render.ts"

const { folder, remove } = await temporaryFolder()
after(remove)

const ALL = Object.keys(HOSTILE) as Hostile[]

/** What of a plan reaches the engine, read back from the Dockerfile. */
interface Seen {
  /** Names of the instructions. */
  readonly instructions: readonly string[]
  readonly env: ReadonlyMap<string, string>
  readonly labels: ReadonlyMap<string, string>
  readonly plan: ImagePlan
  /** What it was made of. */
  readonly bentofile?: Bentofile
}

function seen(bento: Bento): Seen {
  const plan = planImage(planOptions(bento, { models: [planned("iris", "v1", "/m")] }))
  const instructions = parseDockerfile(renderDockerfile({ ...plan.dockerfile, template: null }))
  const pairs = (name: string): Map<string, string> =>
    new Map(
      instructions
        .filter((instruction) => instruction.name === name)
        .map((instruction) => parsePair(instruction.text)),
    )
  return {
    instructions: instructions.map(({ name }) => name),
    env: pairs("ENV"),
    labels: pairs("LABEL"),
    plan,
  }
}

/** A field: where a value is put, and where it must come out again. */
interface Field<Given> {
  /** The value as a part of what is read. */
  readonly put: (value: string) => Given
  /** The value as it arrives. */
  readonly get: (seen: Seen) => unknown
  /** Which values arrive; the others are refused. Default: whatever one line can hold. */
  readonly carried?: readonly Hostile[]
}

/** Puts every hostile value into a field; whatever is not refused must arrive, and the instructions stay those of `x1`. */
async function attack<Given>(
  field: Field<Given>,
  read: (given: Given) => Promise<Seen | "refused">,
  harmless = "x1",
): Promise<void> {
  const usual = await read(field.put(harmless))
  assert.ok(usual !== "refused", `${harmless} is refused`)
  assert.equal(field.get(usual), harmless)
  const carried: Hostile[] = []
  for (const what of ALL) {
    const found = await read(field.put(HOSTILE[what]))
    if (found === "refused") continue
    assert.deepEqual(found.instructions, usual.instructions, what)
    assert.equal(field.get(found), HOSTILE[what], what)
    carried.push(what)
  }
  assert.deepEqual(carried, field.carried ?? LINES)
}

/** Fields of bentofile.yaml, as the schema has them: `envs[].name`; `labels.*` is a value there, `labels{}` a key. */
const attacked = new Set<string>()

describe("in bentofile.yaml a hostile value is refused with its line, or arrives as it is:", () => {
  let count = 0

  /** `put` gives the text of the file; the value stands on its last line. */
  async function read(text: string): Promise<Seen | "refused"> {
    const dir = path.join(folder, `bentofile-${count++}`)
    await mkdir(dir)
    const file = path.join(dir, "bentofile.yaml")
    await writeFile(file, text)
    try {
      const bentofile = await readBentofile(file)
      return { ...seen(bentoFrom(bentofile)), bentofile }
    } catch (error) {
      assert.ok(error instanceof IssueError && error.code === "BENTOFILE_INVALID", String(error))
      assert.doesNotMatch(error.message, /\[object|native code|undefined/)
      for (const issue of error.issues) assert.equal(issue.line, text.split("\n").length, error.message)
      return "refused"
    } finally {
      await rm(dir, { recursive: true })
    }
  }

  /** As `build` makes it of the file. */
  function bentoFrom({ name, service, description, labels, models, envs, docker }: Bentofile): Bento {
    const [model] = models
    return bentoOf(docker, {
      ...(name === null ? {} : { tag: { name, version: "v1" } }),
      ...(service === null ? {} : { service }),
      description: description ?? "",
      labels,
      envs,
      ...(model === undefined
        ? {}
        : {
            models: [
              {
                tag: { name: "iris", version: "v1" },
                module: "bentoml.onnx",
                creationTime: "",
                ...(model.alias === undefined ? {} : { alias: model.alias }),
              },
            ],
          }),
    })
  }

  const json = JSON.stringify
  /** A key of more than 1024 characters is a line of its own. */
  const keyOf = (value: string, indent: string): string =>
    value.length > 1000 ? `? ${json(value)}\n${indent}` : json(value)
  const fields: Readonly<Record<string, Field<string> & { readonly at: string }>> = {
    name: {
      at: "name",
      put: (value) => `name: ${json(value)}`,
      get: ({ labels }) => labels.get("org.opencontainers.image.title"),
      carried: ["constructor"],
    },
    "the value of a label": {
      at: "labels.*",
      put: (value) => `labels:\n  owner: ${json(value)}`,
      get: ({ labels }) => labels.get("owner"),
    },
    "the key of a label": {
      at: "labels{}",
      put: (value) => `labels:\n  ${keyOf(value, "  ")}: x`,
      get: ({ labels }) => [...labels].findLast(([, value]) => value === "x")?.[0],
      carried: LINES.filter((what) => what !== "prototype" && !/[=\s"'\\$]/.test(HOSTILE[what])),
    },
    "the value in envs": {
      at: "envs[].value",
      put: (value) => `envs:\n  - name: A\n    value: ${json(value)}`,
      get: ({ env }) => env.get("A"),
    },
    "the value in envs of the container alone": {
      at: "envs[].value",
      put: (value) => `envs:\n  - name: A\n    stage: runtime\n    value: ${json(value)}`,
      get: ({ env }) => env.get("A"),
    },
    "the value in envs of the build alone": {
      at: "envs[].value",
      put: (value) =>
        `docker: {system_packages: [curl]}\nenvs:\n  - name: A\n    stage: build\n    value: ${json(value)}`,
      get: ({ plan }) =>
        plan.stepFiles.flatMap((file) => (file.kind === "secret" ? file.values : []))[0]?.value,
    },
    "the name in envs": {
      at: "envs[].name",
      put: (value) => `envs:\n  - value: x\n    name: ${json(value)}`,
      get: ({ env }) => [...env].at(-1)?.[0],
      carried: ["4 KiB", "prototype", "constructor"],
    },
    "the value in docker.env": {
      at: "docker.env.*",
      put: (value) => `docker:\n  env:\n    A: ${json(value)}`,
      get: ({ env }) => env.get("A"),
    },
    "the value in a list of docker.env": {
      at: "docker.env[]",
      put: (value) => `docker:\n  env:\n    - ${json(`A=${value}`)}`,
      get: ({ env }) => env.get("A"),
    },
    "the name in a list of docker.env": {
      at: "docker.env[]",
      // What stands behind an equals sign is no name.
      put: (value) => `docker:\n  env:\n    - ${json(value === "x=y" ? "x =y" : `${value}=x`)}`,
      get: ({ env }) => [...env].at(-1)?.[0],
      carried: ["4 KiB", "constructor"],
    },
    "the name in docker.env": {
      at: "docker.env{}",
      put: (value) => `docker:\n  env:\n    ${keyOf(value, "    ")}: x`,
      get: ({ env }) => [...env].at(-1)?.[0],
      carried: ["4 KiB", "constructor"],
    },
    "the service": {
      at: "service",
      put: (value) => `service: ${json(value)}`,
      get: ({ labels }) => labels.get("bentoctl.service"),
    },
    "a pattern of include": {
      at: "include[]",
      put: (value) => `include:\n  - ${json(value)}`,
      get: ({ bentofile }) => bentofile?.include?.[0],
      carried: LINES.filter((what) => what !== "way up"),
    },
    "a pattern of exclude": {
      at: "exclude[]",
      put: (value) => `exclude:\n  - ${json(value)}`,
      get: ({ bentofile }) => bentofile?.exclude[0],
      carried: LINES.filter((what) => what !== "way up"),
    },
    "a system package": {
      at: "docker.system_packages[]",
      put: (value) => `docker:\n  system_packages:\n    - ${json(value)}`,
      get: ({ plan }) => plan.dockerfile.systemPackages[0],
      carried: ["4 KiB", "constructor"],
    },
    "the base image": {
      at: "docker.base_image",
      put: (value) => `docker:\n  base_image: ${json(value)}`,
      get: ({ plan }) => plan.dockerfile.baseImage,
      carried: ["constructor"],
    },
    "the range of an npm package": {
      at: "node.packages[]",
      put: (value) => `node:\n  packages:\n    - ${json(`ms@${value}`)}`,
      get: ({ bentofile }) => bentofile?.node.packages[0]?.slice("ms@".length),
      // Ranges and tags, which the registry knows or not.
      carried: ["here document", "glob", "prototype", "constructor", "equals sign"],
    },
    "the alias of a model": {
      at: "models[].alias",
      put: (value) => `models:\n  - tag: iris\n    alias: ${json(value)}`,
      get: ({ labels }) =>
        (JSON.parse(labels.get("bentoctl.models") ?? "[]") as { alias?: string }[])[0]?.alias,
      carried: ["prototype", "constructor"],
    },
  }
  for (const [name, field] of Object.entries(fields)) {
    attacked.add(field.at)
    test(name, () => attack(field, read))
  }

  const refusing: Readonly<Record<string, readonly [at: string, put: (value: string) => string]>> = {
    "the tag of a model": ["models[]", (value) => `models:\n  - ${json(`${value}:${value}`)}`],
    "the tag of a model with an alias": [
      "models[].tag",
      (value) => `models:\n  - alias: a\n    tag: ${json(`${value}:${value}`)}`,
    ],
    "an npm package": ["node.packages[]", (value) => `node:\n  packages:\n    - ${json(value)}`],
    "the version of CUDA": ["docker.cuda_version", (value) => `docker:\n  cuda_version: ${json(value)}`],
    "the version of Node": ["docker.node_version", (value) => `docker:\n  node_version: ${json(value)}`],
    "a platform": ["docker.platforms[]", (value) => `docker:\n  platforms:\n    - ${json(value)}`],
    "the distribution": ["docker.distro", (value) => `docker:\n  distro: ${json(value)}`],
    "the stage in envs": ["envs[].stage", (value) => `envs:\n  - name: A\n    stage: ${json(value)}`],
    "the self-test": ["selftest", (value) => `selftest: ${json(value)}`],
    "an unknown key": [
      "",
      (value) => (value.length > 1000 ? `docker:\n  "y": x` : `docker:\n  ${json(value)}: x`),
    ],
  }
  for (const [name, [at, put]] of Object.entries(refusing)) {
    attacked.add(at)
    test(`${name}, which is never one of them`, async () => {
      for (const what of ALL) {
        const value = HOSTILE[what]
        // A model, or a package, may well be called so; whether there is one is for the store to say.
        if (/^(?:the tag|an npm)/.test(name) && what === "constructor") continue
        assert.equal(await read(put(value)), "refused", what)
      }
    })
  }

  attacked.add("description")
  test("the description, of which a label gets one line", async () => {
    const label = async (text: string): Promise<string | undefined> => {
      const found = await read(`description: ${json(text)}`)
      assert.ok(found !== "refused")
      return found.labels.get("org.opencontainers.image.description")
    }
    for (const what of LINES) {
      const value = HOSTILE[what].replace(/^[#>\s*-]+/, "").trim()
      assert.equal(await label(HOSTILE[what]), value === "" ? undefined : value.slice(0, 500), what)
    }
    for (const what of CONTROLS) {
      const found = (await label(HOSTILE[what])) ?? ""
      // oxlint-disable-next-line no-control-regex -- control characters are what is looked for
      assert.doesNotMatch(found, /[\0-\u001f]/, what)
      assert.ok(found.isWellFormed(), what)
    }
  })
})

for (const at of ["docker.setup_script", "docker.dockerfile_template", "description.file", "docker.env"]) {
  attacked.add(at)
}
test("paths in bentofile.yaml lead to files of the context, whatever they are called, and nowhere else", async () => {
  const outside = path.join(folder, "outside")
  await writeFile(outside, "A=outside")
  const context = path.join(folder, "paths")
  await mkdir(context)
  const file = path.join(context, "bentofile.yaml")
  const forms = (written: string): [string, (read: Bentofile) => unknown][] => [
    [`docker: {setup_script: ${JSON.stringify(written)}}\n`, ({ docker }) => docker.setupScript],
    [
      `docker: {dockerfile_template: ${JSON.stringify(written)}}\n`,
      ({ docker }) => docker.dockerfileTemplate,
    ],
    [`description: {file: ${JSON.stringify(written)}}\n`, ({ description }) => description],
    [`docker: {env: ${JSON.stringify(written)}}\n`, ({ docker }) => docker.env["A"]],
  ]
  /** One word for each form: what was read, or `refused`. */
  const read = async (written: string): Promise<unknown[]> => {
    const found: unknown[] = []
    for (const [text, get] of forms(written)) {
      await writeFile(file, text)
      try {
        found.push(get(await readBentofile(file)))
      } catch (error) {
        assert.ok(error instanceof IssueError && error.code === "BENTOFILE_INVALID", String(error))
        assert.equal(error.issues[0]?.line, 1, error.message)
        found.push("refused")
      }
    }
    return found
  }
  const REFUSED = forms("").map(() => "refused")
  for (const what of ALL) {
    const name = HOSTILE[what]
    // No file can have such a name, or it is a path of its own.
    const exists =
      !name.includes("/") && name !== ".." && name.length < 256 && !name.includes("\0") && name.isWellFormed()
    if (exists) {
      await writeFile(path.join(context, name), "A=inside")
      assert.deepEqual(await read(name), [name, name, "A=inside", "inside"], what)
      await rm(path.join(context, name))
      await symlink(outside, path.join(context, name))
    }
    assert.deepEqual(await read(name), REFUSED, what)
  }
  await writeFile(path.join(context, "..name"), "A=inside")
  assert.deepEqual(await read("..name"), ["..name", "..name", "A=inside", "inside"])
  await symlink(folder, path.join(context, "folder"))
  for (const way of ["../outside", "folder/outside", outside, "sub/../../outside", "."]) {
    assert.deepEqual(await read(way), REFUSED, way)
  }
})

test("patterns take and leave out files of the context, and reach nothing else", async () => {
  const dir = path.join(folder, "patterns")
  await mkdir(dir)
  await Promise.all(["a", "x", "x1"].map((name) => writeFile(path.join(dir, name), "")))
  for (const what of LINES) {
    const taken = await Promise.all(
      [{ include: [HOSTILE[what]] }, { exclude: [HOSTILE[what]] }].map((options) =>
        walkContext(dir, options),
      ),
    )
    for (const { path: name } of taken.flatMap(({ entries }) => entries)) {
      assert.ok(["a", "x", "x1"].includes(name), `${what}: ${name}`)
    }
  }
})

test("variables in a dotenv file have any value of a line, and any name that is one", async () => {
  const context = path.join(folder, "dotenv")
  await mkdir(context)
  const file = path.join(context, "bentofile.yaml")
  await writeFile(file, "docker: {env: vars.env}\n")
  const read = async (text: string): Promise<Bentofile["docker"]["env"] | null> => {
    await writeFile(path.join(context, "vars.env"), text)
    return readBentofile(file).then(
      ({ docker }) => docker.env,
      (error: unknown) => {
        assert.ok(error instanceof IssueError && error.issues[0]?.line === 1, String(error))
        return null
      },
    )
  }
  for (const what of ALL.filter((key) => !/['\n]/.test(HOSTILE[key]))) {
    const env = await read(`A='${HOSTILE[what]}'\n`)
    const asWritten = HOSTILE[what].isWellFormed() ? HOSTILE[what] : "x\ufffdy"
    assert.deepEqual(
      env?.["A"],
      CONTROLS.includes(what) && what !== "lone surrogate" ? undefined : asWritten,
      what,
    )
  }
  assert.equal(await read("__proto__=x\n"), null)
  assert.deepEqual(Object.entries((await read("constructor=x\n")) ?? {}), [["constructor", "x"]])
})

test("no field of bentofile.yaml is left out here", () => {
  interface Schema {
    readonly type?: unknown
    readonly properties?: Readonly<Record<string, Schema>>
    readonly additionalProperties?: Schema | boolean
    readonly items?: Schema
    readonly anyOf?: readonly Schema[]
  }
  const leaves = (schema: Schema, at: string): string[] => {
    const { properties = {}, additionalProperties: values, items, anyOf = [] } = schema
    const below = [
      ...Object.entries(properties).flatMap(([key, value]) =>
        leaves(value, at === "" ? key : `${at}.${key}`),
      ),
      ...(typeof values === "object" ? [`${at}{}`, ...leaves(values, `${at}.*`)] : []),
      ...(items === undefined ? [] : leaves(items, `${at}[]`)),
      ...anyOf.flatMap((one) => leaves(one, at)),
    ]
    const isLeaf = !["null", "object", "array", undefined].includes(schema.type as string | undefined)
    return isLeaf ? [at, ...below] : below
  }
  const all = [...new Set(leaves(bentofileJsonSchema(), ""))].toSorted()
  assert.ok(all.length > 20, "the schema was read")
  assert.deepEqual(all, [...attacked].filter((at) => at !== "").toSorted())
})

describe("in a Bento that another tool wrote a hostile value is refused, or arrives as it is:", () => {
  async function read(bento: Bento): Promise<Seen | "refused"> {
    try {
      return seen(parseBentoYaml(formatBentoYaml(bento), "bento.yaml"))
    } catch (error) {
      assert.ok(error instanceof BentoError && error.code === "MANIFEST_INVALID", String(error))
      return "refused"
    }
  }
  const [api] = bentoOf().apis
  assert.ok(api !== undefined)
  const apiOf = ({ labels }: Seen) =>
    (JSON.parse(labels.get("bentoctl.apis") ?? "[]") as Record<string, string>[])[0]
  /** JSON spells what a line cannot hold. */
  const anyText = ALL
  const fields: Readonly<Record<string, Field<Bento> & { harmless?: string }>> = {
    "the service": {
      put: (service) => bentoOf({}, { service }),
      get: ({ labels }) => labels.get("bentoctl.service"),
    },
    "the version of bentoctl": {
      put: (bentoctlVersion) => bentoOf({}, { bentoctlVersion }),
      get: ({ labels }) => labels.get("bentoctl.version"),
    },
    "the value of a label": {
      put: (owner) => bentoOf({}, { labels: { owner } }),
      get: ({ labels }) => labels.get("owner"),
    },
    "the key of a label": {
      put: (key) => bentoOf({}, { labels: Object.fromEntries([[key, "x"]]) }),
      get: ({ labels }) => [...labels].findLast(([, value]) => value === "x")?.[0],
      carried: LINES.filter((what) => what !== "prototype" && !/[=\s"'\\$]/.test(HOSTILE[what])),
    },
    "the value in envs": {
      put: (value) => bentoOf({}, { envs: [{ name: "A", value, stage: "all" }] }),
      get: ({ env }) => env.get("A"),
    },
    "the name in envs": {
      put: (name) => bentoOf({}, { envs: [{ name, value: "x", stage: "runtime" }] }),
      get: ({ env }) => [...env].at(-1)?.[0],
      carried: ["4 KiB", "prototype", "constructor"],
    },
    "the value in docker.env": {
      put: (value) => bentoOf({ env: { A: value } }),
      get: ({ env }) => env.get("A"),
    },
    "a system package": {
      put: (value) => bentoOf({ systemPackages: [value] }),
      get: ({ plan }) => plan.dockerfile.systemPackages[0],
      carried: ["4 KiB", "constructor"],
    },
    "the base image": {
      put: (baseImage) => bentoOf({ baseImage }),
      get: ({ plan }) => plan.dockerfile.baseImage,
      carried: ["constructor"],
    },
    "the name of an API": {
      put: (name) => bentoOf({}, { apis: [{ ...api, name }] }),
      get: (found) => apiOf(found)?.["name"],
      carried: anyText,
    },
    "the route of an API": {
      put: (route) => bentoOf({}, { apis: [{ ...api, route }] }),
      get: (found) => apiOf(found)?.["route"],
      carried: anyText,
    },
  }
  for (const [name, field] of Object.entries(fields)) test(name, () => attack(field, read))

  test("the setup script, whose path is never used", async () => {
    for (const what of ALL) {
      const found = await read(bentoOf({ setupScript: HOSTILE[what] }))
      assert.ok(found !== "refused", what)
      const [script] = found.plan.stepFiles
      assert.ok(script?.kind === "file" && script.to === "setup/script")
      assert.equal(path.basename(script.from), "setup_script", what)
    }
  })
})

test("what is said on the command line is read as strictly", () => {
  for (const what of ALL.filter((key) => key !== "constructor")) {
    const value = HOSTILE[what]
    assert.throws(() => imageNames([value]), BentoError, what)
    const given = planOptions(bentoOf(), { baseImage: value })
    assert.throws(() => planImage(given), BentoError, what)
  }
})

test("a build-time variable gets its value from the environment, and from nothing that only looks like it", () => {
  for (const name of ["constructor", "toString", "__proto__"]) {
    const bento = bentoOf({ setupScript: "x" }, { envs: [{ name, value: "given", stage: "build" }] })
    for (const buildEnv of [{}, process.env]) {
      const { stepFiles } = planImage(planOptions(bento, { buildEnv }))
      assert.deepEqual(stepFiles.at(-1), {
        kind: "secret",
        to: "build-env/env",
        values: [{ name, value: "given" }],
      })
    }
  }
})

test("a package cannot be one that apt takes away", () => {
  for (const name of ["curl-", "curl:amd64-", "curl=1.0-"]) {
    assert.throws(
      () => planImage(planOptions(bentoOf({ systemPackages: [name] }))),
      /is no name of a Debian package/,
    )
  }
  planImage(planOptions(bentoOf({ systemPackages: ["g++", "libstdc++6:amd64", "x11-utils=7.7+5-1"] })))
})

test("labels that bentoctl reads are nobody else's", () => {
  for (const key of ["bentoctl.foundation", "bentoctl.models", "bentoctl.x"]) {
    const bento = bentoOf({}, { labels: { [key]: "x" } })
    assert.throws(() => planImage(planOptions(bento)), /are bentoctl's own/)
  }
})

describe("a folder of the store that another tool wrote is taken only as plain files, and links inside it:", () => {
  const cases: readonly (readonly [what: string, spoil: (dir: string) => unknown, reason: RegExp])[] = [
    [
      "a link out of it",
      (dir) => symlink("/etc/passwd", path.join(dir, "x")),
      /the link bento\/src\/x leaves its folder/,
    ],
    [
      "a link above it",
      (dir) => symlink("../../x", path.join(dir, "x")),
      /the link bento\/src\/x leaves its folder/,
    ],
    [
      "a link that goes up where it seems to go down",
      (dir) => symlink("a/../../x", path.join(dir, "x")),
      /the link bento\/src\/x leaves its folder/,
    ],
    ["a named pipe", (dir) => execFileSync("mkfifo", [path.join(dir, "x")]), /x is neither a file nor/],
    [
      "a name that deletes a file",
      (dir) => writeFile(path.join(dir, ".wh.x"), ""),
      /\.wh\.x can be in no image/,
    ],
    ["a folder that hides others", (dir) => mkdir(path.join(dir, ".wh..wh..opq")), /opq can be in no image/],
  ]
  for (const [index, [what, spoil, reason]] of cases.entries()) {
    test(what, async () => {
      const dir = path.join(folder, `foreign-${index}`)
      await mkdir(dir)
      await writeFile(path.join(dir, "y"), "")
      await symlink("y", path.join(dir, "z"))
      const read = () => readFiles([{ kind: "tree", from: dir, to: "bento/src" }])
      assert.equal((await read()).length, 4)
      await spoil(dir)
      await assert.rejects(read(), (error) => error instanceof BentoError && reason.test(error.message))
    })
  }
})
