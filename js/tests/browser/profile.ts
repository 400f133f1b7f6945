import { setTimeout as pause } from "node:timers/promises";
import type { BrowserContext, CDPSession, Page, Worker } from "playwright-core";
import type { Item } from "../../src/message.js";
import type { Status } from "../../src/status.js";
import { Link } from "./link.js";
import { problemsOf } from "./problems.js";
import { until, type Server } from "./processes.js";
import type { Site } from "./site.js";

/** What a call in a page came to. The page may have ended before it said so. */
export type Outcome =
  | { readonly kind: "done"; readonly value: unknown; readonly durable: boolean }
  | { readonly kind: "refused"; readonly code: string; readonly message: string }
  | { readonly kind: "unknown" };

/** Where a device runs. */
export interface Place {
  readonly page: Pick<Worker, "evaluate">;
}

/** A tab, and what was done to it. */
export interface Tab extends Place {
  readonly page: Page;
  readonly devtools: CDPSession;
  frozen: boolean;
}

/** One browser profile, which is one device of a user: its tabs, and its own network. */
export class Profile {
  readonly tabs: Tab[] = [];
  readonly problems: readonly string[];
  /** Says which token a page gets next. */
  token: () => Promise<string>;
  #online = true;

  private constructor(
    readonly deviceId: string,
    private readonly user: string,
    private readonly site: Site,
    readonly context: BrowserContext,
    readonly link: Link,
    server: Server,
  ) {
    this.problems = problemsOf(context);
    this.token = () => Promise.resolve(server.token(user, 3600));
  }

  static async open(
    context: BrowserContext,
    server: Server,
    site: Site,
    user: string,
    deviceId: string,
    link?: Link,
  ): Promise<Profile> {
    link ??= await Link.to(server.ports);
    const profile = new Profile(deviceId, user, site, context, link, server);
    await context.exposeFunction("token", () => profile.token());
    return profile;
  }

  async openTab(): Promise<Tab> {
    const page = await this.context.newPage();
    await this.#loading(() => page.goto(`${this.site.origin}/?${this.#parameters()}`));
    const tab = { page, devtools: await this.context.newCDPSession(page), frozen: false };
    this.tabs.push(tab);
    return tab;
  }

  /** Runs the device in a worker of a tab, too. */
  async startWorker({ page }: Tab): Promise<Place> {
    const script = `/page.js?${this.#parameters({ token: await this.token() })}`;
    const started = page.waitForEvent("worker");
    await page.evaluate((script) => void new Worker(script), script);
    return { page: await started };
  }

  #parameters(more: Readonly<Record<string, string>> = {}): URLSearchParams {
    return new URLSearchParams({ url: this.link.url, user: this.user, deviceId: this.deviceId, ...more });
  }

  async reload({ page }: Tab): Promise<void> {
    await this.#loading(() => page.reload());
  }

  /** Loads a page, also while the device is offline: as from a service worker. */
  async #loading(load: () => Promise<unknown>): Promise<void> {
    await this.context.setOffline(false);
    await load();
    await this.context.setOffline(!this.#online);
  }

  /** Ends a tab: closes it, or kills its process. */
  async closeTab(tab: Tab, how: "close" | "crash"): Promise<void> {
    this.tabs.splice(this.tabs.indexOf(tab), 1);
    if (how === "crash") {
      const crashed = tab.page.waitForEvent("crash");
      tab.devtools.send("Page.crash").catch(() => undefined); // which never answers
      await crashed;
    }
    await tab.page.close();
  }

  /** Stops all that a tab does, as if its process hung, and lets it go on. */
  async freeze(tab: Tab, frozen: boolean): Promise<void> {
    tab.frozen = frozen;
    if (frozen) await tab.devtools.send("Debugger.enable");
    await tab.devtools.send(frozen ? "Debugger.pause" : "Debugger.disable");
  }

  /** Fills the disk of a profile in a folder, before a tab has opened its database: the browser
   * remembers for a while that there was space. */
  async fillDisk(isFull: boolean): Promise<void> {
    const page = this.context.pages()[0] ?? (await this.context.newPage());
    const devtools = await this.context.newCDPSession(page);
    const quota = isFull ? { quotaSize: 1 } : {};
    await devtools.send("Storage.overrideQuotaForOrigin", { origin: this.site.origin, ...quota });
  }

  async setOnline(online: boolean): Promise<void> {
    this.#online = online;
    if (online) this.link.repair();
    else this.link.cut();
    await this.context.setOffline(!online);
  }

  async close(): Promise<void> {
    await this.context.close();
    this.link.close();
  }
}

/** Calls a method of the device in a tab or worker. */
export async function call(place: Place, method: string, ...args: readonly unknown[]): Promise<Outcome> {
  try {
    return await place.page.evaluate(
      async ([method, args]): Promise<Outcome> => {
        try {
          const value: unknown = await (gregor as any)[method](...args);
          return { kind: "done", value, durable: gregor.status.durable };
        } catch (error) {
          const { code, message } = error as { code: string; message: string };
          return { kind: "refused", code: code ?? "bug", message };
        }
      },
      [method, args] as const,
    );
  } catch {
    return { kind: "unknown" };
  }
}

export const itemsOf = ({ page }: Place): Promise<readonly Item[]> =>
  page.evaluate(() => [...gregor.items()]);

export const statusOf = ({ page }: Place): Promise<Status> => page.evaluate(() => ({ ...gregor.status }));

/** Waits until the device has all, and nothing waits to be sent. */
export async function untilSettled(place: Place): Promise<void> {
  await place.page.evaluate(() => gregor.reconnect());
  await until("the device is settled", async () => {
    const status = await statusOf(place);
    if (status.online && status.synced && status.unsent === 0) return true;
    throw new Error(JSON.stringify(status));
  });
}

/** What explains why a device is not connected, as far as it answers: its status, who holds the lock
 * and who waits for it, and the counters in the store. */
export async function explanation({ page }: Place): Promise<string> {
  const parts = [
    page.evaluate(() => gregor.status),
    page.evaluate(() => navigator.locks.query()),
    page.evaluate(async () => {
      const answer = <T>(request: IDBRequest<T>) =>
        new Promise<T>((resolve) => (request.onsuccess = () => resolve(request.result)));
      const [{ name }] = (await indexedDB.databases()) as [{ name: string }];
      const database = await answer(indexedDB.open(name));
      return answer<unknown>(database.transaction("records").objectStore("records").get(""));
    }),
  ];
  const answers = parts.map((part) => Promise.race([part.catch(String), pause(1000, "no answer")]));
  return JSON.stringify(await Promise.all(answers));
}
