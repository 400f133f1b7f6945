/** A device without I/O: a session and a replica, which are fed calls and frames, as section 11 of
 * spec/protocol.md describes them. */

import { clientSession, type ClientSession, type Effect } from "../../src/client-session.js";
import { GregorError } from "../../src/errors.js";
import { eventsBetween, rejectionsIn } from "../../src/events.js";
import type { Result } from "../../src/frames.js";
import type { Time } from "../../src/instant.js";
import type { Item, Message, MsgID } from "../../src/message.js";
import { Replica } from "../../src/replica.js";
import type { RecordKey } from "../../src/stores/store.js";

type JSONObject = Readonly<Record<string, any>>;

const PAGE_BYTES = 256 * 1024;

export class DeviceRun {
  /** What the store holds: JSON. */
  readonly records = new Map<RecordKey, unknown>();
  replica = Replica.load(this.records, "phone");
  private _session: ClientSession | undefined;
  private _isWelcomed = false;
  private _isOnline = false;
  private _isOffline = false; // and it has been reported
  private _maxMessages = 1;
  private _window: readonly Message[] = [];
  private _visible: ReadonlyMap<MsgID, Item> = new Map();
  private _now: Time = 0;
  private _sent: unknown[] = [];
  private _events: unknown[] = [];

  constructor() {
    this._save();
  }

  /** The output after one input. */
  feed({ now, ...given }: JSONObject): JSONObject {
    this._sent = [];
    this._events = [];
    this._waitUntil(now);
    const answer = this._carryOutInput(given);
    this._sendWindow();
    return {
      ...answer,
      visible: this.replica.state(this._now).items.map(({ ctime, msg_id }) => [ctime, msg_id]),
      outbox: this.replica.unsent().map(({ msg_id }) => msg_id),
      cursor: this.replica.device.cursor,
      ...(this._events.length && { events: this._events }),
      ...(this._sent.length && { sent: this._sent }),
    };
  }

  /** What begins or expires until then is reported at its time. */
  private _waitUntil(now: Time): void {
    for (;;) {
      const due = this.replica.nextChange(this._now);
      if (due > now) break;
      this._now = due;
      this._refresh();
    }
    this._now = now;
  }

  private _carryOutInput(given: JSONObject): JSONObject {
    const [[name, value] = ["", undefined]] = Object.entries(given);
    const { replica, _now: now } = this;
    switch (name) {
      case "write":
        return this._attempt(() => replica.write({ uid: "alice", ...value }, now));
      case "dismiss_category":
      case "dismiss_key":
        return this._attempt(() => replica.dismissSeen({ uid: "alice", ...value }, now));
      case "snooze":
        return this._attempt(() => {
          const message = {
            ...replica.snoozed(value.msg_id, { time: value.until }, now),
            msg_id: value.new_msg_id,
          };
          replica.write(message, now);
        });
      case "get":
        return { item: replica.withKey(value, now)?.msg_id ?? null };
      case "hide":
        return this._attempt(() => replica.hide(value));
      case "discard":
        return this._attempt(() => replica.discard(value));
      case "state":
        return { state: this._stateAt(value) };
      case "connect":
        this._connect();
        return {};
      case "disconnect":
        this._disconnect();
        return {};
      case "begin_again":
        return this._attempt(() => replica.inNewLife());
      case "restart":
        this._restart();
        return {};
      case "wait":
        return {};
      case "frame":
        this._carryOut(this._session!.receive(typeof value === "string" ? value : JSON.stringify(value)));
        return {};
      default:
        throw new Error(`not an input: ${name}`);
    }
  }

  private _attempt(operation: () => unknown): JSONObject {
    try {
      this._change(operation);
      return {};
    } catch (error) {
      if (!(error instanceof GregorError)) throw error;
      this.replica.rollback();
      return { error: error.code };
    }
  }

  private _stateAt(at: Time): unknown {
    try {
      return this.replica.stateAt(at).items.map(({ msg_id }) => msg_id);
    } catch (error) {
      return (error as GregorError).code;
    }
  }

  private _connect(): void {
    const { cursor, epoch, uid, erased, device_id } = this.replica.device;
    if (erased) return;
    this._session = clientSession({ token: "t", deviceId: device_id, cursor, epoch, uid });
    this._carryOut(this._session.opened());
  }

  private _disconnect(): void {
    if (this._session && !this._isOffline) {
      this._events.push({ offline: {} });
      this._isOffline = true;
    }
    this._session = undefined;
    this._isWelcomed = this._isOnline = false;
    this._window = [];
  }

