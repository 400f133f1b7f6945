/** What a backend sends as a notification: section 2 of `spec/inbox.md`. */

import * as given from "./arguments.js";
import { invalid } from "./errors.js";
import { ITEMS, MARKER, MARKERS, MAX_ITEM_KEY, topicPrefix, type Topic } from "./inbox.js";
import { after } from "./instant.js";
import { newMsgId, put, type Creation, type Message, type PutOptions, type UID } from "./message.js";
import { ACTION_FIELDS, areActions, FIELDS, fits, isObject, type Checks, type Fields } from "./notification-body.js";

const MAX_ITEM_ID = 57; // with `unread:` before it, a msg_id

/** The messages that create a notification and its marker, in the order in which they are to be
 * stored: who knows the marker then knows what it marks. The key is the msg_id, unless given. */
export function notification(
  uid: UID,
  topic: Topic,
  body: unknown,
  options: PutOptions = {},
): readonly [item: Message, marker: Message] {
  topicPrefix(topic);
  checkBody(body);
  const msgId = markable("msgId", options.msgId ?? newMsgId(), MAX_ITEM_ID);
  const key = markable("key", options.key ?? msgId, MAX_ITEM_KEY);
  const item = put(uid, ITEMS + topic, body, { ...options, msgId, key });
  checkStart(item.creation);
  const marker = { ...options, msgId: MARKER + msgId, key: MARKER + key };
  return [item, put(uid, MARKERS + topic, null, marker)];
}

/** The key or the msg_id of a notification. That of its marker must not be too long either, and not
 * that of another notification. */
function markable(field: string, value: string, limit: number): string {
  if (given.text(field, value, limit).startsWith(MARKER)) {
    throw invalid(field, `must not begin with ${MARKER}, as those of markers do`);
  }
  return value;
}

/** Throws if the item would end before it begins, at whatever time it is stored. */
function checkStart({ starts, expires }: Partial<Creation> = {}): void {
  if (!starts || !expires || "time" in starts !== "time" in expires) return;
  if (after(starts, 0) >= after(expires, 0)) throw invalid("starts", "is not before the expiry");
}

function checkBody(body: unknown): void {
  const at = whereInvalid(body);
  if (at === undefined) return;
  throw invalid(`body${at}`, "is not what a notification may hold: spec/inbox.md, section 3");
}

/** Where a body is invalid, such as `.actions[1].label`; undefined if it is not. */
function whereInvalid(body: unknown): string | undefined {
  if (!isObject(body)) return "";
  const name = firstInvalid(body, FIELDS);
  return name && `.${name}${name === "actions" ? whereInvalidIn(body[name]) : ""}`;
}

const firstInvalid = (value: Fields, checks: Checks): string | undefined =>
  Object.keys(checks).find((name) => name in value && !fits({ [name]: value[name] }, checks));

function whereInvalidIn(actions: unknown): string {
  if (!Array.isArray(actions) || areActions(actions.slice(0, 8))) return "";
  const place = actions.findIndex((_, place) => !areActions(actions.slice(0, place + 1)));
  return `[${place}]${whereInvalidOf(actions[place])}`;
}

function whereInvalidOf(action: unknown): string {
  if (!isObject(action)) return "";
  const name = firstInvalid(action, ACTION_FIELDS);
  if (name) return `.${name}`;
  if (!("label" in action)) return ".label";
  return "id" in action ? ".id" : ""; // that of an action before it; or it has no effect
}
