import { api, json, text } from "../../runtime/index.ts"

/** Answers null with the status that it is sent. */
export const statusApi = api({
  name: "status",
  input: text(),
  output: json(),
  handler: (x, ctx) => {
    ctx.response.status = Number(x)
    return null
  },
})
