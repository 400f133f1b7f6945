/** What a user sees: a state, which is the items that are visible at an instant. */

import type { Time } from "./instant.js";
import { byteCompare, type Category, type Item } from "./message.js";

/** The later of its ctime and its start. */
export const timeOf = ({ ctime, starts_at = 0 }: Item): Time => Math.max(ctime, starts_at);

/** The order of a state: by time, then by msg_id. */
export const compareItems = (a: Item, b: Item): number =>
  timeOf(a) - timeOf(b) || byteCompare(a.msg_id, b.msg_id);

/** The visible items at the instant `as_of`, in order. */
export class State {
  readonly items: readonly Item[];

  constructor(
    items: Iterable<Item>,
    readonly as_of: Time,
  ) {
    this.items = [...items].sort(compareItems);
  }

  /** How many items have a category that begins with `prefix`. */
  count(prefix: Category = ""): number {
    return this.items.filter((item) => item.category.startsWith(prefix)).length;
  }
}
