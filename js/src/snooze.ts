/** Snooze: the message that hides an item until later. */

import { invalid } from "./errors.js";
import { after, type Time, type TimeOrOffset } from "./instant.js";
import { newMsgId, present, type Item, type Message, type UID } from "./message.js";
import { hasExpired } from "./visibility.js";

/** The message that creates the item again, with its start if that is still to come. It takes the
 * item's place under its key; an item without a key is dismissed in the same message. */
export function again(uid: UID, item: Item, now: Time): Message {
  const { msg_id, category, body, device_id, expires_at, starts_at = 0, key } = item;
  const expires = expires_at === undefined ? undefined : { time: expires_at };
  const starts = starts_at > now ? { time: starts_at } : undefined;
  return present({
    uid,
    msg_id: newMsgId(),
    device_id,
    creation: { category, body, ...present({ expires, starts, key }) },
    dismissal: key === undefined ? { msg_ids: [msg_id] } : undefined,
  });
}

/** The message that hides an item until then. Throws `invalid` unless that lies between now and the
 * expiry of the item. */
export function snoozed(uid: UID, item: Item, until: TimeOrOffset, now: Time): Message {
  const starts_at = after(until, now);
  if (starts_at <= now) throw invalid("until", "has passed; give a later time");
  if (hasExpired(item, starts_at)) throw invalid("until", "is not before the item expires");
  return again(uid, { ...item, starts_at }, now);
}
