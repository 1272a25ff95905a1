#!/usr/bin/env node
/**
 * The `bentoctl` program begins here: with nothing that an older Node may not even be able to load, so that it can be
 * told what is missing. What is loaded from here on is kept compiled (main.js itself never is).
 */
if (Number(process.versions.node.split(".")[0]) >= 24) {
  process.getBuiltinModule("node:module").enableCompileCache()
  await import("./program.ts")
} else {
  process.stderr.write(
    `Error: bentoctl needs Node.js 24 or newer; this is ${process.versions.node} (${process.execPath}).\n` +
      "Install a newer one from https://nodejs.org/, or let npx fetch it:\n" +
      "  npx --package=node@24 --package=bentoctl bentoctl --help\n",
  )
  process.exitCode = 1
}
