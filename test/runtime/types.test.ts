/** What must and what must not compile. `tsc` is the test: an `@ts-expect-error` without an error is one. */
import assert from "node:assert/strict"
import { test } from "node:test"
import { z } from "zod"
import {
  type Api,
  type Tensor,
  type Tensors,
  api,
  fromNested,
  json,
  ndarray,
  runner,
  service,
  text,
  toNested,
} from "../../runtime/index.ts"

const Person = z.object({ name: z.string(), age: z.number().default(30) })
type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
const same = <A, B>(equal: Equal<A, B>): void => assert.ok(equal)

test("a handler's argument has the type of its input descriptor", () => {
  const definitions: Api[] = [
    api({
      name: "a",
      input: ndarray({ dtype: "float32", shape: [-1, 4] }),
      output: json<number>(),
      handler: (x) => {
        same<typeof x, Tensor<"float32">>(true)
        const first: number | undefined = x.data[0]
        // @ts-expect-error a float32 holds no bigints
        const big: bigint | undefined = x.data[0]
        return (first ?? 0) + Number(big ?? 0)
      },
    }),
    api({
      name: "b",
      input: ndarray(),
      output: ndarray(),
      handler: (x) => {
        same<typeof x, Tensor>(true)
        return x
      },
    }),
    api({
      name: "c",
      input: ndarray({ dtype: "int64", enforceDtype: false }),
      output: text(),
      handler: (x) => {
        same<typeof x, Tensor>(true)
        return x.dtype
      },
    }),
    api({
      name: "d",
      input: text(),
      output: text(),
      handler: (x) => {
        same<typeof x, string>(true)
        return x
      },
    }),
    api({
      name: "e",
      input: json(Person),
      output: json<{ greeting: string }>(),
      handler: (person) => {
        // The schema's output: the default has been filled in.
        same<typeof person, { name: string; age: number }>(true)
        return { greeting: person.name }
      },
    }),
    api({
      name: "f",
      input: json(),
      output: json(),
      handler: (x) => {
        same<typeof x, unknown>(true)
        // @ts-expect-error nothing is known of a body without a schema
        return x.name as unknown
      },
    }),
  ]
  assert.equal(definitions.length, 6)
})

test("a wrong result does not compile", () => {
  const definitions: Api[] = [
    // @ts-expect-error a number is no text
    api({ name: "a", input: text(), output: text(), handler: () => 1 }),
    // @ts-expect-error nor is it when it comes later
    api({ name: "b", input: text(), output: text(), handler: async () => 1 }),
    // @ts-expect-error nothing is returned
    api({ name: "c", input: text(), output: json<{ a: number }>(), handler: () => {} }),
    // @ts-expect-error a is missing
    api({ name: "d", input: text(), output: json<{ a: number }>(), handler: () => ({ b: 1 }) }),
    api({
      name: "e",
      input: text(),
      output: ndarray({ dtype: "float32" }),
      // @ts-expect-error another dtype
      handler: () => fromNested("int64", 1),
    }),
    // @ts-expect-error the schema wants a name
    api({ name: "f", input: text(), output: json(Person), handler: () => ({ age: 3 }) }),
    // What the schema takes is enough: age has a default.
    api({ name: "g", input: text(), output: json(Person), handler: () => ({ name: "Ada" }) }),
    api({
      name: "h",
      input: text(),
      output: ndarray({ dtype: "bool" }),
      handler: async () => fromNested("bool", true),
    }),
  ]
  assert.equal(definitions.length, 8)
})

test("a runner has a method for each signature that was named", () => {
  const iris = runner("iris_clf:latest")
  const clip = runner("clip", ["encode", "decode"])
  same<ReturnType<typeof iris.run>, Promise<Tensors>>(true)
  same<ReturnType<typeof clip.encode>, Promise<Tensors>>(true)
  // @ts-expect-error it was not named
  assert.equal(clip.run, undefined)
  // @ts-expect-error neither was this
  assert.equal(iris.encode, undefined)
  // @ts-expect-error the result is to be awaited
  const wrong = (): Tensors => iris.run(fromNested("float32", [[1]]))
  assert.equal(typeof wrong, "function")
  const svc = service({
    name: "s",
    runners: [iris, clip],
    apis: [api({ name: "a", input: text(), output: text(), handler: (x) => x })],
  })
  assert.equal(svc.runners.length, 2)
})

test("nested arrays have the values of their dtype", () => {
  const labels = toNested(fromNested("string", ["a"]))
  const numbers = toNested(fromNested("int64", [1]))
  same<typeof labels, ReturnType<typeof toNested<"string">>>(true)
  // @ts-expect-error these are numbers
  const wrong: typeof labels = numbers
  assert.deepEqual([labels, wrong], [["a"], [1]])
})
