import assert from "node:assert/strict"
import { mkdir, symlink, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, describe, test } from "node:test"
import fc from "fast-check"
import { findBentofile, readBentofile } from "../../images/bentofile.ts"
import type { Bentofile } from "../../images/bentofile.ts"
import { BentoError, IssueError } from "../../store/errors.ts"
import { temporaryFolder, writeFiles } from "./support.ts"

const { folder, remove } = await temporaryFolder()
after(remove)
let count = 0

async function read(text: string | Uint8Array, files: Record<string, string> = {}): Promise<Bentofile> {
  const dir = path.join(folder, String(count++))
  await mkdir(dir)
  await writeFiles(dir, files)
  await writeFile(path.join(dir, "bentofile.yaml"), text)
  return readBentofile(path.join(dir, "bentofile.yaml"))
}

/** `line: field: message` of each problem. */
async function problems(text: string | Uint8Array, files: Record<string, string> = {}): Promise<string[]> {
  try {
    await read(text, files)
  } catch (error) {
    assert.ok(error instanceof IssueError && error.code === "BENTOFILE_INVALID", String(error))
    return error.issues.map((issue) =>
      [issue.line, issue.field, issue.message].filter((part) => part !== undefined && part !== "").join(": "),
    )
  }
  return []
}

describe("a bentofile", () => {
  test("is read with BentoML's defaults for what it does not say", async () => {
    const bentofile = await read("service: service.ts:svc\n")
    assert.deepEqual(
      { ...bentofile, path: null },
      {
        path: null,
        service: "service.ts:svc",
        serviceAt: { line: 1, column: 10 },
        name: null,
        description: null,
        labels: {},
        include: null,
        exclude: [],
        models: [],
        envs: [],
        docker: {
          distro: "debian",
          baseImage: null,
          nodeVersion: null,
          cudaVersion: null,
          env: {},
          systemPackages: [],
          setupScript: null,
          dockerfileTemplate: null,
          platforms: [],
        },
        node: { packages: [], line: null },
        selfTest: null,
      },
    )
  })

  test("may say everything", async () => {
    const bentofile = await read(
      `service: service.ts:svc
name: Iris
description: |
  # Iris
labels: {team: a, version: 1.10, on: yes, flag: true}
include: ["*.ts"]
exclude: [tests/]
models: [iris, {tag: "digits:abc", alias: d}]
envs:
  - {name: A, value: 8080}
  - {name: B, stage: build}
docker:
  distro: debian
  env: [X=1, "Y=a b=c"]
  system_packages: [libgomp1, curl, libgomp1]
  cuda_version: 12.6
  setup_script: ./setup.sh
  base_image: registry:5000/a/b:c
  node_version: 24.10
  platforms: [linux/amd64]
selftest: true
`,
      { "setup.sh": "#!/bin/sh\n" },
    )
    assert.equal(bentofile.name, "Iris")
    assert.deepEqual(bentofile.labels, { team: "a", version: "1.10", on: "yes", flag: "true" })
    assert.deepEqual(bentofile.models, [
      { tag: "iris", line: 8 },
      { tag: "digits:abc", line: 8, alias: "d" },
    ])
    assert.deepEqual(bentofile.envs, [
      { name: "A", value: "8080", stage: "all" },
      { name: "B", value: "", stage: "build" },
    ])
    assert.deepEqual(bentofile.docker, {
      distro: "debian",
      baseImage: "registry:5000/a/b:c",
      nodeVersion: "24.10",
      cudaVersion: "12.6.3",
      env: { X: "1", Y: "a b=c" },
      systemPackages: ["curl", "libgomp1"],
      setupScript: "setup.sh",
      dockerfileTemplate: null,
      platforms: ["linux/amd64"],
    })
    assert.deepEqual(bentofile.selfTest, { line: 21, column: 11 })
  })

  test("tells all its problems at once, each with its line", async () => {
    assert.deepEqual(
      await problems(`sevice: service.ts:svc
labels: {a: 1}
labels: {b: 2}
include: "*.ts"
python: {packages: [numpy]}
docker:
  python_version: "3.11"
  system_package: [x]
  distro: alpine
system_packages: [git]
`),
      [
        "1: sevice: unknown key; did you mean service?",
        "3: labels: is given twice (first on line 2)",
        "4: include: expected a list, found text",
        "5: python: is not supported: the image holds no Python: convert the model to ONNX and import it, and write code around it in TypeScript (`service: service.ts:svc`)",
        "7: docker.python_version: is not supported: the image holds Node and no Python; `docker.node_version` names the version of that",
        "8: docker.system_package: unknown key; did you mean system_packages?",
        "9: docker.distro: ONNX Runtime is built for glibc, and alpine has musl; use debian, or distroless for a small image",
        "10: system_packages: unknown key; did you mean docker.system_packages?",
      ],
    )
  })

  test("says what to use instead of each of BentoML's keys that have no place", async () => {
    const said = await problems(`python: {}
conda: {}
args: {}
models: [{tag: a, filter: x}]
docker: {python_version: 3}
`)
    assert.equal(said.length, 5)
    for (const problem of said) assert.match(problem, /is not supported: .{20}/)
  })

  const cases: readonly (readonly [
    what: string,
    text: string | Uint8Array,
    ...expected: (string | RegExp)[],
  ])[] = [
    ["an empty file", "", "1: the file is empty; name a `service:` or list `models:`"],
    ["a file of comments", "# nothing\n", "1: the file is empty; name a `service:` or list `models:`"],
    ["a list", "- a\n", "1: expected a map of keys, found a list"],
    ["a word", "iris\n", "1: expected a map of keys, found text"],
    ["bytes that are no text", Uint8Array.of(0xff, 0xfe, 0x00), "is not UTF-8 text"],
    ["broken YAML", "a: [1\nb: 2\n", /^2: .*flow/i],
    ["two documents", "name: a\n---\nname: b\n", "2: begins a second document"],
    ["a thousand brackets", "[".repeat(100_000), "1: is nested too deeply"],
    ["a tag of Python", "name: !!python/object:os.system x\n", /1: .*[Uu]nresolved tag/],
    ["a number where text belongs", "name: 3\n", "1: name: expected text, found a number; put it in quotes"],
    ["a name that breaks the grammar", "name: a b\n", /^1: name: "a b" is not a name/],
    ["a label without value", "labels: {a: }\n", /^1: labels\.a: expected text, found nothing/],
    [
      "a label with a line break",
      'labels: {a: "x\\ny"}\n',
      "1: labels.a: holds a line break, which cannot stand here",
    ],
    [
      "a label whose key is no word",
      'labels: {"a=b": x}\n',
      /^1: labels\.a=b: .*a label's key has no spaces/,
    ],
    ["a pattern outside", "exclude: [../x]\n", "1: exclude[0]: leaves the build context"],
    ["a model that is no tag", "models: [A B]\n", /^1: models\[0\]: "A B" is not a tag/],
    [
      "a model that is a number",
      "models: [1]\n",
      /^1: models\[0\]: expected a tag, or a map .*, found a number/,
    ],
    ["a model without a tag", "models: [{alias: a}]\n", "1: models[0].tag: is missing"],
    [
      "an alias given twice",
      "models: [{tag: a, alias: x}, {tag: b, alias: x}]\n",
      '1: models[1].alias: "x" is given twice (first in models[0])',
    ],
    [
      "an alias that is another model's name",
      "models:\n  - a:1\n  - tag: b\n    alias: a\n",
      '4: models[1].alias: "a" is already the name of models[0]',
    ],
    [
      "an alias that cannot stand in a route",
      "models: [{tag: a, alias: A b/c}]\n",
      /^1: models\[0\]\.alias: "A b\/c" is no alias: letters, digits/,
    ],
    ["an env without a name", "envs: [{value: x}]\n", "1: envs[0].name: is missing"],
    [
      "an env given twice",
      "envs: [{name: A}, {name: A}]\n",
      "1: envs[1].name: A is given twice (first in envs[0])",
    ],
    [
      "an env in two places",
      "envs: [{name: A}]\ndocker: {env: {A: 1}}\n",
      "1: envs[0].name: A is also set in docker.env",
    ],
    [
      "an unknown stage",
      "envs: [{name: A, stage: x}]\n",
      '1: envs[0].stage: expected "all" or "build" or "runtime"',
    ],
    [
      "a reserved name",
      "docker: {env: {BENTO_PATH: x}}\n",
      "1: docker.env.BENTO_PATH: BENTO_PATH is set by the image itself",
    ],
    ["a list entry without =", "docker: {env: [A]}\n", '1: docker.env[0]: "A" is not KEY=VALUE'],
    [
      "an option as a package",
      "docker: {system_packages: [-y]}\n",
      '1: docker.system_packages[0]: "-y" is no name of a Debian package',
    ],
    [
      "a command as a package",
      'docker: {system_packages: ["a; reboot"]}\n',
      /is no name of a Debian package/,
    ],
    [
      "a package that breaks the line",
      'docker: {system_packages: ["a\\nRUN x"]}\n',
      /is no name of a Debian package/,
    ],
    [
      "a base image with a second line",
      'docker: {base_image: "a:1\\nRUN x"}\n',
      /^1: docker\.base_image: .* is no image reference/,
    ],
    [
      "scratch",
      "docker: {base_image: scratch}\n",
      "1: docker.base_image: scratch holds no Node; name an image that does",
    ],
    [
      "a CUDA of another age",
      "docker: {cuda_version: 11}\n",
      /needs CUDA 12 and cuDNN 9, but NVIDIA's image of it holds CUDA 11\.8\.0 and cuDNN 8/,
    ],
    ["a CUDA with cuDNN 8", "docker: {cuda_version: 12.1}\n", /holds CUDA 12\.1\.1 and cuDNN 8/],
    [
      "CUDA without a shell",
      "docker: {cuda_version: 12.8, distro: distroless}\n",
      "1: docker.cuda_version: NVIDIA has no image of CUDA for distroless; use debian",
    ],
    [
      "CUDA on ARM",
      "docker: {cuda_version: 12.8, platforms: [linux/amd64, linux/arm64]}\n",
      "1: docker.platforms: ONNX Runtime has CUDA libraries for linux/amd64 only",
    ],
    [
      "a platform that there is not",
      "docker: {platforms: [windows/amd64]}\n",
      /docker\.platforms\[0\]: expected "linux\/amd64" or "linux\/arm64"/,
    ],
    ["no platform", "docker: {platforms: []}\n", "1: docker.platforms: is empty"],
    [
      "packages where there is no shell",
      "docker: {distro: distroless, system_packages: [curl]}\n",
      /docker\.system_packages: distroless has no shell, so that nothing can be run/,
    ],
    [
      "a Debian package on Red Hat's system",
      "docker: {distro: ubi9, system_packages: [libgomp1=12]}\n",
      /docker\.system_packages\[0\]: "libgomp1=12" is no name of an RPM package/,
    ],
    [
      "a distribution of BentoML without Node 24",
      "docker: {distro: ubi8}\n",
      /docker\.distro: there is no image of it with Node 24; use ubi9/,
    ],
    [
      "a distribution that nobody knows",
      "docker: {distro: arch}\n",
      /docker\.distro: no such distribution "arch"; use one of debian, distroless, ubi9/,
    ],
    [
      "a Node that is too old",
      "docker: {node_version: 22}\n",
      "1: docker.node_version: the server needs Node 24 or newer",
    ],
    [
      "a Node that is no version",
      "docker: {node_version: lts}\n",
      /docker\.node_version: "lts" is no version of Node/,
    ],
    [
      "a Node that no tag of distroless names",
      "docker: {node_version: 24.1, distro: distroless}\n",
      /docker\.node_version: images of distroless are named by the major version alone/,
    ],
    [
      "a Node beside a base that has its own",
      "docker: {node_version: 24, base_image: a/b}\n",
      /docker\.node_version: the base image decides which Node there is/,
    ],
    ["a CUDA that nobody made", 'docker: {cuda_version: "12.4"}\n', /no CUDA image for version "12\.4"/],
    ["a script that is not there", "docker: {setup_script: x.sh}\n", /no such file: "x\.sh" \(in [^)]+\)$/],
    ["a script above", "docker: {setup_script: ../../etc/passwd}\n", /no such file|leaves the build context/],
    [
      "an absolute script",
      "docker: {setup_script: /etc/passwd}\n",
      /"\/etc\/passwd" leaves the build context/,
    ],
    ["a script that is a folder", "docker: {setup_script: .}\n", /is not a file/],
    ["a description that is not there", 'description: "file: x.md"\n', /no such file: "x\.md"/],
    [
      "a merge key",
      "labels: {<<: {a: b}}\n",
      "1: labels: merge keys (<<) are not supported; write the keys out",
    ],
    ["a key that is a list", "? [a]\n: b\n", /has a key that is not a plain word/],
    ["a value that holds itself", "labels: &a {x: *a}\n", /^1: labels\.x: contains itself/, /./],
  ]
  for (const [what, text, ...expected] of cases) {
    test(`refuses ${what}`, async () => {
      const said = await problems(text)
      assert.equal(said.length, expected.length, said.join("\n"))
      expected.forEach((wanted, index) => {
        if (typeof wanted === "string") assert.equal(said[index], wanted)
        else assert.match(said[index] ?? "", wanted)
      })
    })
  }

  test("may not hold __proto__, at any depth, and says where", async () => {
    assert.deepEqual(await problems("name: a\n__proto__: {x: 1}\nlabels:\n  a: b\n  __proto__: c\n"), [
      "2: __proto__: is not allowed as a key",
      "5: labels.__proto__: is not allowed as a key",
    ])
  })

  test("has keys such as constructor like any others", async () => {
    const { labels } = await read("labels: {constructor: a, toString: b, hasOwnProperty: c}\n")
    assert.deepEqual(labels, { constructor: "a", toString: "b", hasOwnProperty: "c" })
  })

  test("is refused when its aliases multiply, before they do", async () => {
    const levels = Array.from({ length: 30 }, (_, level) =>
      level === 0
        ? "a0: &a0 [x]"
        : `a${level}: &a${level} [${Array(10)
            .fill(`*a${level - 1}`)
            .join(", ")}]`,
    )
    const startedMs = performance.now()
    const said = await problems(levels.join("\n"))
    assert.ok(
      said.some((problem) => /^\d+: a2\[.*more than 100 aliases$/.test(problem)),
      said.slice(0, 5).join("\n"),
    )
    assert.ok(performance.now() - startedMs < 20_000)
  })

  test("may use an alias", async () => {
    assert.deepEqual((await read("labels: {a: &x one, b: *x}\n")).labels, { a: "one", b: "one" })
  })

  test("describes itself by a file of the context", async () => {
    assert.equal((await read('description: "file: about.md"\n', { "about.md": "# It" })).description, "# It")
    assert.equal((await read("description: {file: about.md}\n", { "about.md": "# It" })).description, "# It")
  })

  test("may not name a file through a link that leaves the context", async () => {
    const dir = path.join(folder, "linked")
    await writeFiles(dir, { "bentofile.yaml": "docker: {setup_script: setup.sh}\n" })
    await writeFile(path.join(folder, "outside.sh"), "")
    await symlink("../outside.sh", path.join(dir, "setup.sh"))
    await assert.rejects(
      readBentofile(path.join(dir, "bentofile.yaml")),
      /"setup.sh" leaves the build context/,
    )
  })

  test("takes variables from a dotenv file, whose problems have its own lines", async () => {
    const dotenv = "# a\nexport A=1\nB: 'x $A'\nC=\"$A-${A} \\$A\" # c\n"
    const { docker } = await read("docker: {env: vars.env}\n", { "vars.env": dotenv })
    assert.deepEqual(docker.env, { A: "1", B: "x $A", C: "1-1 $A" })
    const said = await problems("docker: {env: vars.env}\n", { "vars.env": "A\nB=$HOME\nC='x\n" })
    assert.deepEqual(said, [
      "1: is not KEY=VALUE",
      "2: B: $HOME is not given above; write \\$ for a dollar sign",
      "3: C: the quote is not closed, or text follows it",
    ])
  })

  test("that is not there is BENTOFILE_NOT_FOUND", async () => {
    await assert.rejects(
      readBentofile(path.join(folder, "none.yaml")),
      (error) => error instanceof BentoError && error.code === "BENTOFILE_NOT_FOUND",
    )
    assert.equal(await findBentofile(folder), null)
  })

  test("never crashes the reader, whatever its text", async () => {
    const file = path.join(folder, "random.yaml")
    const line = fc.oneof(
      fc.string(),
      fc.constantFrom(
        "models:",
        "- ",
        "  - a",
        "docker: {",
        "}",
        "envs: [",
        "&a",
        "*a",
        "!!",
        "? ",
        ": ",
        "|",
        ">",
      ),
    )
    await fc.assert(
      fc.asyncProperty(fc.array(line, { maxLength: 8 }), async (lines) => {
        await writeFile(file, lines.join("\n"))
        try {
          await readBentofile(file)
        } catch (error) {
          assert.ok(error instanceof IssueError, String(error))
        }
      }),
      { numRuns: 200 },
    )
  })
})

