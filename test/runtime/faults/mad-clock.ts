/** Preloaded into every thread of a server: the wall clock jumps by up to a day, forth and back, each time it is asked. */
const RealDate = Date
const DAY_MS = 86_400_000

class MadDate extends RealDate {
  constructor(...given: unknown[]) {
    if (given.length === 0) super(MadDate.now())
    else super(...(given as [number])) // as the caller gave them
  }

  static override now(): number {
    return RealDate.now() + Math.round((Math.random() * 2 - 1) * DAY_MS)
  }
}

globalThis.Date = MadDate as DateConstructor
