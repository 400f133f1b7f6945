/**
 * The tabs of a browser that hold the same replica: one leads, and each hears what the others save.
 *
 * The leader is whoever holds an exclusive lock. It says each second that it is there; one that is
 * silent while it holds the lock is robbed of it. A robbed leader may not know yet, when it was
 * frozen: so each leader begins a new term in the store, which refuses what it saves in an old one.
 *
 * Each change has a number, counted in the store. A tab applies what it hears in any order, and an
 * earlier change without the records that a later one has changed. What it says has the number of
 * the last change that it has: so a lost broadcast is noticed in a second, and the store read again.
 */

import type { Channel, Environment, Locks, Timer } from "./environment.js";
import type { GregorError } from "./errors.js";
import type { Changes, Records, SavedChange, Store } from "./stores/store.js";

/** How often the leader says that it is there, and for how many of these it may be silent. */
const BEAT_MS = 1000;
const MAX_SILENT_BEATS = 5;

/** What a tab is told about the others. `Message` is what they say to each other. */
export interface TabListener<Message> {
  /** This tab leads from now on: it alone is connected, and it saves with this term. */
  onLead(term: number): void;
  /** This tab does not lead any more. */
  onFollow(): void;
  /** Another tab has saved this. */
  onChanges(changes: Changes): void;
  /** This tab has missed what others saved: these are all records as they are known to be stored. */
  onReload(records: Records): void;
  /** Another tab has said this, to all. */
  onMessage(message: Message): void;
  /** What this tab says each second while it leads: so the others know it, whatever they have missed. */
  beat(): Message | undefined;
}

/** What travels between tabs: a change with its number, or the last change that the tab has. */
interface Broadcast<Message> {
  readonly seq: number;
  readonly changes?: Changes;
  readonly isBeat?: boolean;
  readonly message?: Message | undefined;
}

/** The locks of a tab that shares nothing. */
const OWN_LOCKS: Locks = { request: async (_name, _options, whileHeld) => whileHeld() };

/** One tab of those with the same name. Where the browser has no locks or no channels, or the store
 * is this tab's own, it leads and is alone. */
export class Tabs<Message> {
  declare private readonly _name: string;
  declare private readonly _store: Store;
  declare private readonly _environment: Environment;
  declare private readonly _listener: TabListener<Message>;
  declare private readonly _endings: readonly (() => void)[];
  declare private _channel: Channel | undefined; // none if this tab is alone
  private _locks = OWN_LOCKS;

  private _seq = -1; // the listener has all changes up to this one (-1: it may have none),
  private readonly _ahead = new Map<number, Changes>(); // and these, after some that are missing
  declare private _reading: Promise<void> | undefined;
  private _lastSeq = Infinity; // the last that is known to exist; Infinity: to be read

  declare private _isOpen: boolean | undefined; // false: closed
  private _isAwake = false;
  declare private _timer: Timer;
  declare private _candidacy: AbortController | undefined; // for the lock; ends with it
  private _isLeader = false;
  private _silentBeats = 0;

  constructor(name: string, store: Store, environment: Environment, listener: TabListener<Message>) {
    this._name = name;
    this._store = store;
    this._environment = environment;
    this._listener = listener;
    const { locks, BroadcastChannel } = environment;
    if (store.durable && locks && BroadcastChannel) {
      this._locks = locks;
      this._channel = new BroadcastChannel(name);
    }
    // A page that the browser freezes, or keeps for the way back, can neither lead nor hear.
    const sleep = () => this._sleep();
    const wake = () => this._wake();
    this._endings = [
      environment.listen("pagehide", sleep),
      environment.listen("freeze", sleep),
      environment.listen("pageshow", wake),
      environment.listen("resume", wake),
    ];
  }

  /** Gives the listener all records, and from then on what happens. */
  async open(): Promise<void> {
    await this._reload();
    this._isOpen ??= true;
    this._wake();
  }

  /** Saves a change as `Store.save` does, and tells the other tabs. Resolves with what is new of it
   * for the caller, who gives it to the replica: with numbers, and without what was saved later. */
  async save(changes: Changes, term?: number): Promise<Changes> {
    try {
      const saved = await this._store.save(changes, term);
      if (!this._channel) return saved.changes;
      this._post(saved);
      return this._news(saved);
    } catch (error) {
      if ((error as GregorError).code !== "not-leader") throw error;
      // Tabs that are alone do not hear each other. Of those with one store, the last one keeps
      // there what it is told; the others have it until they end.
      if (!this._channel) return changes;
      this._leave();
      // The caller undoes the change, and with it perhaps what the new leader has saved.
      this._seq = -1;
      throw error;
    }
  }

