/** The transport of a device: a WebSocket to its node. */

import type { Environment } from "./environment.js";
import { encode } from "./json.js";
import type { Transport, TransportListener } from "./transport.js";

/** Opens a WebSocket to the server at this `ws` address. */
export function openWebSocket(
  WebSocket: NonNullable<Environment["WebSocket"]>,
  address: string,
  listener: TransportListener,
): Transport {
  const socket = new WebSocket(`${address}/v1/connect`);
  socket.onopen = () => listener.opened();
  socket.onmessage = ({ data }) => listener.frame(data);
  socket.onclose = ({ code, reason }) =>
    listener.closed(code, reason || `the connection ended with code ${code}`);
  return {
    // A browser logs an error for what is sent on a socket that has closed, before it says so.
    send: (frame) => void (socket.readyState > 1 || socket.send(encode(frame))),
    close: () => socket.close(),
  };
}
