import assert from "node:assert/strict"
import { test } from "node:test"
import { usableCpus } from "../../runtime/cpus.ts"

/** The CPUs by these files, on a machine whose affinity mask allows 16. */
const cpus = (files: Readonly<Record<string, string>>, affinity = 16): number =>
  usableCpus((path) => files[path] ?? null, affinity)

const CASES: readonly (readonly [
  what: string,
  expected: number,
  files: Readonly<Record<string, string>>,
  affinity?: number,
])[] = [
  ["no limits: the affinity mask", 16, {}],
  ["affinity mask of one", 1, {}, 1],
  ["cgroup v2 quota", 2, { "/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "200000 100000\n" }],
  ["cgroup v2 quota of one and a half, rounded up", 2, { "/sys/fs/cgroup/cpu.max": "150000 100000\n" }],
  ["cgroup v2 quota below one", 1, { "/sys/fs/cgroup/cpu.max": "10000 100000\n" }],
  ["cgroup v2 without a quota", 16, { "/sys/fs/cgroup/cpu.max": "max 100000\n" }],
  ["cgroup v2 cpuset", 3, { "/sys/fs/cgroup/cpuset.cpus.effective": "0-1,8\n" }],
  [
    "cgroup v2, the parent's quota is smaller",
    3,
    {
      "/proc/self/cgroup": "0::/kubepods.slice/pod1.slice/crio-1.scope\n",
      "/sys/fs/cgroup/kubepods.slice/pod1.slice/crio-1.scope/cpu.max": "800000 100000\n",
      "/sys/fs/cgroup/kubepods.slice/pod1.slice/cpu.max": "300000 100000\n",
      "/sys/fs/cgroup/kubepods.slice/cpu.max": "max 100000\n",
    },
  ],
  [
    "cgroup v1 quota, seen from within the container",
    4,
    {
      "/proc/self/cgroup": "5:cpu,cpuacct:/docker/1a2b\n3:cpuset:/docker/1a2b\n",
      "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
      "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    },
  ],
  [
    "cgroup v1 quota of a group on the host",
    2,
    {
      "/proc/self/cgroup": "5:cpu,cpuacct:/docker/1a2b\n",
      "/sys/fs/cgroup/cpu,cpuacct/docker/1a2b/cpu.cfs_quota_us": "120000\n",
      "/sys/fs/cgroup/cpu,cpuacct/docker/1a2b/cpu.cfs_period_us": "100000\n",
    },
  ],
  [
    "cgroup v1 without a quota",
    16,
    { "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n" },
  ],
  ["cgroup v1 cpuset", 2, { "/sys/fs/cgroup/cpuset/cpuset.cpus": "2,5\n" }],
  [
    "cgroup v1 cpuset in effect is smaller than the one written",
    1,
    { "/sys/fs/cgroup/cpuset/cpuset.cpus": "0-7\n", "/sys/fs/cgroup/cpuset/cpuset.effective_cpus": "3\n" },
  ],
  [
    "the smallest of all",
    2,
    { "/sys/fs/cgroup/cpu.max": "600000 100000\n", "/sys/fs/cgroup/cpuset.cpus.effective": "0-3\n" },
    2,
  ],
  [
    "files with nonsense",
    16,
    { "/sys/fs/cgroup/cpu.max": "many\n", "/sys/fs/cgroup/cpuset/cpuset.cpus": "\n" },
  ],
  [
    "empty files",
    16,
    { "/sys/fs/cgroup/cpu.max": "", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "", "/proc/self/cgroup": "" },
  ],
  ["a quota of zero is none", 16, { "/sys/fs/cgroup/cpu.max": "0 100000\n" }],
  [
    "a group path that would leave the mount",
    16,
    { "/proc/self/cgroup": "0::/../../etc\n", "/sys/fs/cgroup/../../etc/cpu.max": "100000 100000\n" },
  ],
]

for (const [what, expected, files, affinity] of CASES) {
  test(`${what}: ${expected}`, () => assert.equal(cpus(files, affinity), expected))
}

test("of this machine: a whole number, at least one", () => {
  const count = usableCpus()
  assert.ok(Number.isInteger(count) && count >= 1)
})
