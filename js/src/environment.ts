/**
 * What the client takes from the world around it: clocks, chance, network, storage and other tabs.
 *
 * Nothing else in the package reads a global, so that a test, a simulation or a server that renders
 * pages gives another world. What is optional may be missing, and the client works without it.
 */

import { unavailable } from "./errors.js";

/** What `setTimeout` returns; only `clearTimeout` looks inside. */
export type Timer = unknown;

/** The part of a BroadcastChannel that is used. */
export interface Channel {
  onmessage: ((event: MessageEvent) => void) | null;
  postMessage(message: unknown): void;
  close(): void;
}

/** The part of the Web Locks API that is used: exclusive locks. */
export interface Locks {
  request(
    name: string,
    options: { readonly steal?: boolean; readonly signal?: AbortSignal },
    whileHeld: () => Promise<void>,
  ): Promise<unknown>;
}

export interface Environment {
  /** Milliseconds since 1970 by the clock of the machine, which may be wrong and may jump. */
  now(): number;
  /** Milliseconds since some instant, by a clock that only goes forward. */
  monotonic(): number;
  setTimeout(callback: () => void, ms: number): Timer;
  clearTimeout(timer: Timer): void;
  /** A number from 0 up to 1 that nobody can guess, of 32 bits. Ids are made of four. */
  random(): number;
  /** Hears an event of the page or worker, as `online`, `pagehide` or `visibilitychange`. Returns
   * the function that ends it. Where there are no events, nothing is ever heard. */
  listen(type: string, listener: (event: Event) => void): () => void;
  /** Whether a person may see the page. A worker has no page: true. */
  isVisible(): boolean;
  readonly fetch: typeof fetch;
  readonly WebSocket: typeof WebSocket | undefined;
  readonly indexedDB: IDBFactory | undefined;
  /** Asks the browser not to evict what this origin stores. */
  readonly storage: Partial<Pick<StorageManager, "persist">> | undefined;
  readonly locks: Locks | undefined;
  readonly BroadcastChannel: (new (name: string) => Channel) | undefined;
}

/** The globals as a browser has them; in a worker or on a server, some are missing. */
type Globals = Partial<Pick<Window, "addEventListener" | "removeEventListener" | "indexedDB">> &
  Partial<Pick<typeof globalThis, "WebSocket" | "BroadcastChannel">> & {
    readonly document?: Document;
    readonly navigator?: Partial<Pick<Navigator, "locks" | "storage">>;
  };

/** The world of a browser's page or worker, or of Node, as it is when this is called. */
export function browserEnvironment(): Environment {
  const globals = globalThis as Globals;
  return {
    now: () => Date.now(),
    monotonic: () => performance.now(),
    setTimeout: (callback, ms) => setTimeout(callback, ms),
    clearTimeout: (timer) => clearTimeout(timer as number),
    random: () => (crypto.getRandomValues(new Uint32Array(1))[0] as number) / 2 ** 32,
    listen(type, listener) {
      // Captured, since some events of a document do not bubble up to its window.
      globals.addEventListener?.(type, listener, true);
      return () => globals.removeEventListener?.(type, listener, true);
    },
    isVisible: () => globals.document?.visibilityState !== "hidden",
    fetch: (input, init) => fetch(input, init),
    WebSocket: globals.WebSocket,
    indexedDB: globals.indexedDB,
    storage: globals.navigator?.storage,
    locks: globals.navigator?.locks as Locks | undefined,
    BroadcastChannel: globals.BroadcastChannel,
  };
}

/** The world as it is; where pages are rendered, one in which no time passes and nothing is near. */
export const defaultEnvironment = (): Environment => ({
  ...browserEnvironment(),
  ...(!("addEventListener" in globalThis) && { setTimeout: () => undefined, WebSocket: undefined }),
});

/** What the promise gives; or `late`, as an `unavailable` error, if it takes longer. */
export const inTime = <T>(
  { setTimeout, clearTimeout }: Environment,
  promise: Promise<T>,
  ms: number,
  late: string,
): Promise<T> =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(unavailable(late)), ms);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
