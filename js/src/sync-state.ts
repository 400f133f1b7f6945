/**
 * Whether a device may apply what comes next: the states of its session.
 *
 * A device applies a `messages` frame if it continues the replica's cursor. That is all that happens
 * while it is up to date. A frame that does not continue the cursor reveals a gap; the device asks
 * for a sync, and is syncing until its last page has come.
 *
 * During a sync the cursor must stay where the sync begins, so `messages` frames are ignored. The
 * sync usually contains them, because the node reads it later than it has sent them. To be certain,
 * the device notes the `highest` cursor of all that it has ignored. If the sync ends before it, the
 * device asks for another one.
 *
 * Pages of changes are applied as they come. Pages of a snapshot are collected, because a replica
 * with half of a snapshot would show half of a state. A node may send a sync without being asked, so
 * a page can come in every state.
 */

import type { SyncPage } from "./frames.js";
import type { Time } from "./instant.js";

/** `greeting`: the node has not answered the hello. (A transport that reorders may have delivered
 * later frames already.) `syncing`: a sync is on its way, and these are the `pages` of the snapshot
 * so far. `up to date`: the last sync is complete, and nothing is known to be missing. */
export interface SyncState {
  readonly phase: "greeting" | "syncing" | "up to date";
  readonly pages: readonly SyncPage[];
  readonly highest: Time;
}

export const GREETING: SyncState = { phase: "greeting", pages: [], highest: 0 };
const UP_TO_DATE: SyncState = { phase: "up to date", pages: [], highest: 0 };

/** The node has sent its welcome, or the device a verify. A sync in progress is completed first. */
export const syncExpected = (state: SyncState): SyncState => ({ ...state, phase: "syncing" });

/** A frame that ends at this cursor, after that of the replica, was not applied. */
export const frameIgnored = ({ phase, pages, highest }: SyncState, cursor: Time): SyncState => ({
  phase: phase === "greeting" ? phase : "syncing",
  pages,
  highest: Math.max(highest, cursor),
});

/** A page of a sync continues the replica's cursor, or belongs to a snapshot. */
export function pageAccepted({ pages, highest }: SyncState, page: SyncPage): SyncState {
  if (page.more) {
    return { phase: "syncing", pages: page.mode === "snapshot" ? [...pages, page] : pages, highest };
  }
  return highest <= page.cursor ? UP_TO_DATE : { phase: "syncing", pages: [], highest };
}
