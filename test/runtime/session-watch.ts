/** Preloaded into a worker thread: tells the test with which options a session is made, when it is released, and what is handed over. */
import { parentPort } from "node:worker_threads"
import { InferenceSession } from "onnxruntime-node"

/** Messages beside those of worker.ts, which the runner does not know and leaves alone. */
export type Seen =
  | { readonly type: "created"; readonly options: InferenceSession.SessionOptions }
  | { readonly type: "released" }
  | { readonly type: "handed over"; readonly buffers: number; readonly bytesLeft: number }

if (parentPort !== null) {
  const port = parentPort
  const post = port.postMessage.bind(port)
  const tell = (seen: Seen): void => post(seen)

  const create = InferenceSession.create.bind(InferenceSession) as (
    model: string,
    options: InferenceSession.SessionOptions,
  ) => Promise<InferenceSession>
  const watchedCreate = async (
    model: string,
    options: InferenceSession.SessionOptions,
  ): Promise<InferenceSession> => {
    const session = await create(model, options)
    tell({ type: "created", options })
    const release = session.release.bind(session)
    session.release = async () => {
      await release()
      tell({ type: "released" })
    }
    return session
  }
  Object.assign(InferenceSession, { create: watchedCreate })

  port.postMessage = (
    message: { type: string; outputs?: readonly { data: { byteLength: number } }[] },
    transfer: ArrayBuffer[] = [],
  ) => {
    post(message, transfer)
    if (message.type !== "done") return
    const bytesLeft = (message.outputs ?? []).reduce((sum, { data }) => sum + data.byteLength, 0)
    tell({ type: "handed over", buffers: transfer.length, bytesLeft })
  }
}
