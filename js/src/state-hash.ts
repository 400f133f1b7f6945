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

// The constants of SHA-256 are the first 32 bits of the fractions of roots of the first primes: of 8
// square roots, and 64 cube roots. (The next bits are such that no last digit of a root matters.)
const primes: number[] = [];
for (let n = 2; primes.length < 64; n++) if (primes.every((prime) => n % prime)) primes.push(n);
const fractionOf = (root: number): number => (root % 1) * 2 ** 32;
const INITIAL = primes.slice(0, 8).map((prime) => fractionOf(Math.sqrt(prime)) | 0);
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
  let hash = INITIAL;
  for (let start = 0; start < padded.length; start += 64) hash = withBlock(hash, view, start);
  return hash.map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
}

const rotate = (word: number, bits: number): number => (word >>> bits) | (word << (32 - bits));
const at = (array: Uint32Array, place: number): number => array[place] as number;
const words = new Uint32Array(64);

function withBlock(hash: readonly number[], view: DataView, start: number): number[] {
  let [a, b, c, d, e, f, g, h] = hash as Eight;
  for (let i = 0; i < 64; i++) {
    words[i] = i < 16 ? view.getUint32(start + i * 4) : extended(i);
    const choice = (e & f) ^ (~e & g);
    const majority = (a & b) ^ (a & c) ^ (b & c);
    const mixed =
      h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + choice + at(ROUND, i) + at(words, i);
    h = g;
    g = f;
    f = e;
    e = (d + mixed) | 0;
    d = c;
    c = b;
    b = a;
    a = (mixed + (rotate(b, 2) ^ rotate(b, 13) ^ rotate(b, 22)) + majority) | 0;
  }
  return [a, b, c, d, e, f, g, h].map((word, place) => (word + (hash[place] as number)) | 0);
}

type Eight = [number, number, number, number, number, number, number, number];

function extended(i: number): number {
  const x = at(words, i - 15);
  const y = at(words, i - 2);
  const early = rotate(x, 7) ^ rotate(x, 18) ^ (x >>> 3);
  const late = rotate(y, 17) ^ rotate(y, 19) ^ (y >>> 10);
  return at(words, i - 16) + early + at(words, i - 7) + late;
}
