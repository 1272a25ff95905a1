/** list, get and delete, on a store that Python's BentoML wrote. */
import assert from "node:assert/strict"
import { existsSync } from "node:fs"
import { cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises"
import path from "node:path"
import { test } from "node:test"
import { parse } from "yaml"
import { splitTargets } from "../../cli/items.ts"
import { fixtures, pythonStore, run, scratch, start } from "./support.ts"

type Records = Record<string, string>[]

/** NAME:VERSION of the first item of a name. */
async function tagOf(home: string, kind: "models" | "bentos", name: string): Promise<string> {
  const [version = ""] = (await readdir(path.join(home, kind, name))).filter((entry) => entry !== "latest")
  return `${name}:${version}`
}

test("models list has BentoML's columns and keys, newest first, in each form", async () => {
  const home = await pythonStore()
  const table = (await run(["models", "list"], { home })).stdout.trimEnd().split("\n")
  assert.match(table[0] ?? "", /^Tag {2,}Module {2,}Size {2,}Creation Time$/)
  const json = JSON.parse((await run(["models", "list", "-o", "json"], { home })).stdout) as Records
  assert.equal(table.length, json.length + 1)
  for (const record of json) {
    assert.deepEqual(Object.keys(record), ["tag", "module", "size", "creation_time"])
    assert.match(record["size"] ?? "", /^\d+\.\d\d (B|KiB|MiB)$/)
    assert.match(record["creation_time"] ?? "", /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$/)
  }
  const times = json.map((record) => record["creation_time"] ?? "")
  assert.deepEqual(times, times.toSorted().toReversed())
  const yaml = (await run(["models", "list", "-o", "yaml"], { home })).stdout
  assert.deepEqual(parse(yaml), json)
  assert.deepEqual(Object.keys((parse(yaml) as Records)[0] ?? {}), ["creation_time", "module", "size", "tag"])
})

test("list has BentoML's columns and keys for Bentos, with the size of their models", async () => {
  const home = await pythonStore()
  const table = (await run(["list"], { home })).stdout
  assert.match(table, /^Tag {2,}Size {2,}Model Size {2,}Creation Time\n/)
  const json = JSON.parse((await run(["list", "-o", "json"], { home })).stdout) as Records
  assert.deepEqual(Object.keys(json[0] ?? {}), ["tag", "size", "model_size", "creation_time"])
  const models = JSON.parse((await run(["models", "list", "-o", "json"], { home })).stdout) as Records
  const sizes = models.map((record) => record["size"])
  for (const record of json) assert.ok(sizes.includes(record["model_size"]), record["model_size"])
})

test("a Bento whose model is gone is listed with a warning", async () => {
  const home = await pythonStore()
  await rm(path.join(home, "models/iris_sklearn"), { recursive: true })
  const { code, stdout, stderr } = await run(["list"], { home })
  assert.equal(code, 0)
  assert.match(stderr, /Warning: echo:\w+ uses the model iris_sklearn:\w+, which is not in the store/)
  assert.match(stdout, /echo:\w+ .* 0\.00 B/)
})

test("list NAME shows the versions of that name; an unknown one is an error with near names", async () => {
  const home = await pythonStore()
  const one = JSON.parse(
    (await run(["models", "list", "digits_sklearn", "-o", "json"], { home })).stdout,
  ) as Records
  assert.deepEqual(
    one.map((record) => record["tag"]),
    [await tagOf(home, "models", "digits_sklearn")],
  )
  const { code, stdout, stderr } = await run(["models", "list", "digit_sklearn"], { home })
  assert.deepEqual([code, stdout], [1, ""])
  assert.match(stderr, /no model digit_sklearn .*\nHint: Did you mean digits_sklearn.*\? \[MODEL_NOT_FOUND\]/)
})

test("an empty store lists nothing: [] for programs, the header in a pipe, a hint on a terminal", async () => {
  const home = await scratch()
  assert.equal((await run(["models", "list", "-o", "json"], { home })).stdout, "[]\n")
  assert.equal((await run(["list", "-o", "yaml"], { home })).stdout, "[]\n")
  assert.deepEqual(await run(["models", "list"], { home }), {
    code: 0,
    stdout: "Tag  Module  Size  Creation Time\n",
    stderr: "",
  })
  const terminal = { stdout: true, stderr: true }
  assert.match(
    (await run(["models", "list"], { home, terminal })).stderr,
    /No models in .+; `bentoctl models import/,
  )
  assert.match((await run(["list"], { home, terminal })).stderr, /No Bentos in .+; `bentoctl build`/)
  assert.deepEqual(await readdir(home), [], "looking must not write")
})

test("a broken version is a warning, and the others are listed", async () => {
  const home = await pythonStore()
  await mkdir(path.join(home, "models/iris_sklearn/half_written"))
  await writeFile(path.join(home, "models/digits_sklearn", "latest"), "nonsense/..")
  const { code, stdout, stderr } = await run(["models", "list"], { home })
  assert.equal(code, 0)
  assert.match(
    stderr,
    /^Warning: skipped a broken model, .+iris_sklearn\/half_written: .*no model\.yaml.*\n$/,
  )
  assert.match(stdout, /iris_sklearn:/)
  assert.match(stdout, /digits_sklearn:/)
})

test("what is piped is never cut or coloured, and a narrow terminal loses columns, not tags", async () => {
  const home = await pythonStore()
  const [tag] = [await tagOf(home, "models", "digits_sklearn")]
  const piped = await run(["models", "list"], { home, columns: 20 })
  assert.match(piped.stdout, /Creation Time/)
  const narrow = await run(["models", "list"], { home, columns: 45, terminal: { stdout: true } })
  assert.match(narrow.stdout, /^Tag +Size\n/)
  assert.ok(narrow.stdout.includes(tag))
  const coloured = await run(["models", "list"], { home, terminal: { stdout: true }, colour: true })
  assert.ok(coloured.stdout.startsWith("\u001B[1mTag"))
  const real = await start(["models", "list", "-o", "json"], { env: { BENTOML_HOME: home, COLUMNS: "20" } })
    .ended
  assert.equal((JSON.parse(real.stdout) as Records).length, 4)
  assert.ok(!real.stdout.includes("\u001B"))
})

test("get prints model.yaml as it stands, the same as JSON, or the folder", async () => {
  const home = await pythonStore()
  const tag = await tagOf(home, "models", "digits_sklearn")
  const dir = path.join(home, "models", tag.replace(":", "/"))
  const file = await readFile(path.join(dir, "model.yaml"), "utf8")
  assert.equal((await run(["models", "get", "digits_sklearn"], { home })).stdout, file)
  assert.equal((await run(["models", "get", tag.slice(0, -9), "-o", "path"], { home })).stdout, `${dir}\n`)
  const json = JSON.parse(
    (await run(["models", "get", "digits_sklearn:latest", "-o", "json"], { home })).stdout,
  ) as object
  assert.deepEqual(json, parse(file))
  assert.deepEqual(Object.keys(json), Object.keys(parse(file) as object))
})

test("get as JSON has the types that PyYAML gives the words of model.yaml", async () => {
  const home = await scratch()
  const file = path.join(fixtures, "models/two_inputs.onnx") // its rows are named N, which is no "no" to PyYAML
  const imported = ["models", "import", file, "--name", "two", "--version", "1e5", "-o", "json"]
  const { model } = JSON.parse((await run(imported, { home })).stdout) as { model: unknown }
  const shown: unknown = JSON.parse((await run(["models", "get", "two", "-o", "json"], { home })).stdout)
  assert.deepEqual(model, shown)
  const { version, options } = shown as { version: string; options: { input_specs: unknown } }
  assert.equal(version, "1e5")
  assert.match(JSON.stringify(options.input_specs), /"dim":\[\{"dimParam":"N"\},\{"dimValue":"3"\}\]/)
})

test("get prints bento.yaml", async () => {
  const home = await pythonStore()
  const dir = path.join(home, "bentos", (await tagOf(home, "bentos", "echo")).replace(":", "/"))
  const { stdout } = await run(["get", "echo"], { home })
  assert.equal(stdout, await readFile(path.join(dir, "bento.yaml"), "utf8"))
})

test("get of an ambiguous prefix names the candidates", async () => {
  const home = await pythonStore()
  const { code, stderr } = await run(["models", "get", "iris_sklearn:mo"], { home })
  assert.equal(code, 1)
  assert.match(
    stderr,
    /"iris_sklearn:mo" fits 2 versions: iris_sklearn:\w+, iris_sklearn:\w+\nHint: .+ \[TAG_AMBIGUOUS\]/,
  )
  const json = await run(["models", "get", "iris_sklearn:mo", "-o", "json"], { home })
  const { error } = JSON.parse(json.stderr) as { error: { candidates: string[] } }
  assert.equal(error.candidates.length, 2)
})

test("targets are parted by spaces and commas, and empty ones are none", () => {
  assert.deepEqual(splitTargets(["a:1 b:2,c", "d,", ",", "a:1"]), ["a:1", "b:2", "c", "d"])
  assert.deepEqual(splitTargets([" ", ","]), [])
})

test("delete asks on stderr, and only a yes deletes", async () => {
  const home = await pythonStore()
  const tag = await tagOf(home, "models", "digits_sklearn")
  const terminal = { stdin: true }
  const question = `delete model ${tag}? [y/N] `
  for (const answer of ["\n", "n\n", "yep\n", ""]) {
    const { code, stdout, stderr } = await run(["models", "delete", tag], { home, terminal, stdin: answer })
    assert.deepEqual([code, stdout, stderr.trimEnd()], [0, "", question.trimEnd()], answer)
  }
  assert.ok(existsSync(path.join(home, "models", tag.replace(":", "/"))))
  const yes = await run(["models", "delete", tag], { home, terminal, stdin: "Y\n" })
  assert.deepEqual(yes, { code: 0, stdout: `Model(tag="${tag}") deleted.\n`, stderr: question })
  assert.ok(!existsSync(path.join(home, "models/digits_sklearn")))
})

test("delete of several asks for each; a no goes on with the next", async () => {
  const home = await pythonStore()
  const { stdout, stderr } = await run(["delete", "echo,legacy_iris"], {
    home,
    terminal: { stdin: true },
    stdin: "n\ny\n",
  })
  assert.equal(stdout, `Bento(tag="${await tagOf(await pythonStore(), "bentos", "legacy_iris")}") deleted.\n`)
  assert.match(stderr, /delete bento echo:\w+\? \[y\/N\] delete bento legacy_iris:\w+\? \[y\/N\] $/)
  assert.deepEqual(await readdir(path.join(home, "bentos")), ["echo"])
})

test("delete of a bare name takes all versions and says how many; models of a Bento stay", async () => {
  const home = await pythonStore()
  await run(["delete", "echo", "legacy_iris", "-y"], { home })
  const terminal = { stdin: true }
  const { stdout, stderr } = await run(["models", "delete", "iris_sklearn"], {
    home,
    terminal,
    stdin: "yes\n",
  })
  assert.match(stderr, /^delete model iris_sklearn \(all 2 versions\)\? \[y\/N\] $/)
  assert.equal(stdout.match(/Model\(tag="iris_sklearn:\w+"\) deleted\./g)?.length, 2)
  assert.ok(!existsSync(path.join(home, "models/iris_sklearn")))
})

test("delete without a terminal and without -y is a usage error", async () => {
  const home = await pythonStore()
  const { code, stderr } = await run(["models", "delete", "digits_sklearn"], { home })
  assert.equal(code, 2)
  assert.match(stderr, /there is no terminal to ask on; pass --yes to delete/)
  assert.ok(existsSync(path.join(home, "models/digits_sklearn")))
  assert.equal((await run(["models", "delete", " , "], { home })).code, 2)
})

test("a model that a Bento uses is kept, with every other target of the command", async () => {
  const home = await pythonStore()
  const { code, stdout, stderr } = await run(["models", "delete", "digits_sklearn", "iris_sklearn", "-y"], {
    home,
  })
  assert.deepEqual([code, stdout], [1, ""])
  assert.match(stderr, /model iris_sklearn:\w+ is used by echo:\w+/)
  assert.match(stderr, /model iris_sklearn:\w+ is used by legacy_iris:\w+/)
  assert.match(stderr, /Hint: Nothing was deleted\. First: bentoctl delete \S+ \S+ \[MODEL_IN_USE\]/)
  assert.ok(existsSync(path.join(home, "models/digits_sklearn")))
})

test("a wrong target keeps every other target of the command", async () => {
  const home = await pythonStore()
  for (const wrong of ["nope", "digits_sklearn:nope", "Not:A:Tag"]) {
    assert.equal((await run(["models", "delete", "digits_sklearn", wrong, "-y"], { home })).code, 1)
  }
  assert.ok(existsSync(path.join(home, "models/digits_sklearn")))
})

test("a broken version can be deleted, by its tag or with its name", async () => {
  const home = await pythonStore()
  for (const target of ["tokenizer:half", "tokenizer"]) {
    await cp(path.join(home, "models/digits_sklearn"), path.join(home, "models/tokenizer/half"), {
      recursive: true,
    })
    const { code, stdout } = await run(["models", "delete", target, "-y"], { home })
    assert.equal(code, 0)
    assert.match(stdout, /Model\(tag="tokenizer:half"\) deleted\./)
  }
  assert.ok(!existsSync(path.join(home, "models/tokenizer")))
})

test("Ctrl-C at the question deletes nothing", async () => {
  const home = await pythonStore()
  const { code, stdout } = await run(["models", "delete", "digits_sklearn"], {
    home,
    terminal: { stdin: true },
    interrupt: (press) => press(),
  })
  assert.deepEqual([code, stdout], [130, ""])
  assert.ok(existsSync(path.join(home, "models/digits_sklearn")))
})

test("with -q delete says nothing", async () => {
  const home = await pythonStore()
  assert.deepEqual(await run(["models", "delete", "digits_sklearn", "-yq"], { home }), {
    code: 0,
    stdout: "",
    stderr: "",
  })
})
