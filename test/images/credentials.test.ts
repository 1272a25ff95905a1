/** Credentials of registries, where docker's own client would find them. */
import assert from "node:assert/strict"
import { chmod, mkdir, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, describe, test } from "node:test"
import fc from "fast-check"
import {
  credentialsKey,
  findCredentials,
  lookUp,
  parseDockerConfig,
  parseHelperAnswer,
} from "../../images/credentials.ts"
import { BentoError } from "../../store/errors.ts"
import { temporaryFolder } from "./support.ts"

const { folder, remove } = await temporaryFolder()
after(remove)

const base64 = (text: string): string => Buffer.from(text).toString("base64")
const HUB = "https://index.docker.io/v1/"
const unavailable = (text: RegExp) => (error: unknown) =>
  error instanceof BentoError && error.code === "CREDENTIALS_UNAVAILABLE" && text.test(error.message)

describe("config.json", () => {
  const basic = (serveraddress: string) => ({ username: "me", password: "p:w", serveraddress })
  const entry = { auth: base64("me:p:w") }
  for (const [what, config, registry, expected] of [
    ["of the registry", { auths: { "r.example:5000": entry } }, "r.example:5000", basic("r.example:5000")],
    ["of another registry", { auths: { "r.example": entry } }, "s.example", null],
    ["of the same host at another port", { auths: { "r.example:1": entry } }, "r.example", null],
    ["of an old client", { auths: { "https://r.example/v1/": entry } }, "r.example", basic("r.example")],
    ["of Docker Hub", { auths: { [HUB]: entry } }, "docker.io", basic(HUB)],
    ["of Docker Hub's other name", { auths: { [HUB]: entry } }, "index.docker.io", basic(HUB)],
    [
      "in clear",
      { auths: { "r.example": { username: "me", password: "p:w" } } },
      "r.example",
      basic("r.example"),
    ],
    [
      "that end in NULs",
      { auths: { "r.example": { auth: base64("me:p:w\0\0") } } },
      "r.example",
      basic("r.example"),
    ],
    [
      "with an identity token",
      { auths: { "r.example": { auth: base64("me:"), identitytoken: "t" } } },
      "r.example",
      { username: "me", identitytoken: "t", serveraddress: "r.example" },
    ],
    [
      "with a registry token",
      { auths: { "r.example": { registrytoken: "t" } } },
      "r.example",
      { registrytoken: "t", serveraddress: "r.example" },
    ],
    ["that a store left empty", { auths: { "r.example": {} } }, "r.example", null],
    ["that are null", { auths: null, credHelpers: null, credsStore: null }, "r.example", null],
    ["of a file with much else", { HttpHeaders: { a: "b" }, currentContext: "c" }, "r.example", null],
  ] as const) {
    test(`credentials ${what}`, () => {
      const found = lookUp(parseDockerConfig(JSON.stringify(config), "f"), registry, "f")
      assert.deepEqual(found, expected === null ? { kind: "none" } : { kind: "auth", auth: expected })
    })
  }

  for (const [what, config, registry, name] of [
    ["the helper of the registry", { credHelpers: { "r.example": "a" }, credsStore: "b" }, "r.example", "a"],
    ["the store for all others", { credHelpers: { "r.example": "a" }, credsStore: "b" }, "s.example", "b"],
    ["the helper of Docker Hub", { credHelpers: { [HUB]: "a" } }, "docker.io", "a"],
    ["the store, not auths", { credsStore: "b", auths: { "r.example": entry } }, "r.example", "b"],
  ] as const) {
    test(`asks ${what}`, () => {
      const found = lookUp(parseDockerConfig(JSON.stringify(config), "f"), registry, "f")
      assert.deepEqual(found, { kind: "helper", name })
    })
  }

  for (const [what, content, message] of [
    ["no JSON", '{"auths": {"r": {"auth": hunter2', /^\/f is not valid JSON$/],
    ["a list", '["hunter2"]', /^\/f: the whole is not what docker writes there$/],
    ["a number for a secret", '{"auths": {"r": {"auth": 5}}}', /^\/f: auths\.r\.auth is not what/],
  ] as const) {
    test(`that holds ${what} is an error without what is in it`, () => {
      assert.throws(
        () => parseDockerConfig(content, "/f"),
        (error) => unavailable(message)(error) && !/hunter2/.test(String((error as Error).cause)),
      )
    })
  }

  test("an auth that is not user:password is named, not shown", () => {
    const config = parseDockerConfig(JSON.stringify({ auths: { r: { auth: base64("hunter2") } } }), "/f")
    assert.throws(
      () => lookUp(config, "r", "/f"),
      unavailable(/^\/f: auths\["r"\]\.auth is not base64 of user:password$/),
    )
  })

  test("property: whatever user and password are, they come out as they went in", () => {
    const user = fc.string({ minLength: 1 }).filter((text) => !/[:\0]/.test(text) && text.isWellFormed())
    const password = fc
      .string({ minLength: 1, unit: "grapheme" })
      .filter((text) => !text.includes("\0") && text.isWellFormed())
    fc.assert(
      fc.property(user, password, (username, secret) => {
        const config = { auths: { r: { auth: base64(`${username}:${secret}`) } } }
        assert.deepEqual(lookUp(parseDockerConfig(JSON.stringify(config), "f"), "r", "f"), {
          kind: "auth",
          auth: { username, password: secret, serveraddress: "r" },
        })
      }),
    )
  })
})

