/** The OpenAPI document of a service: its APIs with the errors that they answer, and the routes of the server itself. */
import type { ApiInfo, DescriptorInfo, Json, JsonObject, ServiceInfo } from "../store/bento.ts"
import { exampleOf } from "./io.ts"

export interface OpenApiOptions {
  readonly version: string | null
  readonly description?: string
}

/** OpenAPI 3.1: its schemas are JSON Schema 2020-12, as those of the descriptors are. */
export function openApi(service: ServiceInfo, options: OpenApiOptions): JsonObject {
  const paths = Object.fromEntries([
    ...service.apis.map((api) => [api.route, { post: apiOperation(service, api) }]),
    ...INFRASTRUCTURE.map(({ route, ...operation }) => [
      route,
      { get: infrastructureOperation(route, operation) },
    ]),
  ]) as JsonObject
  return {
    openapi: "3.1.0",
    info: {
      title: service.name,
      version: options.version ?? "0",
      ...(options.description === undefined || options.description === ""
        ? {}
        : { description: options.description }),
    },
    servers: [{ url: "." }],
    tags: [
      { name: "Service APIs", description: "The APIs of this service." },
      { name: "Infrastructure", description: "Probes, metrics and descriptions." },
    ],
    paths,
    components: { schemas: { Error: ERROR_SCHEMA }, responses: errorResponses() },
  }
}

/** `/schema.json`: routes with the JSON Schemas of what they take and give. */
export function serviceSchema(service: ServiceInfo, options: OpenApiOptions): JsonObject {
  return {
    name: service.name,
    type: "service",
    description: options.description ?? null,
    routes: service.apis.map((api) => ({
      name: api.name,
      route: api.route,
      description: api.doc,
      input: { ...api.input.schema, media_type: api.input.mediaType },
      output: { ...api.output.schema, media_type: api.output.mediaType },
    })),
  }
}

const INFRASTRUCTURE = [
  { route: "/livez", summary: "Is the process alive?", mediaType: "text/plain", unavailable: false },
  { route: "/readyz", summary: "Can requests be answered?", mediaType: "text/plain", unavailable: true },
  { route: "/healthz", summary: "The same as /livez.", mediaType: "text/plain", unavailable: false },
  { route: "/metrics", summary: "Prometheus metrics.", mediaType: "text/plain", unavailable: false },
  { route: "/docs.json", summary: "This document.", mediaType: "application/json", unavailable: false },
  {
    route: "/schema.json",
    summary: "The APIs as JSON Schemas.",
    mediaType: "application/json",
    unavailable: false,
  },
] as const

function infrastructureOperation(
  route: string,
  operation: { summary: string; mediaType: string; unavailable: boolean },
): JsonObject {
  return {
    tags: ["Infrastructure"],
    summary: operation.summary,
    operationId: route.slice(1).replace(".", "_"),
    responses: {
      "200": {
        description: "OK",
        headers: REQUEST_ID_HEADER,
        content: { [operation.mediaType]: {} },
      },
      ...(operation.unavailable ? { "503": { $ref: "#/components/responses/503" } } : {}),
    },
  }
}

function apiOperation(service: ServiceInfo, api: ApiInfo): JsonObject {
  const [summary = api.name] = (api.doc ?? api.name).split("\n", 1)
  return {
    tags: ["Service APIs"],
    summary,
    ...(api.doc === null ? {} : { description: api.doc }),
    operationId: `${service.name}__${api.name}`,
    requestBody: { required: true, content: content(api.input) },
    responses: {
      "200": { description: "OK", headers: REQUEST_ID_HEADER, content: content(api.output) },
      ...Object.fromEntries(
        Object.keys(ERRORS).map((status) => [status, { $ref: `#/components/responses/${status}` }]),
      ),
    },
  }
}

function content({ mediaType, schema }: DescriptorInfo): JsonObject {
  const known = Object.keys(schema).some((key) => key !== "description")
  return { [mediaType]: { schema, ...(known ? { example: exampleOf(schema) } : {}) } }
}

const ERROR_SCHEMA: JsonObject = {
  type: "object",
  description: "Every error has this shape.",
  properties: {
    error: {
      type: "object",
      properties: {
        code: { type: "string", description: "Stable; for programs.", examples: ["BAD_INPUT"] },
        message: { type: "string", description: "For people." },
        detail: { description: "More about this case." },
      },
      required: ["code", "message"],
    },
  },
  required: ["error"],
}

const REQUEST_ID_HEADER: JsonObject = {
  "x-request-id": { description: "Of the request, or given by the server.", schema: { type: "string" } },
}
const RETRY_AFTER_HEADER: JsonObject = {
  "retry-after": {
    description: "Seconds until another try makes sense.",
    schema: { type: "integer", minimum: 1 },
  },
}

const ERRORS: Record<string, string> = {
  "400": "The body is malformed or does not fit.",
  "413": "The body is too long.",
  "415": "The content type is not read.",
  "429": "The queue is full.",
  "500": "The handler or the model failed.",
  "503": "Not ready, shutting down, or the answer could not be ready in time.",
  "504": "The time for the request is over.",
}

function errorResponses(): Record<string, Json> {
  return Object.fromEntries(
    Object.entries(ERRORS).map(([status, description]) => [
      status,
      {
        description,
        headers: {
          ...REQUEST_ID_HEADER,
          ...(status === "429" || status === "503" ? RETRY_AFTER_HEADER : {}),
        },
        content: { "application/json": { schema: { $ref: "#/components/schemas/Error" } } },
      },
    ]),
  )
}
