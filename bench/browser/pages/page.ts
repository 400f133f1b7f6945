/** What a page of any system lets the bench do with it. */

/** A system in a page. `address` and `user` are in the address of the page. */
export interface System {
  /** Begins with what is stored in this browser. */
  load(): Promise<void>;
  /** Resolves when this page is connected, and shows all of so many items. */
  sync(items: number): Promise<void>;
  /** Resolves when what the page shows is stored in this browser. */
  stored(): Promise<void>;
  /** How many items it shows. */
  count(): number;
  /** Writes a value. */
  put(name: string, value: number): void;
  /** Calls the listener for each further value that the page shows. */
  onValue(listener: (name: string, value: number) => void): void;
}

const parameters = new URLSearchParams(location.search);
export const address = parameters.get("address") ?? "";
export const user = parameters.get("user") ?? "";

/** Changes a value, or creates an item, on the server: as a backend does. */
export async function writeOnServer(write: object): Promise<void> {
  const response = await fetch(`/write${location.pathname}${location.search}`, {
    method: "POST",
    body: JSON.stringify(write),
  });
  if (!response.ok) throw new Error(await response.text());
}

function bench(system: System) {
  const listeners = new Map<string, (value: number) => void>();
  system.onValue((name, value) => listeners.get(name)?.(value));

  /** The milliseconds until a value is shown that was not there before, so many times. */
  const untilShown = async (rounds: number, name: string, write: (value: number) => unknown) => {
    const times: number[] = [];
    for (let value = 1; value <= rounds; value++) {
      const start = performance.now();
      const shown = new Promise<void>((resolve) => {
        listeners.set(name, (is) => is === value && resolve());
      });
      await write(value);
      await shown;
      times.push(performance.now() - start);
    }
    return times;
  };

  const check = (items: number): void => {
    if (system.count() < items) throw new Error(`${system.count()} of ${items} items are shown`);
  };

  return {
    /** The milliseconds until an empty page shows all, and until all is stored. */
    async firstSync(items: number) {
      const start = performance.now();
      await system.load();
      await system.sync(items);
      const shown = performance.now() - start;
      check(items);
      await system.stored();
      return { shown, stored: performance.now() - start };
    },

    /** The milliseconds until a page shows what is stored. */
    async coldStart(items: number) {
      const start = performance.now();
      await system.load();
      check(items);
      return performance.now() - start;
    },

    /** Answers each `ping` of another tab with a `pong`. */
    answer() {
      listeners.set("ping", (value) => system.put("pong", value));
    },

    /** From a write here until the answer of the other tab is shown here, halved. */
    async toOtherTab(rounds: number) {
      const times = await untilShown(rounds, "pong", (value) => system.put("ping", value));
      return times.map((time) => time / 2);
    },

    /** From the request of a backend until its value is shown here. */
    fromServer: (rounds: number) =>
      untilShown(rounds, "told", (value) => writeOnServer({ name: "told", value })),
  };
}

declare global {
  var page: ReturnType<typeof bench>;
}

/** Lets the bench measure this system. */
export function measure(system: System): void {
  globalThis.page = bench(system);
}
