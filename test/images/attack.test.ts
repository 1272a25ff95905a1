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
import { readBentofile } from "../../images/bentofile.ts"
import type { Bentofile } from "../../images/bentofile.ts"
import { dockerfileOf, readFiles } from "../../images/context.ts"
import { imageNames, planImage } from "../../images/plan.ts"
import type { ImagePlan } from "../../images/plan.ts"
import { formatBentoYaml, parseBentoYaml } from "../../store/bento.ts"
import type { Bento } from "../../store/bento.ts"
import { BentoError, IssueError } from "../../store/errors.ts"
import { parseDockerfile, parsePair } from "./dockerfile.ts"
import { CONTROLS, HOSTILE, LINES } from "./hostile.ts"
import type { Hostile } from "./hostile.ts"
import { bentoOf, planned, planOptions, temporaryFolder } from "./support.ts"

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
}

function seen(bento: Bento): Seen {
  const plan = planImage(planOptions(bento, { models: [planned("iris", "v1", "/m")] }))
  const instructions = parseDockerfile(dockerfileOf(plan))
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

describe("in bentofile.yaml a hostile value is refused with its line, or arrives as it is:", () => {
  let count = 0

  /** `put` gives the text of the file; the value stands on its last line. */
  async function read(text: string): Promise<Seen | "refused"> {
    const dir = path.join(folder, `bentofile-${count++}`)
    await mkdir(dir)
    const file = path.join(dir, "bentofile.yaml")
    await writeFile(file, text)
    try {
      return seen(bentoFrom(await readBentofile(file)))
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
  function bentoFrom({ name, description, labels, models, envs, docker }: Bentofile): Bento {
    const [model] = models
    return bentoOf(docker, {
      ...(name === null ? {} : { tag: { name, version: "v1" } }),
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
  const fields: Readonly<Record<string, Field<string>>> = {
    name: {
      put: (value) => `name: ${json(value)}`,
      get: ({ labels }) => labels.get("org.opencontainers.image.title"),
      carried: ["constructor"],
    },
    "the value of a label": {
      put: (value) => `labels:\n  owner: ${json(value)}`,
      get: ({ labels }) => labels.get("owner"),
    },
    "the key of a label": {
      put: (value) =>
        `labels:\n  ${value.length > 1000 ? "? " : ""}${json(value)}${value.length > 1000 ? "\n  " : ""}: x`,
      get: ({ labels }) => [...labels].findLast(([, value]) => value === "x")?.[0],
      carried: LINES.filter((what) => what !== "prototype" && !/[=\s"'\\$]/.test(HOSTILE[what])),
    },
    "the value in envs": {
      put: (value) => `envs:\n  - name: A\n    value: ${json(value)}`,
      get: ({ env }) => env.get("A"),
    },
    "the value in envs of the container alone": {
      put: (value) => `envs:\n  - name: A\n    stage: runtime\n    value: ${json(value)}`,
      get: ({ env }) => env.get("A"),
    },
    "the value in envs of the build alone": {
      put: (value) =>
        `docker: {system_packages: [curl]}\nenvs:\n  - name: A\n    stage: build\n    value: ${json(value)}`,
      get: ({ plan }) =>
        plan.stepFiles.flatMap((file) => (file.kind === "secret" ? file.values : []))[0]?.value,
    },
    "the name in envs": {
      put: (value) => `envs:\n  - value: x\n    name: ${json(value)}`,
      get: ({ env }) => [...env].at(-1)?.[0],
      carried: ["4 KiB", "prototype", "constructor"],
    },
    "the value in docker.env": {
      put: (value) => `docker:\n  env:\n    A: ${json(value)}`,
      get: ({ env }) => env.get("A"),
    },
    "the value in a list of docker.env": {
      put: (value) => `docker:\n  env:\n    - ${json(`A=${value}`)}`,
      get: ({ env }) => env.get("A"),
    },
    "the name in a list of docker.env": {
      // What stands behind an equals sign is no name.
      put: (value) => `docker:\n  env:\n    - ${json(value === "x=y" ? "x =y" : `${value}=x`)}`,
      get: ({ env }) => [...env].at(-1)?.[0],
      carried: ["4 KiB", "prototype", "constructor"],
    },
    "a system package": {
      put: (value) => `docker:\n  system_packages:\n    - ${json(value)}`,
      get: ({ plan }) => plan.dockerfile.systemPackages[0],
      carried: ["4 KiB", "constructor"],
    },
    "the base image": {
      put: (value) => `docker:\n  base_image: ${json(value)}`,
      get: ({ plan }) => plan.dockerfile.baseImage,
      carried: ["constructor"],
    },
    "the alias of a model": {
      put: (value) => `models:\n  - tag: iris\n    alias: ${json(value)}`,
      get: ({ labels }) =>
        (JSON.parse(labels.get("bentoctl.models") ?? "[]") as { alias?: string }[])[0]?.alias,
      carried: ["prototype", "constructor"],
    },
  }
  for (const [name, field] of Object.entries(fields)) test(name, () => attack(field, read))

  const refusing: Readonly<Record<string, (value: string) => string>> = {
    "the tag of a model": (value) => `models:\n  - ${json(`${value}:${value}`)}`,
    "an npm package": (value) => `node:\n  packages:\n    - ${json(value)}`,
    "the version of CUDA": (value) => `docker:\n  cuda_version: ${json(value)}`,
    "the distribution": (value) => `docker:\n  distro: ${json(value)}`,
    "the stage in envs": (value) => `envs:\n  - name: A\n    stage: ${json(value)}`,
    "an unknown key": (value) => (value.length > 1000 ? `docker:\n  "y": x` : `docker:\n  ${json(value)}: x`),
  }
  for (const [name, put] of Object.entries(refusing)) {
    test(`${name}, which is never one of them`, async () => {
      for (const what of ALL) {
        const value = HOSTILE[what]
        // A model, or a package, may well be called so; whether there is one is for the store to say.
        if (["the tag of a model", "an npm package"].includes(name) && what === "constructor") continue
        assert.equal(await read(put(value)), "refused", what)
      }
    })
  }

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

test("paths in bentofile.yaml lead to files of the context, whatever they are called, and nowhere else", async () => {
  const outside = path.join(folder, "outside")
  await writeFile(outside, "A=outside")
  const context = path.join(folder, "paths")
  await mkdir(context)
  const file = path.join(context, "bentofile.yaml")
  const forms = (written: string): [string, (read: Bentofile) => unknown][] => [
    [`docker: {setup_script: ${JSON.stringify(written)}}\n`, ({ docker }) => docker.setupScript],
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
  for (const what of ALL) {
    const name = HOSTILE[what]
    // No file can have such a name, or it is a path of its own.
    const exists =
      !name.includes("/") && name !== ".." && name.length < 256 && !name.includes("\0") && name.isWellFormed()
    if (exists) {
      await writeFile(path.join(context, name), "A=inside")
      assert.deepEqual(await read(name), [name, "A=inside", "inside"], what)
      await rm(path.join(context, name))
      await symlink(outside, path.join(context, name))
    }
    assert.deepEqual(await read(name), ["refused", "refused", "refused"], what)
  }
  await writeFile(path.join(context, "..name"), "A=inside")
  assert.deepEqual(await read("..name"), ["..name", "A=inside", "inside"])
  await symlink(folder, path.join(context, "folder"))
  for (const way of ["../outside", "folder/outside", outside, "sub/../../outside", "."]) {
    assert.deepEqual(await read(way), ["refused", "refused", "refused"], way)
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
  for (const name of ["__proto__", "constructor"]) {
    assert.deepEqual(Object.entries((await read(`${name}=x\n`)) ?? {}), [[name, "x"]])
  }
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
      /the link src\/x leaves its folder/,
    ],
    [
      "a link above it",
      (dir) => symlink("../../x", path.join(dir, "x")),
      /the link src\/x leaves its folder/,
    ],
    [
      "a link that goes up where it seems to go down",
      (dir) => symlink("a/../../x", path.join(dir, "x")),
      /the link src\/x leaves its folder/,
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
      const read = () => readFiles([{ kind: "tree", from: dir, to: "src" }])
      assert.equal((await read()).length, 3)
      await spoil(dir)
      await assert.rejects(read(), (error) => error instanceof BentoError && reason.test(error.message))
    })
  }
})
