/** The items that all systems hold: each with a body of about 250 bytes, as of a notification. */

export interface Body {
  readonly title: string;
  readonly text: string;
  readonly n: number;
}

export const itemId = (n: number): string => `item-${String(n).padStart(8, "0")}`;

export const bodyOf = (n: number): Body => ({
  title: `Ann and ${n % 90} others liked your photo`,
  text: `${n}: `.padEnd(200, "the same words as in every other one; "),
  n,
});

/** The name of the user who has so many items. */
export const userWith = (items: number): string => `user-with-${items}`;

export const range = (count: number): readonly number[] => Array.from({ length: count }, (_, n) => n);