describe("node.packages", () => {
  test("are npm's names, with a range or without", async () => {
    const { node } = await read(`service: s.ts:svc
node:
  packages: [ms, "@node-rs/crc32", zod@^4, "semver@>=7.1 <8 || 9", left-pad@1.3.0, next@canary, "a@*"]
`)
    assert.equal(node.line, 3)
    assert.equal(node.packages.length, 7)
  })

  const wrong = [
    "A",
    "ms@",
    "--force",
    "a b",
    "git+ssh://x/y",
    "ms@file:../x",
    "ms@..",
    "user/repo",
    "ms@npm:x",
    "ms@$(id)",
  ]
  for (const text of wrong) {
    test(`refuses ${text}`, async () => {
      assert.deepEqual(await problems(`service: s.ts:svc\nnode:\n  packages: [${JSON.stringify(text)}]\n`), [
        `3: node.packages[0]: ${JSON.stringify(text)} is no npm package: \`name\` or \`name@range\`, such as zod@^4`,
      ])
    })
  }

  test("name each package once, and no other key stands beside them", async () => {
    assert.deepEqual(await problems("service: s.ts:svc\nnode:\n  package: []\n  packages: [ms, ms@2]\n"), [
      "3: node.package: unknown key; did you mean packages?",
    ])
    assert.deepEqual(await problems("service: s.ts:svc\nnode:\n  packages: [ms, ms@2]\n"), [
      "3: node.packages[1]: ms is given twice (first in node.packages[0])",
    ])
  })
})
