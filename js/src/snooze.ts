/** Snooze: the message that hides an item until later. */

import { invalid } from "./errors.js";
import { after, type Time, type TimeOrOffset } from "./instant.js";
import { newMsgId, present, type Item, type Message, type UID } from "./message.js";

/** The message that creates an item again: with its key, scope, contents and expiry. */
export const again = (
  uid: UID,
  { category, body, device_id, expires_at, key }: Item,
  starts?: TimeOrOffset,
): Message =>
  present({
    uid,
    msg_id: newMsgId(),
    device_id,
    creation: present({
      category,
      body,
      expires: expires_at ? { time: expires_at } : undefined,
      starts,
      key,
    }),
  }) as Message;

/** The message that creates the item again, to begin at `until`. It takes the item's place under its
 * key; an item without a key is dismissed in the same message. Throws `invalid` unless `until` lies
 * between now and the expiry of the item. */
export function snoozed(uid: UID, item: Item, until: TimeOrOffset, now: Time): Message {
  const time = after(until, now);
  if (time <= now || time >= (item.expires_at ?? Infinity)) {
    throw invalid("until", "is not between now and the expiry of the item");
  }
  const message = again(uid, item, until);
  return item.key ? message : { ...message, dismissal: { msg_ids: [item.msg_id] } };
}
