/**
 * What time it is by the node's clock, as a device estimates it.
 *
 * A person may set a device's wall clock to anything at any time; its monotonic clock runs evenly,
 * but may stand still while the machine is suspended. Neither alone tells when an item expires. So a
 * device takes the time from its node and counts on by the monotonic clock. The wall clock serves
 * two ends: its offset from the node's clock is kept with the replica, for a device that starts
 * without a network; and a difference between the two clocks shows that something has happened.
 *
 * If the wall clock went back, it was set: the monotonic clock is right. If it went forward, it was
 * set, or the device was suspended. The next node that answers decides. If none does, the device
 * takes it for a suspend, which is frequent, while a clock that is wrong by seconds is rarely touched.
 */

import type { Environment } from "./environment.js";
import { MAX_TIME, SECOND, type Time } from "./instant.js";

/** What the two clocks of a device differ by only if one of them has jumped. */
const JUMP = 2 * SECOND;

/** What the two clocks of a device show at one moment, in microseconds. */
interface ClockReading {
  readonly wall: Time;
  readonly monotonic: number;
}

export class NodeClock {
  /** The node's clock showed `_time` when the device's clocks showed `_reading`. */
  private _reading: ClockReading;
  private _time: Time;
  /** By how much the wall clock has jumped forward since a node told its time. */
  private _unexplained = 0;

  /** `offset` is by how much the node's clock is ahead of the device's, as it was kept. */
  constructor(
    private readonly _clocks: Pick<Environment, "now" | "monotonic">,
    offset = 0,
  ) {
    this._reading = this._read();
    this._time = valid(this._reading.wall + offset);
  }

  /** The node's time. */
  now(reading = this._read()): Time {
    return valid(this._time + reading.monotonic - this._reading.monotonic);
  }

  /** What to keep for the next start. */
  offset(): number {
    return this._time - this._reading.wall;
  }

  /** The monotonic clock, in microseconds. */
  monotonic(): number {
    return this._read().monotonic;
  }

  /** A node has told its time, after it was asked at this time of the monotonic clock; not asked:
   * at some time in the past. The estimate changes only as far as it must, so that a slow network
   * does not make it go back and forth. */
  told(time: Time, asked?: number): void {
    const reading = this._checked();
    const before = this.now(reading);
    const latest = asked === undefined ? MAX_TIME : time + reading.monotonic - asked;
    const now = Math.min(Math.max(before, time), latest);
    this._unexplained =
      asked === undefined ? Math.max(0, this._unexplained - (now - before)) : 0;
    this._set(now, reading);
  }

  /** Compares the clocks. Returns whether the device may have been suspended, so that its
   * connection should be made again. A device that is not online takes it for granted. */
  wasSuspended(online: boolean): boolean {
    this._checked();
    const suspended = this._unexplained >= JUMP;
    if (!online) {
      this._time = valid(this._time + this._unexplained);
      this._unexplained = 0;
    }
    return suspended;
  }

  private _checked(): ClockReading {
    const reading = this._read();
    const { wall, monotonic } = this._reading;
    const jump = reading.wall - wall - (reading.monotonic - monotonic);
    if (Math.abs(jump) >= JUMP) {
      this._unexplained += Math.max(0, jump);
      this._set(this.now(reading), reading);
    }
    return reading;
  }

  private _set(time: Time, reading: ClockReading): void {
    this._time = time;
    this._reading = reading;
  }

  private _read(): ClockReading {
    const micros = (ms: number) => Math.round(ms * 1000);
    return { wall: micros(this._clocks.now()), monotonic: micros(this._clocks.monotonic()) };
  }
}

const valid = (time: number): Time => Math.min(Math.max(time, 0), MAX_TIME);
