/**
 * How many CPUs this process may use: what ONNX Runtime's thread pool is sized from. ONNX Runtime itself counts the
 * host's, so that a container with a quota of two on a host of sixty-four would be throttled by sixty-four threads.
 */
import { readFileSync } from "node:fs"
import { availableParallelism } from "node:os"

/** Files that tell a limit, as text; null where there is none. */
export type ReadText = (path: string) => string | null

const read: ReadText = (path) => {
  try {
    return readFileSync(path, "utf8")
  } catch {
    return null
  }
}

/**
 * The smallest of: CPUs of the affinity mask, of the cpuset, and of the quota (cgroup v2 `cpu.max`, v1
 * `cpu.cfs_quota_us`/`cpu.cfs_period_us`) of this group or any above it. Rounded up, at least 1.
 */
export function usableCpus(readText: ReadText = read, affinity: number = availableParallelism()): number {
  const limits = [affinity]
  const groups = cgroupPaths(readText("/proc/self/cgroup") ?? "")
  for (const folder of upwards("/sys/fs/cgroup", groups.unified)) {
    limits.push(
      quotaV2(readText(`${folder}/cpu.max`)),
      cpusetSize(readText(`${folder}/cpuset.cpus.effective`)),
    )
  }
  for (const mount of ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"]) {
    for (const folder of upwards(mount, groups.cpu)) {
      limits.push(quotaV1(readText(`${folder}/cpu.cfs_quota_us`), readText(`${folder}/cpu.cfs_period_us`)))
    }
  }
  for (const folder of upwards("/sys/fs/cgroup/cpuset", groups.cpuset)) {
    limits.push(cpusetSize(readText(`${folder}/cpuset.effective_cpus`) ?? readText(`${folder}/cpuset.cpus`)))
  }
  return Math.max(1, Math.ceil(Math.min(...limits)))
}

/** The groups this process is in, from lines such as `4:cpu,cpuacct:/docker/1a2b` and, for v2, `0::/user.slice`. */
function cgroupPaths(text: string): { unified: string; cpu: string; cpuset: string } {
  const paths = { unified: "/", cpu: "/", cpuset: "/" }
  for (const line of text.split("\n")) {
    const [id, controllers, ...rest] = line.split(":")
    if (controllers === undefined) continue
    const path = rest.join(":")
    if (id === "0" && controllers === "") paths.unified = path
    if (controllers.split(",").includes("cpu")) paths.cpu = path
    if (controllers.split(",").includes("cpuset")) paths.cpuset = path
  }
  return paths
}

/**
 * A group's folder and all above it: a parent's limit binds its children. Inside a container the path is often the
 * host's and the mount shows only our own group, so the mount itself is always among them.
 */
function upwards(mount: string, path: string): string[] {
  const parts = path.split("/").filter((part) => part !== "" && part !== "..")
  return [...parts.keys(), parts.length].map((length) => [mount, ...parts.slice(0, length)].join("/"))
}

/** `max 100000` or `150000 100000` (microseconds of CPU time in each period). */
function quotaV2(text: string | null): number {
  const [quota, period] = (text ?? "").trim().split(/\s+/)
  return ratio(quota, period)
}

/** A quota of -1 is none. */
function quotaV1(quota: string | null, period: string | null): number {
  return ratio(quota?.trim(), period?.trim())
}

function ratio(quota: string | undefined, period: string | undefined): number {
  const cpus = Number(quota) / Number(period)
  return quota !== "" && cpus > 0 && Number.isFinite(cpus) ? cpus : Number.POSITIVE_INFINITY
}

/** The size of a list such as `0-3,8`. */
function cpusetSize(text: string | null): number {
  let count = 0
  for (const range of (text ?? "").trim().split(",")) {
    const match = /^(\d+)(?:-(\d+))?$/.exec(range)
    if (match !== null) count += Number(match[2] ?? match[1]) - Number(match[1]) + 1
  }
  return count === 0 ? Number.POSITIVE_INFINITY : count
}