  /** The app ends, and starts again with what its store has kept. Subscribers start again. */
  private _restart(): void {
    this._disconnect();
    this._events = [];
    this._isOffline = false;
    this.replica = Replica.load(new Map(structuredClone([...this.records])), "phone");
    this._visible = this.replica.visible(this._now);
    const { erased, epoch } = this.replica.device;
    if (erased) this._events.push({ erased: { epoch } }, { offline: {} });
  }

  private _carryOut(effects: readonly Effect[]): void {
    for (const effect of effects) this._carryOutEffect(effect);
  }

  private _carryOutEffect(effect: Effect): void {
    const { replica } = this;
    switch (effect.type) {
      case "send":
        this._sent.push(JSON.parse(JSON.stringify(effect.frame)));
        break;
      case "welcomed":
        this._change(() => replica.welcomed(effect.uid, effect.epoch));
        this._isWelcomed = true;
        this._maxMessages = effect.messages;
        break;
      case "apply":
        this._change(() => replica.apply(effect.messages, effect.cursor));
        break;
      case "replace":
        this._change(() => replica.applySnapshot(effect.items, effect.cursor, effect.epoch));
        break;
      case "compare":
        this._compare(effect.as_of, effect.hash);
        break;
      case "acked":
        this._acknowledge(effect.results);
        break;
      case "deliver_out_of_band":
        this._events.push({ out_of_band: { system: effect.system, body: effect.body } });
        break;
      case "erased":
        this._wipe(effect.epoch);
        break;
      default:
        throw new Error(`no replica vector has ${effect.type}`);
    }
  }

  private _compare(asOf: Time, hash: string): void {
    this._carryOut(this._session!.hashCompared(this.replica.hashMatches(asOf, hash)));
    if (!this._session!.isUpToDate) return;
    this._change(() => this.replica.synced(asOf));
    this._events.push(...(this._isOnline ? [] : [{ online: {} }]), { synced: {} });
    this._isOnline = true;
    this._isOffline = false;
  }

  private _acknowledge(results: readonly Result[]): void {
    const pairs = this._window.map((message, place) => [message, results[place]!] as const);
    this._window = [];
    this._change(() => this.replica.applyResults(pairs));
  }

  private _wipe(epoch: Time | null): void {
    this._change(() => this.replica.wiped(epoch));
    this._events.push({ erased: { epoch: this.replica.device.epoch } });
    this._isOffline = false; // that it is for good is reported in any case
    this._disconnect();
  }

  private _change(operation: () => unknown): void {
    operation();
    const changes = this._save();
    this._refresh(this.replica.takeCauses(), this.replica.takeChanged());
    for (const { message, error } of rejectionsIn(changes)) {
      this._events.push({ rejected: { msg_id: message.msg_id, code: error.code } });
    }
  }

  private _save(): ReadonlyMap<RecordKey, unknown> {
    const changes = this.replica.take();
    for (const [key, record] of changes) {
      if (record === null) this.records.delete(key);
      else this.records.set(key, JSON.parse(JSON.stringify(record)));
    }
    this.replica.saved(changes);
    return changes;
  }

  /** The events of the items that an operation says it may have changed; by default, that time has. */
  private _refresh(messages: readonly Message[] = [], ids?: ReadonlySet<MsgID>): void {
    const { replica, _now: now } = this;
    const visible = replica.visible(now);
    const changed = ids ?? new Set([...this._visible.keys(), ...visible.keys()]);
    const before = new Map([...this._visible].filter(([id]) => changed.has(id)));
    const after = replica.visibleAmong(changed, now);
    const unseen = [...visible.keys()].filter((id) => !changed.has(id) && !this._visible.has(id));
    const forgotten = [...this._visible.keys()].filter((id) => !changed.has(id) && !visible.has(id));
    if (unseen.length + forgotten.length)
      throw new Error(`not said to have changed: ${[...unseen, ...forgotten]}`);
    this._visible = visible;
    for (const event of eventsBetween(before, after, now, messages)) {
      this._events.push(
        event.type === "created"
          ? { created: event.item }
          : { dismissed: { msg_id: event.item.msg_id, why: event.why } },
      );
    }
  }

  private _sendWindow(): void {
    if (!this._session?.mayConsume || !this._isWelcomed) return;
    this._window = this.replica.window(this._maxMessages, PAGE_BYTES);
    this._carryOut(this._session.consume(this._window));
  }
}
