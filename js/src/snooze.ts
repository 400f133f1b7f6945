/** Snooze: the message that hides an item until later. */

import { invalid } from "./errors.js";
import { after, type Time, type TimeOrOffset } from "./instant.js";
import { newMsgId, present, type Creation, type Item, type Message, type UID } from "./message.js";

/** The message that creates the item again, to begin at `until`. It takes the item's place under its
 * key; an item without a key is dismissed in the same message. Throws `invalid` unless `until` lies
 * between now and the expiry of the item. */
export function snoozed(uid: UID, item: Item, until: TimeOrOffset, now: Time): Message {
  const { msg_id, category, body, device_id, expires_at, key } = item;
  const time = after(until, now);
  if (time <= now) throw invalid("until", "has passed; give a later time");
  if (expires_at && time >= expires_at) throw invalid("until", "is not before the item expires");
  const expires = expires_at && { time: expires_at };
  return present({
    uid,
    msg_id: newMsgId(),
    device_id,
    creation: present({ category, body, expires: expires || undefined, starts: until, key }) as Creation,
    dismissal: key ? undefined : { msg_ids: [msg_id] },
  });
}
