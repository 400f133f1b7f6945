import { forceCloseDatabase, IDBDatabase, IDBFactory, IDBObjectStore } from "fake-indexeddb";
import { afterEach, describe, expect, test, vi } from "vitest";
import { browserEnvironment, type Environment } from "../../src/environment.js";
import type { GregorError } from "../../src/errors.js";
import { openStore } from "../../src/stores/indexeddb.js";
import { memoryDatabase } from "../../src/stores/memory.js";
import { Store, storeName } from "../../src/stores/store.js";
import { changesOf, runStoreCase, STORE_CASES } from "./cases.js";

const NAME = storeName("https://gregor.example", "anna");
const ITEM = changesOf({ "item/a": { msg_id: "a" } });
const WRITTEN = changesOf({ "outbox/a": { number: 1, written: 7, message: { uid: "u", msg_id: "a" } } });

afterEach(() => {
  vi.restoreAllMocks();
  vi.useRealTimers();
});

/** A browser, and what its tabs hear of losses. */
function browser(parts: Partial<Environment> = {}) {
  const environment: Environment = { ...browserEnvironment(), indexedDB: new IDBFactory(), ...parts };
  const losses: string[] = [];
  const onLost = (error: GregorError) => losses.push(error.message);
  return {
    indexedDB: environment.indexedDB as IDBFactory,
    losses,
    open: () => openStore(NAME, environment, onLost),
  };
}

/** A connection of other code, as of another version of the page. */
const rawDatabase = (indexedDB: IDBFactory, version: number, upgrade?: (database: IDBDatabase) => void) =>
  answer(Object.assign(indexedDB.open(NAME, version), {
    onupgradeneeded: (event: Event) => upgrade?.((event.target as IDBOpenDBRequest).result),
  }));

const answer = <T>(request: IDBRequest<T>): Promise<T> =>
  new Promise((resolve, reject) => {
    request.addEventListener("success", () => resolve(request.result));
    request.addEventListener("error", () => reject(request.error));
  });

const records = async (store: Store) => Object.fromEntries((await store.load()).records);

describe("every store", () => {
  test.each(STORE_CASES)("memory: $name", async (storeCase) => {
    const database = memoryDatabase();
    await runStoreCase(storeCase, async () => new Store(database));
  });

  test.each(STORE_CASES)("IndexedDB: $name", async (storeCase) => {
    await runStoreCase(storeCase, browser().open);
  });
});

test("two users of a server, and one user of two servers, have different databases", () => {
  const owners: [server: string, user: string][] = [
    ["https://a", "u"],
    ["https://a", "v"],
    ["https://b", "u"],
    ['https://a","u', ""],
    ["https://a", 'u","'],
    ["https://a/u", ""],
  ];
  expect(new Set(owners.map((owner) => storeName(...owner))).size).toBe(owners.length);
});

describe("where IndexedDB cannot be used, records live in memory, and that is said", () => {
  const inMemory = async ({ open, losses }: ReturnType<typeof browser>, loss: RegExp) => {
    const store = await open();
    expect(store.durable).toBe(false);
    expect(losses).toEqual([expect.stringMatching(loss)]);
    await store.save(ITEM);
    expect(await records(store)).toEqual({ "item/a": { msg_id: "a" } });
  };

  test("there is none", () => inMemory(browser({ indexedDB: undefined }), /no IndexedDB/));

  test("it is forbidden", async () => {
    const forbidden = browser();
    vi.spyOn(forbidden.indexedDB, "open").mockImplementation(() => {
      throw new DOMException("access denied", "SecurityError");
    });
    await inMemory(forbidden, /SecurityError: access denied/);
  });

  test("a private window opens no database", async () => {
    const privately = browser();
    vi.spyOn(privately.indexedDB, "open").mockImplementation(() => {
      const request = { error: new DOMException("private", "InvalidStateError") };
      queueMicrotask(() => (request as unknown as { onerror(event: Event): void }).onerror(new Event("error")));
      return request as IDBOpenDBRequest;
    });
    await inMemory(privately, /InvalidStateError/);
  });

  test("it does not answer", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const silent = browser();
    vi.spyOn(silent.indexedDB, "open").mockReturnValue({} as IDBOpenDBRequest);
    const using = inMemory(silent, /did not answer/);
    await vi.advanceTimersByTimeAsync(10_000);
    await using;
  });

  test("a frozen tab keeps it from being opened; what opens too late is closed", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const blocked = browser();
    const frozen = await rawDatabase(blocked.indexedDB, 1);
    const deleted = answer(blocked.indexedDB.deleteDatabase(NAME));
    const using = inMemory(blocked, /close other tabs/);
    await vi.advanceTimersByTimeAsync(10_000);
    await using;
    frozen.close();
    await deleted;
    await answer(blocked.indexedDB.deleteDatabase(NAME)); // nobody holds it open
  });
});

