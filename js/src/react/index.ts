/**
 * React hooks over a client. A component renders when what it selects has changed, and only then.
 *
 * On a server, and while a page is hydrated, each hook gives what a device shows that knows nothing
 * yet. So the two agree, and the render after that shows what this device has.
 */

"use client";

import {
  createContext,
  createElement,
  useContext,
  useEffect,
  useMemo,
  useRef,
  useState,
  useSyncExternalStore,
  type ReactElement,
  type ReactNode,
} from "react";
import type { BodyOf, BodyWithin } from "../bodies.js";
import { createGregor, type Gregor, type GregorOptions } from "../client.js";
import type { InboxEntry, Topic } from "../inbox.js";
import { encode } from "../json.js";
import type { Category, Item, Key } from "../message.js";
import type { Status } from "../status.js";

/** Names the bodies of the app for all hooks, once:
 *
 * ```ts
 * declare module "gregor-sync/react" {
 *   interface Register { bodies: { "settings.theme": "light" | "dark" } }
 * }
 * ```
 */
export interface Register {}

type Bodies = Register extends { readonly bodies: infer Named extends object }
  ? Named
  : Record<string, unknown>;

const Context = createContext<Gregor<Bodies> | undefined>(undefined);

/** A client, whatever types of bodies it names: those of the hooks are `Register`'s. */
type AnyGregor = Gregor<any>;

/** Either a client of the app, which the app closes, or the options of one. */
export type GregorProviderProps = { readonly children?: ReactNode } & (
  | { readonly client: AnyGregor; readonly options?: never }
  | { readonly options: GregorOptions; readonly client?: never }
);

/** Gives a client to the hooks below it.
 *
 * With `options`, it makes the client once it is mounted, which is only in a browser, and closes it
 * when it is gone. Another `url`, `user` or `deviceId` makes another client. The other options count
 * when it is made; so give a `token` that changes as a function. */
export function GregorProvider({ client, options, children }: GregorProviderProps): ReactElement {
  const own = useOwnClient(options);
  return createElement(Context.Provider, { value: client ?? own }, children);
}

/** The client that a mounted provider has made. */
interface Own {
  readonly identity: string;
  readonly client: Gregor<Bodies>;
  isMounted: boolean;
}

function useOwnClient(options: GregorOptions | undefined): Gregor<Bodies> | undefined {
  const identity = options && JSON.stringify([options.url, options.user, options.deviceId]);
  const last = useRef<Own>(undefined);
  const [shown, show] = useState<Own>();
  useEffect(() => {
    if (!options || !identity) return undefined;
    const kept = last.current?.identity === identity ? last.current : undefined;
    const own = kept ?? { identity, client: createGregor<Bodies>(options), isMounted: true };
    own.isMounted = true;
    last.current = own;
    show(own);
    return () => {
      own.isMounted = false;
      // In strict mode, React mounts again before any promise resolves: then the client stays.
      void Promise.resolve().then(() => {
        if (own.isMounted) return;
        if (last.current === own) last.current = undefined;
        void own.client.close();
      });
    };
  }, [identity]);
  return shown?.identity === identity ? shown?.client : undefined;
}

/** The client; undefined on a server, and until a provider with `options` is mounted. */
export const useGregor = (): Gregor<Bodies> | undefined => useContext(Context);

/** What is selected of the client, which depends on it and on `argument` alone. Two selections that
 * are the same are one value, so that React sees that nothing has changed. */
function useSelected<T>(
  select: (gregor: Gregor<Bodies>) => T,
  nothing: T,
  argument?: unknown,
  same: (a: T, b: T) => boolean = Object.is,
): T {
  const gregor = useGregor();
  const [subscribe, snapshot] = useMemo(() => {
    let last = nothing;
    return [
      (listener: () => void) => gregor?.subscribe(listener) ?? (() => {}),
      () => {
        const selected = gregor ? select(gregor) : nothing;
        return same(last, selected) ? last : (last = selected);
      },
    ] as const;
  }, [gregor, argument]);
  return useSyncExternalStore(subscribe, snapshot, () => nothing);
}

/** An item never changes, but for the ctime of one that is sent. */
const sameItem = (a?: Item, b?: Item): boolean =>
  a === b || (!!a && a.msg_id === b?.msg_id && a.ctime === b.ctime);

const sameEntry = (a: InboxEntry, b?: InboxEntry): boolean =>
  sameItem(a.item, b?.item) && sameItem(a.marker, b?.marker);

const all =
  <T>(same: (a: T, b?: T) => boolean) =>
  (a: readonly T[], b: readonly T[]): boolean =>
    a.length === b.length && a.every((each, i) => same(each, b[i]));

const NONE: readonly never[] = [];

/** The visible items whose category begins with `prefix`, in order. */
export const useItems = <Prefix extends Category = "">(
  prefix: Prefix = "" as Prefix,
): readonly Item<BodyWithin<Bodies, Prefix>>[] =>
  useSelected((gregor) => gregor.items(prefix), NONE, prefix, all(sameItem));

/** How many visible items have a category that begins with `prefix`. */
export const useCount = (prefix: Category = ""): number =>
  useSelected((gregor) => gregor.count(prefix), 0, prefix);

/** The body of the visible item with this key; undefined if there is none. Bodies that are the same
 * JSON are the same. */
export const useValue = <Name extends Key>(key: Name): BodyOf<Bodies, Name> | undefined =>
  useSelected((gregor) => gregor.get(key)?.body, undefined, key, (a, b) => encode(a) === encode(b));

/** The notifications, the newest first; with `topic`, those of it and of the topics below it. */
export const useInbox = (topic?: Topic): readonly InboxEntry[] =>
  useSelected((gregor) => gregor.inbox.list(topic), NONE, topic, all(sameEntry));

const UNKNOWN: Status = {
  online: false,
  synced: false,
  durable: false,
  unsent: 0,
  lastError: null,
  retryAt: null,
  setAside: 0,
};

/** How the client is doing. */
export const useGregorStatus = (): Status => useSelected((gregor) => gregor.status, UNKNOWN);
