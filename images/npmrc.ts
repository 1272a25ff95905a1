/** .npmrc files: which registries there are, and how they know us. Credentials stay out of Bentos and images. */
import { readFile } from "node:fs/promises"
import path from "node:path"

/** What of a project's .npmrc decides which packages there are and where they come from, and is no secret. */
const SETTINGS =
  /^((@[\w.-]+:)?registry|legacy-peer-deps|strict-peer-deps|install-strategy|ignore-scripts|engine-strict|node-linker|shamefully-hoist|auto-install-peers)$/

/** What says who we are and how registries are reached. Folders and programs of this machine mean nothing in an image. */
const ACCESS =
  /^(\/\/.*|_auth|_authToken|_password|username|email|always-auth|ca|cafile|cert|key|strict-ssl|proxy|https-proxy|noproxy)$/

/** The settings of a project's .npmrc that a Bento keeps. */
export function registrySettings(text: string): Record<string, string> {
  const settings: Record<string, string> = {}
  for (const [key, value] of settingsOf(text)) {
    // An address with a password in it, or one that depends on the environment, is for the build alone.
    if (SETTINGS.test(key) && !/[@$"]/.test(value)) settings[key] = value
  }
  return settings
}

/**
 * The user's .npmrc and the project's, which wins, as one text that depends on no other file and no variable. For the
 * time of an install; "" where there is nothing.
 */
export async function readNpmrc(
  env: Readonly<Record<string, string | undefined>>,
  contextDir: string | null,
): Promise<string> {
  const user =
    env["NPM_CONFIG_USERCONFIG"] ?? env["npm_config_userconfig"] ?? path.join(env["HOME"] ?? "/", ".npmrc")
  const files = [user, ...(contextDir === null ? [] : [path.join(contextDir, ".npmrc")])]
  const texts = await Promise.all(files.map((file) => readFile(file, "utf8").catch(() => "")))
  const lines: string[] = []
  for (const [key, value] of texts.flatMap(settingsOf)) {
    if (!SETTINGS.test(key) && !ACCESS.test(key)) continue
    const expanded = value.replace(/\$\{([^}]+)\}/g, (whole, name: string) => env[name] ?? whole)
    if (key !== "cafile") lines.push(`${key}=${expanded}\n`)
    else {
      const certificates = await readFile(expanded, "utf8").catch(() => null)
      if (certificates !== null) lines.push(`ca=${JSON.stringify(certificates)}\n`)
    }
  }
  return lines.join("")
}

/** As a file of npm's, for who installs from a Bento. */
export function npmrcOf(settings: Readonly<Record<string, string>>): string {
  return Object.entries(settings)
    .map(([key, value]) => `${key}=${value}\n`)
    .join("")
}

function settingsOf(text: string): [key: string, value: string][] {
  return text.split(/\r?\n/).flatMap((line) => {
    const match = /^\s*([^#;=\s][^=]*?)\s*=\s*(.*?)\s*$/.exec(line)
    return match === null ? [] : [[match[1] ?? "", match[2] ?? ""] as [string, string]]
  })
}
