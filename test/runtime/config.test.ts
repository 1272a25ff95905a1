/** How settings come together: sources, precedence, and every way to get them wrong. */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { suite, test } from "node:test"
import fc from "fast-check"
import { UNSUPPORTED } from "../../runtime/config-check.ts"
import { formatKey, isHost, parseKey } from "../../runtime/config-entry.ts"
import { CONFIG_SCHEMA, SETTINGS } from "../../runtime/config-schema.ts"
import {
  type ConfigFlags,
  DEFAULTS,
  type LoadedConfig,
  NOT_YET,
  checkRunnerNames,
  formatConfig,
  isWithin,
  loadConfig,
  runnerConfig,
} from "../../runtime/config.ts"
import { DEFAULT_RUNNER_CONFIG } from "../../runtime/runner.ts"
import type { Json } from "../../store/bento.ts"
import { IssueError, formatIssue } from "../../store/errors.ts"

const root = path.resolve(import.meta.dirname, "../..")

interface Given {
  readonly yaml?: string
  readonly env?: Record<string, string>
  readonly flags?: ConfigFlags
  readonly notYet?: readonly string[]
}

function load({ yaml, env = {}, flags = {}, notYet = [] }: Given): Promise<LoadedConfig> {
  const file = yaml === undefined ? null : { path: "c.yaml", text: yaml }
  return loadConfig({
    file,
    env,
    flags,
    notYet,
    readFile: () => Promise.reject(new Error("no files in this test")),
  })
}

/** The problems, one line each, as the user sees them. */
async function problems(given: Given | Promise<unknown>): Promise<string[]> {
  try {
    await (given instanceof Promise ? given : load(given))
  } catch (error) {
    assert.ok(error instanceof IssueError, String(error))
    assert.equal(error.code, "CONFIG_INVALID")
    return error.issues.map(formatIssue)
  }
  return []
}

async function valueOf(given: Given, key: string): Promise<Json | undefined> {
  return (await load(given)).origins[key]?.value
}

suite("defaults", () => {
  test("the constant that needs no schema is what the schema says", () => {
    assert.deepEqual(DEFAULTS, CONFIG_SCHEMA.parse({}))
  })

  test("a runner without settings has the runner's own defaults", async () => {
    const { config } = await load({})
    assert.deepEqual(runnerConfig(config, "iris"), DEFAULT_RUNNER_CONFIG)
  })

  test("without sources everything is default", async () => {
    const { config, origins, notes } = await load({})
    assert.deepEqual(new Set(Object.values(origins).map(({ from }) => from)), new Set(["default"]))
    assert.deepEqual(
      Object.keys(origins),
      SETTINGS.map((setting) => formatKey(setting.path)),
    )
    assert.deepEqual(notes, [])
    assert.equal(config.http.port, 3000)
    assert.equal(config.timeoutMs, 60_000)
    assert.equal(config.http.cors, null)
  })

  test("neither zod nor yaml is loaded unless a file or an override is there", () => {
    const script = `
      import { registerHooks } from "node:module"
      const loaded = []
      registerHooks({ resolve: (name, context, next) => (loaded.push(name), next(name, context)) })
      const { loadConfig } = await import("./runtime/config.ts")
      const readFile = () => Promise.reject(new Error("no"))
      await loadConfig({ env: { PORT: "1", BENTOML_TIMEOUT: "2" }, flags: { host: "::1" }, readFile })
      const before = loaded.filter((name) => name === "zod" || name === "yaml")
      await loadConfig({ env: { BENTOML_CONFIG_OPTIONS: "runners.workers=2" }, readFile })
      const after = loaded.filter((name) => name === "zod" || name === "yaml")
      console.log(JSON.stringify([before, after.sort()]))`
    const output = execFileSync(process.execPath, ["--input-type=module", "-e", script], {
      cwd: root,
      encoding: "utf8",
    })
    assert.deepEqual(JSON.parse(output), [[], ["yaml", "zod"]])
  })
})

