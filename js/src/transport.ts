/** What carries the frames of one conversation with a node. */

import type { DeviceFrame } from "./frames.js";
import type { Time } from "./instant.js";

/** Hears of one connection. Frames arrive in the order in which they were sent, or never. */
export interface TransportListener {
  /** Frames may be sent from now on. */
  opened(): void;
  frame(text: string): void;
  /** The connection has ended, or could not be made. `retryAfter` is the delay in milliseconds that the
   * server has asked for. What follows is not heard. */
  closed(code: number, reason: string, retryAfter?: number): void;
}

export interface Transport {
  /** Sends a frame, which may never arrive. `epoch` is the one that the session knows. */
  send(frame: DeviceFrame, epoch: Time): void;
  /** Closes the connection. Idempotent. */
  close(): void;
}
