import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { dockerfileOf } from "../../images/context.ts"
import { planImage } from "../../images/plan.ts"
import { BentoError } from "../../store/errors.ts"
import { bentoOf, planOptions } from "../images/support.ts"

const plan = (text: string, docker: Parameters<typeof bentoOf>[0] = {}) =>
  planImage(planOptions(bentoOf({ ...docker, dockerfileTemplate: "my.hbs" }), { dockerfileTemplate: text }))
const render = (text: string, docker: Parameters<typeof bentoOf>[0] = {}): Promise<string> =>
  dockerfileOf(plan(text, docker))
const extend = (...blocks: string[]): string =>
  `{{#> bento_base_template}}\n${blocks.join("\n")}\n{{/bento_base_template}}\n`
const block = (name: string, body: string): string =>
  `{{#*inline "SETUP_BENTO_${name}"}}\n${body}\n{{/inline}}`
const PARENT = "{{> @partial-block}}"

describe("docker.dockerfile_template", () => {
  test("without a block gives our own Dockerfile, by the engine alone", async () => {
    assert.equal(await render(extend()), await dockerfileOf(planImage(planOptions(bentoOf()))))
    assert.equal(plan(extend()).builder, "dockerfile")
    assert.equal(planImage(planOptions(bentoOf())).builder, "auto")
  })

  for (const docker of [{}, { cudaVersion: "12.8.1" }, { distro: "ubi9" as const, systemPackages: ["a"] }]) {
    test(`adds to each block around our own body, with ${JSON.stringify(docker)}`, async () => {
      const names = ["BASE_IMAGE", "ENVARS", "COMPONENTS", "USER", "ENTRYPOINT"]
      const text = await render(
        extend(...names.map((name) => block(name, `${PARENT}\nLABEL "${name}"="1"`))),
        docker,
      )
      const own = await dockerfileOf(planImage(planOptions(bentoOf(docker))))
      assert.equal(
        text.replace(/LABEL "[A-Z_]+"="1"\n/g, "").replace(/\s+/g, "\n"),
        own.replace(/\s+/g, "\n"),
      )
      assert.deepEqual(
        [...text.matchAll(/LABEL "([A-Z_]+)"="1"/g)].map(([, name]) => name),
        names,
      )
    })
  }

  test("prints values through the quoting helpers", async () => {
    const text = await render(
      extend(
        block("ENTRYPOINT", "ENTRYPOINT {{json config.entrypoint}}\nLABEL {{word 'a'}}={{word baseImage}}"),
      ),
    )
    assert.match(text, /LABEL "a"="node:24-bookworm-slim"\n$/)
  })

  for (const copy of [
    "COPY bento/ /home/bentoml/bento",
    "COPY --chown=0:0 bento/ '/home/bentoml/bento/.'",
    'COPY ["bento/","/home/bentoml/bento/"]',
  ]) {
    test(`may copy the Bento itself: ${copy}`, async () => {
      const copies = `COPY runtime/ /opt/bentoctl\nCOPY models/ /home/bentoml/bento/models/iris/v1\n${copy}`
      assert.ok((await render(extend(block("COMPONENTS", copies)))).includes(copy))
    })
  }

  const refused: readonly (readonly [what: string, text: string, message: RegExp])[] = [
    [
      "that does not extend ours",
      "FROM node:24\n",
      /^my\.hbs:1: text outside of the template that is extended would be lost/,
    ],
    ["that is empty", "", /^my\.hbs:1: a template must extend ours/],
    ["that extends another", "\n{{#> base}}{{/base}}", /^my\.hbs:2: a template must extend ours/],
    ["with text beside the blocks", extend("RUN id"), /^my\.hbs:2: text outside of a block would be lost/],
    [
      "with an unknown block",
      extend(block("USR", "x")),
      /^my\.hbs:2: "SETUP_BENTO_USR" is no block; there are SETUP_BENTO_BASE/,
    ],
    [
      "with a block twice",
      extend(block("USER", "USER 1:1"), block("USER", "USER 1:1")),
      /^my\.hbs:5: SETUP_BENTO_USER is overridden twice/,
    ],
    [
      "with an unknown helper",
      extend(block("USER", "USER {{shout config.user}}")),
      /^my\.hbs:3: shout is no helper/,
    ],
    [
      "with an unknown block helper",
      extend(block("USER", "USER 1:1\n{{#shout 1}}{{/shout}}")),
      /^my\.hbs:4: .*shout/,
    ],
    [
      "with a value that is not quoted",
      extend(block("USER", "USER {{config.user}}")),
      /^my\.hbs:3: \{\{config\.user\}\} prints a value/,
    ],
    [
      "that looks for a prototype",
      extend(block("USER", "USER {{plain config.constructor.name}}")),
      /^my\.hbs:3: /,
    ],
    ["with another partial", extend(block("USER", "{{> base}}")), /^my\.hbs:3: there is no other partial/],
    ["with broken syntax", "{{#> bento_base_template}}\n{{#if}\n", /^my\.hbs:\d: Parse error/],
    [
      "that begins another image",
      extend(block("COMPONENTS", `${PARENT}\nFROM x`)),
      /^my\.hbs:4: FROM may stand in SETUP_BENTO_BASE_IMAGE only/,
    ],
    [
      "without a base",
      extend(block("BASE_IMAGE", "# nothing")),
      /^my\.hbs:2: SETUP_BENTO_BASE_IMAGE has no FROM/,
    ],
    [
      "that forgets our variables",
      extend(block("ENVARS", "ENV A=1")),
      /^my\.hbs:2: SETUP_BENTO_ENVARS does not set NODE_ENV; \{\{> @partial-block\}\}/,
    ],
    [
      "that forgets the server",
      extend(block("COMPONENTS", "RUN id")),
      /^my\.hbs:2: SETUP_BENTO_COMPONENTS copies nothing to \/opt\/bentoctl\//,
    ],
    [
      "that copies a model, and what else lies in the Bento's folder not",
      extend(
        block(
          "COMPONENTS",
          'COPY ["runtime/", "/opt/bentoctl/"]\nCOPY models/iris/v1/ /home/bentoml/bento/models/iris/v1\nCOPY x /home/bentoml/bento/x\nCOPY --from=a /home/bentoml/bento/ /b/',
        ),
      ),
      /^my\.hbs:2: SETUP_BENTO_COMPONENTS copies nothing to \/home\/bentoml\/bento\/;/,
    ],
    [
      "that ends as root",
      extend(block("USER", "USER root")),
      /^my\.hbs:2: SETUP_BENTO_USER must end as a user with a number/,
    ],
    [
      "without an entry point",
      extend(block("ENTRYPOINT", "EXPOSE 1")),
      /^my\.hbs:2: SETUP_BENTO_ENTRYPOINT has no ENTRYPOINT/,
    ],
  ]
  for (const [what, text, message] of refused) {
    test(`${what} is refused, with its line`, async () => {
      await assert.rejects(render(text), (error) => {
        assert.ok(error instanceof BentoError && error.code === "TEMPLATE_INVALID", String(error))
        assert.match(error.message, message)
        return true
      })
    })
  }
})
