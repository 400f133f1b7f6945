/** What a backend sends as a notification: section 2 of `spec/inbox.md`. */

import * as given from "./arguments.js";
import { invalid } from "./errors.js";
import { checkTopic, ITEMS, MARKER, MARKERS, MAX_ITEM_KEY, type Topic } from "./inbox.js";
import { after } from "./instant.js";
import { newMsgId, put, type Creation, type Message, type PutOptions, type UID } from "./message.js";
import { whereInvalid } from "./notification-body.js";

const MAX_ITEM_ID = 57; // with `unread:` before it, a msg_id

/** The messages that create a notification and its marker, in the order in which they are to be
 * stored: who knows the marker then knows what it marks. The key is the msg_id, unless given. */
export function notification(
  uid: UID,
  topic: Topic,
  body: unknown,
  options: PutOptions = {},
): readonly [item: Message, marker: Message] {
  checkTopic(topic);
  const at = whereInvalid(body);
  if (at !== undefined) throw invalid(`body${at}`, "is not valid in a notification: spec/inbox.md, section 3");
  const msgId = markable("msgId", options.msgId ?? newMsgId(), MAX_ITEM_ID);
  const key = markable("key", options.key ?? msgId, MAX_ITEM_KEY);
  const item = put(uid, ITEMS + topic, body, { ...options, msgId, key });
  checkStart(item.creation);
  return [
    item,
    put(uid, MARKERS + topic, null, { ...options, msgId: MARKER + msgId, key: MARKER + key }),
  ];
}

/** Throws if the item would end before it begins, whatever time it is stored at. */
function checkStart({ starts, expires }: Partial<Creation> = {}): void {
  if (!starts || !expires || "time" in starts !== "time" in expires) return;
  if (after(starts, 0) >= after(expires, 0)) throw invalid("starts", "is not before the expiry");
}

/** The key or the msg_id of a notification. That of its marker must not be too long either, and not
 * that of another notification. */
function markable(field: string, value: string, limit: number): string {
  if (given.identifier(field, value, limit).startsWith(MARKER)) {
    throw invalid(field, `must not begin with ${MARKER}, as those of markers do`);
  }
  return value;
}
