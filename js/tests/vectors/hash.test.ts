import { expect, test } from "vitest";
import type { Item } from "../../src/message.js";
import { entryHash, hashText } from "../../src/state-hash.js";
import { vectors } from "./files.js";

interface HashCase {
  readonly name: string;
  readonly items: readonly Item[];
  readonly asks: readonly { device_id?: string; as_of: number; hash: string }[];
}


const { cases } = vectors("hash") as { cases: readonly HashCase[] };

test.each(cases)("$name", ({ items, asks }) => {
  for (const { device_id, as_of, hash } of asks) {
    const isCounted = (item: Item): boolean =>
      (item.expires_at ?? Infinity) > as_of &&
      (!device_id || !item.device_id || item.device_id === device_id);
    const entries = items.filter(isCounted).map(({ ctime, msg_id }) => entryHash(ctime, msg_id));
    expect(hashText(entries.reduce((sum, entry) => sum + entry, 0n))).toBe(hash);
    expect(hashText(entries.reduce((sum, entry) => sum - entry, 0n))).toBe(
      hashText(-BigInt(`0x${hash}`)),
    );
  }
});
