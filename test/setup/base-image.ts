/**
 * The base image of tests and quickstart: `node:24-bookworm-slim` where it can be had, otherwise a stand-in of the same
 * make, from Debian's packages and the `node` binary of node_modules.
 */

import { createHash } from "node:crypto"
import { existsSync } from "node:fs"
import { mkdtemp, readFile, realpath, rm, stat, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import {
  aptInstall,
  carriedAptOptions,
  debianSourceLines,
  isRoot,
  readAptSources,
  readDistribution,
  usesApt,
} from "./apt.ts"
import { formatBytes, formatDuration, run, SetupError, tail } from "./process.ts"
import type { Log } from "./process.ts"

export const REAL_BASE = "node:24-bookworm-slim"
export const STAND_IN = "bentoctl/stand-in:node24-bookworm"

const mergedUsrHook = "/usr/share/mmdebstrap/hooks/merged-usr"
const mergedUsrOption = `--hook-dir=${mergedUsrHook}`
const recipeLabel = "bentoctl.stand-in.recipe"
const suite = "bookworm"
/** What node needs besides the C library, and what a container needs to trust a package registry. */
const packages = ["libstdc++6", "ca-certificates"]

/** As Debian's own slim images: no documentation except licences, no translations. It holds for later installs too. */
const dpkgOptions = [
  "path-exclude=/usr/share/man/*",
  "path-exclude=/usr/share/doc/*",
  "path-include=/usr/share/doc/*/copyright",
  "path-exclude=/usr/share/info/*",
  "path-exclude=/usr/share/lintian/*",
  "path-exclude=/usr/share/locale/*",
  "path-exclude=/usr/share/groff/*",
  "path-exclude=/usr/share/linda/*",
]

/** Lets later `apt-get install`s in the image keep no archives, as Debian's images do. */
const aptClean = [
  'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };',
  'Dir::Cache::pkgcache "";',
  'Dir::Cache::srcpkgcache "";',
  'Acquire::Languages "none";',
  'Apt::AutoRemove::SuggestsImportant "false";',
]

export interface BaseImage {
  readonly image: string
  readonly standIn: boolean
}

/**
 * Gives the name of a base image that the engine has. In this order: the one that `BENTOCTL_BASE_IMAGE` names, the real
 * one when the engine has it, the stand-in when it is up to date, the real one pulled, a new stand-in.
 */
export async function ensureBaseImage(options: {
  log: Log
  env?: NodeJS.ProcessEnv
  signal?: AbortSignal
}): Promise<BaseImage> {
  const { log, signal } = options
  const named = (options.env ?? process.env)["BENTOCTL_BASE_IMAGE"] ?? ""
  if (named !== "" && named !== STAND_IN) {
    if ((await inspect(named)) !== undefined || (await pull(named, log, signal)))
      return { image: named, standIn: false }
    throw new SetupError(
      `BENTOCTL_BASE_IMAGE is ${named}, which is neither in the engine nor can it be pulled`,
      "Load or tag that image, or unset the variable.",
    )
  }
  if (named === "" && (await inspect(REAL_BASE)) !== undefined) {
    log(`base image ${REAL_BASE} is in the engine`)
    return { image: REAL_BASE, standIn: false }
  }
  const recipe = await readRecipe()
  const present = await inspect(STAND_IN)
  if (present !== undefined && recipe !== undefined && present.recipe === recipe.digest) {
    log(`stand-in base image ${STAND_IN} is in the engine (${formatBytes(present.sizeBytes)})`)
    return { image: STAND_IN, standIn: true }
  }
  if (named === "" && (await pull(REAL_BASE, log, signal))) return { image: REAL_BASE, standIn: false }
  if (recipe === undefined)
    throw new SetupError("node_modules holds no node 24 for Linux", "Run npm ci on Linux.")
  await makeStandIn(recipe, log, signal)
  // The one that it replaces has lost its name; gone too, unless images or containers stand on it.
  if (present !== undefined) await run("docker", ["image", "rm", present.id], { timeoutMs: 30_000 })
  return { image: STAND_IN, standIn: true }
}

interface ImageFacts {
  readonly id: string
  readonly recipe: string
  readonly sizeBytes: number
}

async function inspect(image: string): Promise<ImageFacts | undefined> {
  const shown = await run("docker", ["image", "inspect", image], { timeoutMs: 30_000 })
  if (shown.code !== 0) return undefined
  // The shape is the Engine API's (GET /images/NAME/json).
  const [facts] = JSON.parse(shown.stdout) as [
    { Id: string; Size: number; Config: { Labels: Record<string, string> | null } | null } | undefined,
  ]
  if (facts === undefined) return undefined
  return { id: facts.Id, recipe: facts.Config?.Labels?.[recipeLabel] ?? "", sizeBytes: facts.Size }
}

/** Without any sign of life for this long, a pull is given up: there is no way to the registry. */
const pullSilenceMs = 20_000

async function pull(image: string, log: Log, signal?: AbortSignal): Promise<boolean> {
  log(`pulling ${image}`)
  const started = performance.now()
  const quiet = new AbortController()
  let timer = setTimeout(() => quiet.abort(), pullSilenceMs)
  const pulled = await run("docker", ["pull", image], {
    timeoutMs: 600_000,
    signal: signal === undefined ? quiet.signal : AbortSignal.any([quiet.signal, signal]),
    onLine: () => {
      clearTimeout(timer)
      timer = setTimeout(() => quiet.abort(), pullSilenceMs * 6)
    },
  })
  clearTimeout(timer)
  signal?.throwIfAborted()
  const took = formatDuration(performance.now() - started)
  if (pulled.code === 0) {
    log(`pulled ${image} (${took})`)
    return true
  }
  const reason = quiet.signal.aborted
    ? "no answer"
    : (pulled.stderr.trim().split("\n").at(-1) ?? "").slice(0, 300)
  log(`${image} cannot be pulled (${took}): ${reason}`)
  return false
}

interface Ingredients {
  readonly nodePath: string
  readonly sourceLines: readonly string[]
  readonly aptOptions: readonly string[]
  readonly caBundle: Buffer | undefined
}

interface Recipe extends Ingredients {
  readonly digest: string
}

/** All that goes into the stand-in, and the digest over it: another recipe makes another image. */
async function readRecipe(): Promise<Recipe | undefined> {
  const nodePath = await findNodeBinary()
  if (nodePath === undefined) return undefined
  const host = await readDistribution()
  const ingredients: Ingredients = {
    nodePath,
    sourceLines: debianSourceLines(await readAptSources(), host, suite),
    aptOptions: carriedAptOptions((await run("apt-config", ["dump"])).stdout),
    caBundle: await readCaBundle(),
  }
  // The same file names on every machine, so that a second clone finds the first one's image good.
  const steps = mmdebstrapArguments({ ...ingredients, nodePath: "node" }, "work", "rootfs.tar")
  const parts = [steps, hostCaScript, aptClean, changes, process.version, process.arch]
  const hash = createHash("sha256").update(JSON.stringify(parts))
  if (ingredients.caBundle !== undefined) hash.update(ingredients.caBundle)
  return { ...ingredients, digest: hash.digest("hex") }
}

/** The node that runs us, if it is the Linux binary itself: `bootstrap.mjs` starts the one of node_modules. */
async function findNodeBinary(): Promise<string | undefined> {
  if (process.platform !== "linux" || !process.version.startsWith("v24.")) return undefined
  const path = await realpath(process.execPath)
  return (await stat(path)).size > 10_000_000 ? path : undefined
}

/** The certificates that this machine trusts, its own additions among them. */
async function readCaBundle(): Promise<Buffer | undefined> {
  const usual = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
  ]
  for (const path of [process.env["SSL_CERT_FILE"] ?? "", ...usual]) {
    const bundle = path === "" ? undefined : await readFile(path).catch(() => undefined)
    if (bundle !== undefined) return bundle
  }
  return undefined
}

