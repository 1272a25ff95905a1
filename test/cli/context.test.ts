import assert from "node:assert/strict"
import { test } from "node:test"
import { storeHome, wantsColour } from "../../cli/context.ts"

const home = (env: Record<string, string>): string => storeHome(env, "/work dir", "/home/ann")

test("the store is ~/bentoml when BENTOML_HOME is not set or empty", () => {
  assert.equal(home({}), "/home/ann/bentoml")
  assert.equal(home({ BENTOML_HOME: "" }), "/home/ann/bentoml")
  assert.equal(home({ BENTOML_HOME: "  " }), "/home/ann/bentoml")
})

test("~ and variables in BENTOML_HOME are expanded until nothing changes", () => {
  assert.equal(home({ BENTOML_HOME: "~/b" }), "/home/ann/b")
  assert.equal(home({ BENTOML_HOME: "~" }), "/home/ann")
  assert.equal(home({ BENTOML_HOME: "$DATA/b", DATA: "${ROOT}/data", ROOT: "~" }), "/home/ann/data/b")
  assert.equal(home({ BENTOML_HOME: "/a/~/b" }), "/a/~/b")
})

test("unknown variables in BENTOML_HOME stay, and one that names itself ends", () => {
  assert.equal(home({ BENTOML_HOME: "/a/$NOPE/${NOPE}" }), "/a/$NOPE/${NOPE}")
  assert.match(home({ BENTOML_HOME: "/x$A", A: "$A" }), /^\/x\$A$/)
  assert.match(home({ BENTOML_HOME: "/$A", A: "b/$A" }), /^\/b\/b\/.*\$A$/)
})

test("a relative BENTOML_HOME is one of the working directory", () => {
  assert.equal(home({ BENTOML_HOME: "b" }), "/work dir/b")
})

test("colours: NO_COLOR wins over FORCE_COLOR, which wins over what the stream is", () => {
  assert.equal(wantsColour({}, true), true)
  assert.equal(wantsColour({}, false), false)
  assert.equal(wantsColour({ NO_COLOR: "1" }, true), false)
  assert.equal(wantsColour({ NO_COLOR: "" }, true), true)
  assert.equal(wantsColour({ FORCE_COLOR: "1" }, false), true)
  assert.equal(wantsColour({ FORCE_COLOR: "" }, false), true)
  assert.equal(wantsColour({ FORCE_COLOR: "0" }, true), false)
  assert.equal(wantsColour({ NO_COLOR: "1", FORCE_COLOR: "1" }, false), false)
  assert.equal(wantsColour({ TERM: "dumb" }, true), false)
})
