/** When a device connects again after its connection has ended. Pure: the time and the random
 * numbers are arguments. All times are milliseconds. */

const SHORTEST = 500;
const LONGEST = 60_000;

/** The delay that another side asks for, as far as it counts: up to a minute, so that no absurd
 * number keeps anybody away. */
const asked = (ms?: number): number => Math.min(Math.max(0, ms || 0), LONGEST);

/** The rules of `spec/protocol.md`, section 7: backoff with full jitter, `goaway`, `Retry-After`.
 *
 * A delay is at most twice the time since the first failure. Without that bound, attempts that were
 * quick by chance would turn a short outage into a long one. */
export interface ReconnectPolicy {
  /** The replica has been brought to the present: the outage, if there was one, is over. */
  synced(): void;
  /** The node is leaving. Returns how long to wait before connecting again. */
  goaway(now: number, random: number, within: number): number;
  /** How long to wait after a connection, or an attempt to connect, that ended at `now`. `random` is
   * from 0 to 1. `retryAfter` is what the server has asked for. */
  wait(now: number, random: number, retryAfter?: number): number;
}

export function reconnectPolicy(): ReconnectPolicy {
  let failures = 0;
  let firstFailure = 0;
  /** When a node that is leaving wants its devices back. */
  let returnAt: number | undefined;
  return {
    synced() {
      failures = 0;
    },
    goaway(now, random, within) {
      const delay = random * asked(within);
      returnAt = now + delay;
      return delay;
    },
    wait(now, random, retryAfter) {
      const due = returnAt;
      returnAt = undefined;
      if (due !== undefined) return Math.max(0, due - now);
      if (!failures) firstFailure = now;
      const outage = Math.max(SHORTEST, 2 * (now - firstFailure));
      return asked(retryAfter) + random * Math.min(LONGEST, SHORTEST * 2 ** failures++, outage);
    },
  };
}
