/** Snooze: the message that hides an item until later. */

import { invalid } from "./errors.js";
import { after, type Time, type TimeOrOffset } from "./instant.js";
import { present } from "./json.js";
import { newMsgId, type Item, type Message, type UID } from "./message.js";

/** The message that creates an item again: with its key, scope, contents and expiry, and with its
 * start if that is still to come. */
export const again = (
  uid: UID,
  { category, body, device_id, starts_at = 0, expires_at, key }: Item,
  now: Time,
): Message =>
  present({
    uid,
    msg_id: newMsgId(),
    device_id,
    creation: present({
      category,
      body,
      expires: expires_at ? { time: expires_at } : undefined,
      starts: starts_at > now ? { time: starts_at } : undefined,
      key,
    }),
  }) as Message;

/** The message that creates the item again, to begin at `until`. It takes the item's place under its
 * key; an item without a key is dismissed in the same message. Throws `invalid` unless `until` lies
 * between now and the expiry of the item. */
export function snoozed(uid: UID, item: Item, until: TimeOrOffset, now: Time): Message {
  const starts_at = after(until, now);
  if (starts_at <= now || starts_at >= (item.expires_at ?? Infinity)) {
    throw invalid("until", "is not between now and the expiry");
  }
  const message = again(uid, { ...item, starts_at }, now);
  return item.key ? message : { ...message, dismissal: { msg_ids: [item.msg_id] } };
}
