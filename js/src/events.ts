/**
 * The events of a client: how the visible state has changed, and why.
 *
 * Applying `created` and `dismissed` to the state at the time of subscribing gives the state at any
 * later time. So each item is reported as created once, however often it arrives: from the outbox,
 * in an ack, in a publication, in a redelivery, after a resync or a restart.
 */

import type { Problem } from "./errors.js";
import { clausesOf, covers } from "./facts.js";
import type { Time } from "./instant.js";
import type { Item, Message, MsgID } from "./message.js";
import { splitKey, type RejectedEntry } from "./records.js";
import { compareItems } from "./state.js";
import type { Changes } from "./stores/store.js";
import { hasExpired } from "./visibility.js";

/** `replaced`: the message that dismissed the item, or that put an item with its key in its place,
 * also created an item, as far as this device received it. */
export type Why = "dismissed" | "expired" | "replaced";

/** An item has become visible: it has arrived, or has begun. */
export interface Created {
  readonly type: "created";
  readonly item: Item;
}

/** An item is no longer visible. Hiding an item gives `dismissed`, and so does a clock that is set
 * back to before its start. */
export interface Dismissed {
  readonly type: "dismissed";
  readonly item: Item;
  readonly why: Why;
}

/** The node has rejected a message of this device for good. It is no longer shown, and is kept until
 * it is discarded. */
export interface WriteRejected {
  readonly type: "write_rejected";
  readonly message: Message;
  readonly error: Problem;
}

/** Visible items, by their ids. */
export type Visible = ReadonlyMap<MsgID, Item>;

/** How visible items have changed: those that may have, before and after. `messages` are those that
 * may have caused it. */
export function eventsBetween(
  before: Visible,
  after: Visible,
  now: Time,
  messages: readonly Message[] = [],
): (Created | Dismissed)[] {
  const why = (item: Item): Why =>
    hasExpired(item, now)
      ? "expired"
      : messages.some((message) => replaces(message, item))
        ? "replaced"
        : "dismissed";
  return [
    ...missingIn(after, before).map((item): Dismissed => ({ type: "dismissed", item, why: why(item) })),
    ...missingIn(before, after).map((item): Created => ({ type: "created", item })),
  ];
}

const missingIn = (others: Visible, items: Visible): Item[] =>
  [...items.values()].filter((item) => !others.has(item.msg_id)).sort(compareItems);

/** Whether the message creates something in place of an item, which is known to be dismissed: it
 * has its key, or also names it, or covers it by a clause. So no times are compared. */
const replaces = (message: Message, item: Item): boolean =>
  !!message.creation &&
  ((!!item.key &&
    item.key === message.creation.key &&
    item.device_id === message.device_id &&
    item.msg_id !== message.msg_id) ||
    !!message.dismissal?.msg_ids?.includes(item.msg_id) ||
    clausesOf(message).some((clause) => covers(clause, message, item, Infinity)));

/** The messages that a change of records has rejected, in order. */
export const rejectionsIn = (changes: Changes): WriteRejected[] =>
  [...changes]
    .filter(([key, value]) => value && splitKey(key)[0] === "rejected")
    .map(([, value]) => value as RejectedEntry)
    .sort((a, b) => a.number - b.number)
    .map(({ message, error }) => ({ type: "write_rejected", message, error }));
