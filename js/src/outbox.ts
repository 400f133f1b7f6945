/** The messages written on a device, and what each of them changes there. */

import type { Time } from "./instant.js";
import type { DeviceID, Message, StoredMessage } from "./message.js";
import { seenOn } from "./visibility.js";

/** A message written on this device, its position in the outbox, the time of writing, by the node's
 * clock, and the life of the user to which it belongs (null: no node had told of any). An acknowledged message has a ctime; it is `dead` if its item was when the node
 * stored it. It is `echoed` once the node has sent it back to this device, even if the
 * acknowledgement was lost. */
export interface OutboxEntry {
  readonly number: number;
  readonly written: Time;
  readonly message: Message;
  readonly epoch?: Time | null;
  readonly echoed?: boolean;
  readonly dead?: boolean;
}

/** An entry that the node has acknowledged. */
export interface AcknowledgedEntry extends OutboxEntry {
  readonly message: StoredMessage;
}

export const isAcknowledged = (entry: OutboxEntry): entry is AcknowledgedEntry => !!entry.message.ctime;

/** What an acknowledged message changes on this device; undefined if nothing. */
export function acknowledgedPart(
  { message, dead }: AcknowledgedEntry,
  deviceId: DeviceID,
): StoredMessage | undefined {
  const { creation, ...rest } = message;
  const { msg_id, device_id, dismissal } = rest;
  const isSeen = seenOn(device_id, deviceId);
  if (!creation || (isSeen && !dead)) return message;
  if (!isSeen) return dismissal && rest;
  // A dead item has taken the place of its predecessor all the same.
  return { ...message, dismissal: { ...dismissal, msg_ids: [...(dismissal?.msg_ids ?? []), msg_id] } };
}
