import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { Validator } from "@seriousme/openapi-schema-validator"
import { z } from "zod"
import {
  type Tensor,
  api,
  castTensor,
  fromNested,
  json,
  ndarray,
  runner,
  service,
  text,
} from "../../runtime/index.ts"
import { ServeError } from "../../runtime/errors.ts"
import { exampleOf } from "../../runtime/io.ts"
import { type SpecModel, findModel, serviceWithoutCode } from "../../runtime/load.ts"
import { openApi, serviceSchema } from "../../runtime/openapi.ts"
import { type CallScope, bindRunner, callScope, describeService } from "../../runtime/service.ts"
import { IssueError } from "../../store/errors.ts"
import { FakeRunner } from "../fakes.ts"

const echo = (name: string, route?: string) =>
  api({ name, ...(route === undefined ? {} : { route }), input: text(), output: text(), handler: (x) => x })

describe("service()", () => {
  test("names every problem of a definition at once", () => {
    const define = (): unknown =>
      service({
        name: "Not A Name",
        runners: [{ model: "x", methods: ["run"] }],
        apis: [
          echo("a"),
          echo("a", "/other"),
          echo("b", "/a"),
          echo("2c"),
          echo("metrics"),
          echo("d", "no-slash"),
          echo("e", "/with space"),
          echo("f", "/:param"),
          echo("g", "/a/../b"),
          echo("h", "//x"),
          echo("i", "/x?y"),
        ],
      })
    assert.throws(define, (error) => {
      assert.ok(error instanceof IssueError)
      assert.equal(error.code, "SERVICE_INVALID")
      assert.deepEqual(
        error.issues.map((issue) => issue.field),
        [
          "name",
          "runners[0]",
          "apis[1].name",
          "apis[2].route",
          "apis[3].name",
          "apis[4].route",
          "apis[5].route",
          "apis[6].route",
          "apis[7].route",
          "apis[8].route",
          "apis[9].route",
          "apis[10].route",
        ],
      )
      return true
    })
  })

  test("takes routes of several segments, and / itself", () => {
    const { apis } = service({ name: "s", apis: [echo("a", "/"), echo("b", "/v1/models/x.y_z~1-2")] })
    assert.deepEqual(
      apis.map((definition) => definition.route),
      ["/", "/v1/models/x.y_z~1-2"],
    )
  })

  test("needs an API", () => {
    assert.throws(() => service({ name: "s", apis: [] }), /apis: must hold at least one API/)
  })

  // Node strips types and checks none, so what the compiler would refuse gets here.
  test("takes descriptors and a handler, and nothing else, for what they are", () => {
    const wrong = JSON.parse('{"name": "a", "input": "json", "output": {}, "handler": 5}') as never
    assert.throws(
      () => service({ name: "s", apis: [api(wrong), api({ name: "b" } as never)] }),
      (error: unknown) => {
        assert(error instanceof IssueError)
        const fields = ["input", "output", "handler"]
        assert.deepEqual(
          error.issues.map(({ field }) => field),
          [0, 1].flatMap((index) => fields.map((field) => `apis[${index}].${field}`)),
        )
        assert.match(error.message, /apis\[0\]\.input: must be a descriptor: json\(\), text\(\), ndarray\(\)/)
        return true
      },
    )
    assert.throws(() => service({ name: "s" } as never), /apis: must hold at least one API/)
  })
})

test("a descriptor is made of what it can hold a body to", () => {
  assert.throws(() => json({ schema: z.string() } as never), /json\(\): .* is no Standard Schema/)
  assert.throws(
    () => ndarray({ dtype: "float" as never }),
    /ndarray\(\): dtype "float" is none of float16, .*, string/,
  )
  for (const shape of [4, [-2], [1.5], ["N"]]) {
    assert.throws(
      () => ndarray({ shape: shape as never }),
      /ndarray\(\): shape .* must be a list of sizes, -1 for any/,
    )
  }
})