/** The image's settings, as far as a base image has any. `docker import` gives none by itself. */
const changes = ["ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 'CMD ["node"]']

/** Puts each of the host's certificates that Debian's own bundle lacks where update-ca-certificates finds it. */
const hostCaScript = `use strict;
my $begin = "-----BEGIN CERTIFICATE-----"; my $end = "-----END CERTIFICATE-----";
sub certificates { local (@ARGV, $/) = (@_); my $text = <>; return $text =~ /$begin.*?$end/sg }
my %known = map { $_ => 1 } certificates("/etc/ssl/certs/ca-certificates.crt");
my $dir = "/usr/local/share/ca-certificates/host"; mkdir $dir or die "$dir: $!"; my $n = 0;
for my $certificate (certificates("/tmp/host-ca.pem")) {
  next if $known{$certificate}++;
  open(my $out, ">", sprintf("%s/host-%03d.crt", $dir, ++$n)) or die $!;
  print $out "$certificate\n"; close $out;
}
`

/** mmdebstrap's hooks: our files into the root file system ("$1"), and out of it what an image does not need. */
function customize(work: string, recipe: Ingredients): string[] {
  const hooks = [
    `upload ${recipe.nodePath} /usr/local/bin/node`,
    'chroot "$1" chmod 0755 /usr/local/bin/node',
    'chroot "$1" ln -sf node /usr/local/bin/nodejs',
    `upload ${join(work, "apt.conf")} /etc/apt/apt.conf.d/90-stand-in`,
  ]
  if (recipe.caBundle !== undefined) {
    // Kept among the local certificates too, so that a later update-ca-certificates does not lose the host's.
    hooks.push(
      `upload ${join(work, "host-ca.pem")} /tmp/host-ca.pem`,
      `upload ${join(work, "host-ca.pl")} /tmp/host-ca.pl`,
      'chroot "$1" sh -c "perl /tmp/host-ca.pl && rm /tmp/host-ca.* && update-ca-certificates >/dev/null 2>&1"',
    )
  }
  hooks.push(
    'chroot "$1" node --version',
    'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/cache/debconf/*-old "$1"/var/log/apt "$1"/var/log/dpkg.log "$1"/var/log/alternatives.log "$1"/var/log/bootstrap.log',
  )
  return hooks
}

async function makeStandIn(recipe: Recipe, log: Log, signal?: AbortSignal): Promise<void> {
  const host = await readDistribution()
  const byHand = `Load or tag an image of your own and name it: BENTOCTL_BASE_IMAGE=my/node24 npm test`
  if (!usesApt(host)) {
    throw new SetupError(
      `${REAL_BASE} cannot be pulled, and a stand-in for it is made on Debian and Ubuntu only (this is ${host.name})`,
      byHand,
    )
  }
  log(`making the stand-in base image ${STAND_IN} from Debian packages (20 s or so)`)
  const started = performance.now()
  if ((await run("mmdebstrap", ["--version"])).missing) {
    if (!isRoot()) {
      throw new SetupError(
        `${REAL_BASE} cannot be pulled, and making a stand-in for it needs mmdebstrap`,
        `sudo apt-get install mmdebstrap, then run this again. Or: ${byHand}`,
      )
    }
    await aptInstall(["mmdebstrap", "debian-archive-keyring"], { log })
  }
  const work = await mkdtemp(join(tmpdir(), "bentoctl-stand-in-"))
  try {
    await writeFile(join(work, "apt.conf"), [...aptClean, ...recipe.aptOptions, ""].join("\n"))
    await writeFile(join(work, "host-ca.pl"), hostCaScript)
    if (recipe.caBundle !== undefined) await writeFile(join(work, "host-ca.pem"), recipe.caBundle)
    const rootfs = join(work, "rootfs.tar")
    await makeRootFileSystem(recipe, work, rootfs, signal)
    const labels = [
      `LABEL ${recipeLabel}=${recipe.digest}`,
      `LABEL org.opencontainers.image.title=${STAND_IN}`,
    ]
    const args = [...changes, ...labels].flatMap((change) => ["--change", change])
    const imported = await run("docker", ["import", ...args, rootfs, STAND_IN], { timeoutMs: 300_000 })
    if (imported.code !== 0) {
      throw new SetupError(
        `docker import of the stand-in failed:\n${tail(imported.stderr)}`,
        "Look at the engine's log and its free disk space (docker system df).",
      )
    }
  } finally {
    await rm(work, { recursive: true, force: true })
  }
  const made = await inspect(STAND_IN)
  const size = formatBytes(made?.sizeBytes ?? 0)
  log(`made ${STAND_IN}: node ${process.version}, ${size} (${formatDuration(performance.now() - started)})`)
}

function mmdebstrapArguments(recipe: Ingredients, work: string, target: string): string[] {
  return [
    "--variant=minbase",
    `--include=${packages.join(",")}`,
    // Debian's /usr merge done by links from the start; its package usrmerge would bring the whole of perl (60 MB).
    mergedUsrOption,
    ...dpkgOptions.map((option) => `--dpkgopt=${option}`),
    ...recipe.aptOptions.map((option) => `--aptopt=${option}`),
    ...customize(work, recipe).map((hook) => `--customize-hook=${hook}`),
    suite,
    target,
    ...recipe.sourceLines,
  ]
}

async function makeRootFileSystem(
  recipe: Recipe,
  work: string,
  target: string,
  signal?: AbortSignal,
): Promise<void> {
  const env = { ...process.env, TMPDIR: work, LC_ALL: "C.UTF-8", DEBIAN_FRONTEND: "noninteractive" }
  const hooked = existsSync(mergedUsrHook) // mmdebstrap before 0.8 does without
  const args = mmdebstrapArguments(recipe, work, target).filter((arg) => hooked || arg !== mergedUsrOption)
  const made = await run("mmdebstrap", args, { env, timeoutMs: 600_000, ...(signal && { signal }) })
  signal?.throwIfAborted()
  if (made.code === 0) return
  throw new SetupError(
    `mmdebstrap could not make a Debian ${suite} root file system${made.timedOut ? " in ten minutes" : ""}:\n${tail(made.stderr)}`,
    rootFileSystemHint(made.stderr, recipe.sourceLines),
  )
}

function rootFileSystemHint(output: string, sourceLines: readonly string[]): string {
  if (/unable to pick chroot mode|newuidmap|unshare/i.test(output) && !isRoot()) {
    return "Only root can do it here: run this with sudo, or sudo apt-get install uidmap."
  }
  if (/No space left on device/i.test(output))
    return "The temp folder's disk is full: make room, or set TMPDIR."
  return `Check that the mirrors can be reached: ${sourceLines.map((line) => line.replace(/\[.*?\] /, "")).join("; ")}`
}
