/**
 * The tabs of a browser that hold the same replica: one of them leads, and each hears what the
 * others save.
 */

import type { Environment } from "./environment.js";
import type { Changes, Records, Store } from "./stores/store.js";

/** What a tab is told about the others. `Message` is what they say to each other. */
export interface TabListener<Message> {
  /** This tab leads from now on: it alone is connected, and saves with this term. */
  onLead(term: number): void;
  /** This tab does not lead any more: another one does, or this one goes into the background. */
  onFollow(): void;
  /** Another tab has saved this. */
  onChanges(changes: Changes): void;
  /** This tab missed what others have saved: these are all records as they are now stored. */
  onReload(records: Records): void;
  /** Another tab has said this, to all others. */
  onMessage(message: Message): void;
}

export declare class Tabs<Message> {
  constructor(name: string, store: Store, environment: Environment, listener: TabListener<Message>);
  /** The records at the start. Only then is the listener told anything. */
  open(): Promise<Records>;
  /** Saves a change, as `store.save`, and tells the other tabs. Resolves with the records as they
   * are now (with their numbers), which the caller applies to its replica. */
  save(changes: Changes, term?: number): Promise<Changes>;
  /** Says something to all other tabs that are awake. */
  say(message: Message): void;
  /** Lets another tab lead, and hears nothing more. */
  close(): void;
}
