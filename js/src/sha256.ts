/** SHA-256. That of browsers is asynchronous, and missing where a page has no TLS. */

// The constants are the first 32 bits of the fractions of roots of the first primes: of 8 square
// roots, and 64 cube roots. (The next bits are such that no last digit of a root matters.)
const primes: number[] = [];
for (let n = 2; primes.length < 64; n++) if (primes.every((prime) => n % prime)) primes.push(n);
const fractionsOf = (root: (prime: number) => number): number[] =>
  primes.map((prime) => (root(prime) * 2 ** 32) | 0);
const ROUND = fractionsOf(Math.cbrt);
const INITIAL = fractionsOf(Math.sqrt).slice(0, 8);

/** SHA-256 of the text in UTF-8, as eight words of 32 bits. */
export function sha256(text: string): readonly number[] {
  const bytes = new TextEncoder().encode(text);
  // After the text come a bit, zeros, and its length in bits at the end of a block of 64 bytes.
  const view = new DataView(new ArrayBuffer((bytes.length + 72) & ~63));
  [...bytes, 128].forEach((byte, place) => view.setUint8(place, byte));
  view.setUint32(view.byteLength - 4, bytes.length * 8);
  let hash = INITIAL;
  for (let start = 0; start < view.byteLength; start += 64) hash = withBlock(hash, view, start);
  return hash;
}

/** Words of 32 bits as hex digits. */
export const hex = (words: Iterable<number>): string =>
  Array.from(words, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");

const rotated = (word: number, bits: number): number => (word >>> bits) | (word << (32 - bits));
const at = (words: readonly number[], place: number): number => words[place] as number;
type Eight = [number, number, number, number, number, number, number, number];

function withBlock(hash: number[], view: DataView, start: number): number[] {
  const words: number[] = [];
  let state = hash;
  ROUND.forEach((constant, i) => {
    const word = (words[i] = i < 16 ? view.getInt32(start + i * 4) : extended(words, i));
    const [a, b, c, d, e, f, g, h] = state as Eight;
    const mixed = h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + constant + word;
    const spread = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    state = [(mixed + spread) | 0, a, b, c, (d + mixed) | 0, e, f, g];
  });
  return state.map((word, i) => (word + at(hash, i)) | 0);
}

/** A word of the block after the first 16. */
function extended(words: readonly number[], i: number): number {
  const early = at(words, i - 15);
  const late = at(words, i - 2);
  return (
    (at(words, i - 16) +
      at(words, i - 7) +
      (rotated(early, 7) ^ rotated(early, 18) ^ (early >>> 3)) +
      (rotated(late, 17) ^ rotated(late, 19) ^ (late >>> 10))) |
    0
  );
}
