/**
 * The transport where WebSockets are blocked: frames come as server-sent events, messages go by POST.
 *
 * An EventSource could not say who it is in a header, so the events are read from a `fetch`. The
 * session does not know of this. A `hello` opens the stream, and so does a `verify`, at its cursor:
 * the node welcomes the device again, and syncs it. The answer to a POST becomes an `ack`.
 */

import type { Environment } from "./environment.js";
import type { Time } from "./instant.js";
import type { Consume, Hello } from "./frames.js";
import { encode } from "./json.js";
import type { Transport, TransportListener } from "./transport.js";

/** Opens a conversation with the server at this `http` address. */
export function openEventStream(
  { fetch }: Environment,
  address: string,
  uid: string,
  listener: TransportListener,
): Transport {
  let hello: Hello;
  let stream = new AbortController();
  let retryAfter = 0;

  /** The answer, if it is a success. A problem document becomes an `error`. Throws for what is not
   * the answer of a Gregor server, such as that of a captive portal. */
  async function request(path: string, init: RequestInit, n?: number): Promise<Response | undefined> {
    const headers = { Authorization: `Bearer ${hello.token}`, ...init.headers };
    const response = await fetch(address + path, { ...init, headers });
    const type = response.headers.get("Content-Type");
    retryAfter = 1000 * Number(response.headers.get("Retry-After"));
    if (!/json|event-stream/.test(`${type}`)) {
      throw Error(`not the answer of a Gregor server: ${response.status} ${type}`);
    }
    if (response.ok) return response;
    const { detail, ...problem } = await response.json();
    say({ ...problem, type: "error", message: detail, n });
    return undefined;
  }

  async function read(cursor: Time): Promise<void> {
    stream.abort();
    const { signal } = (stream = new AbortController());
    const query = new URLSearchParams({ device_id: hello.device_id, cursor: `${cursor}` });
    if (hello.epoch != null) query.set("epoch", `${hello.epoch}`);
    try {
      const response = await request(`/v1/users/${encodeURIComponent(uid)}/events?${query}`, { signal });
      const reader = response?.body?.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = "", chunk; (chunk = (await reader?.read())?.value) !== undefined; ) {
        const lines = (rest + chunk).split("\n");
        rest = lines.pop()!;
        // A frame is one line, and what the lines beside it say is not needed.
        for (const line of lines) if (line.startsWith("data:")) listener.frame(line.slice(5));
      }
      throw Error("the stream ended");
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  }

  async function post({ messages, n }: Consume, epoch: Time): Promise<void> {
    const headers = { "Content-Type": "application/json", "Gregor-Epoch": `${epoch}` };
    const path = `/v1/messages?device_id=${encodeURIComponent(hello.device_id)}`;
    const response = await request(path, { method: "POST", headers, body: encode({ messages }) }, n);
    if (response) say({ type: "ack", n, ...(await response.json()) });
  }

  const say = (frame: object): void => listener.frame(encode(frame));

  queueMicrotask(() => listener.opened());
  return {
    send(frame, epoch) {
      if (frame.type === "hello") hello = frame;
      (frame.type === "consume" ? post(frame, epoch) : read(frame.cursor ?? 0)).catch((error) =>
        listener.closed(1006, `${error}`, retryAfter),
      );
    },
    close: () => stream.abort(),
  };
}
