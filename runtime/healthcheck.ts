/** The image's HEALTHCHECK: exits 0 when `/readyz` answers 200 within two seconds. Light: nothing but node:http. */
import { get } from "node:http"
import { portOf } from "./ports.ts"

const { env } = process
// The server is process 1 of its container; what it listens on beats what the environment says it should.
const port = portOf(1) ?? Number(env["PORT"] || env["BENTOML_PORT"] || 3000)
const request = get({ host: "127.0.0.1", port, path: "/readyz", timeout: 2000 }, (response) => {
  process.exit(response.statusCode === 200 ? 0 : 1)
})
request.on("timeout", () => process.exit(1))
request.on("error", () => process.exit(1))
