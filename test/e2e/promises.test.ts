/** What an image promises whoever runs it: needs no right, writes nowhere, holds nothing that it should not, says what is in it. */
import assert from "node:assert/strict"
import { mkdir, readFile, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { Spec, Validation } from "@cyclonedx/cyclonedx-library"
import { bentoctl, docker, filesOf, root, run, searchImage, temporaryFolder } from "./support.ts"

const { folder, remove } = await temporaryFolder()
const env = { BENTOML_HOME: path.join(folder, "bentoml") }
const baseImage = process.env["BENTOCTL_BASE_IMAGE"] ?? "node:24-bookworm-slim"
const NAME = `bentoctl-e2e-promises-${process.pid}`
const image = `${NAME}:assemble`
const containers: string[] = []
/** Path → what it is, of whole file systems. */
const files = { base: new Map<string, string>(), image: new Map<string, string>() }
const SECRETS = ["t0ken-of-the-remote", "t0ken-of-npm", "t0ken-of-env", "t0ken-of-a-key"]
const SBOM = path.join(folder, "sbom.json")

after(async () => {
  if (containers.length > 0) await docker("rm", "-f", ...containers)
  await run("docker", ["rmi", "-f", image, `${NAME}:dockerfile`, `${NAME}:next`])
  await remove()
})

const ok = async (...args: string[]): Promise<string> => {
  const { code, stdout, stderr } = await bentoctl(args, env)
  assert.equal(code, 0, `bentoctl ${args.join(" ")} exits ${code}:\n${stdout}${stderr}`)
  return stdout
}

const project = path.join(folder, "project")
before(async () => {
  const sources = {
    "bentofile.yaml": "models: [iris_clf]\ninclude: ['*']\n",
    ".env": `TOKEN=${SECRETS[2]}\n`,
    ".npmrc": `//registry.example.com/:_authToken=${SECRETS[1]}\n`,
    "deploy/id_rsa": `${SECRETS[3]}\n`,
    "deploy/server.pem": `-----BEGIN PRIVATE KEY-----\n${SECRETS[3]}\n-----END PRIVATE KEY-----\n`,
    "package.json": '{"license":"MIT"}\n',
    "src/notes.txt": "kept\n",
  }
  for (const [name, text] of Object.entries(sources)) {
    await mkdir(path.dirname(path.join(project, name)), { recursive: true })
    await writeFile(path.join(project, name), text)
  }
  const user = ["-c", "user.name=n", "-c", "user.email=n@example.com"]
  for (const args of [
    ["init", "-q"],
    ["add", "bentofile.yaml"],
    [...user, "commit", "-q", "-m", "first"],
    ["remote", "add", "origin", `https://user:${SECRETS[0]}@git.example.com/team/iris`],
  ]) {
    await run("git", args, { cwd: project })
  }
  await ok("models", "import", path.join(root, "examples/iris/iris.onnx"), "--name", "iris_clf")
  await ok("build", project, "--name", NAME, "--containerize", "-t", image, "--sbom", SBOM)
  await ok("containerize", NAME, "-t", `${NAME}:dockerfile`, "--builder", "dockerfile")
  files.base = await filesOf(baseImage)
  files.image = await filesOf(image)
})

/** Waits for the server in a container; nothing of the host's network is needed. */
const WAIT = `
  const until = Date.now() + 20000
  const ready = () => fetch("http://127.0.0.1:3000/readyz").then((r) => r.status === 200, () => false)
  while (!(await ready()) && Date.now() < until) await new Promise((resolve) => setTimeout(resolve, 20))`
const ASK = `${WAIT}
  const body = JSON.stringify({ X: [[5.1, 3.5, 1.4, 0.2]] })
  const response = await fetch("http://127.0.0.1:3000/run", { method: "POST", body })
  console.log(response.status, process.getuid(), process.getgid())`

async function predict(...options: readonly string[]): Promise<string> {
  const id = await docker("run", "-d", ...options, image)
  containers.push(id)
  assert.match(
    await docker("exec", id, "node", "--input-type=module", "-e", ASK),
    /^200 /,
    await docker("logs", id),
  )
  return id
}

describe("an image", () => {
  test("serves as any user, with a read-only root, no capability, no network and no way to more rights", async () => {
    const hardened = [
      "--read-only",
      "--cap-drop",
      "ALL",
      "--network",
      "none",
      "--security-opt",
      "no-new-privileges",
    ]
    for (const user of ["12345:0", "54321:54321"]) {
      const id = await predict(...hardened, "--tmpfs", "/tmp", "--user", user)
      assert.equal(await docker("exec", id, "sh", "-c", "echo $(id -u):$(id -g)"), user)
      const status = await docker("exec", id, "cat", "/proc/1/status")
      assert.match(status, /^CapEff:\s0+$/m)
      assert.equal(await docker("exec", id, "ls", "-A", "/tmp"), "")
    }
    // Not even /tmp is needed.
    await predict(...hardened)
  })

  test("writes nothing outside of /tmp where it could", async () => {
    const id = await predict("--user", "0:0")
    const written = (await docker("diff", id))
      .split("\n")
      .filter((line) => line !== "" && !/^. \/tmp(\/|$)/.test(line))
    assert.deepEqual(written, [])
  })

  test("has above its base no file that gives rights, no compiler, no package index, no secret and nothing of git", async () => {
    const ours = [...files.image].filter(([name, facts]) => files.base.get(name) !== facts)
    assert.ok(ours.length > 50)
    for (const [name, facts] of ours) {
      const [type = "", mode = "", owner] = facts.split(" ")
      assert.equal(Number.parseInt(mode, 8) & 0o7022, 0, `${name} has the mode ${mode}`)
      assert.equal(owner, "0:0", name)
      assert.ok(["file", "directory", "symlink"].includes(type), `${name} is a ${type}`)
    }
    const names = ours.map(([name]) => name)
    const unwanted =
      /(^|\/)(\.env[^/]*|\.git|\.npmrc|id_rsa|.*\.pem|.*\.key|\.npm|\.cache|(g?cc|[gc]\+\+|clang|ld|make|python[\d.]*|npm|pip)$)|^var\/(lib\/apt\/lists|cache)\/./
    assert.deepEqual(
      names.filter((name) => unwanted.test(name)),
      [],
    )
    assert.ok(names.includes("home/bentoml/bento/src/src/notes.txt"), "what is no secret came along")
  })

  test("holds no secret of the project in a layer, a label, a variable or its history", async () => {
    const { found, bytes } = await searchImage(image, SECRETS)
    assert.deepEqual(found, [])
    assert.ok(bytes > 100e6, "the whole image was looked through")
    for (const tag of [image, `${NAME}:dockerfile`]) {
      const history = await docker("history", "--no-trunc", "--format", "{{.CreatedBy}} {{.Comment}}", tag)
      const config = await docker("image", "inspect", tag)
      for (const secret of SECRETS) assert.ok(!`${history}${config}`.includes(secret), secret)
    }
  })

  test("says by docker inspect alone where it comes from and what it serves, whichever builder made it", async () => {
    const labelsOf = async (tag: string): Promise<Record<string, string>> =>
      JSON.parse(await docker("image", "inspect", "-f", "{{json .Config.Labels}}", tag)) as Record<
        string,
        string
      >
    const labels = await labelsOf(image)
    assert.deepEqual(await labelsOf(`${NAME}:dockerfile`), labels)
    const oci = (name: string): string | undefined => labels[`org.opencontainers.image.${name}`]
    assert.match(oci("revision") ?? "", /^[0-9a-f]{40}-dirty$/)
    assert.equal(oci("source"), "https://git.example.com/team/iris")
    assert.equal(oci("licenses"), "MIT")
    assert.equal(oci("base.name"), baseImage)
    const id = await docker("run", "-d", "--network", "none", image)
    containers.push(id)
    const script = `${WAIT}\nconsole.log(await (await fetch("http://127.0.0.1:3000/docs.json")).text())`
    const served: unknown = JSON.parse(await docker("exec", id, "node", "--input-type=module", "-e", script))
    assert.deepEqual(JSON.parse(labels["bentoctl.openapi"] ?? ""), served)
    const [model] = JSON.parse(labels["bentoctl.models"] ?? "") as [Record<string, Record<string, unknown>>]
    assert.match(String(model["files"]?.["saved_model.onnx"]), /^sha256:[0-9a-f]{64}$/)
    assert.deepEqual(model["signatures"]?.["run"], {
      batchable: true,
      inputs: [{ name: "X", dtype: "float32", shape: [null, 4] }],
      outputs: [
        { name: "output_label", dtype: "int64", shape: [null] },
        { name: "output_probability", dtype: "float32", shape: [null, 3] },
      ],
    })
  })
})

interface Component {
  readonly name: string
  readonly hashes?: readonly { readonly content: string }[]
  readonly properties?: readonly { readonly name: string; readonly value: string }[]
  readonly components?: readonly Component[]
}
interface Bom {
  readonly metadata: { readonly component: Component }
  readonly components: readonly Component[]
}

const valuesOf = (component: Component, name: string): string[] =>
  (component.properties ?? []).filter((property) => property.name === name).map(({ value }) => value)

describe("the bill of materials", () => {
  let inside: string
  let bom: Bom
  before(async () => {
    inside = await docker("run", "--rm", image, "cat", "sbom.cdx.json")
    bom = JSON.parse(inside) as Bom
  })

  test("in the image and beside it keeps to the official schema", async () => {
    for (const text of [inside, await readFile(SBOM, "utf8")]) {
      assert.equal(await new Validation.JsonStrictValidator(Spec.Version.v1dot6).validate(text), null)
    }
  })

  test("has a component for every file above the base, and each of its files is there with that digest", async () => {
    const ours = [...files.image].filter(
      ([name, facts]) => files.base.get(name) !== facts && facts.startsWith("file "),
    )
    const owners = bom.components.flatMap((component) =>
      valuesOf(component, "bentoctl:path").map((at) => [at, component.name] as const),
    )
    const ownerOf = (name: string): string | undefined =>
      owners.filter(([at]) => `/${name}`.startsWith(at)).toSorted(([a], [b]) => b.length - a.length)[0]?.[1]
    assert.deepEqual(
      ours.map(([name]) => name).filter((name) => ownerOf(name) === undefined),
      [],
    )
    const owning = new Set(ours.map(([name]) => ownerOf(name)))
    const expected = [
      "bentoctl-runtime",
      "onnxruntime-node",
      "onnxruntime-common",
      "onnxruntime",
      "iris_clf",
      NAME,
    ]
    assert.deepEqual(owning, new Set(expected))
    const listed = bom.components.flatMap(({ components = [] }) =>
      components.filter(({ name }) => name.startsWith("/")),
    )
    assert.ok(listed.length >= 3)
    for (const { name, hashes } of listed) {
      assert.equal(files.image.get(name.slice(1))?.split(" ").at(-1), hashes?.[0]?.content, name)
    }
  })

  test("names the packages of the server with their licences", () => {
    const { components = [] } =
      bom.components.find(({ name }) => name === "bentoctl-runtime") ?? assert.fail()
    for (const name of ["hono", "pino", "prom-client"]) {
      const found = components.find((component) => component.name === name)
      assert.ok(found !== undefined && "licenses" in found, name)
    }
  })

  test("outside of the image differs from the one in it only by what the engine knows", async () => {
    const outside = JSON.parse(await readFile(SBOM, "utf8")) as Bom
    const id = await docker("image", "inspect", "-f", "{{.Id}}", image)
    const baseId = await docker("image", "inspect", "-f", "{{.Id}}", baseImage)
    assert.deepEqual(valuesOf(outside.metadata.component, "bentoctl:image:id"), [id])
    assert.deepEqual(valuesOf(outside.components[0] ?? assert.fail(), "bentoctl:image:id"), [baseId])
    const without = (value: Bom): unknown =>
      JSON.parse(JSON.stringify(value), (key, part: unknown) =>
        key === "properties"
          ? (part as { name: string }[]).filter(({ name }) => !name.startsWith("bentoctl:image:"))
          : part,
      )
    const plain = (value: unknown): string => JSON.stringify(value).replaceAll(',"properties":[]', "")
    assert.equal(plain(without(outside)), plain(without(bom)))
  })
})

describe("bentoctl image", () => {
  test("inspect shows the same layers of both builders, but for their digests", async () => {
    const layersOf = async (tag: string): Promise<(readonly [string, number])[]> => {
      const report = JSON.parse(await ok("image", "inspect", tag, "-o", "json")) as {
        layers: { cause: string; size_bytes: number; digest: string | null }[]
      }
      assert.ok(report.layers.every(({ digest }) => digest?.startsWith("sha256:")))
      return report.layers
        .filter(({ size_bytes }) => size_bytes > 0)
        .map(({ cause, size_bytes }) => [cause, size_bytes])
    }
    const layers = await layersOf(image)
    assert.deepEqual(await layersOf(`${NAME}:dockerfile`), layers)
    const causes = layers.map(([cause]) => cause).filter((cause) => cause !== "base")
    assert.deepEqual(causes, ["runtime", "model", "bento"])
    assert.match(
      await ok("image", "inspect", image),
      /run\(X: float32\[\?, 4\]\) → output_label: int64\[\?\]/,
    )
  })

  test("diff names the file that changed and the kilobytes to fetch", async () => {
    await writeFile(path.join(project, "src/notes.txt"), "changed\n")
    await ok("build", project, "--name", NAME, "--containerize", "-t", `${NAME}:next`)
    const diff = JSON.parse(await ok("image", "diff", image, `${NAME}:next`, "-o", "json")) as {
      source: { name: string }[]
      models: unknown[]
      layers: { cause: string; fetched: boolean }[]
      fetch_bytes: number
    }
    assert.deepEqual(
      diff.source.map(({ name }) => name),
      ["src/src/notes.txt"],
    )
    assert.deepEqual(diff.models, [])
    assert.deepEqual(
      diff.layers.filter(({ fetched }) => fetched).map(({ cause }) => cause),
      ["bento"],
    )
    assert.ok(diff.fetch_bytes < 100_000, String(diff.fetch_bytes))
    assert.match(await ok("image", "diff", image, `${NAME}:next`), /KiB to fetch/)
  })

  for (const [what, reference, code] of [
    ["another tool", baseImage, "IMAGE_FOREIGN"],
    ["nobody", `${NAME}:nowhere`, "IMAGE_NOT_FOUND"],
  ] as const) {
    test(`inspect says so of an image by ${what}`, async () => {
      const { code: exit, stderr } = await bentoctl(["image", "inspect", reference], env)
      assert.equal(exit, 1)
      assert.match(stderr, new RegExp(code))
    })
  }

  test("a bill of materials for a folder that is not there is refused before anything is built", async () => {
    const { code, stderr } = await bentoctl(
      ["containerize", NAME, "--sbom", path.join(folder, "no/x.json")],
      env,
    )
    assert.equal(code, 1)
    assert.match(stderr, /SBOM_UNWRITABLE/)
    assert.doesNotMatch(stderr, /layer runtime/)
  })
})
