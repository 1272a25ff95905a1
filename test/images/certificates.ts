/** Certificates for a server and its clients, made by openssl on the spot. */
import { execFileSync } from "node:child_process"
import { mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"

const hasOpenssl = ((): boolean => {
  try {
    execFileSync("openssl", ["version"], { stdio: "ignore" })
    return true
  } catch {
    return false
  }
})()

/** Why there can be no certificates here, or false; for `skip`. */
export const noCertificates = hasOpenssl ? false : "there is no program openssl"

/**
 * Makes an authority, and certificates by it. `server` and `client` come back as folders with ca.pem, cert.pem and
 * key.pem, as docker has them; the server's is for localhost and 127.0.0.1.
 */
export function makeCertificates(
  folder: string,
  name: string,
  options: { readonly days?: number } = {},
): { readonly server: string; readonly client: string } {
  const base = path.join(folder, name)
  mkdirSync(base)
  const openssl = (...args: string[]): void =>
    void execFileSync("openssl", args, { cwd: base, stdio: ["ignore", "ignore", "pipe"] })
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
  openssl("req", "-x509", ...key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", `/CN=${name}`, "-days", "2")
  const made = (["server", "client"] as const).map((role) => {
    const to = path.join(base, role)
    mkdirSync(to)
    writeFileSync(
      path.join(to, "extensions"),
      role === "server"
        ? "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"
        : "extendedKeyUsage=clientAuth\n",
    )
    openssl("req", ...key, "-keyout", `${role}/key.pem`, "-out", `${role}/csr`, "-subj", `/CN=${role}`)
    const sign = [
      "x509",
      "-req",
      "-in",
      `${role}/csr`,
      "-CA",
      "ca.pem",
      "-CAkey",
      "ca.key",
      "-CAcreateserial",
    ]
    openssl(
      ...sign,
      "-out",
      `${role}/cert.pem`,
      "-extfile",
      `${role}/extensions`,
      "-days",
      String(options.days ?? 2),
    )
    execFileSync("cp", [path.join(base, "ca.pem"), to])
    return to
  })
  const [server = "", client = ""] = made
  return { server, client }
}
