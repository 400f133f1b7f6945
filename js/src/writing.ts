/**
 * What a device writes, as it is meant when it is written.
 *
 * "In one hour" means from now, and not from when the train has left the tunnel: so offsets become
 * instants, by the node's clock as the device estimates it. And what a person dismisses is what that
 * person saw.
 */

import { invalid } from "./errors.js";
import { clausesOf, type Clause } from "./facts.js";
import { after, type Time, type TimeOrOffset } from "./instant.js";
import { canonical, present } from "./json.js";
import type { Creation, Item, Message } from "./message.js";

const isOffset = (when: TimeOrOffset | undefined): when is { offset: number } => when?.offset !== undefined;

export const hasOffsetEnds = (message: Message): boolean =>
  clausesOf(message).some((clause) => isOffset(clause.end_time));

const withDismissal = (message: Message, dismissal: object): Message => ({ ...message, dismissal });

/** The message with other ends of its clauses. */
export function withEnds(
  message: Message,
  change: (end: TimeOrOffset | undefined) => TimeOrOffset | undefined,
): Message {
  const { dismissal } = message;
  const changed = <C extends Clause>(clause: C) => present({ ...clause, end_time: change(clause.end_time) });
  return dismissal
    ? withDismissal(
        message,
        present({ ...dismissal, ranges: dismissal.ranges?.map(changed), keys: dismissal.keys?.map(changed) }),
      )
    : message;
}

/** The message that also dismisses these items by id: they follow those that its sender named. */
export function namingAlso(message: Message, items: readonly Item[]): Message {
  const { dismissal } = message;
  const msg_ids = [...new Set([...(dismissal?.msg_ids ?? []), ...items.map(({ msg_id }) => msg_id)])];
  return items.length ? withDismissal(message, { ...dismissal, msg_ids }) : message;
}

/** The message with the instants that its offsets mean, counted from now. Throws `invalid` if its
 * item would not begin before it expires. */
export function withInstants(message: Message, now: Time): Message {
  const { creation } = message;
  const { starts, expires } = creation ?? {};
  if (starts && expires && after(starts, now) >= after(expires, now)) {
    throw invalid("starts", "is not before `expires`");
  }
  const instant = (when: TimeOrOffset | undefined): TimeOrOffset | undefined =>
    isOffset(when) ? { time: Math.max(0, after(when, now)) } : when;
  const meant = withEnds(message, instant);
  const timed = present({ ...creation, starts: instant(starts), expires: instant(expires) });
  return creation ? { ...meant, creation: timed as Creation } : meant;
}

// The same message again

/** What the sender chose, as text that is equal for equal contents. */
const contentsOf = ({ device_id, creation, dismissal }: Message): string =>
  canonical([device_id, creation, dismissal]);

/** Whether the message was given before, at this time, and written like this. */
export const repeats = (written: Message, at: Time, message: Message): boolean =>
  contentsOf(written) === contentsOf(message) ||
  contentsOf(hasOffsetEnds(message) ? asGiven(written, message) : written) ===
    contentsOf(withInstants(message, at));

/** The same for a dismissal whose ends the device has set. */
export const repeatsOpen = (written: Message, message: Message): boolean =>
  contentsOf(withEnds(asGiven(written, message), () => undefined)) === contentsOf(message);

/** A written message without the ids that the device has added to those of its sender. */
function asGiven(written: Message, message: Message): Message {
  const { msg_ids, ...rest } = written.dismissal ?? {};
  const given = message.dismissal?.msg_ids?.length;
  return withDismissal(written, { ...rest, msg_ids: given ? msg_ids?.slice(0, given) : undefined });
}

/** Whether the message, which has offsets, may have created this item: it has the same contents but
 * for these times, of which nobody knows any more from when they counted. */
export function repeatsItem(item: Item, { device_id, creation }: Message): boolean {
  if (!creation) return false;
  const { category, key, body, starts, expires } = creation;
  return (
    (isOffset(starts) || isOffset(expires)) &&
    canonical([category, key, device_id, body]) ===
      canonical([item.category, item.key, item.device_id, item.body]) &&
    mayMean(starts, item.starts_at) &&
    mayMean(expires, item.expires_at)
  );
}

/** Whether this time, or offset from an unknown time, is the instant. */
const mayMean = (given: TimeOrOffset | undefined, instant: Time | undefined): boolean =>
  isOffset(given) ? instant !== undefined : given?.time === instant;
