/**
 * The hash of a state: a sum over its live items, which is kept up by adding and subtracting.
 *
 * It finds defects and restored backups. It is no protection against a forger, who could only
 * deceive his own replica. SHA-256 is written out here, since that of browsers is asynchronous, and
 * missing where a page has no TLS.
 */

import type { Time } from "./instant.js";
import type { MsgID } from "./message.js";

/** What one live item adds to the sum: SHA-256 of the line `{ctime} {msg_id}\n`, read as a
 * big-endian integer. */
export const entryHash = (ctime: Time, msg_id: MsgID): bigint =>
  BigInt(`0x${sha256(`${ctime} ${msg_id}\n`)}`);

/** A sum of entries, modulo 2^256, as 64 lower-case hex digits. */
export const hashText = (total: bigint): string =>
  BigInt.asUintN(256, total).toString(16).padStart(64, "0");

/** The first 32 bits of the fraction of the root. */
const fractionOf = (root: number): number => (root % 1) * 2 ** 32;

// The constants of SHA-256 are fractions of the roots of the first primes: 8 square roots, and 64
// cube roots.
const primes: number[] = [];
for (let n = 2; primes.length < 64; n++) if (primes.every((prime) => n % prime)) primes.push(n);
const INITIAL = Uint32Array.from(primes.slice(0, 8), (prime) => fractionOf(Math.sqrt(prime)));
const ROUND = Uint32Array.from(primes, (prime) => fractionOf(Math.cbrt(prime)));

/** SHA-256 of the text in UTF-8, as hex digits. */
export function sha256(text: string): string {
  const bytes = new TextEncoder().encode(text);
  // After the text come a bit, zeros, and its length in bits at the end of a block of 64 bytes.
  const padded = new Uint8Array((bytes.length + 72) & ~63);
  padded.set(bytes);
  padded[bytes.length] = 128;
  const view = new DataView(padded.buffer);
  view.setBigUint64(padded.length - 8, BigInt(bytes.length * 8));
  const hash = INITIAL.slice();
  for (let start = 0; start < padded.length; start += 64) addBlock(hash, view, start);
  return Array.from(hash, (word) => word.toString(16).padStart(8, "0")).join("");
}

const rotate = (word: number, bits: number): number => (word >>> bits) | (word << (32 - bits));
const words = new Uint32Array(64);

function addBlock(hash: Uint32Array, view: DataView, start: number): void {
  let [a, b, c, d, e, f, g, h] = hash as unknown as Eight;
  for (let i = 0; i < 64; i++) {
    words[i] = i < 16 ? view.getUint32(start + i * 4) : extended(i);
    const choice = (e & f) ^ (~e & g);
    const majority = (a & b) ^ (a & c) ^ (b & c);
    const mixed = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + choice + at(ROUND, i) + at(words, i);
    [h, g, f, e, d, c, b] = [g, f, e, (d + mixed) | 0, c, b, a];
    a = (mixed + (rotate(b, 2) ^ rotate(b, 13) ^ rotate(b, 22)) + majority) | 0;
  }
  [a, b, c, d, e, f, g, h].forEach((word, i) => (hash[i] = at(hash, i) + word));
}
type Eight = [number, number, number, number, number, number, number, number];

const at = (array: Uint32Array, i: number): number => array[i] as number;

function extended(i: number): number {
  const x = at(words, i - 15);
  const y = at(words, i - 2);
  const early = rotate(x, 7) ^ rotate(x, 18) ^ (x >>> 3);
  const late = rotate(y, 17) ^ rotate(y, 19) ^ (y >>> 10);
  return at(words, i - 16) + early + at(words, i - 7) + late;
}
