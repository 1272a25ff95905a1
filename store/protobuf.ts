/**
 * The protobuf wire format, as little of it as ONNX files need: fields are found and stepped over, never copied.
 * Every length is checked against its message, so reading is linear and ends, whatever the bytes are.
 */

/** Bytes that are no protobuf message; `offset` counts from the start of the file. */
export class WireError extends Error {
  readonly offset: number

  constructor(message: string, offset: number) {
    super(`${message} at byte ${offset}`)
    this.name = "WireError"
    this.offset = offset
  }
}

/** One field: `at` is where its tag begins, `start` to `end` its value (without the length of a length-delimited one). */
export interface Field {
  readonly number: number
  readonly wire: Wire
  readonly at: number
  readonly start: number
  readonly end: number
}

export const VARINT = 0
export const FIXED64 = 1
export const BYTES = 2
export const FIXED32 = 5
export type Wire = typeof VARINT | typeof FIXED64 | typeof BYTES | typeof FIXED32

/** A part of a file that holds one message. */
export class Message {
  readonly bytes: Buffer
  readonly start: number
  readonly end: number

  constructor(bytes: Uint8Array, start = 0, end = bytes.length) {
    this.bytes =
      bytes instanceof Buffer ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.start = start
    this.end = end
  }

  /** The fields in their order. */
  *fields(): Generator<Field> {
    let at = this.start
    while (at < this.end) {
      const tag = this.#varintEnd(at)
      const key = this.#length(at, tag)
      const wire = key & 7
      const number = Math.floor(key / 8)
      if (number === 0 || number > 0x1fff_ffff) throw new WireError(`no field has the number ${number}`, at)
      const field = this.#field(number, wire, at, tag)
      yield field
      at = field.end
    }
  }

  /** Messages, texts and bytes under this number. */
  *all(number: number): Generator<Message> {
    for (const field of this.fields())
      if (field.number === number && field.wire === BYTES) yield this.sub(field)
  }

  /** The message in a length-delimited field. */
  sub(field: Field): Message {
    return new Message(this.bytes, field.start, field.end)
  }

  /** The whole message as text. */
  text(): string {
    return this.bytes.toString("utf8", this.start, this.end)
  }

  /** The whole message as text of one character per byte: for names that are compared and written back. */
  binary(): string {
    return this.bytes.toString("latin1", this.start, this.end)
  }

  /** A varint as int64. */
  int(field: Field): bigint {
    let value = 0n
    for (let at = field.end - 1; at >= field.start; at--)
      value = (value << 7n) | BigInt((this.bytes[at] ?? 0) & 0x7f)
    return BigInt.asIntN(64, value)
  }

  /** A repeated int64, packed or not. */
  *ints(field: Field): Generator<bigint> {
    if (field.wire === VARINT) return yield this.int(field)
    if (field.wire !== BYTES) return
    const packed = this.sub(field)
    for (let at = packed.start; at < packed.end;) {
      const end = packed.#varintEnd(at)
      yield this.int({ ...field, start: at, end })
      at = end
    }
  }

  #field(number: number, wire: number, at: number, tag: number): Field {
    if (wire === VARINT) return { number, wire, at, start: tag, end: this.#varintEnd(tag) }
    if (wire === FIXED64) return { number, wire, at, start: tag, end: this.#within(tag, 8) }
    if (wire === FIXED32) return { number, wire, at, start: tag, end: this.#within(tag, 4) }
    if (wire !== BYTES) throw new WireError(`no field of ONNX has the wire type ${wire}`, at)
    const start = this.#varintEnd(tag)
    return { number, wire, at, start, end: this.#within(start, this.#length(tag, start)) }
  }

  #varintEnd(at: number): number {
    for (let end = at; end < Math.min(this.end, at + 10); end++) {
      if ((this.bytes[end] ?? 0) < 0x80) return end + 1
    }
    throw new WireError(
      at + 10 <= this.end ? "a number of more than 10 bytes" : "the file ends in a number",
      at,
    )
  }

  /** A varint that must be small: exact below 2^53, and above only compared. */
  #length(start: number, end: number): number {
    let value = 0
    for (let at = end - 1; at >= start; at--) value = value * 128 + ((this.bytes[at] ?? 0) & 0x7f)
    return value
  }

  #within(start: number, length: number): number {
    if (length <= this.end - start) return start + length
    throw new WireError(`${length} bytes are announced and ${this.end - start} left`, start)
  }
}

/** How long the field is, tag and all, that begins with these bytes; it may end after them. */
export function fieldLength(head: Uint8Array): number {
  let at = 0
  const varint = (): number => {
    let value = 0
    for (let scale = 1; at < head.length; scale *= 128) {
      const byte = head[at++] ?? 0
      value += (byte & 0x7f) * scale
      if (byte < 0x80) return value
    }
    throw new WireError("a number does not end", at)
  }
  const wire = varint() % 8
  if (wire === VARINT) varint()
  else if (wire === BYTES) {
    const length = varint()
    return at + length
  } else if (wire !== FIXED64 && wire !== FIXED32) {
    throw new WireError(`no field of ONNX has the wire type ${wire}`, 0)
  }
  return at + (wire === FIXED64 ? 8 : wire === FIXED32 ? 4 : 0)
}

/** A length-delimited field, ready to be written. */
export function writeField(number: number, content: string | Uint8Array): Buffer {
  const bytes = typeof content === "string" ? Buffer.from(content, "latin1") : content
  return Buffer.concat([writeVarint(number * 8 + BYTES), writeVarint(bytes.length), bytes])
}

/** A varint field, ready to be written. */
export function writeInt(number: number, value: number): Buffer {
  return Buffer.concat([writeVarint(number * 8 + VARINT), writeVarint(value)])
}

function writeVarint(value: number): Buffer {
  const bytes: number[] = []
  let rest = value
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 0x80)
  return Buffer.from([...bytes, rest])
}
