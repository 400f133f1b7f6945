/**
 * The device's side of one conversation: a pure state machine.
 *
 * Input is a frame or an event; output is a list of effects, which the connection carries out in
 * order. The session knows the replica's cursor, which decides whether a frame continues what the
 * replica knows; it has no access to the replica itself. At most one `consume` is in flight.
 *
 * A device applies a `messages` frame if it continues the replica's cursor. That is all that happens
 * while it is up to date. A frame that does not continue the cursor reveals a gap; the device asks
 * for a sync, and is syncing until its last page has come. During a sync the cursor must stay where
 * the sync begins, so `messages` frames are ignored. The sync usually contains them, because the
 * node reads it later than it has sent them. To be certain, the device notes the highest cursor of
 * all that it has ignored. If the sync ends before it, the device asks for another one.
 *
 * Pages of changes are applied as they come. Pages of a snapshot are collected, because a replica
 * with half of a snapshot would show half of a state. A node may send a sync without being asked, so
 * a page can come in every phase, also before the welcome, over a transport that reorders.
 *
 * It knows the user's epoch, too: the ctime of the last erase that the replica has heard of. A node
 * that knows a later one says so in an `erased` frame, or, if it was not told the epoch, in its
 * welcome. However the session hears of an erase, it then says to forget the user.
 */

import { stop, type Problem } from "./errors.js";
import {
  PROTOCOL,
  decodeNodeFrame,
  type Ack,
  type DeviceFrame,
  type ErrorFrame,
  type Messages,
  type Result,
  type SyncPage,
  type Welcome,
} from "./frames.js";
import type { Time } from "./instant.js";
import type { DeviceID, Item, Message, OutOfBandMessage, StoredMessage, UID } from "./message.js";

export type Effect =
  /** Write this frame. */
  | { readonly type: "send"; readonly frame: DeviceFrame }
  /** The node has authenticated this user, and its clock shows `now`. The user's epoch is earlier
   * than the replica's only if the store of the node is a restored backup: then a snapshot follows. */
  | {
      readonly type: "welcomed";
      readonly uid: UID;
      readonly messages: number;
      readonly ids_days: number;
      readonly now: Time;
      readonly epoch: Time;
    }
  /** Replay these messages; the replica then knows everything up to `cursor`. */
  | { readonly type: "apply"; readonly messages: readonly StoredMessage[]; readonly cursor: Time }
  /** Replace all that came from the server with this snapshot. Keep the outbox and the hidden items.
   * The replica then has this epoch (null: the one that it has). */
  | {
      readonly type: "replace";
      readonly items: readonly Item[];
      readonly cursor: Time;
      readonly epoch: Time | null;
    }
  /** The sync is complete. Pass to `hashCompared` whether the state at `as_of` has this hash. */
  | { readonly type: "compare"; readonly as_of: Time; readonly hash: string }
  /** The results of the messages of the consume in flight, in order. */
  | { readonly type: "acked"; readonly results: readonly Result[] }
  /** The consume in flight was not processed; retry its messages later. */
  | { readonly type: "deferred"; readonly error: ErrorFrame }
  /** Pass this out-of-band message to the application. */
  | { readonly type: "deliver_out_of_band"; readonly system: string; readonly body: unknown }
  /** The node reports an error, or is for another user; `error.action` says what to do after it has disconnected. */
  | { readonly type: "failed"; readonly error: Problem }
  /** Reconnect, to any node, after a random delay of up to `within_ms`. */
  | { readonly type: "reconnect"; readonly within_ms: number }
  /** The user was erased, at this ctime; null: the node has not said when. Forget all of the user,
   * and end the conversation. */
  | { readonly type: "erased"; readonly epoch: Time | null };

const ERASED_CLOSE_CODE = 4010;

/** The device's side of one conversation with a node. It does no I/O; it returns effects. Each
 * connection has a new session, which starts at the replica's cursor, epoch and uid (null: the
 * device has never had a welcome). If the node's version is without epochs, the hello has to be
 * `withoutEpoch`. Of `exactIntegers`, see `json.ts`. */
