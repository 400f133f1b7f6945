/** Which items a device sees, and when: section 5 of `spec/semantics.md` as predicates. */

import type { Time } from "./instant.js";
import type { DeviceID, Item } from "./message.js";

/** Whether the device (undefined: all devices) sees items of this scope (undefined: unscoped). */
export const seenOn = (scope: DeviceID | undefined, deviceId: DeviceID | undefined): boolean =>
  !scope || !deviceId || scope === deviceId;

/** Whether an item is there at this time; it is there at the instant of its start. */
export const hasBegun = ({ starts_at = 0 }: Item, time: Time): boolean => starts_at <= time;

/** Whether an item is gone at this time; it is gone at the instant of its expiry. */
export const hasExpired = ({ expires_at = Infinity }: Item, time: Time): boolean => expires_at <= time;

/** Whether the device has an item that is not dead, begun or not. */
export const isLive = (item: Item, deviceId: DeviceID | undefined, time: Time): boolean =>
  seenOn(item.device_id, deviceId) && !hasExpired(item, time);

/** Whether the device shows an item that is not dead. */
export const isVisible = (item: Item, deviceId: DeviceID | undefined, time: Time): boolean =>
  isLive(item, deviceId, time) && hasBegun(item, time);
