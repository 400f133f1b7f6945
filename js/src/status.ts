/** How a client is doing: what an app shows next to its data. */

import type { Problem } from "./errors.js";
import type { Time } from "./instant.js";

/** How a client is doing at one moment. It is another object only if something in it is another. */
export interface Status {
  /** It is connected, be it through another tab, and the first sync is complete. */
  readonly online: boolean;
  /** It also has all that it has heard of since. */
  readonly synced: boolean;
  /** What is written here survives this page: the store is not in memory, could save the last change,
   * and has not been busy with the next one for more than a few seconds. */
  readonly durable: boolean;
  /** How many written messages no node has acknowledged. */
  readonly unsent: number;
  /** Why the last connection ended, or could not be made; null after a sync. Or why the store cannot
   * be used: then nothing is written. */
  readonly lastError: Problem | null;
  /** When it connects again, by the device's clock, in microseconds; null if it does not wait for
   * that: it is connected, or connects now, or `reconnect` has to be called. */
  readonly retryAt: Time | null;
  /** How many records of its store cannot be read. They are kept, and have no effect. */
  readonly setAside: number;
}

/** What the tab that leads says of its connection to the others. With `isFinal`, it does not try to
 * connect again until it is asked. */
export interface ConnectionStatus extends Pick<Status, "online" | "synced" | "lastError" | "retryAt"> {
  readonly isFinal: boolean;
}

export const OFFLINE: ConnectionStatus = {
  online: false,
  synced: false,
  lastError: null,
  retryAt: null,
  isFinal: false,
};
