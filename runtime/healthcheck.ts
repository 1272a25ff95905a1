/** The image's HEALTHCHECK: exits 0 when `/readyz` answers 200 within two seconds. Light: nothing but node:http. */
import { isReady } from "./probe.ts"

const { env } = process
const port = Number(env["PORT"] || env["BENTOML_PORT"] || 3000)
// The server is process 1 of its container or, with an init, below it.
process.exit((await isReady(1, { port, timeoutMs: 2000 })) ? 0 : 1)
