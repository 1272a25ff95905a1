import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { describe, test } from "node:test"
import { runInThisContext } from "node:vm"
import fc from "fast-check"
import Handlebars from "handlebars"
import { compileTemplate, precompileOurs, type OurTemplate } from "../../templates/compile.ts"
import {
  TemplateError,
  renderDockerfile,
  renderTemplates,
  shellAssignments,
  templateVars,
} from "../../templates/render.ts"
import type { OwnDockerfileVars } from "../../templates/render.ts"
import { parseDockerfile, parsePair, shellWords } from "../images/dockerfile.ts"

const PLAIN: OwnDockerfileVars = {
  baseImage: "node:24-bookworm-slim",
  cuda: null,
  env: [],
  packageManager: "apt",
  systemPackages: [],
  packages: null,
  setupScript: null,
  buildEnv: false,
  runtime: { from: "runtime/", to: "/opt/x/" },
  models: [],
  source: null,
  bento: { from: "bento/", to: "/x/" },
  config: {
    env: [],
    workingDir: "/x",
    port: 3000,
    stopSignal: "SIGTERM",
    healthcheck: { command: ["node", "h.js"], intervalS: 1, timeoutS: 2, startPeriodS: 3, retries: 4 },
    labels: [],
    user: "1:1",
    entrypoint: ["node"],
  },
}

const NASTY = [
  '"',
  "'",
  "\\",
  "$",
  "${HOME}",
  "$(id)",
  "`id`",
  "#",
  "\\\\",
  " ",
  "\\n",
  "=",
  "<<EOF",
  "{{x}}",
  "\u2028",
  "ü",
  "&&",
  ";",
]
const text = fc.oneof(
  fc.string({ unit: "grapheme", maxLength: 20 }),
  fc
    .array(fc.oneof(fc.constantFrom(...NASTY), fc.string({ maxLength: 3 })), { maxLength: 8 })
    .map((parts) => parts.join("")),
)
// What can stand in one line; the rest must be refused, which the next test sees to.
// oxlint-disable-next-line no-control-regex -- control characters are what is left out
const line = text.filter((value) => !/[\u0000-\u0008\u000a-\u001f\u007f]/.test(value) && value.isWellFormed())
const variable = fc.stringMatching(/^[A-Za-z_][A-Za-z0-9_]{0,12}$/)
const named = (name: fc.Arbitrary<string>) => fc.array(fc.record({ name, value: line }), { maxLength: 4 })

