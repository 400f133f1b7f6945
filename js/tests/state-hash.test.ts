import { createHash } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { hex, sha256 } from "../src/sha256.js";
import { entryHash, hashText } from "../src/state-hash.js";

const reference = (text: string): string => createHash("sha256").update(text).digest("hex");

test("SHA-256 is that of the platform, for every length up to three blocks", () => {
  for (let length = 0; length <= 192; length++) {
    const text = "x".repeat(length);
    expect(hex(sha256(text))).toBe(reference(text));
  }
});

test("SHA-256 is that of the platform, for any text", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary", maxLength: 500 }), (text) => {
      expect(hex(sha256(text))).toBe(reference(text));
    }),
  );
});

test("the hash of one item is the SHA-256 of its line", () => {
  fc.assert(
    fc.property(fc.maxSafeNat(), fc.string({ unit: "binary", maxLength: 64 }), (ctime, id) => {
      expect(hashText(entryHash(ctime, id))).toBe(reference(`${ctime} ${id}\n`));
    }),
  );
});

test("a sum does not depend on the order, and what is added can be subtracted", () => {
  const entries = fc.array(fc.tuple(fc.maxSafeNat(), fc.string({ maxLength: 64 })), { maxLength: 20 });
  fc.assert(
    fc.property(entries, entries, (kept, gone) => {
      const sum = (some: readonly [number, string][]): bigint =>
        some.reduce((total, [ctime, id]) => total + entryHash(ctime, id), 0n);
      expect(hashText(sum([...gone, ...kept.toReversed()]) - sum(gone))).toBe(hashText(sum(kept)));
    }),
  );
});
