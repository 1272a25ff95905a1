/**
 * How long a batch takes, as a function of its rows: `fixedMs + perRowMs · rows`, learned from the batches that ran.
 *
 * Batches are sorted into buckets by size (1, 2–3, 4–7, 8–15, …). Each bucket keeps the median of its last few
 * durations, so that one slow batch (a first one, a paused process) moves nothing; the line is fitted through those
 * medians, each weighted by how many samples it has and how old they are. So a flood of batches of one size does not
 * erase what is known of the others, and yet the past fades with time even where no new sample comes.
 */

const SAMPLES = 9
const HALF_LIFE_MS = 30_000
/** Samples of a bucket older than this count only where there are no younger ones. */
const STALE_MS = 60_000
const BUCKETS = 31
/** By which share a prediction may be wrong at least. */
export const LEAST_MARGIN = 0.1
const MOST_MARGIN = 1
/** The margin is to be exceeded by this share of the batches; it moves by at most a step with each. */
const EXCEEDED = 0.05
const MARGIN_STEP = 0.2

interface Sample {
  readonly rows: number
  readonly ms: number
  readonly atMs: number
}

interface Bucket {
  readonly samples: Sample[]
  /** Where the next sample goes: a ring. */
  next: number
  /** Mean of the samples of middling duration. */
  middle: Sample
  newestMs: number
}

export interface CostFit {
  readonly fixedMs: number
  readonly perRowMs: number
  /** Weight of the evidence: about the number of recent samples, at most nine for each bucket. */
  readonly samples: number
}

export class CostModel {
  readonly #buckets: (Bucket | undefined)[] = []
  #fixedMs = 0
  #perRowMs = 0
  /** Sum of the buckets' weights at `#fittedMs`; it halves every HALF_LIFE_MS. */
  #weight = 0
  #fittedMs = 0
  #margin = LEAST_MARGIN

  /** A batch of `rows` took `ms` and ended at `nowMs`. */
  add(rows: number, ms: number, nowMs: number): void {
    if (rows < 1 || !(ms >= 0)) return
    this.#learnMargin(rows, ms, nowMs)
    const index = Math.min(BUCKETS - 1, Math.floor(Math.log2(rows)))
    const sample = { rows, ms, atMs: nowMs }
    const bucket = (this.#buckets[index] ??= { samples: [], next: 0, middle: sample, newestMs: nowMs })
    bucket.samples[bucket.next] = sample
    bucket.next = (bucket.next + 1) % SAMPLES
    bucket.middle = middleOf(bucket.samples.filter(({ atMs }) => nowMs - atMs <= STALE_MS)) ?? sample
    bucket.newestMs = nowMs
    this.#fit(nowMs)
  }

  /** Expected duration of a batch; null as long as nothing is known. */
  predictMs(rows: number): number | null {
    return this.#weight === 0 ? null : this.#fixedMs + this.#perRowMs * rows
  }

  /** Is there enough recent evidence to refuse somebody because of it? */
  trusted(nowMs: number): boolean {
    return this.#weight * decay(nowMs - this.#fittedMs) >= 2.5
  }

  /**
   * By which share a batch may take longer than predicted, nineteen times of twenty; at least a tenth. It grows where durations
   * waver, on a machine that others use too, and shrinks as they settle or fade from memory. One slow batch moves it little.
   */
  margin(nowMs: number): number {
    return LEAST_MARGIN + (this.#margin - LEAST_MARGIN) * decay(nowMs - this.#fittedMs)
  }

  fit(nowMs: number): CostFit {
    return {
      fixedMs: this.#fixedMs,
      perRowMs: this.#perRowMs,
      samples: this.#weight * decay(nowMs - this.#fittedMs),
    }
  }

  #learnMargin(rows: number, ms: number, nowMs: number): void {
    const expectedMs = this.trusted(nowMs) ? this.predictMs(rows) : null
    if (expectedMs === null) return
    const margin = this.margin(nowMs)
    const exceeded = ms > (1 + margin) * expectedMs
    const moved = margin + MARGIN_STEP * (exceeded ? 1 - EXCEEDED : -EXCEEDED)
    this.#margin = Math.min(MOST_MARGIN, Math.max(LEAST_MARGIN, moved))
  }

  /**
   * Least squares of the relative error (the noise of a duration grows with it), with both coefficients kept from
   * becoming negative.
   */
  #fit(nowMs: number): void {
    let weight = 0
    let sw = 0
    let sn = 0
    let sd = 0
    let snn = 0
    let snd = 0
    let sizes = 0
    for (const bucket of this.#buckets) {
      if (bucket === undefined) continue
      const evidence = bucket.samples.length * decay(nowMs - bucket.newestMs)
      const n = bucket.middle.rows
      const d = Math.max(bucket.middle.ms, 1e-6)
      const w = evidence / (d * d)
      weight += evidence
      sw += w
      sn += w * n
      sd += w * d
      snn += w * n * n
      snd += w * n * d
      sizes++
    }
    this.#weight = weight
    this.#fittedMs = nowMs
    const spread = sw * snn - sn * sn
    const perRowMs = sizes < 2 || spread <= 0 ? 0 : (sw * snd - sn * sd) / spread
    const fixedMs = sw === 0 ? 0 : (sd - perRowMs * sn) / sw
    if (perRowMs <= 0) {
      this.#perRowMs = 0
      this.#fixedMs = sw === 0 ? 0 : sd / sw
    } else if (fixedMs < 0) {
      this.#perRowMs = snd / snn
      this.#fixedMs = 0
    } else {
      this.#perRowMs = perRowMs
      this.#fixedMs = fixedMs
    }
  }
}

/** Asked several times for each job: within a millisecond nothing fades that anybody could notice. */
function decay(ageMs: number): number {
  return ageMs < 1 ? 1 : 2 ** (-ageMs / HALF_LIFE_MS)
}

/**
 * The mean of the middle third by duration; of a few samples rather the faster ones, because noise mostly makes a
 * batch slower. Rows and duration of the same samples, so that it lies on the line that they lie on.
 */
function middleOf(samples: readonly Sample[]): Sample | undefined {
  const sorted = samples.toSorted((a, b) => a.ms - b.ms)
  const first = Math.floor((sorted.length - 1) / 3)
  const middle = sorted.slice(first, Math.max(first + 1, sorted.length - Math.ceil(sorted.length / 3)))
  const [one] = middle
  if (one === undefined) return undefined
  let rows = 0
  let ms = 0
  for (const sample of middle) {
    rows += sample.rows
    ms += sample.ms
  }
  return { rows: rows / middle.length, ms: ms / middle.length, atMs: one.atMs }
}
