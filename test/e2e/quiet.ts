/** A container that serves, and the kernel's count of what it sent by itself. */
import assert from "node:assert/strict"
import { docker, until200 } from "./support.ts"

const SERVING_MS = 60_000

export interface Serving {
  /** Waits until a minute of serving is over, and throws if anything but answers went out. */
  readonly end: () => Promise<void>
  readonly stop: () => Promise<void>
}

/** Starts a container on an ordinary network, where a connection to anywhere could be tried, and asks it now and then. */
export async function startServing(image: string, route: string, body: string): Promise<Serving> {
  // The health check connects to the server from inside.
  const id = await docker("run", "-d", "--no-healthcheck", "-p", "127.0.0.1::3000", image)
  const startedMs = performance.now()
  const url = `http://127.0.0.1:${(await docker("port", id, "3000")).split(":").at(-1)}`
  const ask = async (): Promise<void> => {
    const answer = await fetch(`${url}${route}`, { method: "POST", body })
    assert.equal(answer.status, 200, await answer.text())
  }
  await until200(`${url}/readyz`)
  let asked = Promise.resolve()
  const timer = setInterval(() => {
    asked = asked.then(ask)
    asked.catch(() => {}) // told at the end
  }, 1000)
  return {
    end: async () => {
      await new Promise((resolve) => setTimeout(resolve, startedMs + SERVING_MS - performance.now()))
      clearInterval(timer)
      await asked
      assert.deepEqual(await sentBy(id), { connections: 0, datagrams: 0 })
      // And a program that does try is counted.
      const attempt = `require("net").connect(9, "192.0.2.1").on("error", () => {})
        require("dgram").createSocket("udp4").send("x", 9, "192.0.2.1")
        setTimeout(() => process.exit(), 300)`
      await docker("exec", id, "node", "-e", attempt)
      assert.deepEqual(await sentBy(id), { connections: 1, datagrams: 1 })
    },
    stop: async () => {
      clearInterval(timer)
      await docker("rm", "-f", id)
    },
  }
}

/** Attempts to connect, and datagrams (as for a name that is looked up), since the container's network was made. */
async function sentBy(id: string): Promise<{ connections: number; datagrams: number }> {
  const text = await docker("exec", id, "cat", "/proc/net/snmp", "/proc/net/snmp6")
  const counter = (protocol: string, name: string): number => {
    const [names = [], values = []] = text
      .split("\n")
      .filter((line) => line.startsWith(`${protocol}: `))
      .map((line) => line.split(" "))
    const value = values[names.indexOf(name)]
    assert.ok(value !== undefined, `${protocol} ${name}`)
    return Number(value)
  }
  const datagrams6 = Number(/^Udp6OutDatagrams\s+(\d+)$/m.exec(text)?.[1] ?? 0)
  return {
    connections: counter("Tcp", "ActiveOpens"),
    datagrams: counter("Udp", "OutDatagrams") + datagrams6,
  }
}
