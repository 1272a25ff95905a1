/** Makes docs/cli.md from the commands' own definitions; `docs.test.ts` finds a page that lags behind. */
import { writeFileSync } from "node:fs"
import path from "node:path"
import { explainAll } from "../../cli/app.ts"
import { optionRow, type Explained } from "../../cli/help.ts"

export const page = path.resolve(import.meta.dirname, "../../docs/cli.md")

const INTRODUCTION = `# Command line

<!-- Made by \`npm run docs\` from the definitions in cli/. Edit those. -->

\`bentoctl COMMAND --help\` shows what stands here of one command.

## Rules for all commands

- **stdout** holds the result and nothing else; notes, warnings, progress and errors go to **stderr**. With \`-o json\` stdout is
  exactly one JSON value, with \`-o tag\` the one line \`__tag__:NAME:VERSION\`. Both imply \`--quiet\`; warnings are still told.
- What is piped is never cut, folded or coloured. Colours need a terminal; \`NO_COLOR\` turns them off, \`FORCE_COLOR\` on.
- Errors name the thing, say what to do, and end in a code: [errors](errors.md). With \`-o json\` or \`--progress json\` an error is
  one line on stderr: \`{"type": "error", "error": {"code", "message", "hint"}}\`, where it applies with \`issues\`, \`candidates\`, or
  \`step\` and \`log\`; stdout is then empty.
- A tag is \`NAME\` (the newest version), \`NAME:VERSION\`, \`NAME:latest\`, or \`NAME:PREFIX\` where the prefix fits one version.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | the command failed; the message says why |
| 2 | the command line itself is wrong |
| 130, 143, 129 | interrupted by SIGINT (Ctrl-C), SIGTERM, SIGHUP; nothing half-made stays behind |

\`serve\` answers signals by letting requests finish, and exits with the server's code: 0 after a clean stop.

| variable | meaning |
| --- | --- |
| \`BENTOML_HOME\` | folder of the store; default \`~/bentoml\`, the same as Python BentoML's. \`~\` and variables in it are expanded |
| \`BENTOCTL_BASE_IMAGE\` | base image where the bentofile names none; default \`node:24-bookworm-slim\` |
| \`DOCKER_HOST\`, \`DOCKER_CONTEXT\`, \`DOCKER_TLS_VERIFY\`, \`DOCKER_CERT_PATH\` | which Docker Engine builds images, as for docker's own client: [engines](images.md#engines); default: the current docker context, else \`unix:///var/run/docker.sock\` |
| \`DOCKER_CONFIG\` | folder with docker's settings, contexts and credentials; default \`~/.docker\` |
| \`PORT\`, \`BENTOML_PORT\`, \`BENTOML_HOST\` | where \`serve\` listens, after \`-p\` and \`--host\` |

### Progress events

\`containerize --progress json\` prints one JSON object per line on stderr. \`step\` is an id that the events of one step share.

| type | other keys |
| --- | --- |
| \`builder\` | \`builder\`; \`reason\`: why it had to be this one, else null |
| \`step\` | \`step\`, \`name\`, \`state\` (\`started\`, \`cached\`, \`done\`, \`failed\`), \`duration_ms\` unless it only started |
| \`log\` | \`step\`, \`stream\` (\`stdout\`, \`stderr\`), \`text\`: one line that a step printed |
| \`progress\` | \`step\`, \`name\`, \`current\`, \`total\`: bytes; a total of 0 is unknown |
| \`warning\` | \`message\` |
| \`built\` | \`builder\`, \`reason\`, \`image_id\`, \`tags\`, \`size_bytes\`, \`duration_ms\`: the last event of a build that went well, but for a push |
| \`pushed\` | \`reference\`, \`digest\`, \`repo_digest\`, \`layers_sent\`, \`layers_present\`, \`sent_bytes\` (null where the engine does not tell), \`duration_ms\`: after \`built\`, one for each name |
| \`error\` | \`error\`: the last event of one that did not |
`

export function reference(): string {
  const commands = explainAll()
  const globals = commands[0]?.globalOptions ?? []
  const groups = [...new Set(commands.map((command) => command.type.help.group))]
  const parts = [
    INTRODUCTION,
    "## Options of all commands\n",
    optionTable(globals),
    ...groups.flatMap((group) => [
      `## ${group}\n`,
      ...commands.filter((command) => command.type.help.group === group).map(section),
    ]),
  ]
  return `${parts.join("\n").trimEnd()}\n`
}

function section(command: Explained): string {
  const { help } = command.type
  const examples = help.examples.map(([meaning, line]) => `# ${meaning}\n${line}`)
  return [
    `### ${command.name}\n`,
    `${help.summary}.\n`,
    `\`\`\`\n${command.usage}\n\`\`\`\n`,
    ...(help.details ?? []).map((paragraph) => `${paragraph}\n`),
    ...(help.args === undefined
      ? []
      : [
          table(
            "argument",
            help.args.map(([name, meaning]) => [name.replace(/[[\].]/g, ""), meaning]),
          ),
        ]),
    ...(command.options.length === 0 ? [] : [optionTable(command.options)]),
    `\`\`\`sh\n${examples.join("\n\n")}\n\`\`\`\n`,
  ].join("\n")
}

function optionTable(options: Explained["options"]): string {
  return table("option", options.map(optionRow))
}

function table(title: string, rows: readonly (readonly [name: string, meaning: string])[]): string {
  const cell = (text: string): string => text.trim().replaceAll("|", "\\|")
  return `| ${title} | |\n| --- | --- |\n${rows.map(([name, meaning]) => `| \`${cell(name)}\` | ${cell(meaning)} |`).join("\n")}\n`
}

if (import.meta.main) {
  writeFileSync(page, reference())
  console.log(`wrote ${path.relative(process.cwd(), page)}`)
}