suite("values", () => {
  const cases: [what: string, given: Given, key: string, value: Json][] = [
    ["a number", { yaml: "api_server: {workers: 4}" }, "api_server.workers", 4],
    ["null for BentoML's default", { yaml: "api_server: {workers: null}" }, "api_server.workers", 1],
    [
      "one origin as a text",
      { yaml: "api_server: {http: {cors: {access_control_allow_origins: 'https://a.b:8080'}}}" },
      "api_server.http.cors.access_control_allow_origins",
      ["https://a.b:8080"],
    ],
    [
      "CORS as BentoML's default file has it",
      {
        yaml: "api_server: {http: {cors: {enabled: false, access_control_allow_origins: null, access_control_max_age: null}}}",
      },
      "api_server.http.cors.access_control_allow_origins",
      [],
    ],
    ["an old name", { yaml: "api_server: {port: 80}" }, "api_server.http.port", 80],
    [
      "an old section",
      { yaml: "api_server: {cors: {access_control_max_age: 5}}" },
      "api_server.http.cors.access_control_max_age",
      5,
    ],
    ["runners.timeout", { yaml: "runners: {timeout: 5}" }, "runners.traffic.timeout", 5],
    ["a runner's timeout", { yaml: "runners: {iris: {timeout: 5}}" }, "runners.iris.traffic.timeout", 5],
    ["resources.cpu", { yaml: "runners: {resources: {cpu: 1.5}}" }, "runners.intra_op_threads", 2],
    [
      "resources.cpu in millis",
      { yaml: "runners: {iris: {resources: {cpu: 500m}}}" },
      "runners.iris.intra_op_threads",
      1,
    ],
    ["resources of the system", { yaml: "runners: {resources: system}" }, "runners.intra_op_threads", null],
    ["an empty file", { yaml: "" }, "api_server.workers", 1],
    ["a file of comments", { yaml: "# nothing\n" }, "api_server.workers", 1],
    ["empty sections", { yaml: "api_server:\n  http:\nrunners:\n  iris:\n" }, "api_server.http.port", 3000],
    [
      "what is not supported but off",
      {
        yaml: "api_server: {ssl: {enabled: false, certfile: x}, grpc: null}\ntracing: {exporter_type: null}",
      },
      "api_server.workers",
      1,
    ],
    ["an alias", { yaml: "runners: {a: &a {workers: 3}, b: *a}" }, "runners.b.workers", 3],
    [
      "a variable",
      { yaml: "api_server: {http: {port: '${P}'}}", env: { P: "81" } },
      "api_server.http.port",
      81,
    ],
    [
      "a variable that is there, with a default",
      { yaml: "api_server:\n  http:\n    port: ${P:-80}", env: { P: "81" } },
      "api_server.http.port",
      81,
    ],
    ["a default", { yaml: "api_server:\n  http:\n    port: ${P:-80}" }, "api_server.http.port", 80],
    [
      "a default for an empty variable",
      { yaml: "api_server:\n  http:\n    port: ${P:-80}", env: { P: "" } },
      "api_server.http.port",
      80,
    ],
    [
      "an empty default",
      { yaml: "api_server:\n  traffic:\n    max_concurrency: ${M:-}" },
      "api_server.traffic.max_concurrency",
      null,
    ],
    [
      "a variable within a text",
      { yaml: "api_server: {metrics: {namespace: 'a_${N}_b'}}", env: { N: "1" } },
      "api_server.metrics.namespace",
      "a_1_b",
    ],
    [
      "a variable in a list",
      { yaml: "api_server: {logging: {access: {skip_paths: ['/a', '${P}']}}}", env: { P: "/b" } },
      "api_server.logging.access.skip_paths",
      ["/a", "/b"],
    ],
    [
      "the two characters themselves",
      { yaml: "api_server: {logging: {access: {skip_paths: ['/$${x}']}}}" },
      "api_server.logging.access.skip_paths",
      ["/${x}"],
    ],
    [
      "JSON",
      { env: { BENTOML_CONFIG_OVERRIDES: '{"runners":\n\t{"my.model":\t{"workers": 2}}}' } },
      'runners."my.model".workers',
      2,
    ],
    [
      "an option",
      { env: { BENTOML_CONFIG_OPTIONS: "  api_server.http.port=81  " } },
      "api_server.http.port",
      81,
    ],
    [
      "an option with a list",
      { env: { BENTOML_CONFIG_OPTIONS: "a=1 'api_server.metrics.duration.buckets=[1, 2]'".slice(4) } },
      "api_server.metrics.duration.buckets",
      [1, 2],
    ],
    [
      "an option with a quoted value",
      { env: { BENTOML_CONFIG_OPTIONS: 'api_server.metrics.duration.buckets="[1, 2]"' } },
      "api_server.metrics.duration.buckets",
      [1, 2],
    ],
    [
      "an option with a quoted key",
      { env: { BENTOML_CONFIG_OPTIONS: `runners."my.model".workers=2 runners.'x.y'.workers=3` } },
      'runners."x.y".workers',
      3,
    ],
    ["PORT over BENTOML_PORT", { env: { PORT: "1", BENTOML_PORT: "2" } }, "api_server.http.port", 1],
    ["an empty PORT", { env: { PORT: "", BENTOML_PORT: "2" } }, "api_server.http.port", 2],
    ["a host name", { flags: { host: "localhost" } }, "api_server.http.host", "localhost"],
    ["a part of a second", { env: { BENTOML_TIMEOUT: "0.5" } }, "api_server.traffic.timeout", 0.5],
  ]
  for (const [what, given, key, value] of cases) {
    test(`${what} is understood`, async () => assert.deepEqual(await valueOf(given, key), value))
  }

  test("what the server gets is in milliseconds and ready to use", async () => {
    const { config } = await load({
      yaml: `
api_server:
  workers: 3
  backlog: 9
  graceful_shutdown_timeout_s: 0
  traffic: {timeout: 1.5, max_concurrency: 7}
  http:
    body_limit_bytes: 10
    receive_timeout_s: 2
    keep_alive_timeout_s: 3
    cors: {enabled: true, access_control_allow_origin_regex: "https://.*\\\\.example", access_control_allow_credentials: true}
    response: {trace_id: true}
  metrics: {enabled: false, namespace: x, duration: {min: 1, max: 10, factor: 3}}
  logging: {access: {enabled: false, sample_rate: 0.1, skip_paths: []}}
runners:
  traffic: {timeout: 4}
  iris: {workers: 2, batching: {enabled: false, max_batch_size: 5, max_latency_ms: 6, batch_wait_ms: 1}}`,
    })
    const { runners, runnerDefaults, ...server } = config
    assert.deepEqual(server, {
      http: {
        host: "0.0.0.0",
        port: 3000,
        backlog: 9,
        workers: 3,
        bodyLimitBytes: 10,
        receiveTimeoutMs: 2000,
        keepAliveTimeoutMs: 3000,
        cors: {
          origins: [],
          originRegex: /^(?:https:\/\/.*\.example)$/,
          credentials: true,
          methods: ["GET", "HEAD", "POST"],
          headers: [],
          exposeHeaders: [],
          maxAgeS: 600,
        },
        traceIdHeader: true,
        serverTiming: true,
      },
      timeoutMs: 1500,
      maxConcurrency: 7,
      gracefulTimeoutMs: 0,
      metrics: { enabled: false, namespace: "x", durationBuckets: [1, 3, 9, 10] },
      accessLog: { enabled: false, sampleRate: 0.1, skipPaths: [] },
    })
    assert.deepEqual(runnerDefaults, { ...DEFAULT_RUNNER_CONFIG, timeoutMs: 4000 })
    assert.deepEqual(
      runners,
      new Map([
        [
          "iris",
          {
            ...DEFAULT_RUNNER_CONFIG,
            timeoutMs: 4000,
            workers: 2,
            batching: false,
            maxBatchSize: 5,
            maxLatencyMs: 6,
            batchWaitMs: 1,
          },
        ],
      ]),
    )
  })

  test("no buckets are the default ones", async () => {
    const { config } = await load({ yaml: "api_server: {metrics: {duration: {buckets: null}}}" })
    assert.deepEqual(config.metrics.durationBuckets, DEFAULTS.api_server.metrics.duration.buckets)
  })

  test("the configuration can be sent to a thread", async () => {
    const { config } = await load({ yaml: "runners: {iris: {workers: 2}}" })
    assert.deepEqual(structuredClone(config), config)
  })

  test("an old name works with a note that gives the new one", async () => {
    const { notes } = await load({ yaml: "api_server:\n  timeout: 5\nrunners: {timeout: 5}" })
    assert.deepEqual(notes, ["c.yaml:2: api_server.timeout is an old name; write api_server.traffic.timeout"])
  })
})

