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

export interface NodeClock {
  /** The node's time. */
  now(): Time;
  /** What to keep for the next start. */
  offset(): number;
  /** The monotonic clock, in microseconds. */
  monotonic(): number;
  /** Begins again with an offset that was kept. */
  restart(offset: number): void;
  /** A node has told its time, after it was asked at this time of the monotonic clock; not asked:
   * at some time in the past. The estimate changes only as far as it must, so that a slow network
   * does not make it go back and forth. */
  told(time: Time, asked?: number): void;
  /** Compares the clocks. Returns whether the device may have been suspended, so that its
   * connection should be made again. A device that is not online takes it for granted. */
  wasSuspended(online: boolean): boolean;
}

/** `offset` is by how much the node's clock is ahead of the device's, as it was kept. */
export function nodeClock(clocks: Pick<Environment, "now" | "monotonic">, offset = 0): NodeClock {
  /** The node's clock showed `time` when the device's clocks showed `reading`. */
  let reading: ClockReading;
  let time: Time;
  /** By how much the wall clock has jumped forward since a node told its time. */
  let unexplained: number;

  const micros = (ms: number): number => Math.round(ms * 1000);
  const monotonic = (): number => micros(clocks.monotonic());
  const read = (): ClockReading => ({ wall: micros(clocks.now()), monotonic: monotonic() });
  const now = (at = monotonic()): Time => valid(time + at - reading.monotonic);

  function restart(offset: number): void {
    reading = read();
    time = valid(reading.wall + offset);
    unexplained = 0;
  }

  /** What the clocks show now. If one of them has jumped, the time counts on from here. */
  function checked(): ClockReading {
    const next = read();
    const jump = next.wall - reading.wall - (next.monotonic - reading.monotonic);
    if (Math.abs(jump) >= JUMP) {
      unexplained += Math.max(0, jump);
      time = now(next.monotonic);
      reading = next;
    }
    return next;
  }

  restart(offset);
  return {
    now: () => now(),
    offset: () => time - reading.wall,
    monotonic,
    restart,
    told(told, asked) {
      const next = checked();
      const before = now(next.monotonic);
      const latest = asked === undefined ? MAX_TIME : told + next.monotonic - asked;
      time = Math.min(Math.max(before, told), latest);
      unexplained = asked === undefined ? Math.max(0, unexplained - (time - before)) : 0;
      reading = next;
    },
    wasSuspended(online) {
      checked();
      const suspended = unexplained >= JUMP;
      if (!online) {
        time = valid(time + unexplained);
        unexplained = 0;
      }
      return suspended;
    },
  };
}

const valid = (time: number): Time => Math.min(Math.max(time, 0), MAX_TIME);