describe("a runner", () => {
  const specs = {
    inputs: [
      { name: "a", dtype: "float32", shape: [null] },
      { name: "b", dtype: "int64", shape: [null] },
    ],
  } as const

  test("cannot have a method that would hide something", () => {
    for (const name of ["model", "methods", "then"])
      assert.throws(() => runner("m", [name]), /cannot be called/)
  })

  test("says so when its model is not loaded", async () => {
    await assert.rejects(
      runner("m").run(fromNested("float32", [1])),
      /is called before the server has loaded/,
    )
  })

  test("takes one tensor for a model with one input, or tensors by name", async () => {
    const one = runner("m")
    bindRunner(one, new FakeRunner())
    const x = fromNested("float32", [[1, 2, 3, 4]])
    assert.deepEqual(await one.run(x), { X: x })
    assert.deepEqual(await one.run({ X: x }), { X: x })
  })

  test("converts what can be converted to the dtypes of the model", async () => {
    const two = runner("m")
    bindRunner(two, new FakeRunner(specs))
    assert.deepEqual(await two.run({ a: fromNested("int64", [1]), b: fromNested("int8", [2]) }), {
      a: fromNested("float32", [1]),
      b: fromNested("int64", [2]),
    })
    // A float never becomes an integer: the runner itself refuses it, with expected and received.
    const halves = { a: fromNested("float32", [1]), b: fromNested("float32", [2]) }
    assert.deepEqual(await two.run(halves), halves)
  })

  describe("with a signal of the handler's own", () => {
    const x = fromNested("float32", [[1, 2, 3, 4]])
    /** A call that fails as a runner's does when its signal fires, or in another way. */
    const call = (
      scoped: boolean,
      error: Error = new ServeError("CLIENT_GONE", 499, "the client is gone"),
    ) => {
      const handle = runner("m")
      const run = (_: unknown, { signal }: { readonly signal?: AbortSignal }): Promise<never> =>
        new Promise((_resolve, reject) => signal?.addEventListener("abort", () => reject(error)))
      bindRunner(handle, new FakeRunner({}, run))
      const client = new AbortController()
      const { signal } = client
      const timing = { queueMs: 0, inferMs: 0, batchRows: 0 }
      const scope: CallScope = { cancel: signal, signal, deadlineMs: undefined, timing }
      const own = new AbortController()
      const start = (): Promise<unknown> => handle.run(x, { signal: own.signal })
      return { client, own, running: scoped ? callScope.run(scope, start) : start() }
    }

    test("the call rejects with its reason when it fires, in a request and outside of one", async () => {
      for (const scoped of [true, false]) {
        const { own, running } = call(scoped)
        const reason = new Error("patience is over")
        own.abort(reason)
        await assert.rejects(running, (error) => error === reason)
      }
    })

    test("a client that leaves is told from that, and so is what else fails", async () => {
      const { client, running } = call(true)
      client.abort()
      await assert.rejects(running, { code: "CLIENT_GONE" })

      const broken = new Error("broken")
      const other = call(true, broken)
      other.own.abort()
      await assert.rejects(other.running, (error) => error === broken)
    })
  })
})

test("castTensor keeps to NumPy's same_kind and to the values", () => {
  const cast = (
    from: Parameters<typeof fromNested>[0],
    values: unknown[],
    to: Parameters<typeof castTensor>[1],
  ) => castTensor(fromNested(from, values as never), to)
  assert.deepEqual(cast("float64", [0.5], "float32"), fromNested("float32", [0.5]))
  assert.deepEqual(cast("bool", [true], "uint8"), fromNested("uint8", [1]))
  assert.deepEqual(cast("int64", [5], "float64"), fromNested("float64", [5]))
  assert.equal(cast("float32", [1], "int32"), null)
  assert.equal(cast("int64", [300], "uint8"), null)
  assert.equal(cast("int32", [-1], "uint64"), null)
  assert.equal(cast("float64", [1e39], "float32"), null)
  assert.equal(cast("string", ["a"], "float32"), null)
  assert.equal(cast("float32", [1], "string"), null)
})

test("an empty array is no rows, however long they would be", () => {
  const decode = (shape: number[], body: string, enforceShape = true): readonly number[] =>
    (ndarray({ dtype: "float32", shape, enforceShape }).decode(Buffer.from(body)) as Tensor).shape
  assert.deepEqual(decode([-1, 4], "[]"), [0, 4])
  assert.deepEqual(decode([-1, 4], "[]", false), [0, 4])
  assert.deepEqual(decode([-1, -1, 3], "[]"), [0, 0, 3])
  assert.deepEqual(decode([-1], "[]"), [0])
  for (const [shape, body] of [
    [[2, 4], "[]"],
    [[-1, 4], "[[]]"],
    [[-1, 4], "[1]"],
  ] as const) {
    assert.throws(() => decode([...shape], body), { code: "BAD_INPUT" }, body)
  }
})

describe("ndarray without enforcement", () => {
  const decode = (options: Parameters<typeof ndarray>[0], body: string) =>
    ndarray(options).decode(Buffer.from(body))

  test("converts a dtype where nothing is lost, else passes it on", () => {
    assert.deepEqual(
      decode({ dtype: "float32", enforceDtype: false }, "[1,2]"),
      fromNested("float32", [1, 2]),
    )
    assert.deepEqual(decode({ dtype: "int64", enforceDtype: false }, "[1.7]"), fromNested("float64", [1.7]))
    assert.deepEqual(decode({ dtype: "int64", enforceDtype: false }, '["a"]'), fromNested("string", ["a"]))
  })

  test("reshapes where it comes out, else passes it on", () => {
    const shapeOf = (shape: number[], body: string): readonly number[] =>
      (decode({ shape, enforceShape: false }, body) as Tensor).shape
    assert.deepEqual(shapeOf([-1, 4], "[1,2,3,4]"), [1, 4])
    assert.deepEqual(shapeOf([2, 2], "[1,2,3,4]"), [2, 2])
    assert.deepEqual(shapeOf([-1, 3], "[1,2,3,4]"), [4])
    assert.deepEqual(shapeOf([-1, -1], "[1,2,3,4]"), [4])
  })
})