suite("problems", () => {
  const cases: [what: string, given: Given, ...expected: string[]][] = [
    [
      "a misspelt key",
      { yaml: "api_server:\n  http:\n    prot: 1" },
      "c.yaml:3:5: api_server.http.prot: unknown key; did you mean port?",
    ],
    [
      "a misspelt section",
      { yaml: "api-server: {}" },
      "c.yaml:1:1: api-server: unknown key; did you mean api_server?",
    ],
    [
      "a key in the wrong section",
      { yaml: "api_server: {max_batch_size: 1}" },
      "c.yaml:1:14: api_server.max_batch_size: unknown key; did you mean runners.batching.max_batch_size?",
    ],
    [
      "a runner's key in the wrong section",
      { yaml: "runners: {iris: {batch_wait_ms: 1}}" },
      "c.yaml:1:18: runners.iris.batch_wait_ms: unknown key; did you mean runners.iris.batching.batch_wait_ms?",
    ],
    [
      "a misspelt section of the runners",
      { yaml: "runners: {batchign: {enabled: false}}" },
      "c.yaml:1:22: runners.batchign.enabled: unknown key; did you mean runners.batching.enabled?",
    ],
    [
      "a misspelt setting of the runners",
      { yaml: "runners: {worker: 2}" },
      "c.yaml:1:11: runners.worker: unknown key; did you mean workers?",
    ],
    [
      "a runner that is no map",
      { yaml: "runners: {iris: 2}" },
      "c.yaml:1:11: runners.iris: unknown key; a runner of this name would be a map of settings",
    ],
    [
      "a key like nothing",
      { yaml: "zzz: 1" },
      "c.yaml:1:1: zzz: unknown key; known here are version, api_server, runners",
    ],
    [
      "constructor as a key",
      { yaml: "api_server: {constructor: {}, toString: 1}" },
      "c.yaml:1:14: api_server.constructor: unknown key; known here are workers, backlog, graceful_shutdown_timeout_s, traffic, http, metrics, logging",
      "c.yaml:1:31: api_server.toString: unknown key; known here are workers, backlog, graceful_shutdown_timeout_s, traffic, http, metrics, logging",
    ],
    [
      "a wrong type",
      { yaml: "api_server: {http: {port: many}}" },
      'c.yaml:1:27: api_server.http.port: must be a whole number from 0 to 65535, not "many"',
    ],
    [
      "a wrong type in a list",
      { yaml: "api_server: {logging: {access: {skip_paths: [/a, b]}}}" },
      'c.yaml:1:50: api_server.logging.access.skip_paths[1]: must be a list of paths that begin with a slash, not "b"',
    ],
    [
      "yes for true",
      { yaml: "api_server: {metrics: {enabled: yes}}" },
      'c.yaml:1:33: api_server.metrics.enabled: must be true or false, not "yes"',
    ],
    [
      "nothing where there must be something",
      { yaml: "api_server: {http: {port: }}" },
      "c.yaml:1:27: api_server.http.port: must be a whole number from 0 to 65535, not nothing",
    ],
    [
      "a map where there must be a number",
      { yaml: "api_server: {workers: {a: 1}}" },
      "c.yaml:1:23: api_server.workers: must be a whole number from 1 to 256, or null for 1, not a map",
    ],
    [
      "a number where there must be a map",
      { yaml: "api_server: {traffic: 60}" },
      "c.yaml:1:23: api_server.traffic: must be a map with the keys timeout, max_concurrency, not 60",
    ],
    [
      "out of range",
      { yaml: "api_server: {http: {port: 65536}}\nrunners: {workers: 0}" },
      "c.yaml:1:27: api_server.http.port: must be a whole number from 0 to 65535, not 65536",
      "c.yaml:2:20: runners.workers: must be a whole number from 1 to 256, not 0",
    ],
    [
      "infinity",
      { yaml: "api_server: {traffic: {timeout: .inf}}" },
      "c.yaml:1:33: api_server.traffic.timeout: must be a number of seconds from 0.001 to 2147483, not Infinity",
    ],
    [
      "a broken regular expression",
      { yaml: "api_server: {http: {cors: {access_control_allow_origin_regex: '('}}}" },
      'c.yaml:1:63: api_server.http.cors.access_control_allow_origin_regex: must be a regular expression, or null, not "("',
    ],
    [
      "a header that would split the response",
      { yaml: 'api_server: {http: {cors: {access_control_expose_headers: ["a\\r\\nb"]}}}' },
      'c.yaml:1:60: api_server.http.cors.access_control_expose_headers[0]: must be a list of header names, not "a\\r\\nb"',
    ],
    [
      "falling buckets",
      { yaml: "api_server: {metrics: {duration: {buckets: [2, 1]}}}" },
      "c.yaml:1:44: api_server.metrics.duration.buckets: must be a list of 1 to 100 rising seconds, or null, not [2,1]",
    ],
    [
      "an old name beside the new one",
      { yaml: "api_server: {port: 1, http: {port: 2}}" },
      "c.yaml:1:14: api_server.port: says the same as api_server.http.port, which is there too; write only that",
    ],
    [
      "an old name with a wrong value",
      { yaml: "api_server: {port: x}" },
      'c.yaml:1:20: api_server.port: must be a whole number from 0 to 65535, not "x"',
    ],
    [
      "CPUs that are none",
      { yaml: "runners: {resources: {cpu: -1}}" },
      "c.yaml:1:28: runners.resources.cpu: must be a number of CPUs such as 2, 0.5 or 500m, not -1",
    ],
    [
      "resources of another kind",
      { yaml: "runners: {resources: {nvidia.com/gpu: 1, tpu: 1}}" },
      'c.yaml:1:23: runners.resources."nvidia.com/gpu": is not supported; CUDA_VISIBLE_DEVICES says which GPUs the server may use',
      "c.yaml:1:42: runners.resources.tpu: unknown key; known here is cpu",
    ],
    [
      "version 2",
      { yaml: "version: 2\nservices: {x: {workers: 1}}" },
      "c.yaml:1:10: version: must be 1, not 2",
      "c.yaml:2:1: services: is of BentoML's v2 configuration; write the keys of v1: api_server and runners",
    ],
    [
      "TLS",
      { yaml: "api_server: {ssl: {enabled: true, certfile: a}}" },
      "c.yaml:1:14: api_server.ssl: is not supported yet; end TLS in a proxy or ingress before the server",
    ],
    [
      "a runner's access log",
      { yaml: "runners: {iris: {logging: {access: {enabled: true}}}}" },
      "c.yaml:1:18: runners.iris.logging: has no meaning here: runners serve no HTTP; see api_server.logging.access",
    ],
    [
      "a key given twice",
      { yaml: "api_server: {}\nrunners: {}\napi_server: {}" },
      "c.yaml:3:1: api_server: is given twice (first on line 1)",
    ],
    [
      "__proto__",
      { yaml: "api_server:\n  __proto__: {polluted: true}" },
      "c.yaml:2:3: api_server.__proto__: is not allowed as a key",
    ],
    [
      "a runner called __proto__",
      { yaml: 'runners:\n  "__proto__": {workers: 2}' },
      "c.yaml:2:3: runners.__proto__: is not allowed as a key",
    ],
    [
      "a merge key",
      { yaml: "runners:\n  a: &a {workers: 2}\n  b:\n    <<: *a" },
      "c.yaml:4:5: runners.b: merge keys (<<) are not supported; write the keys out",
    ],
    ["an alias to nothing", { yaml: "runners: *a" }, "c.yaml:1:10: runners: alias *a refers to nothing"],
    [
      "an alias to its own parent",
      { yaml: "runners: &a {iris: *a}" },
      "c.yaml:1:14: runners.iris: contains itself",
    ],
    [
      "a list for a map",
      { yaml: "- a" },
      "c.yaml:1:1: must be a map with the keys version, api_server and runners",
    ],
    ["a second document", { yaml: "version: 1\n---\nversion: 1" }, "c.yaml:2:1: begins a second document"],
    ["a thousand brackets", { yaml: "[".repeat(100_000) }, "c.yaml:1:1: is nested too deeply"],
    ["a megabyte", { yaml: `#${"x".repeat(1024 * 1024)}` }, "c.yaml: is longer than 1048576 characters"],
    [
      "an object of Python",
      { yaml: "version: !!python/object/apply:os.system [ls]" },
      "c.yaml:1:10: Unresolved tag: tag:yaml.org,2002:python/object/apply:os.system",
    ],
    [
      "a variable that is not set",
      { yaml: "api_server:\n  workers: ${N}" },
      "c.yaml:2:12: api_server.workers: the variable N is not set; write ${N:-default} to allow that",
    ],
    [
      "a variable that every object has",
      { yaml: "api_server:\n  workers: ${constructor}" },
      "c.yaml:2:12: api_server.workers: the variable constructor is not set; write ${constructor:-default} to allow that",
    ],
    [
      "a variable that is none",
      { yaml: "api_server:\n  workers: ${1}" },
      "c.yaml:2:12: api_server.workers: `${` begins a variable: write ${NAME} or ${NAME:-default}, and $${ for the characters themselves",
    ],
    [
      "a variable that would be a map",
      { yaml: "api_server:\n  http: ${H}", env: { H: "{port: 1}" } },
      'c.yaml:2:9: api_server.http: must be a map with the keys host, port, body_limit_bytes, receive_timeout_s, keep_alive_timeout_s, cors, response, not "{port: 1}"',
    ],
    [
      "half of a rule for buckets",
      { yaml: "api_server: {metrics: {duration: {min: 1}}}" },
      "c.yaml:1:40: api_server.metrics.duration.min: min, max and factor go together: give all three, or none",
    ],
    [
      "a rule for buckets that goes down",
      { yaml: "api_server: {metrics: {duration: {min: 2, max: 1, factor: 2}}}" },
      "c.yaml:1:48: api_server.metrics.duration.max: max (1) must be above min (2)",
    ],
    [
      "a rule for a million buckets",
      { yaml: "api_server: {metrics: {duration: {min: 1, max: 10, factor: 1.000001}}}" },
      "c.yaml:1:60: api_server.metrics.duration.factor: min, max and factor make more than 100 buckets; take a larger factor",
    ],
    [
      "a rule for buckets and the buckets",
      { yaml: "api_server: {metrics: {duration: {min: 1, max: 10, factor: 2, buckets: [1]}}}" },
      "c.yaml:1:72: api_server.metrics.duration.buckets: is given beside min, max and factor; write one or the other",
    ],
    [
      "CORS for nobody",
      { yaml: "api_server: {http: {cors: {enabled: true}}}" },
      "c.yaml:1:37: api_server.http.cors.enabled: is on, but no origin is allowed; set access_control_allow_origins",
    ],
    [
      "credentials for everybody",
      {
        yaml: "api_server: {http: {cors: {enabled: true, access_control_allow_origins: '*', access_control_allow_credentials: true}}}",
      },
      "c.yaml:1:112: api_server.http.cors.access_control_allow_credentials: credentials cannot be allowed to every origin (*); name the origins",
    ],
    [
      "a wait longer than the deadline",
      { yaml: "runners: {batching: {max_latency_ms: 5}, iris: {batching: {batch_wait_ms: 6}}}" },
      "c.yaml:1:75: runners.iris.batching.batch_wait_ms: batch_wait_ms (6) must be below max_latency_ms (5)",
    ],
    [
      "a queue smaller than a batch",
      { yaml: "runners: {iris: {max_queue_rows: 50}}" },
      "c.yaml:1:34: runners.iris.max_queue_rows: max_queue_rows (50) must not be below max_batch_size (100)",
    ],
    [
      "JSON that is none",
      { env: { BENTOML_CONFIG_OVERRIDES: "{a: 1}" } },
      "BENTOML_CONFIG_OVERRIDES: is not JSON: Expected property name or '}' in JSON at position 1 (line 1 column 2)",
    ],
    [
      "JSON with a key twice",
      { env: { BENTOML_CONFIG_OVERRIDES: '{"runners": {},\n "runners": {}}' } },
      "BENTOML_CONFIG_OVERRIDES:2:2: runners: is given twice (first on line 1)",
    ],
    [
      "JSON with __proto__",
      { env: { BENTOML_CONFIG_OVERRIDES: '{"__proto__": {"workers": 1}}' } },
      "BENTOML_CONFIG_OVERRIDES:1:2: __proto__: is not allowed as a key",
    ],
    [
      "JSON with a wrong type",
      { env: { BENTOML_CONFIG_OVERRIDES: '{"api_server": {"workers": "2"}}' } },
      'BENTOML_CONFIG_OVERRIDES:1:28: api_server.workers: must be a whole number from 1 to 256, or null for 1, not "2"',
    ],
    [
      "an option without a value",
      { env: { BENTOML_CONFIG_OPTIONS: "api_server.workers" } },
      'BENTOML_CONFIG_OPTIONS:1:1: "api_server.workers" is not of the form a.b.c=value',
    ],
    [
      "an option with an empty part",
      { env: { BENTOML_CONFIG_OPTIONS: "a..b=1" } },
      'BENTOML_CONFIG_OPTIONS:1:1: "a..b=1" is not of the form a.b.c=value',
    ],
    [
      "an open quote",
      { env: { BENTOML_CONFIG_OPTIONS: 'version=1 runners."a.workers=1' } },
      'BENTOML_CONFIG_OPTIONS:1:11: the quote in runners."a.workers=1 does not end',
    ],
    [
      "an option twice",
      { env: { BENTOML_CONFIG_OPTIONS: "version=1 version=1" } },
      "BENTOML_CONFIG_OPTIONS:1:11: version: is given twice",
    ],
    [
      "an option below a value",
      { env: { BENTOML_CONFIG_OPTIONS: "api_server=1 api_server.workers=1" } },
      "BENTOML_CONFIG_OPTIONS:1:1: api_server: must be a map with the keys workers, backlog, graceful_shutdown_timeout_s, traffic, http, metrics, logging, not 1",
      "BENTOML_CONFIG_OPTIONS:1:14: api_server.workers: is given twice",
    ],
    [
      "an option with __proto__",
      { env: { BENTOML_CONFIG_OPTIONS: "__proto__.workers=1" } },
      "BENTOML_CONFIG_OPTIONS:1:1: __proto__.workers: is not allowed as a key",
    ],
    [
      "an unknown option",
      { env: { BENTOML_CONFIG_OPTIONS: "version=1 api_server.htp.port=1" } },
      "BENTOML_CONFIG_OPTIONS:1:11: api_server.htp: unknown key; did you mean http?",
    ],
    [
      "wrong variables and flags",
      {
        env: { PORT: "80a", BENTOML_HOST: "a b", BENTOML_API_WORKERS: "1.5", BENTOML_TIMEOUT: "-1" },
        flags: { port: "", timeout: "1e3" },
      },
      'PORT: must be a whole number from 0 to 65535, not "80a"',
      'BENTOML_HOST: must be an IP address or a host name, not "a b"',
      'BENTOML_API_WORKERS: must be a whole number from 1 to 256, not "1.5"',
      'BENTOML_TIMEOUT: must be a number of seconds from 0.001 to 2147483, not "-1"',
      '--port: must be a whole number from 0 to 65535, not ""',
      '--timeout: must be a number of seconds from 0.001 to 2147483, not "1e3"',
    ],
    [
      "every source at once",
      { yaml: "a: 1\nb: 2", env: { BENTOML_CONFIG_OVERRIDES: "[]", PORT: "x" }, flags: { host: "/" } },
      "c.yaml:1:1: a: unknown key; did you mean api_server?",
      "c.yaml:2:1: b: unknown key; known here are version, api_server, runners",
      "BENTOML_CONFIG_OVERRIDES:1:1: must be a map with the keys version, api_server and runners",
      'PORT: must be a whole number from 0 to 65535, not "x"',
      '--host: must be an IP address or a host name, not "/"',
    ],
  ]
  for (const [what, given, ...expected] of cases) {
    test(`${what} is refused with its place`, async () => assert.deepEqual(await problems(given), expected))
  }

  test("what the server does not do yet is refused from every source, unless it is what happens anyway", async () => {
    const notYet = ["api_server.workers", "api_server.http.cors"]
    assert.deepEqual(
      await problems({
        yaml: "api_server: {workers: 2, http: {cors: {enabled: false, access_control_max_age: 5}}}",
        notYet,
      }),
      [
        "c.yaml:1:23: api_server.workers: is not supported yet; leave it out",
        "c.yaml:1:80: api_server.http.cors.access_control_max_age: is not supported yet; leave it out",
      ],
    )
    assert.deepEqual(await problems({ flags: { apiWorkers: "2" }, notYet }), [
      "--api-workers: api_server.workers: is not supported yet; leave it out",
    ])
    assert.deepEqual(await problems({ env: { BENTOML_API_WORKERS: "1" }, notYet }), [])
    assert.deepEqual(
      await problems({
        yaml: "runners: {a: {warm_up: false}, b: {warm_up: true}}",
        notYet: ["runners.warm_up"],
      }),
      ["c.yaml:1:24: runners.a.warm_up: is not supported yet; leave it out"],
    )
  })

  test("what is said to be unsupported is a setting or a section", () => {
    const keys = SETTINGS.map((setting) => formatKey(setting.path))
    assert.deepEqual(
      NOT_YET.filter((key) => !keys.some((setting) => isWithin(setting, key))),
      [],
    )
  })

  test("aliases that multiply are refused before they have", async () => {
    const layer = (name: string, of: string): string =>
      `${name}: &${name} [${Array(9).fill(`*${of}`).join(", ")}]`
    const text = [
      "a: &a [1, 2, 3]",
      ...["b", "c", "d", "e", "f", "g", "h"].map((name, index) => layer(name, "abcdefg"[index] ?? "")),
    ]
    const found = await problems({ yaml: text.join("\n") })
    assert.ok(
      found.some((line) => /more than 100 aliases/.test(line)),
      found.join("\n"),
    )
    assert.ok(found.length < 20)
  })

  test("nothing is added to the prototype of all objects", async () => {
    await problems({ yaml: "__proto__: {polluted: 1}\nruners: {constructor: {prototype: {polluted: 1}}}" })
    await problems({ env: { BENTOML_CONFIG_OVERRIDES: '{"constructor": {"prototype": {"polluted": 1}}}' } })
    assert.equal(Object.hasOwn(Object.prototype, "polluted"), false)
  })

  test("any text gives settings or problems, and never another error", async () => {
    const word = fc.constantFrom(
      "api_server",
      "runners",
      "http",
      "port",
      "iris",
      ":",
      ": ",
      "\n",
      "  ",
      "- ",
      "{",
      "}",
      "[",
      "]",
      "&a ",
      "*a",
      "!!int ",
      "${",
      "}",
      "1",
      "null",
      "'",
      '"',
      "<<",
      "__proto__",
      "?",
      "|",
      "=",
      ".",
      ",",
    )
    const text = fc.array(word, { maxLength: 30 }).map((words) => words.join(""))
    await fc.assert(
      fc.asyncProperty(text, text, text, async (yaml, json, options) => {
        await problems({ yaml, env: { BENTOML_CONFIG_OVERRIDES: json, BENTOML_CONFIG_OPTIONS: options } })
      }),
      { numRuns: 300 },
    )
  })
})