describe("a rendered Dockerfile", () => {
  test("has exactly the expected instructions, with exactly the given values", () => {
    const vars = fc.record({
      env: named(variable),
      runtimeEnv: named(variable),
      labels: named(line.filter((name) => name !== "" && !/[=\s"'\\$]/.test(name))),
      systemPackages: fc.array(line, { maxLength: 3 }),
      setupScript: fc.constantFrom("first", "last", null),
      packages: fc.option(
        fc.record({ image: fc.constant("node:24"), command: fc.array(line, { maxLength: 3 }) }),
      ),
      buildEnv: fc.boolean(),
      cuda: fc.option(fc.constant({ nodeImage: "node:24", onnxruntimeVersion: "1.30.0" })),
    })
    fc.assert(
      fc.property(vars, (random) => {
        const given: OwnDockerfileVars = {
          ...PLAIN,
          ...random,
          config: { ...PLAIN.config, env: random.runtimeEnv, labels: random.labels },
          models: [{ from: "models/a/b/", to: "/m/a/b/" }],
        }
        const instructions = parseDockerfile(renderDockerfile(given))
        const stages = ["FROM", "FROM", "USER", "WORKDIR", "RUN"]
        assert.deepEqual(
          instructions.map(({ name }) => name),
          [
            ...(given.cuda === null ? [] : stages),
            ...(given.packages === null ? [] : ["FROM", "USER", "WORKDIR", "COPY", "RUN"]),
            "FROM",
            ...(given.cuda === null ? [] : ["COPY"]),
            "USER",
            ...Array<string>(given.env.length).fill("ENV"),
            ...(given.systemPackages.length > 0 ? ["RUN"] : []),
            ...(given.packages === null ? [] : ["COPY"]),
            ...(given.setupScript === "first" ? ["RUN"] : []),
            "COPY",
            ...(given.cuda === null ? [] : ["COPY"]),
            "COPY",
            "COPY",
            ...(given.setupScript === "last" ? ["RUN"] : []),
            ...given.config.env.map(() => "ENV"),
            "WORKDIR",
            "EXPOSE",
            "STOPSIGNAL",
            "HEALTHCHECK",
            ...given.config.labels.map(() => "LABEL"),
            "USER",
            "ENTRYPOINT",
          ],
        )
        const pairs = (name: string) =>
          instructions
            .filter((instruction) => instruction.name === name)
            .map((instruction) => parsePair(instruction.text))
        assert.deepEqual(
          pairs("ENV"),
          [...given.env, ...given.config.env].map(({ name, value }) => [name, value]),
        )
        assert.deepEqual(
          pairs("LABEL"),
          given.config.labels.map(({ name, value }) => [name, value]),
        )
        if (given.packages !== null) {
          const run = instructions.find(({ text: command }) => command.includes("install.mts"))
          const words = shellWords(run?.text ?? "")
          const start = words.indexOf("/run/bentoctl-packages/install.mts") + 1
          assert.deepEqual(words.slice(start, -2), given.packages.command)
        }
        if (given.systemPackages.length > 0) {
          const run = instructions.find(
            ({ name, text: command }) => name === "RUN" && command.includes("apt-get"),
          )
          const words = shellWords(run?.text ?? "")
          const start = words.indexOf("--no-install-recommends") + 1
          const end = start + given.systemPackages.length
          assert.deepEqual([...words.slice(start, end), words[end]], [...given.systemPackages, ";"])
        }
      }),
      { numRuns: 300 },
    )
  })

  for (const broken of ["a\nRUN x", "a\rb", "\0", "\u001b[0m", "\ud800", "x".repeat(70_000)]) {
    test(`refuses the value ${JSON.stringify(broken.slice(0, 12))} wherever it stands, with the template's line`, () => {
      const places: Partial<OwnDockerfileVars>[] = [
        { env: [{ name: "A", value: broken }] },
        { env: [{ name: broken, value: "" }] },
        { config: { ...PLAIN.config, env: [{ name: "A", value: broken }] } },
        { config: { ...PLAIN.config, labels: [{ name: "a", value: broken }] } },
        { config: { ...PLAIN.config, labels: [{ name: broken, value: "a" }] } },
        { systemPackages: [broken] },
        { baseImage: broken },
        { models: [{ from: broken, to: "/" }] },
      ]
      for (const place of places) {
        // JSON can spell control characters in ASCII, so a path with one is no harm.
        if ("models" in place && broken.length < 1000) continue
        assert.throws(
          () => renderDockerfile({ ...PLAIN, ...place }),
          (error) => error instanceof TemplateError && error.line !== undefined && error.template === "base",
          JSON.stringify(place).slice(0, 60),
        )
      }
    })
  }

  test("has no syntax that needs a newer engine", () => {
    const all: OwnDockerfileVars = {
      ...PLAIN,
      cuda: { nodeImage: "a", onnxruntimeVersion: "1" },
      setupScript: "first",
      buildEnv: true,
      systemPackages: ["a"],
    }
    assert.doesNotMatch(renderDockerfile(all), /syntax=|--link|<<|type=secret|type=ssh/)
  })
})

test("our templates give the same when they were compiled before, as in the bundle", () => {
  for (const name of ["cpu", "cuda", "ubi9"] as const) {
    const specification = (each: OurTemplate) =>
      runInThisContext(`(${precompileOurs(each)})`) as TemplateSpecification
    const compiled = (["base", name] as const).map((each) => {
      const compile = (handlebars: typeof Handlebars) => handlebars.template(specification(each))
      return { name: each, compile }
    })
    const vars: OwnDockerfileVars = {
      ...PLAIN,
      cuda: name === "cuda" ? { nodeImage: "node:24", onnxruntimeVersion: "1.30.0" } : null,
      packageManager: name === "ubi9" ? "microdnf" : "apt",
      systemPackages: ["a"],
      env: [{ name: "A", value: "b c" }],
    }
    const rendered = renderTemplates(Handlebars.create(), compiled, templateVars(vars, "whole"))
    assert.equal(rendered, renderDockerfile(vars))
    assert.match(rendered, /^ENV A="b c"$/m)
  }
})

describe("a template", () => {
  const render =
    (template: string, vars: object = {}) =>
    () =>
      renderTemplates(
        Handlebars.create(),
        [{ name: "mine", compile: (handlebars) => compileTemplate(handlebars, "mine", template) }],
        vars,
      )
  const fails = (message: RegExp, line: number) => (error: unknown) =>
    error instanceof TemplateError &&
    error.template === "mine" &&
    error.line === line &&
    message.test(error.message)

  test("may not print a value as it is", () => {
    assert.throws(
      render("FROM x\nENV {{value}}\n", { value: "a" }),
      fails(/\{\{value\}\} prints a value as it is/, 2),
    )
    assert.throws(render("\n\n{{{value}}}", { value: "a" }), fails(/prints a value as it is/, 3))
    assert.throws(render("{{#if a}}\n{{lookup a b}}\n{{/if}}", { a: 1 }), fails(/prints a value/, 2))
  })

  test("may not name what is not there", () => {
    assert.throws(render("\nENV {{word missing}}", {}), fails(/one text, not nothing/, 2))
    assert.throws(
      render("\n{{#each nothing}}{{/each}}{{shell nothing}}", {}),
      fails(/one text, not nothing/, 2),
    )
  })

  test("may not use an unknown helper or a broken syntax", () => {
    assert.throws(render("\n{{exec 'id'}}"), fails(/prints a value/, 2))
    assert.throws(render("\n{{#exec 'id'}}{{/exec}}"), fails(/exec/, 2))
    assert.throws(
      render("a\n{{#if x}}\n"),
      (error) => error instanceof TemplateError && error.template === "mine",
    )
  })

  test("gets no way to the engine's own properties", () => {
    assert.throws(render("{{word constructor.name}}", { a: 1 }), (error) => error instanceof TemplateError)
    assert.throws(render("{{word __proto__}}", { a: 1 }), (error) => error instanceof TemplateError)
  })

  test("gives a helper one text and nothing else", () => {
    assert.throws(render("\n{{word list}}", { list: [1] }), fails(/takes one text/, 2))
    assert.throws(render("{{word a a}}", { a: "x" }), fails(/takes one text/, 1))
  })
})

test("shell assignments give a shell exactly the values, line breaks included", () => {
  const values = fc.array(
    fc.record({
      name: variable,
      value: text.filter((value) => !value.includes("\0") && value.isWellFormed()),
    }),
    {
      minLength: 1,
      maxLength: 4,
    },
  )
  fc.assert(
    fc.property(values, (given) => {
      const last = new Map(given.map(({ name, value }) => [`X_${name}`, `a\n${value}`]))
      const file = shellAssignments([...last].map(([name, value]) => ({ name, value })))
      const script = `${file}exec "$0" -e 'process.stdout.write(JSON.stringify(process.env))'`
      const env = JSON.parse(
        execFileSync("sh", ["-c", script, process.execPath], { encoding: "utf8" }),
      ) as Record<string, string>
      for (const [name, value] of last) assert.equal(env[name], value)
    }),
    { numRuns: 8 },
  )
})
