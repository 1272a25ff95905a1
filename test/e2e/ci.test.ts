/**
 * docs/ci.md, done by a machine: the commands of its pipelines, taken from their YAML and run in order, with a registry of
 * our own in the place of theirs.
 */
import assert from "node:assert/strict"
import { cp, mkdir, readFile, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { gunzipSync } from "node:zlib"
import { extract } from "tar-stream"
import { parse } from "yaml"
import { ensurePrograms, PASSWORD, startRegistry } from "../setup/registry.ts"
import { docker, freePort, root, run, temporaryFolder } from "./support.ts"

const there = await ensurePrograms(["docker-registry", "buildah"])
const skip = there.available ? false : (there.reason ?? "no registry")
const { folder, remove } = await temporaryFolder()
const page = await readFile(path.join(root, "docs/ci.md"), "utf8")
const [registryPort, port] = [await freePort(), await freePort()]
const host = `127.0.0.1:${registryPort}`
const container = `iris-ci-${process.pid}`
const SHA = "0123456789abcdef0123456789abcdef01234567"
let stopRegistry: () => Promise<void> = async () => {}

before(async () => {
  if (skip === false)
    stopRegistry = (await startRegistry(`${folder}/registry`, registryPort, { password: true })).stop
})
after(async () => {
  await stopRegistry()
  await run("docker", ["rm", "--force", container])
  const { stdout } = await run("docker", ["images", "--format", "{{.Repository}}:{{.Tag}}"])
  const ours = stdout.split("\n").filter((name) => name.startsWith(`${host}/`))
  if (ours.length > 0) await run("docker", ["rmi", "--force", ...ours])
  await remove()
})

/** The YAML of the block that is written to this file. */
function block(file: string): unknown {
  const start = page.indexOf(`\`\`\`yaml ${file}\n`)
  assert.notEqual(start, -1, `docs/ci.md has no ${file}`)
  const text = page.slice(page.indexOf("\n", start) + 1, page.indexOf("\n```\n", start))
  return parse(text)
}

type Env = Readonly<Record<string, string>>

/** A folder with the example project, and the environment that any runner gives. */
async function machine(name: string): Promise<{ project: string; env: Env }> {
  const project = path.join(folder, name, "project")
  const prefix = path.join(folder, name, "npm")
  await mkdir(prefix, { recursive: true })
  for (const file of ["bentofile.yaml", "service.ts", "iris.onnx"]) {
    await cp(path.join(root, "examples/iris", file), path.join(project, file))
  }
  const node = path.dirname(process.execPath)
  const env = {
    HOME: path.join(folder, name),
    BENTOML_HOME: path.join(folder, name, "bentoml"),
    // A folder is linked, not copied; its scripts ran when it was built.
    BENTOCTL: root,
    // In small letters, as `npm test` sets it: of two spellings npm would take either.
    npm_config_prefix: prefix,
    NPM_CONFIG_IGNORE_SCRIPTS: "true",
    PATH: `${prefix}/bin:${node}:${process.env["PATH"]}`,
  }
  return { project, env }
}

/** Runs the commands of one step as the runners do: the first that fails ends it. */
async function step(commands: string, { project, env }: { project: string; env: Env }): Promise<void> {
  const local = commands
    .replaceAll("localhost:3000", `localhost:${port}`)
    .replaceAll("3000:3000", `${port}:3000`)
    .replaceAll(/--name iris |--force iris$/gm, (text) => text.replace("iris", container))
    .replaceAll("ghcr.io", host)
  const { code, stdout, stderr } = await run("bash", ["-eo", "pipefail", "-c", local], { cwd: project, env })
  assert.equal(code, 0, `${commands}\nended with ${code}:\n${stdout}${stderr}`)
}

const auth = Buffer.from(`me:${PASSWORD}`).toString("base64")

/** What the registry has at a path of a repository. */
function ask(path: string): Promise<Response> {
  const accept =
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
  return fetch(`http://${host}/v2/${path}`, { headers: { accept, authorization: `Basic ${auth}` } })
}

async function digestOf(name: string, reference: string): Promise<string | null> {
  return (await ask(`${name}/manifests/${reference}`)).headers.get("docker-content-digest")
}

describe("docs/ci.md", { skip }, () => {
  test("GitHub Actions: built, tried, pushed; the digest is an output", async (t) => {
    interface Workflow {
      readonly jobs: {
        readonly image: {
          readonly env: Env
          readonly steps: readonly { readonly uses?: string; readonly run?: string; readonly env?: Env }[]
        }
      }
    }
    const { image } = (block(".github/workflows/image.yml") as Workflow).jobs
    const { project, env } = await machine("github")
    const known: Env = {
      "github.repository": "team/iris",
      "vars.BENTOCTL": env["BENTOCTL"] ?? "",
      "secrets.GITHUB_TOKEN": PASSWORD,
    }
    const valuesOf = (given: Env = {}): Env =>
      Object.fromEntries(
        Object.entries(given).map(([name, text]) => [
          name,
          text.replaceAll(/\$\{\{ (.+?) \}\}/g, (_, key: string) => {
            const value = known[key]
            assert.ok(value !== undefined, `\${{ ${key} }} is unknown to this test`)
            return value
          }),
        ]),
      )
    const output = path.join(folder, "github/output")
    await writeFile(output, "")
    const ofJob = Object.entries(valuesOf(image.env)).map(([name, text]) => [
      name,
      text.replace("ghcr.io", host),
    ])
    const base = {
      ...env,
      GITHUB_SHA: SHA,
      GITHUB_ACTOR: "me",
      GITHUB_OUTPUT: output,
      ...Object.fromEntries(ofJob),
    }
    for (const { uses, run: commands, env: own } of image.steps) {
      if (uses !== undefined) continue
      await t.test(String(commands).trim().split("\n")[0], () =>
        step(String(commands), { project, env: { ...base, ...valuesOf(own) } }),
      )
    }
    const digest = await digestOf("team/iris", "latest")
    assert.equal(digest, await digestOf("team/iris", SHA))
    assert.equal(await readFile(output, "utf8"), `digest=${host}/team/iris@${digest}\n`)
  })

  test("GitLab CI: built and pushed without a docker client; the digest is a variable of later jobs", async (t) => {
    interface Pipeline {
      readonly image: {
        readonly variables: Env
        readonly before_script: readonly string[]
        readonly script: readonly string[]
      }
    }
    const { image } = block(".gitlab-ci.yml") as Pipeline
    const { project, env } = await machine("gitlab")
    // The engine is that of this machine.
    const {
      DOCKER_HOST: _1,
      DOCKER_TLS_VERIFY: _2,
      DOCKER_TLS_CERTDIR: _3,
      DOCKER_CERT_PATH: _4,
      ...own
    } = image.variables
    const given = {
      CI_PROJECT_DIR: project,
      CI_REGISTRY: host,
      CI_REGISTRY_IMAGE: `${host}/team/gitlab`,
      CI_REGISTRY_USER: "me",
      CI_REGISTRY_PASSWORD: PASSWORD,
      CI_COMMIT_SHA: SHA,
    }
    const variables = Object.entries(own).map(([name, text]) => [
      name,
      text.replaceAll(/\$(\w+)/g, (_, variable: keyof typeof given) => given[variable]),
    ])
    // One shell for all lines, as on GitLab.
    const commands = [...image.before_script, ...image.script].join("\n")
    await t.test("its script", () =>
      step(commands, { project, env: { ...env, ...given, ...Object.fromEntries(variables) } }),
    )
    const digest = await digestOf("team/gitlab", SHA)
    assert.equal(
      await readFile(path.join(project, "image.env"), "utf8"),
      `IMAGE=${host}/team/gitlab@${digest}\n`,
    )
    assert.doesNotMatch(await docker("image", "inspect", `${host}/team/gitlab:${SHA}`), /config\.json|auths/)
  })

  test("Tekton: the context is written in one step, and built by another without a daemon", async (t) => {
    interface Task {
      readonly spec: {
        readonly steps: readonly {
          readonly name: string
          readonly script: string
          readonly env?: readonly { readonly name: string; readonly value: string }[]
        }[]
      }
    }
    const { steps } = (block("bentoctl-image.yaml") as Task).spec
    const { project, env } = await machine("tekton")
    const here = path.join(folder, "tekton")
    const reference = `${host}/team/tekton:1`
    await writeFile(path.join(here, "config.json"), JSON.stringify({ auths: { [host]: { auth } } }))
    const known: Env = {
      "params.bentoctl": env["BENTOCTL"] ?? "",
      "params.image": reference,
      "context.taskRun.uid": "c0ffee",
      "workspaces.registry.path": here,
      "results.digest.path": path.join(here, "digest"),
    }
    const valueOf = (text: string): string =>
      text.replaceAll(/\$\(((?:params|context|workspaces|results)\.[\w.]+)\)/g, (_, key: string) => {
        const value = known[key]
        assert.ok(value !== undefined, `$(${key}) is unknown to this test`)
        return value
      })
    // Of buildah: a place of its own, and a registry without TLS.
    const [storage, registries] = [path.join(here, "storage.conf"), path.join(here, "registries.conf")]
    await writeFile(
      storage,
      `[storage]\ndriver = "overlay"\ngraphroot = "${here}/graph"\nrunroot = "${here}/run"\n`,
    )
    await writeFile(registries, `[[registry]]\nlocation = "${host}"\ninsecure = true\n`)
    // Nothing of a daemon: a base with two folders, from the registry.
    await mkdir(path.join(here, "base/opt"), { recursive: true })
    await mkdir(path.join(here, "base/home"))
    const base = `${host}/team/base:1`
    assert.equal((await run("tar", ["-C", `${here}/base`, "-cf", `${here}/base.tar`, "."])).code, 0)
    await docker("import", `${here}/base.tar`, base)
    assert.equal((await run("docker", ["push", "-q", base], { env: { DOCKER_CONFIG: here } })).code, 0)
    const given = {
      ...env,
      BENTOCTL_BASE_IMAGE: base,
      CONTAINERS_STORAGE_CONF: storage,
      CONTAINERS_REGISTRIES_CONF: registries,
      DOCKER_HOST: "unix:///nowhere.sock",
    }
    for (const { name, script, env: own = [] } of steps) {
      const ofStep = Object.fromEntries(own.map((variable) => [variable.name, valueOf(variable.value)]))
      await t.test(name, () => step(valueOf(script), { project, env: { ...given, ...ofStep } }))
    }
    const digest = await digestOf("team/tekton", "1")
    assert.equal((await readFile(path.join(here, "digest"), "utf8")).trim(), `${host}/team/tekton@${digest}`)
    interface Manifest {
      readonly config: { readonly digest: string }
      readonly layers: readonly { readonly digest: string }[]
    }
    const manifest = (await (await ask("team/tekton/manifests/1")).json()) as Manifest
    const config = (await (await ask(`team/tekton/blobs/${manifest.config.digest}`)).json()) as {
      readonly config: { readonly User: string; readonly Healthcheck?: object }
    }
    assert.equal(config.config.User, "1034:1034")
    assert.ok(config.config.Healthcheck !== undefined)
    assert.ok(manifest.layers.length >= 4, `${manifest.layers.length} layers`)
    // Base, runtime, model: nothing in it depends on when it was built, so that any service has the same one.
    const blob = await ask(`team/tekton/blobs/${manifest.layers[2]?.digest}`)
    const names: string[] = []
    const reader = extract()
    reader.end(gunzipSync(await blob.bytes()))
    for await (const entry of reader) {
      assert.equal(entry.header.mtime?.getTime(), 0, entry.header.name)
      names.push(entry.header.name)
      entry.resume()
    }
    assert.ok(
      names.some((name) => name.endsWith("/saved_model.onnx")),
      names.join(" "),
    )
  })
})