test("a helper's user <token> means that the secret is an identity token", () => {
  const answer = (value: object) => parseHelperAnswer(JSON.stringify(value), "r")
  assert.deepEqual(answer({ ServerURL: "r", Username: "<token>", Secret: "t" }), {
    identitytoken: "t",
    serveraddress: "r",
  })
  assert.deepEqual(answer({ Username: "me", Secret: "s" }), {
    username: "me",
    password: "s",
    serveraddress: "r",
  })
  assert.equal(answer({ Username: "me" }), null)
})

test("Docker Hub goes by its old address", () => {
  assert.deepEqual(["docker.io", "ghcr.io"].map(credentialsKey), [HUB, "ghcr.io"])
})

describe("a credential helper", () => {
  const bin = path.join(folder, "bin")
  const env = { DOCKER_CONFIG: folder, PATH: `${bin}:${process.env["PATH"]}` }

  /** The next question goes to a helper with this body. */
  async function helper(name: string, body: string | null): Promise<void> {
    await mkdir(bin, { recursive: true })
    await writeFile(path.join(folder, "config.json"), JSON.stringify({ credsStore: name }))
    if (body === null) return
    const file = path.join(bin, `docker-credential-${name}`)
    await writeFile(file, `#!/bin/sh\n${body}\n`)
    await chmod(file, 0o755)
  }

  test("is given the registry on stdin, and answers in JSON", async () => {
    await helper(
      "good",
      `[ "$1" = get ] && read -r key; printf '{"ServerURL":"%s","Username":"me","Secret":"for %s"}' "$key" "$key"`,
    )
    assert.deepEqual(await findCredentials("r.example:5000", { env }), {
      auth: { username: "me", password: "for r.example:5000", serveraddress: "r.example:5000" },
      source: "docker-credential-good",
    })
  })

  test("that knows nothing of the registry is no error", async () => {
    await helper("empty", "echo 'credentials not found in native keychain'; exit 1")
    assert.deepEqual(await findCredentials("r.example", { env }), {
      auth: null,
      source: "docker-credential-empty",
    })
  })

  for (const [name, body, message] of [
    ["missing", null, /^the credential helper docker-credential-missing is not installed$/],
    ["locked", "echo 'keychain is locked'; exit 1", /ended with 1 for r\.example: keychain is locked$/],
    ["noisy", "echo 'no DISPLAY' >&2; exit 3", /ended with 3 for r\.example: no DISPLAY$/],
    ["leaky", `echo '{"Username":"me","Secret":"hunter2"}'; exit 1`, /ended with 1 for r\.example$/],
    ["odd", "echo hunter2", /answered what is no \{"Username": …, "Secret": …\} for r\.example$/],
    ["killed", "kill -9 $$", /ended with a signal for r\.example$/],
    ["../../bin/sh", null, /has a name that no program has$/],
  ] as const) {
    test(`(${name}) that fails is an error that names it, without a secret`, async () => {
      await helper(name, body)
      await assert.rejects(findCredentials("r.example", { env }), (error: BentoError) => {
        assert.doesNotMatch(`${error.message}${error.hint}${String(error.cause)}`, /hunter2/)
        return unavailable(message)(error)
      })
    })
  }

  test("that waits is ended by Ctrl-C", async () => {
    await helper("waiting", "exec sleep 30")
    const reason = new Error("interrupted")
    const controller = new AbortController()
    setTimeout(() => controller.abort(reason), 100)
    await assert.rejects(findCredentials("r.example", { env, signal: controller.signal }), reason)
  })
})

test("config.json is that of DOCKER_CONFIG, else that of ~/.docker; none is no error", async () => {
  const home = path.join(folder, "home")
  await mkdir(path.join(home, ".docker"), { recursive: true })
  const file = path.join(home, ".docker/config.json")
  await writeFile(file, JSON.stringify({ auths: { "r.example": { auth: base64("me:pw") } } }))
  const found = await findCredentials("r.example", { env: { HOME: home } })
  assert.deepEqual([found.auth?.username, found.source], ["me", file])
  assert.deepEqual(
    await findCredentials("r.example", { env: { HOME: home, DOCKER_CONFIG: `${folder}/none` } }),
    {
      auth: null,
      source: `${folder}/none/config.json`,
    },
  )
})