describe("the models of runners", () => {
  const model = (tag: string, alias?: string): SpecModel => {
    const [name = "", version = ""] = tag.split(":")
    return {
      name: alias ?? name,
      dir: "",
      spec: { tag, dir: "", ...(alias === undefined ? {} : { alias }) },
      model: { tag: { name, version }, signatures: { run: {}, encode: {} } } as never,
    }
  }
  const models = [model("iris:abc"), model("clip:v2", "eyes"), model("clip:v1")]
  const find = (asked: string, methods?: string[]) =>
    findModel(methods === undefined ? runner(asked) : runner(asked, methods), models).spec.tag

  test("are found by alias, tag, prefix, latest or name", () => {
    const cases: [string, string][] = [
      ["eyes", "clip:v2"],
      ["clip:v1", "clip:v1"],
      ["iris", "iris:abc"],
      ["iris:latest", "iris:abc"],
      ["iris:ab", "iris:abc"],
      ["clip", "clip:v2"],
    ]
    for (const [asked, tag] of cases) assert.equal(find(asked), tag, asked)
  })

  test("else the error names those that there are", () => {
    assert.throws(() => find("dog"), { code: "SERVICE_INVALID", hint: /iris:abc, eyes \(clip:v2\), clip:v1/ })
    assert.throws(() => find("iris:abd"), { code: "SERVICE_INVALID" })
    assert.throws(() => find("iris", ["decode"]), {
      message: /no signature "decode"/,
      hint: /"run", "encode"/,
    })
  })
})

describe("descriptions", () => {
  const Person = z.object({ name: z.string(), tags: z.array(z.string()).optional() })
  const described = describeService(
    service({
      name: "all_kinds",
      runners: [runner("m:latest"), runner("m:latest", ["encode"])],
      apis: [
        api({
          name: "a",
          doc: "First line.\n\nMore.",
          input: ndarray({ dtype: "float32", shape: [-1, 4] }),
          output: ndarray(),
          handler: (x) => x,
        }),
        api({ name: "b", input: json(Person), output: json<number>(), handler: () => 1 }),
        api({ name: "c", input: text(), output: text(), handler: (x) => x }),
      ],
    }),
  )

  test("runners are told once for each model, with all their methods", () => {
    assert.deepEqual(described.runners, [{ name: "m", model: "m:latest", methods: ["run", "encode"] }])
  })

  test("the OpenAPI document is valid", async () => {
    const zero = serviceWithoutCode(
      "zero",
      [
        {
          name: "iris",
          dir: "",
          spec: { tag: "iris:v1", dir: "" },
          model: { signatures: { run: {} } } as never,
        },
      ],
      () => new FakeRunner(),
      () => ({
        inputs: [{ name: "X", dtype: "float32", shape: [null, 4] }],
        outputs: [{ name: "label", dtype: "string", shape: ["N"] }],
      }),
    ).describe()
    for (const info of [described, zero]) {
      const document = openApi(info, { version: "v1", description: "What it is for." })
      const { valid, errors } = await new Validator().validate(structuredClone(document))
      assert.ok(valid, JSON.stringify(errors))
    }
  })

  test("bodies are described as the JSON Schema that they are", () => {
    const [a, b, c] = described.apis
    assert.deepEqual(a?.input.schema, {
      type: "array",
      items: { type: "array", items: { type: "number", format: "float" }, minItems: 4, maxItems: 4 },
    })
    assert.deepEqual(exampleOf(a?.input.schema ?? {}), [[0, 0, 0, 0]])
    assert.deepEqual(b?.input.schema, {
      type: "object",
      properties: { name: { type: "string" }, tags: { type: "array", items: { type: "string" } } },
      required: ["name"],
    })
    assert.deepEqual([c?.input.mediaType, c?.input.schema], ["text/plain", { type: "string" }])
  })

  test("/schema.json lists the routes with what they take and give", () => {
    const schema = serviceSchema(described, { version: null })
    assert.deepEqual(
      [schema["name"], (schema["routes"] as { route: string }[]).map(({ route }) => route)],
      ["all_kinds", ["/a", "/b", "/c"]],
    )
  })

  test("without code, each signature of each model is an API", () => {
    const model = (name: string, ...signatures: string[]): SpecModel => ({
      name,
      dir: "",
      spec: { tag: `${name}:v1`, dir: "" },
      model: { signatures: Object.fromEntries(signatures.map((signature) => [signature, {}])) } as never,
    })
    const routes = (...models: SpecModel[]): string[] =>
      serviceWithoutCode(
        "s",
        models,
        () => new FakeRunner(),
        () => ({ inputs: [], outputs: [] }),
      ).apis.map((definition) => definition.route)
    assert.deepEqual(routes(model("iris", "run")), ["/run"])
    assert.deepEqual(routes(model("clip", "encode", "decode")), ["/encode", "/decode"])
    assert.deepEqual(routes(model("iris", "run"), model("clip", "encode")), ["/iris/run", "/clip/encode"])
    assert.deepEqual(routes(model("iris", "metrics")), ["/iris/metrics"])
  })
})
