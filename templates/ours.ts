/**
 * Our templates, compiled. `npm run build` puts a module with the same exports in the place of this one, in which they
 * are compiled already: reading and compiling them takes 40 ms, a twelfth of a rebuild.
 */
import Handlebars from "handlebars"
import { compileTemplate, readOurs, type OurTemplate } from "./compile.ts"

/** All that compiled templates need; in the bundle without a compiler. */
export { Handlebars }

export function ourTemplate(handlebars: typeof Handlebars, name: OurTemplate): HandlebarsTemplateDelegate {
  return compileTemplate(handlebars, name, readOurs(name))
}