suite("the file that BENTOML_CONFIG names", () => {
  const env = { BENTOML_CONFIG: "/etc/x.yaml" }

  test("is read, and its lines are named", async () => {
    const { origins } = await loadConfig({
      env,
      readFile: (file) => Promise.resolve(file === "/etc/x.yaml" ? "runners:\n  workers: 2" : ""),
    })
    assert.deepEqual(origins["runners.workers"], { value: 2, from: "/etc/x.yaml:2" })
  })

  test("is an error when it cannot be read", async () => {
    const readFile = () => Promise.reject(new Error("ENOENT: no such file"))
    assert.deepEqual(await problems(loadConfig({ env: { ...env, PORT: "x" }, readFile })), [
      "/etc/x.yaml: BENTOML_CONFIG names this file, but it cannot be read: ENOENT: no such file",
      'PORT: must be a whole number from 0 to 65535, not "x"',
    ])
  })

  test("must be a YAML file by its name", async () => {
    const readFile = () => Promise.resolve("")
    assert.deepEqual(await problems(loadConfig({ env: { BENTOML_CONFIG: "x.json" }, readFile })), [
      "x.json: BENTOML_CONFIG must name a .yml or .yaml file",
    ])
  })
})

suite("precedence", () => {
  /** Lowest first. Each has its own value for the port, so that the effective one tells who won. */
  const sources: [from: string, give: (key: string[], value: number) => Given | null][] = [
    ["c.yaml:1", (key, value) => ({ yaml: JSON.stringify(nested(key, value)) })],
    [
      "env BENTOML_CONFIG_OVERRIDES",
      (key, value) => ({ env: { BENTOML_CONFIG_OVERRIDES: JSON.stringify(nested(key, value)) } }),
    ],
    [
      "env BENTOML_CONFIG_OPTIONS",
      (key, value) => ({ env: { BENTOML_CONFIG_OPTIONS: `${formatKey(key)}=${value}` } }),
    ],
    [
      "env BENTOML_PORT",
      (key, value) => (key.at(-1) === "port" ? { env: { BENTOML_PORT: `${value}` } } : null),
    ],
    ["env PORT", (key, value) => (key.at(-1) === "port" ? { env: { PORT: `${value}` } } : null)],
    ["flag --port", (key, value) => (key.at(-1) === "port" ? { flags: { port: `${value}` } } : null)],
  ]
  const PORT = ["api_server", "http", "port"]

  test("of any sources that set the same, the last wins", async () => {
    await fc.assert(
      fc.asyncProperty(fc.subarray(sources.map((_, index) => index)), async (chosen) => {
        const given = together(chosen.map((index) => sources[index]?.[1](PORT, 1000 + index) ?? {}))
        const { config, origins } = await load(given)
        const winner = chosen.at(-1)
        const from = winner === undefined ? "default" : sources[winner]?.[0]
        assert.deepEqual(origins[formatKey(PORT)], { value: config.http.port, from })
        assert.equal(config.http.port, winner === undefined ? 3000 : 1000 + winner)
      }),
    )
  })

  test("what is set for one runner wins over what is set for all, whoever set it", async () => {
    const files = sources.slice(0, 3).map((_, index) => index)
    const ALL = ["runners", "max_queue_rows"]
    const ONE = ["runners", "my.model", "max_queue_rows"]
    await fc.assert(
      fc.asyncProperty(fc.subarray(files), fc.subarray(files), async (forAll, forOne) => {
        const given = files.map((index) => {
          const give = sources[index]?.[1] ?? (() => null)
          const all = forAll.includes(index) ? give(ALL, 1000 + index) : null
          const one = forOne.includes(index) ? give(ONE, 2000 + index) : null
          return joined(all, one)
        })
        const { config } = await load(together(given))
        const all = forAll.at(-1)
        const one = forOne.at(-1)
        const common = all === undefined ? DEFAULT_RUNNER_CONFIG.maxQueueRows : 1000 + all
        assert.equal(runnerConfig(config, "other").maxQueueRows, common)
        assert.equal(runnerConfig(config, "my.model").maxQueueRows, one === undefined ? common : 2000 + one)
      }),
    )
  })

  test("sources that set different things add up", async () => {
    const { config } = await load({
      yaml: "api_server: {workers: 2, traffic: {timeout: 5}}",
      env: {
        BENTOML_CONFIG_OVERRIDES: '{"api_server": {"traffic": {"max_concurrency": 6}}}',
        BENTOML_HOST: "::",
      },
      flags: { apiWorkers: "3" },
    })
    assert.deepEqual(
      [config.http.workers, config.timeoutMs, config.maxConcurrency, config.http.host],
      [3, 5000, 6, "::"],
    )
  })

  function nested(key: string[], value: Json): Json {
    return key.reduceRight<Json>((inner, part) => ({ [part]: inner }), value)
  }

  function together(given: Given[]): Given {
    const yaml = given.find((one) => one.yaml !== undefined)?.yaml
    return {
      ...(yaml === undefined ? {} : { yaml }),
      env: Object.assign({}, ...given.map((one) => one.env ?? {})) as Record<string, string>,
      flags: Object.assign({}, ...given.map((one) => one.flags ?? {})) as ConfigFlags,
    }
  }

  /** Two things that one source says about runners. */
  function joined(a: Given | null, b: Given | null): Given {
    const merge = (x: string, y: string): string =>
      JSON.stringify({
        runners: {
          ...(JSON.parse(x) as { runners: object }).runners,
          ...(JSON.parse(y) as { runners: object }).runners,
        },
      })
    if (a === null || b === null) return a ?? b ?? {}
    if (a.yaml !== undefined && b.yaml !== undefined) return { yaml: merge(a.yaml, b.yaml) }
    const env: Record<string, string> = {}
    for (const [name, text] of Object.entries(a.env ?? {})) {
      const other = b.env?.[name] ?? ""
      env[name] = name === "BENTOML_CONFIG_OPTIONS" ? `${text} ${other}` : merge(text, other)
    }
    return { env }
  }
})

