/** A clock that a test moves, with the timers that stand on it. */

import type { Timer } from "../environment.js";

interface Alarm {
  readonly at: number;
  readonly callback: () => void;
}

/** Waits until everything has happened that waits for no timer and no real network. A message to
 * oneself comes after all promises that are resolved, also where a test has replaced `setTimeout`. */
export function settled(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/** Shows `now` until it is moved, in milliseconds since 1970. */
export class FakeClock {
  private readonly _alarms = new Map<Timer, Alarm>();
  private _lastTimer = 0;

  constructor(public now: number) {}

  setTimeout(callback: () => void, ms: number): Timer {
    this._alarms.set(++this._lastTimer, { at: this.now + Math.max(ms, 0), callback });
    return this._lastTimer;
  }

  clearTimeout(timer: Timer): void {
    this._alarms.delete(timer);
  }

  /** Lets so much time pass. What is due happens at its own time, one after the other, with all that
   * follows from it. */
  async advance(ms: number): Promise<void> {
    const end = this.now + ms;
    await settled();
    for (let due = this._firstUpTo(end); due; due = this._firstUpTo(end)) {
      const [timer, { at, callback }] = due;
      this._alarms.delete(timer);
      this.now = Math.max(this.now, at);
      callback();
      await settled();
    }
    this.now = end;
  }

  /** The first alarm that is due up to an instant; of several at one time, the one set first. */
  private _firstUpTo(end: number): [Timer, Alarm] | undefined {
    return [...this._alarms].filter(([, { at }]) => at <= end).sort(([, a], [, b]) => a.at - b.at)[0];
  }
}