export class ClientSession {
  private _phase: "greeting" | "syncing" | "up to date" = "greeting";
  /** The pages of the snapshot that is on its way. */
  private _pages: SyncPage[] = [];
  /** The highest cursor of the frames that were ignored during this sync. */
  private _highest: Time = 0;
  private _hasHeardOfErase = false;
  /** How many messages the consume in flight holds; 0: none is in flight. */
  private _inFlight = 0;
  /** The number of the last consume. */
  private _n = 0;
  /** A snapshot is requested after an error, and no page has come since. */
  private _isResyncRequested = false;
  /** The last complete one. */
  private _lastSync: SyncPage["mode"] | undefined;

  constructor(
    private readonly _token: string,
    private readonly _deviceId: DeviceID,
    private _cursor: Time,
    private _epoch: Time | null = null,
    private readonly _uid: UID | null = null,
    private readonly _withoutEpoch = false,
    private readonly _exactIntegers = false,
  ) {}

  /** The epoch that the device has, as far as the session knows. */
  get epoch(): Time | null {
    return this._epoch;
  }

  /** Whether the last sync is complete, and nothing is known to be missing. */
  get isUpToDate(): boolean {
    return this._phase === "up to date";
  }

  /** Whether a consume may be sent: the node has welcomed us, and none is in flight. */
  get mayConsume(): boolean {
    return this._phase !== "greeting" && !this._inFlight;
  }

  /** The connection is open: say hello. */
  opened(): Effect[] {
    return send({
      type: "hello",
      token: this._token,
      device_id: this._deviceId,
      cursor: this._cursor,
      epoch: this._withoutEpoch ? undefined : (this._epoch ?? undefined),
      protocol: PROTOCOL,
    });
  }

  /** Send messages, if `mayConsume`. `acked` or `deferred` will report their results. */
  consume(messages: readonly (Message | OutOfBandMessage)[]): Effect[] {
    if (!this.mayConsume || !messages.length) return [];
    this._inFlight = messages.length;
    return send({ type: "consume", n: ++this._n, messages });
  }

  /** Ask for a sync; from cursor 0 for a snapshot. */
  verify(cursor = this._cursor): Effect[] {
    this._phase = "syncing";
    return send({ type: "verify", cursor });
  }

  /** Report whether the replica has the hash of a `compare`. If not, the session requests a
   * snapshot; unless the sync was a snapshot itself, since another one would not help. */
  hashCompared(equal: boolean): Effect[] {
    return equal || this._lastSync === "snapshot" ? [] : this.verify(0);
  }

  /** The connection has ended with this close code. It may say what a lost frame has said. */
  disconnected(code: number): Effect[] {
    return code === ERASED_CLOSE_CODE ? this._erased() : [];
  }

  /** Process a frame. Throws `malformed` if the text is not a frame; then nothing changes. */
  receive(json: string): Effect[] {
    const frame = decodeNodeFrame(json, this._exactIntegers);
    switch (frame?.type) {
      case "welcome":
        return this._welcomed(frame);
      case "sync":
        return this._sync(frame);
      case "messages":
        return this._apply(frame);
      case "out_of_band":
        return [{ type: "deliver_out_of_band", system: frame.system, body: frame.body }];
      case "ack":
        return this._acked(frame);
      case "error":
        return this._failed(frame);
      case "goaway":
        return [{ type: "reconnect", within_ms: frame.reconnect_after_ms }];
      case "erased":
        return this._refused(frame.uid) ?? this._erased(frame.epoch);
      default:
        return [];
    }
  }

  private _welcomed({ uid, now, limits, epoch: told }: Welcome): Effect[] {
    const known = this._epoch ?? 0;
    // Whatever a node without epochs says leaves the epoch as it is: with an earlier one, the next
    // node would take the device for one that has not heard of the erase.
    const epoch = told ?? known;
    const refused = this._refused(uid);
    if (refused) return refused;
    if (this._epoch !== null && epoch > known) return this._erased(epoch);
    this._epoch = epoch;
    this._phase = "syncing";
    const { messages = 500, ids_days = 0 } = limits;
    return [{ type: "welcomed", uid, messages: Math.max(1, messages), ids_days, now, epoch }];
  }

