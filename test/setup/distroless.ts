/**
 * A stand-in for `gcr.io/distroless/nodejs24-debian12`, from whatever base image there is: Node where distroless has it, the
 * libraries that Node and ONNX Runtime need, certificates, and no shell.
 */
import { execFileSync } from "node:child_process"

export const DISTROLESS_STAND_IN = "bentoctl/stand-in:distroless-node24"

const [triple, loader] =
  process.arch === "arm64"
    ? (["aarch64-linux-gnu", "/lib/ld-linux-aarch64.so.1"] as const)
    : (["x86_64-linux-gnu", "/lib64/ld-linux-x86-64.so.2"] as const)

const LIBRARIES = ["libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libresolv.so.2"]
const CXX_LIBRARIES = ["libstdc++.so.6", "libgcc_s.so.1"]

/** The settings are those of the image that it stands for. */
const dockerfile = (base: string, found: readonly string[]): string =>
  [
    "FROM scratch",
    `COPY --from=${base} /usr/local/bin/node /nodejs/bin/node`,
    `COPY --from=${base} ${loader} ${loader}`,
    ...found.map((library) => `COPY --from=${base} ${library} /usr/lib/${triple}/`),
    `COPY --from=${base} /etc/passwd /etc/group /etc/`,
    `COPY --from=${base} /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt`,
    "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
    'ENTRYPOINT ["/nodejs/bin/node"]',
    "",
  ].join("\n")

/** Makes it in the engine, or finds it made. Docker keeps what it copied, so that a second time takes no time. */
export function makeDistroless(base: string, tag = DISTROLESS_STAND_IN): string {
  const folders = [`/lib/${triple}`, `/usr/lib/${triple}`]
  const wanted = [...LIBRARIES, ...CXX_LIBRARIES]
  const script = wanted
    .map((name) => `for d in ${folders.join(" ")}; do [ -e $d/${name} ] && echo $d/${name} && break; done`)
    .join("; ")
  const docker = (args: readonly string[], input = ""): string =>
    execFileSync("docker", args, { encoding: "utf8", input, stdio: ["pipe", "pipe", "pipe"] })
  const listed = docker(["run", "--rm", "--network", "none", "--entrypoint", "sh", base, "-c", script])
  docker(["build", "-q", "-t", tag, "-"], dockerfile(base, listed.trim().split("\n")))
  return tag
}
