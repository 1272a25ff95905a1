/** `serve --reload`: a new server for each change that works, the old one for as long as it does not. */
import type { ServeSpec } from "../store/bento.ts"
import { Interruption, type Context } from "./context.ts"
import { reportError } from "./failure.ts"
import type { Project } from "./project.ts"
import { startServer, type Server, type ServerCommand } from "./server.ts"
import { watchFolders } from "./watch.ts"

/** A server that ends this soon after the first start has a reason that no edit mends, such as a port in use. */
const FIRST_START_MS = 5000

export async function serveReloading(
  context: Context,
  project: Project,
  command: (spec: ServeSpec) => ServerCommand,
  voice: { readonly note: (text: string) => void; readonly debug: boolean },
): Promise<number> {
  const stop = new AbortController()
  let server: Server | undefined
  let spec: ServeSpec | undefined
  let shown: string | undefined
  const startedAt = context.now().getTime()
  const release = context.takeSignals((name) => {
    stop.abort(new Interruption(name))
    server?.stop(name)
  })
  const watcher = await watchFolders(project.roots, (error) => {
    voice.note(`Some changes will not be seen: ${error.message}`)
  })

  /** Puts a server for the present state in place of the old one, unless nothing changed or it would not work. */
  const renew = async (): Promise<void> => {
    try {
      const fingerprint = await project.look()
      if (fingerprint(spec) === shown) return
      const isFirst = shown === undefined
      if (!isFirst) voice.note("Something changed; looking whether it works.")
      shown = fingerprint(undefined)
      spec = undefined
      spec = await project.spec(stop.signal)
      // Which models count is known only now; what changed meanwhile may not be in the spec, so nothing is looked at anew.
      shown = fingerprint(spec)
      server?.stop()
      await server?.exited
      if (stop.signal.aborted) return
      const next = startServer(context, command(spec))
      server = next
      void next.exited.then((code) => {
        if (next.stopping) return
        if (isFirst && code !== 0 && context.now().getTime() - startedAt < FIRST_START_MS) stop.abort()
        else voice.note(`The server ended with code ${code}; waiting for a change.`)
      })
    } catch (error) {
      if (stop.signal.aborted) return
      reportError(error, context, { json: false, debug: voice.debug })
      const old =
        server?.running === true ? "The version before it goes on serving" : "Nothing is being served"
      voice.note(`${old}; waiting for a change.`)
    }
  }

  try {
    while (!stop.signal.aborted) {
      await renew()
      if (await watcher.changed(stop.signal)) await watcher.refresh()
    }
    return (await server?.exited) ?? 0
  } finally {
    watcher.close()
    release()
  }
}