  /** What to do if the token is another user's: nothing that the node says is for this device, and
   * its close code is not, either. */
  private _refused(uid = this._uid): Effect[] | undefined {
    if (this._uid === null || uid === this._uid) return undefined;
    this._hasHeardOfErase = true;
    const reason = `the token is of the user ${uid}, and this store of ${this._uid}`;
    return [{ type: "failed", error: stop("forbidden", reason) }];
  }

  /** The node says that the user was erased: forget the user, unless the device knows that. */
  private _erased(epoch?: Time): Effect[] {
    const hasHeard = this._hasHeardOfErase;
    this._hasHeardOfErase = true;
    if (epoch === undefined) return hasHeard ? [] : [{ type: "erased", epoch: null }];
    if (this._epoch !== null && epoch <= this._epoch) return [];
    this._epoch = epoch;
    return [{ type: "erased", epoch }];
  }

  private _failed(error: ErrorFrame): Effect[] {
    if (error.code === "erased") return this._erased();
    if (error.n !== undefined) return this._isSettled(error.n) ? [{ type: "deferred", error }] : [];
    if (error.action !== "resync" || this._isResyncRequested) return [{ type: "failed", error }];
    this._isResyncRequested = true;
    return this.verify(0);
  }

  private _acked({ n, results }: Ack): Effect[] {
    const erased = results.find(({ error }) => error?.code === "erased");
    if (erased) return this._erased(erased.error?.epoch);
    if (n === this._n && this._inFlight && results.length !== this._inFlight) {
      throw stop("malformed", "the ack has not one of `results` for each message", "results");
    }
    return this._isSettled(n) ? [{ type: "acked", results }] : [];
  }

  /** Whether this is the answer to the consume in flight, which then is not any more. */
  private _isSettled(n: number): boolean {
    if (n !== this._n || !this._inFlight) return false;
    this._inFlight = 0;
    return true;
  }

  private _apply({ prev, messages, cursor }: Messages): Effect[] {
    if (cursor <= this._cursor) return [];
    if (!this.isUpToDate) {
      // The sync in progress starts at our cursor, so the cursor must not move.
      this._highest = Math.max(this._highest, cursor);
      return [];
    }
    if (prev !== this._cursor) return this.verify();
    this._cursor = cursor;
    return [{ type: "apply", messages, cursor }];
  }

  private _sync(page: SyncPage): Effect[] {
    if (!this._continuesCursor(page)) return this._ignore(page.cursor);
    this._isResyncRequested = false;
    this._phase = "syncing";
    const effects = this._contentOf(page);
    if (page.more) return effects;
    this._pages = [];
    this._lastSync = page.mode;
    effects.push({ type: "compare", as_of: page.as_of, hash: page.hash });
    if (this._highest > page.cursor) return [...effects, ...this.verify()];
    this._phase = "up to date";
    return effects;
  }

  /** Whether a page continues from our cursor. A node sends an unrequested sync when it has dropped
   * its queue for us, and a transport may deliver an old page again. */
  private _continuesCursor({ mode, prev, cursor }: SyncPage): boolean {
    if (mode === "changes") return prev === this._cursor;
    // The first sync may end before our cursor: the node's store may be a restored backup.
    return !this._lastSync || cursor >= this._cursor;
  }

  private _ignore(cursor: Time): Effect[] {
    if (cursor <= this._cursor) return [];
    this._highest = Math.max(this._highest, cursor);
    return this.isUpToDate ? this.verify() : [];
  }

  /** What a page changes: one of changes at once, one of a snapshot with the last page. */
  private _contentOf(page: SyncPage): Effect[] {
    const { mode, more, cursor, messages = [] } = page;
    if (mode === "snapshot") this._pages.push(page);
    if (mode === "snapshot" && more) return [];
    this._cursor = cursor;
    if (mode === "changes") return [{ type: "apply", messages, cursor }];
    const items = this._pages.flatMap((each) => each.items ?? []);
    return [{ type: "replace", items, cursor, epoch: this._epoch }];
  }
}

const send = (frame: DeviceFrame): Effect[] => [{ type: "send", frame }];
