/** Whether a server is ready, asked from outside its process. */
import { get } from "node:http"
import { type Listener, listenersOf } from "./ports.ts"

/**
 * Whether `/readyz` answers 200 at any address at which a process or a descendant of it listens: a debugger and a service's own
 * listeners do so too, and what is really listened on beats what was said to be. `port` is asked where nobody is seen to listen.
 */
export async function isReady(
  pid: number,
  { port, timeoutMs }: { readonly port: number; readonly timeoutMs: number },
): Promise<boolean> {
  const seen = listenersOf(pid)
  const over = new AbortController()
  const timer = setTimeout(() => over.abort(), timeoutMs)
  try {
    const asked = seen.length > 0 ? seen : [{ host: "127.0.0.1", port }]
    await Promise.any(asked.map((listener) => ask(listener, over.signal)))
    return true
  } catch {
    return false
  } finally {
    clearTimeout(timer)
    over.abort()
  }
}

/** Rejects with any other answer than 200. */
function ask(listener: Listener, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const request = get({ ...listener, path: "/readyz", signal }, (response) => {
      const { statusCode } = response
      response.destroy()
      if (statusCode === 200) resolve()
      else reject(new Error(`${statusCode}`))
    })
    request.on("error", reject)
  })
}