suite("names of runners", () => {
  test("that the service has are accepted", async () => {
    const loaded = await load({ yaml: "runners: {iris: {workers: 2}}" })
    await checkRunnerNames(loaded, ["iris", "digits"])
  })

  test("that it has not are refused with their line and the right one", async () => {
    const loaded = await load({
      yaml: "runners:\n  irsi:\n    workers: 2\n  zzz: {workers: 3}",
      env: { BENTOML_CONFIG_OPTIONS: "runners.trafic.timeout=5" },
    })
    assert.deepEqual(await problems(checkRunnerNames(loaded, ["iris"])), [
      "c.yaml:3:14: runners.irsi: the service has no runner of this name; did you mean iris?",
      "c.yaml:4:18: runners.zzz: the service has no runner of this name; it has iris",
      "BENTOML_CONFIG_OPTIONS:1:1: runners.trafic: the service has no runner of this name; did you mean traffic?",
    ])
  })
})

suite("formatConfig", () => {
  test("says of each value where it came from", async () => {
    const loaded = await load({
      yaml: "api_server:\n  http:\n    body_limit_bytes: 5\nrunners: {workers: 2, my.model: {warm_up: false}}",
      env: { PORT: "81", BENTOML_CONFIG_OPTIONS: "runners.timeout=5" },
      flags: { host: "::1" },
    })
    const lines = formatConfig(loaded, ["iris"]).split("\n")
    const has = (pattern: RegExp): void =>
      assert.ok(
        lines.some((line) => pattern.test(line)),
        `${pattern}\n${lines.join("\n")}`,
      )
    has(/^ {4}host: "::1" +# flag --host$/)
    has(/^ {4}port: 81 +# env PORT$/)
    has(/^ {4}body_limit_bytes: 5 +# c.yaml:3$/)
    has(/^ {4}timeout: 60 +# default$/)
    has(/^ {2}workers: 2 +# c.yaml:4$/)
    has(/^ {2}"my\.model":$/)
    has(/^ {4}warm_up: false +# c.yaml:4$/)
    has(/^ {2}iris:$/)
    assert.equal(lines.filter((line) => /^ +timeout: 5 +# env BENTOML_CONFIG_OPTIONS$/.test(line)).length, 3)
  })

  test("gives a file that means the same", async () => {
    const yaml = `
api_server:
  metrics: {duration: {min: 1, max: 5, factor: 2}}
  logging: {access: {skip_paths: ["/$\${x}", "/$$\${y}", '/"', "/\\u2028"]}}
runners: {null: {workers: 2}, "a b.c": {warm_up: false}, "1": {workers: 3}, constructor: {workers: 4}}`
    const first = await load({ yaml, env: { PORT: "81" } })
    const second = await load({ yaml: formatConfig(first, ["iris", "batching", "metrics"]) })
    const { runners, ...rest } = second.config
    for (const name of [...first.config.runners.keys(), "iris"]) {
      assert.deepEqual(runnerConfig(second.config, name), runnerConfig(first.config, name))
    }
    assert.deepEqual([...runners.keys()].toSorted(), ["1", "a b.c", "constructor", "iris", "null"])
    const { runners: _, ...before } = first.config
    assert.deepEqual(rest, before)
  })
})

suite("keys and hosts", () => {
  test("a key is read as it is written", () => {
    const part = fc.string({ minLength: 1, unit: "grapheme" })
    fc.assert(
      fc.property(fc.array(part, { minLength: 1, maxLength: 5 }), (key) => {
        assert.deepEqual(parseKey(formatKey(key)), key)
      }),
    )
  })

  for (const host of ["0.0.0.0", "::", "::1", "fe80::1%eth0", "localhost", "a-b.example", "x1"]) {
    test(`${host} is a host`, () => assert.ok(isHost(host)))
  }
  for (const host of ["", "256.1.1.1", "1.2.3", "a_b", "-a", "a..b", "http://a", "[::1]", "a:80", "a b"]) {
    test(`${JSON.stringify(host)} is no host`, () => assert.ok(!isHost(host)))
  }
})

/** With UPDATE_DOCS=1 the tables are written instead. */
suite("docs/configuration.md", () => {
  const file = path.join(root, "docs/configuration.md")

  test("has every setting, with what it must be and its default", () => agree("settings", settingsTable()))

  test("has every key of BentoML's that is refused", () => agree("unsupported", unsupportedTable()))

  test("shows an example that is valid", async () => {
    const [, yaml = ""] = /```yaml\n([^]*?)```/.exec(readFileSync(file, "utf8")) ?? []
    const { config } = await load({ yaml })
    assert.equal(config.timeoutMs, 30_000)
    assert.equal(runnerConfig(config, "iris").maxBatchSize, 256)
  })

  test("shows variables that are valid", async () => {
    const text = readFileSync(file, "utf8")
    const env = Object.fromEntries(
      [...text.matchAll(/^(BENTOML_CONFIG_\w+)='(.*)'$/gm)].map(([, name = "", value = ""]) => [name, value]),
    )
    const { config } = await load({ env })
    assert.equal(runnerConfig(config, "iris").workers, 2)
    assert.equal(runnerConfig(config, "my.model").workers, 2)
  })

  function agree(name: string, table: string): void {
    const text = readFileSync(file, "utf8")
    const between = new RegExp(`(<!-- ${name} -->\n)[^]*?(<!-- /${name} -->)`)
    const updated = text.replace(between, (_, open: string, close: string) => `${open}\n${table}\n${close}`)
    assert.match(text, between)
    if (process.env["UPDATE_DOCS"] === "1") writeFileSync(file, updated)
    else assert.equal(text, updated, "run this test with UPDATE_DOCS=1")
  }

  function settingsTable(): string {
    const rows = SETTINGS.map(({ path: key, fallback, expected, meaning, ours }) => {
      const value =
        Array.isArray(fallback) && fallback.length > 6
          ? `from ${fallback[0]} to ${fallback.at(-1)}`
          : `\`${JSON.stringify(fallback)}\``
      const later = NOT_YET.some((one) => isWithin(formatKey(key), one)) ? " **Not supported yet.**" : ""
      return `| \`${formatKey(key)}\`${ours ? " ●" : ""} | ${value} | ${expected} | ${meaning}${later} |`
    })
    return ["| key | default | must be | meaning |", "| --- | --- | --- | --- |", ...rows].join("\n") + "\n"
  }

  function unsupportedTable(): string {
    const rows = UNSUPPORTED.map(([section, key, reason]) => {
      const full = formatKey(section === "" ? key : [section, ...key])
      return `| \`${full}\` | ${reason} |`
    })
    return ["| key | why |", "| --- | --- |", ...rows].join("\n") + "\n"
  }
})
