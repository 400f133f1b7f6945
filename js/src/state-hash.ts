/**
 * The hash of a state: a sum over its live items, which is kept up by adding and subtracting.
 *
 * It finds defects and restored backups. It is no protection against a forger, who could only
 * deceive his own replica.
 */

import type { Time } from "./instant.js";
import type { MsgID } from "./message.js";
import { hex, sha256 } from "./sha256.js";

/** What one live item adds to the sum: SHA-256 of the line `{ctime} {msg_id}\n`, read as a
 * big-endian integer. */
export const entryHash = (ctime: Time, msg_id: MsgID): bigint =>
  BigInt(`0x${hex(sha256(`${ctime} ${msg_id}\n`))}`);

/** A sum of entries, modulo 2^256, as 64 lower-case hex digits. */
export const hashText = (total: bigint): string =>
  BigInt.asUintN(256, total).toString(16).padStart(64, "0");