test("a database of a newer version is not touched, and the page is to be loaded again", async () => {
  const { indexedDB, losses, open } = browser();
  const newer = await rawDatabase(indexedDB, 2, (database) => database.createObjectStore("other").put(1, "a"));
  newer.close();
  await expect(open()).rejects.toMatchObject({ code: "setup", message: expect.stringMatching(/reload the page/) });
  expect(losses).toEqual([]);
  const after = await rawDatabase(indexedDB, 2);
  expect([...after.objectStoreNames]).toEqual(["other"]);
});

describe("a save that the browser refuses changes nothing, and can be tried again", () => {
  const refused = async (breakIt: () => { mockRestore(): void }, reason: RegExp) => {
    const { open, losses } = browser();
    const store = await open();
    await store.save(ITEM);
    const broken = breakIt();
    const changes = changesOf({ "item/a": null, "item/b": 1, "item/c": 2 });
    await expect(store.save(changes)).rejects.toMatchObject({ code: "unavailable", action: "retry", message: expect.stringMatching(reason) });
    broken.mockRestore();
    expect(await records(store)).toEqual({ "item/a": { msg_id: "a" } });
    expect((await store.save(changes)).seq).toBe(2);
    expect(await records(store)).toEqual({ "item/b": 1, "item/c": 2 });
    expect(losses).toEqual([]);
  };
  const put = IDBObjectStore.prototype.put;
  const quota = () => new DOMException("no space left", "QuotaExceededError");

  test("the quota is full when a record is put", () =>
    refused(
      () =>
        vi.spyOn(IDBObjectStore.prototype, "put").mockImplementation(function (this: IDBObjectStore, value, key) {
          if (key === "item/c") throw quota();
          return put.call(this, value, key);
        }),
      /QuotaExceededError/,
    ));

  test("the browser stops the transaction", () =>
    refused(
      () =>
        vi.spyOn(IDBObjectStore.prototype, "put").mockImplementation(function (this: IDBObjectStore, value, key) {
          const request = put.call(this, value, key);
          if (key === "item/c") this.transaction.abort();
          return request;
        }),
      /stopped/,
    ));

  test("the connection is broken", () =>
    refused(
      () =>
        vi.spyOn(IDBDatabase.prototype, "transaction").mockImplementation(() => {
          throw new DOMException("connection to the database server lost", "InvalidStateError");
        }),
      /InvalidStateError/,
    ));

  test("a record is no JSON", async () => {
    const store = await browser().open();
    await expect(store.save(changesOf({ "item/a": 1, "item/b": () => {} }))).rejects.toMatchObject({ code: "unavailable" });
    expect(await store.load()).toEqual({ records: new Map(), seq: 0 });
  });
});

test("a transaction that is not answered in time changes nothing, and the next one works", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  const { open } = browser();
  const store = await open();
  const get = vi.spyOn(IDBObjectStore.prototype, "get").mockReturnValue({} as IDBRequest);
  const saving = expect(store.save(ITEM)).rejects.toThrow(/did not answer/);
  await vi.advanceTimersByTimeAsync(10_000);
  await saving;
  get.mockRestore();
  expect(await store.load()).toEqual({ records: new Map(), seq: 0 });
});

test("a database that opens too late does not save what was given up", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  const { indexedDB, open } = browser();
  const store = await open();
  const opened = vi.spyOn(IDBDatabase.prototype, "transaction");
  await store.load();
  forceCloseDatabase(opened.mock.contexts[0] as never);
  const frozen = await rawDatabase(indexedDB, 1);
  const deleted = answer(indexedDB.deleteDatabase(NAME));
  const saving = expect(store.save(ITEM)).rejects.toThrow(/did not answer/);
  await vi.advanceTimersByTimeAsync(10_000);
  await saving;
  frozen.close();
  await deleted;
  expect(await store.load()).toEqual({ records: new Map(), seq: 0 });
});

