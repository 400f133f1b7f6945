/**
 * The tabs of a browser that hold the same replica: one leads, and each hears what the others save.
 *
 * The leader is the tab that holds an exclusive lock, once it has begun a term in the store, which
 * refuses what is saved in an old one. Who holds the lock says each second that it is there, also while
 * its store is slow; one that is silent is robbed. If it was frozen, it may not know so yet.
 *
 * Each change has a number, counted in the store. A tab applies what it hears in any order, and an
 * earlier change without the records that a later one has changed. After a gap, also one that was
 * filled, it reads the store again in a second: who hears that an item is hidden, and then of the item,
 * shows it. What it says has the number of the last change that it has: so lost broadcasts are noticed.
 * A tab listens from before its first reading on, and hears then what was said meanwhile.
 */

import { inTime, type Environment, type Locks, type Timer } from "./environment.js";
import type { GregorError } from "./errors.js";
import type { Changes, Records, SavedChange, Store } from "./stores/store.js";

/** How often the leader says that it is there, and for how many of these it may be silent. */
const BEAT_MS = 1000;
const MAX_SILENT_BEATS = 5;
/** In which a store has to begin a term; a slow one may take 10 s for each answer. */
const PATIENCE_MS = 12_000;

/** What a tab is told about the others. `Message` is what they say to each other. */
export interface TabListener<Message> {
  /** This tab leads from now on: it alone is connected, and it saves with this term. */
  onLead(term: number): void;
  /** This tab does not lead any more. */
  onFollow(): void;
  /** It is this tab's turn to lead, but its store does not let it. It tries again in a second. */
  onCannotLead(reason: GregorError): void;
  /** Another tab has saved this. */
  onChanges(changes: Changes): void;
  /** This tab has missed what others saved: these are all records, as far as it knows. */
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

/** One tab of those that have the same name. */
export interface Tabs<Message> {
  /** Gives the listener all records, and from then on what happens. */
  open(): Promise<void>;
  /** Saves a change as `Store.save` does, and tells the other tabs. Resolves with what is new of it
   * for the caller, who gives it to the replica: with numbers, and without what was saved later. */
  save(changes: Changes, term?: number): Promise<Changes>;
  /** Whether changes were missing before one that was heard, and the store was not read since. */
  hasGap(): boolean;
  /** Says something to all other tabs that are awake. */
  say(message: Message): void;
  /** Lets another tab lead, and hears nothing more. */
  close(): void;
}

/** This tab among those with the same name. Where the browser has no locks or no channels, or the
 * store is this tab's own, it leads and is alone. */
export function joinTabs<Message>(
  name: string,
  store: Store,
  environment: Environment,
  listener: TabListener<Message>,
): Tabs<Message> {
  const { locks, BroadcastChannel } = environment;
  const isAlone = !store.durable || !locks || !BroadcastChannel;
  let channel = isAlone ? undefined : new BroadcastChannel(name);

  /** The listener has all changes up to this one (-1: it may have none), */
  let seq = -1;
  /** and these, after some that were missing. */
  const ahead = new Map<number, Changes>();
  let reading: Promise<void> | undefined;
  /** The last that is known to exist; Infinity: to be read. */
  let lastSeq = Infinity;

  let isOpen: boolean | undefined; // false: closed
  /** What was said before it was. */
  const early: Message[] = [];
  let isAwake = false;
  let timer: Timer;
  /** For the lock; ends with it. */
  let candidacy: AbortController | undefined;
  /** A holder of the lock is a leader as soon as its term has begun. */
  let role: "candidate" | "holder" | "leader" = "candidate";
  let silentBeats = 0;

  // A page that the browser freezes, or keeps for the way back, can neither lead nor hear.

  function wake(): void {
    if (isAwake || isOpen === false) return;
    isAwake = true;
    if (channel) channel.onmessage = ({ data }) => hear(data);
    if (isOpen) tick();
  }

  function sleep(): void {
    isAwake = false;
    lastSeq = Infinity;
    if (channel) channel.onmessage = null;
    environment.clearTimeout(timer);
    leave();
  }

  const endings = [
    environment.listen("pagehide", sleep),
    environment.listen("freeze", sleep),
    environment.listen("pageshow", wake),
    environment.listen("resume", wake),
  ];

  // What others save

  const post = (said: Partial<Broadcast<Message>>): void => channel?.postMessage({ seq, ...said });

  function hear({ seq: told, changes, isBeat, message }: Broadcast<Message>): void {
    lastSeq = Math.max(lastSeq, told);
    const fresh = changes && news({ seq: told, changes });
    if (fresh && isOpen) listener.onChanges(fresh); // before that, the first reading takes them
    if (message !== undefined) {
      if (isOpen) listener.onMessage(message);
      else early.push(message);
    }
    if (!isBeat) return;
    silentBeats = 0;
    if (told < seq) post({}); // the leader has missed something
  }

  /** What is new of a saved change: not the records that a later one has changed. */
  function news({ seq: saved, changes }: SavedChange): Changes {
    if (saved <= seq) return new Map();
    const fresh = new Map(changes);
    for (const [other, later] of ahead) {
      if (other > saved) for (const key of later.keys()) fresh.delete(key);
    }
    if (saved === seq + 1 && !ahead.size) seq++;
    else ahead.set(saved, changes);
    return fresh;
  }

  /** Reads the store, once at a time. */
  const reload = (): Promise<void> => (reading ??= read().finally(() => (reading = undefined)));

  async function read(): Promise<void> {
    lastSeq = -1; // what is heard from now on may not be in it, nor what is missed in a sleep
    const { records, seq: stored } = await store.load();
    if (stored <= seq) return;
    seq = stored;
    const later = [...ahead].sort(([a], [b]) => a - b);
    ahead.clear();
    for (const [seq, changes] of later) {
      for (const [key, record] of news({ seq, changes })) {
        if (record === null) records.delete(key);
        else records.set(key, record);
      }
    }
    listener.onReload(records);
  }

  // Who leads

  /** What each second brings: a beat of who holds the lock, or another second without one. */
  function tick(): void {
    if (channel || role !== "leader") timer = environment.setTimeout(tick, BEAT_MS);
    if (!candidacy) stand();
    else if (role !== "candidate") post({ isBeat: true, message: listener.beat() });
    else if (++silentBeats > MAX_SILENT_BEATS && environment.isVisible()) stand(true);
    if (ahead.size || lastSeq > seq) reload().catch(() => (lastSeq = Infinity));
  }

  /** Waits for the lock, or steals it, and leads while it holds it. */
  function stand(steal?: true): void {
    leave();
    candidacy = new AbortController();
    const { signal } = candidacy;
    silentBeats = 0;
    (isAlone ? OWN_LOCKS : locks)
      .request(name, steal ? { steal } : { signal }, async () => {
        if (signal.aborted) return;
        role = "holder";
        post({ isBeat: true });
        const released = new Promise((resolve) => (signal.onabort = resolve));
        void lead(signal);
        await released;
      })
      .catch(() => {}) // this tab has left, or was robbed
      .then(() => signal.aborted || leave());
  }

  async function lead(signal: AbortSignal): Promise<void> {
    try {
      const term = await inTime(environment, newTerm(), PATIENCE_MS, "the store did not answer in time");
      if (signal.aborted) return;
      role = "leader";
      listener.onLead(term);
    } catch (error) {
      if (signal.aborted) return;
      leave();
      listener.onCannotLead(error as GregorError);
    }
  }

  /** Begins a term, in which this tab has all that was saved before. */
  async function newTerm(): Promise<number> {
    const { term, seq: last } = await store.newTerm();
    while (last > seq) await reload(); // a reading that was under way may lack something
    return term;
  }

  /** Gives up the lock, or waiting for it. The next tick stands again. */
  function leave(): void {
    candidacy?.abort();
    candidacy = undefined;
    const wasLeader = role === "leader";
    role = "candidate";
    if (wasLeader) listener.onFollow();
  }

  return {
    async open() {
      wake();
      await reload();
      isOpen ??= true;
      if (!isAwake) return;
      early.forEach(listener.onMessage);
      tick();
    },
    async save(changes, term) {
      try {
        const saved = await store.save(changes, term);
        if (!channel) return saved.changes;
        post(saved);
        return news(saved);
      } catch (error) {
        if ((error as GregorError).code !== "not-leader") throw error;
        // Tabs that are alone do not hear each other. Of those with one store, the last one keeps
        // there what it is told; the others have it until they end.
        if (!channel) return changes;
        leave();
        // The caller undoes the change, and with it perhaps what the new leader has saved.
        seq = -1;
        lastSeq = Infinity;
        throw error;
      }
    },
    hasGap: () => ahead.size > 0,
    say: (message) => post({ message }),
    close() {
      isOpen = false;
      ahead.clear();
      for (const end of endings) end();
      sleep();
      channel?.close();
      channel = undefined;
    },
  };
}
