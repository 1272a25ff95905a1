/**
 * How Node is started for the server, in images and by `bentoctl serve` alike. V8 would let its young generation grow to 128 MiB
 * on a machine with much memory, and fill it before it collects: under load that is a quarter of the server's memory, for no more
 * requests a second.
 */
export const NODE_FLAGS: readonly string[] = ["--max-semi-space-size=16"]
