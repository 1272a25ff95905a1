import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { Metrics } from "../../runtime/metrics.ts"
import type { RunnerStats } from "../../runtime/runner.ts"
import { makeTensor } from "../../runtime/tensor.ts"
import { FakeRunner, appFor, refuseToLoad } from "../fakes.ts"
import { RunnerWorld, spec } from "./runner-world.ts"

class WatchedRunner extends FakeRunner {
  groups: RunnerStats["groups"] = []

  override stats(): RunnerStats {
    return { ...super.stats(), queueRows: 7, queueBytes: 56, queueJobs: 2, groups: this.groups }
  }
}

const LABELS = `service_name="iris",service_version="v1"`

function metricsOf(): Metrics {
  return new Metrics({ serviceName: "iris", serviceVersion: "v1", epochS: 0, maxBatchSize: 8 })
}

/** Lines of our own metrics, without the values. */
async function series(metrics: Metrics): Promise<string[]> {
  const lines = (await metrics.text()).split("\n")
  return lines.filter((line) => line.startsWith("bentoml_")).map((line) => line.replace(/ \S+$/, ""))
}

test("a scrape that could not load what renders it fails alone", async () => {
  const metrics = metricsOf()
  const failing = refuseToLoad("prom-client")
  try {
    await assert.rejects(metrics.text(), /cannot load/)
  } finally {
    failing.deregister()
  }
  assert.match(await metrics.text(), /^process_cpu_seconds_total /m)
})

describe("metrics of runners", () => {
  test("tell queue, batches, refusals, workers, loading and the cost model", async () => {
    const metrics = metricsOf()
    const runner = new WatchedRunner({}, undefined, "clf")
    runner.groups = [{ key: "run", name: "run", queueRows: 7, fixedMs: 2, perRowMs: 0.5, samples: 9 }]
    metrics.watch(runner)
    metrics.loaded({ runner: "clf", loadMs: 1500, warmUpMs: 500 })
    metrics.queued("clf", "run", 0.2)
    metrics.queued("clf", "run", 40)
    metrics.batch({
      runner: "clf",
      signature: "run",
      rows: 6,
      jobs: 2,
      ms: 5,
      inferMs: 4,
      outcome: "done",
      retry: false,
    })
    metrics.refused({ runner: "clf", reason: "full" })
    metrics.restarted({ runner: "clf", reason: "exit" })
    const text = await metrics.text()
    const method = `runner_name="clf",method_name="run",${LABELS}`
    for (const line of [
      `bentoml_runner_queue_seconds_bucket{${method},le="0.00025"} 1`,
      `bentoml_runner_queue_seconds_bucket{${method},le="0.05"} 2`,
      `bentoml_runner_queue_seconds_count{${method}} 2`,
      `bentoml_runner_inference_seconds_sum{${method}} 0.004`,
      `bentoml_runner_adaptive_batch_size_sum{${method}} 6`,
      `bentoml_runner_batch_jobs_sum{${method}} 2`,
      `bentoml_runner_batches_total{${method},outcome="done"} 1`,
      `bentoml_runner_refused_total{runner_name="clf",reason="full",${LABELS}} 1`,
      `bentoml_runner_refused_total{runner_name="clf",reason="too-late",${LABELS}} 0`,
      `bentoml_runner_worker_restarts_total{runner_name="clf",reason="exit",${LABELS}} 1`,
      `bentoml_runner_worker_restarts_total{runner_name="clf",reason="timeout",${LABELS}} 0`,
      `bentoml_runner_model_load_seconds{runner_name="clf",${LABELS}} 2`,
      `bentoml_runner_queue_rows{runner_name="clf",${LABELS}} 7`,
      `bentoml_runner_queue_bytes{runner_name="clf",${LABELS}} 56`,
      `bentoml_runner_queue_jobs{runner_name="clf",${LABELS}} 2`,
      `bentoml_runner_workers_up{runner_name="clf",${LABELS}} 1`,
      `bentoml_runner_cost_fixed_seconds{runner_name="clf",${LABELS},method_name="run"} 0.002`,
      `bentoml_runner_cost_per_row_seconds{runner_name="clf",${LABELS},method_name="run"} 0.0005`,
    ]) {
      assert.ok(text.split("\n").includes(line), `${line}\nis not in\n${text}`)
    }
  })

  test("have one cost for each signature, however many shapes clients send", async () => {
    const metrics = metricsOf()
    const runner = new WatchedRunner({}, undefined, "clf")
    runner.groups = [
      { key: "run 5", name: "run", queueRows: 0, fixedMs: 1, perRowMs: 1, samples: 2 },
      { key: "run 6", name: "run", queueRows: 0, fixedMs: 2, perRowMs: 2, samples: 8 },
      { key: "run 7", name: "run", queueRows: 0, fixedMs: 3, perRowMs: 3, samples: 1 },
    ]
    metrics.watch(runner)
    const costs = (await metrics.text()).split("\n").filter((line) => line.startsWith("bentoml_runner_cost"))
    assert.deepEqual(costs, [
      `bentoml_runner_cost_fixed_seconds{runner_name="clf",${LABELS},method_name="run"} 0.002`,
      `bentoml_runner_cost_per_row_seconds{runner_name="clf",${LABELS},method_name="run"} 0.002`,
    ])
  })

  test("get the time in the queue of each job, once", async () => {
    const world = new RunnerWorld({ inputs: [spec("x", ["N", 2])], durationMs: 10 })
    await world.start()
    const row = makeTensor("float32", [1, 2], Float32Array.of(1, 2))
    const jobs = [0, 1, 2].map(() => world.runner.run("run", { x: row }))
    await world.clock.advance(100)
    await Promise.all(jobs)
    assert.deepEqual(world.counted.queued, [0, 10, 10])
  })
})

test("a scan of 10,000 unknown paths, with every method, adds no series", async () => {
  const { hono, metrics } = appFor(null)
  await hono.request("/wp-admin")
  const before = await series(metrics)
  const methods = ["GET", "POST", "PUT", "DELETE", "OPTIONS"]
  for (let index = 0; index < 10_000; index++) {
    await hono.request(`/scan-${index}`, { method: methods[index % methods.length] ?? "GET" })
  }
  assert.deepEqual(await series(metrics), before)
})
