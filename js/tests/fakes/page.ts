/**
 * A page as small as can be: it holds records, writes notes into its outbox, and delivers the notes
 * of all tabs to a server while it leads.
 */

import type { GregorError } from "../../src/errors.js";
import type { Changes, RecordKey, Records } from "../../src/stores/store.js";
import { joinTabs, type Tabs } from "../../src/tabs.js";
import type { FakeTab } from "./browser.js";

export class Page {
  records: Records = new Map();
  /** The term in which it leads. */
  term: number | undefined;
  /** What has happened to it. */
  readonly log: string[] = [];
  readonly refusals: string[] = [];
  readonly tabs: Tabs<string>;

  constructor(
    readonly tab: FakeTab,
    /** The notes that the server has. */
    readonly server: Set<string>,
  ) {
    this.tabs = joinTabs<string>("gregor", tab.store(), tab.environment, {
      onLead: (term) => {
        this.term = term;
        this._note(`leads ${term}`);
        this._deliver();
      },
      onCannotLead: () => this._note("cannot lead"),
      onFollow: () => {
        this.term = undefined;
        this._note("follows");
      },
      onChanges: (changes) => {
        this._apply(changes);
        this._deliver();
      },
      onReload: (records) => {
        this.records = records;
        this._note("reloads");
        this._deliver();
      },
      onMessage: (message) => this._note(message),
      beat: () => undefined,
    });
  }

  async open(): Promise<this> {
    const opened = this.tabs.open();
    await this.tab.browser.settle();
    await opened;
    return this;
  }

  get isLeader(): boolean {
    return this.term !== undefined;
  }

  /** Resolves when the note is durable. */
  write(note: string): Promise<void> {
    return this._save(new Map<RecordKey, unknown>([[`outbox/${note}`, { number: 0, note }]]));
  }

  /** Sends what waits, and saves that the server has it. */
  private _deliver(): void {
    if (this.term === undefined) return;
    const outbox = [...this.records.keys()].filter((key) => key.startsWith("outbox/"));
    if (!outbox.length) return;
    const changes = new Map<RecordKey, unknown>([["device/", { cursor: this.server.size }]]);
    for (const key of outbox) {
      const note = key.slice("outbox/".length);
      this.server.add(note);
      changes.set(key, null).set(`item/${note}`, { note });
    }
    this._save(changes, this.term).catch((error: GregorError) => this.refusals.push(error.code));
  }

  private async _save(changes: Changes, term?: number): Promise<void> {
    const former = new Map([...changes.keys()].map((key) => [key, this.records.get(key) ?? null]));
    this._apply(changes);
    try {
      this._apply(await this.tabs.save(changes, term));
    } catch (error) {
      this._apply(former);
      throw error;
    }
    this._deliver();
  }

  private _apply(changes: Changes): void {
    for (const [key, record] of changes) {
      if (record === null) this.records.delete(key);
      else this.records.set(key, record);
    }
  }

  private _note(event: string): void {
    this.log.push(event);
  }
}