describe("a store that is lost says so, once, and refuses everything from then on", () => {
  const isLost = async ({ losses }: ReturnType<typeof browser>, store: Store, reason: RegExp) => {
    await expect(store.save(ITEM)).rejects.toThrow(reason);
    await expect(store.load()).rejects.toThrow(reason);
    expect(losses).toEqual([expect.stringMatching(reason)]);
  };

  test("another tab deletes the database, without having to wait", async () => {
    const world = browser();
    const store = await world.open();
    await answer(world.indexedDB.deleteDatabase(NAME));
    await isLost(world, store, /another tab/);
  });

  test("a newer version of the page upgrades it, and keeps the records", async () => {
    const world = browser();
    const store = await world.open();
    await store.save(ITEM);
    const newer = await rawDatabase(world.indexedDB, 2);
    expect(await answer(newer.transaction("records").objectStore("records").get("item/a"))).toEqual({ msg_id: "a" });
    await isLost(world, store, /another tab/);
  });

  test("its records are removed behind its back: what is written is not left alone there", async () => {
    const world = browser();
    const store = await world.open();
    await store.save(ITEM);
    const raw = await rawDatabase(world.indexedDB, 1);
    await answer(raw.transaction("records", "readwrite").objectStore("records").clear());
    await isLost(world, store, /records were removed/);
    expect(await answer(raw.transaction("records").objectStore("records").count())).toBe(0);
  });

  test("its records are removed, and two transactions find that out", async () => {
    const world = browser();
    const store = await world.open();
    await store.save(ITEM);
    const raw = await rawDatabase(world.indexedDB, 1);
    await answer(raw.transaction("records", "readwrite").objectStore("records").clear());
    await Promise.allSettled([store.load(), store.load(), store.save(WRITTEN)]);
    await isLost(world, store, /records were removed/);
  });

  test("the browser evicts the database", async () => {
    const world = browser();
    const opened = vi.spyOn(IDBDatabase.prototype, "transaction");
    const store = await world.open();
    await store.save(ITEM);
    forceCloseDatabase(opened.mock.contexts[0] as never);
    await answer(world.indexedDB.deleteDatabase(NAME));
    await isLost(world, store, /records were removed/);
  });
});

test("when the browser closes the connection, the next save opens another", async () => {
  const opened = vi.spyOn(IDBDatabase.prototype, "transaction");
  const { open, losses } = browser();
  const store = await open();
  await store.save(ITEM);
  forceCloseDatabase(opened.mock.contexts[0] as never);
  await store.save(WRITTEN);
  expect(Object.keys(await records(store))).toEqual(["item/a", "outbox/a"]);
  expect(losses).toEqual([]);
});

test("a closed store refuses everything, and has no connection", async () => {
  const { indexedDB, losses, open } = browser();
  const store = await open();
  await store.save(ITEM);
  store.close();
  await expect(store.save(ITEM)).rejects.toThrow(/closed/);
  await answer(indexedDB.deleteDatabase(NAME));
  expect(losses).toEqual([]);
});

test("a record that the browser cannot read is undefined, and costs no other", async () => {
  const store = await browser().open();
  await store.save(changesOf({ "item/a": 1, "item/b": 2 }));
  const { get } = IDBObjectStore.prototype;
  const unreadable = () => {
    const request = { error: new DOMException("no blob", "DataError") };
    queueMicrotask(() => (request as unknown as { onerror(event: Event): void }).onerror(new Event("error")));
    return request as IDBRequest;
  };
  vi.spyOn(IDBObjectStore.prototype, "getAll").mockImplementation(unreadable);
  vi.spyOn(IDBObjectStore.prototype, "get").mockImplementation(function (this: IDBObjectStore, key) {
    return key === "item/b" ? unreadable() : get.call(this, key);
  });
  expect(await records(store)).toEqual({ "item/a": 1, "item/b": undefined });
});

test("the browser is asked once to keep the records, when something waits to be sent", async () => {
  const persist = vi.fn(async () => false);
  const store = await browser({ storage: { persist } }).open();
  await store.save(ITEM);
  expect(persist).not.toHaveBeenCalled();
  await store.save(WRITTEN);
  await store.save(WRITTEN);
  expect(persist).toHaveBeenCalledOnce();
});

test("what waits to be sent is saved strictly, so that it survives a power cut", async () => {
  const transaction = vi.spyOn(IDBDatabase.prototype, "transaction");
  const store = await browser().open();
  const durability = async (changes: typeof ITEM) => {
    await store.save(changes);
    return transaction.mock.lastCall?.[2]?.durability;
  };
  expect(await durability(WRITTEN)).toBe("strict");
  expect(await durability(ITEM)).toBe("default");
  expect(await durability(changesOf({ "outbox/a": null }))).toBe("default");
});
