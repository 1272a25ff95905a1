/** Arguments that name files or hold JSON: what `--metadata` and `--signature` mean. */
import { readFile } from "node:fs/promises"
import path from "node:path"
import { BentoError } from "../store/errors.ts"
import { parseMetadata, parseSignatures } from "../store/import.ts"

/** `--metadata FILE`: YAML, of which JSON is a part. */
export async function readMetadata(file: string, cwd: string): Promise<ReturnType<typeof parseMetadata>> {
  return parseMetadata(await readArgument("--metadata", file, cwd), file)
}

/** `--signature JSON|FILE`: what begins with a brace is no file. */
export async function readSignatures(
  given: string,
  cwd: string,
): Promise<ReturnType<typeof parseSignatures>> {
  if (given.trimStart().startsWith("{")) return parseSignatures(given, "--signature")
  return parseSignatures(await readArgument("--signature", given, cwd), given)
}

async function readArgument(flag: string, file: string, cwd: string): Promise<string> {
  return readFile(path.resolve(cwd, file), "utf8").catch((error: NodeJS.ErrnoException) => {
    const reason = error.code === "ENOENT" ? "no such file" : error.message
    const hint = "Check the path; the store is unchanged."
    throw new BentoError("IMPORT_FAILED", `${flag}: ${file}: ${reason}`, { hint, cause: error })
  })
}
