/** When a device connects again after its connection has ended. Pure: the time and the random
 * numbers are arguments. All times are seconds. */

const SHORTEST = 0.5;
const LONGEST = 60;

/** The delay that another side asks for, as far as it counts: up to a minute, so that no absurd
 * number keeps anybody away. */
const asked = (seconds: number): number => Math.min(Math.max(0, seconds), LONGEST);

/** The rules of `spec/protocol.md`, section 7: backoff with full jitter, `goaway`, `Retry-After`.
 *
 * A delay is at most twice the time since the first failure. Without that bound, attempts that were
 * quick by chance would turn a short outage into a long one. */
export class ReconnectPolicy {
  private _failures = 0;
  private _firstFailure = 0;
  /** When a node that is leaving wants its devices back. */
  private _returnAt: number | undefined;

  /** The replica has been brought to the present: the outage, if there was one, is over. */
  synced(): void {
    this._failures = 0;
  }

  /** The node is leaving. Returns when to connect again, on the clock of `now`. */
  goaway(now: number, random: number, withinMs: number): number {
    return (this._returnAt = now + random * asked(withinMs / 1000));
  }

  /** Seconds to wait after a connection, or an attempt to connect, that ended at `now`. `random` is
   * from 0 to 1. `retryAfter` is what the server has asked for, in seconds. */
  wait(now: number, random: number, retryAfter = 0): number {
    const returnAt = this._returnAt;
    this._returnAt = undefined;
    if (returnAt !== undefined) return Math.max(0, returnAt - now);
    if (!this._failures) this._firstFailure = now;
    const outage = Math.max(SHORTEST, 2 * (now - this._firstFailure));
    return asked(retryAfter) + random * Math.min(LONGEST, SHORTEST * 2 ** this._failures++, outage);
  }
}
