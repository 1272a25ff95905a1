/** A runner beside the serving of requests. */
import { clock } from "./clock.ts"
import type { Log } from "./log.ts"
import {
  type LoadedModelInfo,
  type ModelRunner,
  type RunnerConfig,
  type RunnerMetrics,
  createRunner,
} from "./runner.ts"

/** For a few calls: not warmed up, not counted. */
export function plainRunner(
  name: string,
  model: LoadedModelInfo,
  config: RunnerConfig,
  log: Log,
): ModelRunner {
  return createRunner({ name, model, config: { ...config, warmUp: false }, clock, log, metrics: NO_METRICS })
}

export const NO_METRICS: RunnerMetrics = {
  loaded: () => {},
  batch: () => {},
  queued: () => {},
  refused: () => {},
  restarted: () => {},
}