  /** Says something to all other tabs that are awake. */
  say(message: Message): void {
    this._post({ message });
  }

  /** Lets another tab lead, and hears nothing more. */
  close(): void {
    this._isOpen = false;
    for (const end of this._endings) end();
    this._sleep();
    this._channel?.close();
    this._channel = undefined;
  }

  private _wake(): void {
    if (this._isAwake || !this._isOpen) return;
    this._isAwake = true;
    if (this._channel) this._channel.onmessage = ({ data }) => this._hear(data);
    this._tick();
  }

  private _sleep(): void {
    this._isAwake = false;
    this._lastSeq = Infinity;
    if (this._channel) this._channel.onmessage = null;
    this._environment.clearTimeout(this._timer);
    this._leave();
  }

  // What others save

  /** Whether this tab has all that was saved before the last change that it has. */
  get isComplete(): boolean {
    return !this._ahead.size;
  }

  private _post(said: Partial<Broadcast<Message>>): void {
    this._channel?.postMessage({ seq: this._seq, ...said });
  }

  private _hear({ seq, changes, isBeat, message }: Broadcast<Message>): void {
    this._lastSeq = Math.max(this._lastSeq, seq);
    if (changes) this._listener.onChanges(this._news({ seq, changes }));
    if (message !== undefined) this._listener.onMessage(message);
    if (!isBeat) return;
    this._silentBeats = 0;
    if (seq < this._seq) this._post({}); // the leader has missed something
  }

  /** What is new of a saved change: not the records that a later one has changed. */
  private _news({ seq, changes }: SavedChange): Changes {
    const news = new Map(seq > this._seq ? changes : []);
    for (const [other, later] of this._ahead) {
      if (other > seq) for (const key of later.keys()) news.delete(key);
    }
    if (seq > this._seq) this._ahead.set(seq, changes);
    while (this._ahead.delete(this._seq + 1)) this._seq++;
    return news;
  }

  /** Reads the store, once at a time. */
  private _reload(): Promise<void> {
    return (this._reading ??= this._read().finally(() => (this._reading = undefined)));
  }

  private async _read(): Promise<void> {
    const { records, seq } = await this._store.load();
    this._lastSeq = seq; // if there is more, the next broadcast says so
    if (seq <= this._seq) return;
    this._seq = seq;
    const ahead = [...this._ahead].sort(([a], [b]) => a - b);
    this._ahead.clear();
    for (const [later, changes] of ahead) {
      for (const [key, record] of this._news({ seq: later, changes })) {
        if (record === null) records.delete(key);
        else records.set(key, record);
      }
    }
    this._listener.onReload(records);
  }

  // Who leads

  /** What each second brings: a beat of the leader, or another second without one. */
  private _tick(): void {
    if (this._channel || !this._isLeader) {
      this._timer = this._environment.setTimeout(() => this._tick(), BEAT_MS);
    }
    if (!this._candidacy) this._stand();
    else if (this._isLeader) this._post({ isBeat: true, message: this._listener.beat() });
    else if (++this._silentBeats > MAX_SILENT_BEATS && this._environment.isVisible()) this._stand(true);
    if (this._ahead.size || this._lastSeq > this._seq) this._reload().catch(() => {});
  }

  /** Waits for the lock, or steals it, and leads while it holds it. */
  private _stand(steal?: true): void {
    this._leave();
    const candidacy = (this._candidacy = new AbortController());
    const { signal } = candidacy;
    this._silentBeats = 0;
    const lead = async () => {
      if (signal.aborted) return;
      const released = new Promise((resolve) => (signal.onabort = resolve));
      this._lead(signal);
      await released;
    };
    this._locks
      .request(this._name, steal ? { steal } : { signal }, lead)
      .catch(() => {}) // this tab has left, or was robbed
      .then(() => signal.aborted || this._leave());
  }

  private async _lead(signal: AbortSignal): Promise<void> {
    const term = await this._newTerm().catch(() => undefined);
    if (signal.aborted) return;
    if (term === undefined) return this._leave();
    this._isLeader = true;
    this._post({ isBeat: true }); // not before: a tab whose store hangs has to be replaced
    this._listener.onLead(term);
  }

  /** Begins a term, in which this tab has all that was saved before. */
  private async _newTerm(): Promise<number> {
    const { term, seq } = await this._store.newTerm();
    while (seq > this._seq) await this._reload(); // a reading that was under way may lack something
    return term;
  }

  /** Gives up the lock, or waiting for it. The next tick stands again. */
  private _leave(): void {
    this._candidacy?.abort();
    this._candidacy = undefined;
    if (!this._isLeader) return;
    this._isLeader = false;
    this._listener.onFollow();
  }
}
