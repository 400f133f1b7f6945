/** The systems that are measured, and how a backend of each writes. */

import { bodyOf, itemId, range, userWith } from "./items.ts";

/** What a backend writes: so many items, one of them, or a value. */
export type BackendWrite =
  | { readonly items: number }
  | { readonly item: number }
  | { readonly name: string; readonly value: number | string };

export interface ServerSystem {
  readonly name: string;
  /** Whether its page keeps items in this browser. */
  readonly isStored: boolean;
  /** The address of its server; none for the browser itself. */
  readonly address: string;
  write(user: string, write: BackendWrite): Promise<void>;
}

/** The addresses of the servers that run. */
export interface Addresses {
  readonly gregor: string;
  readonly tinybase: string;
  readonly centrifugo: string | null;
}

const BATCH = 500;

export function systemsAt({ gregor, tinybase, centrifugo }: Addresses): readonly ServerSystem[] {
  return [
    { name: "gregor", isStored: true, address: gregor, write: (...args) => toGregor(gregor, ...args) },
    {
      name: "tinybase",
      isStored: true,
      address: tinybase.replace("http", "ws"),
      write: (user, write) => post(`${tinybase}/${user}`, write),
    },
    ...(centrifugo === null ? [] : [centrifuge(centrifugo)]),
    { name: "bare", isStored: true, address: "", write: async () => {} },
  ];
}

const centrifuge = (address: string): ServerSystem => ({
  name: "centrifuge",
  isStored: false,
  address,
  write: (...args) => toCentrifugo(address, ...args),
});

/** Creates the items of a user in each system. */
export async function fill(systems: readonly ServerSystem[], items: number): Promise<void> {
  for (const system of systems) await system.write(userWith(items), { items });
}

async function toGregor(address: string, user: string, write: BackendWrite): Promise<void> {
  const create = (n: number) => ({ uid: user, creation: { category: "item", body: bodyOf(n) } });
  const send = (messages: readonly object[]) => post(`${address}/v1/messages`, { messages });
  if ("items" in write) {
    for (const batch of batches(write.items)) await send(batch.map(create));
  } else if ("item" in write) await send([create(write.item)]);
  else {
    const { name, value } = write;
    await send([{ uid: user, creation: { category: name, body: value, key: name } }]);
  }
}

async function toCentrifugo(address: string, user: string, write: BackendWrite): Promise<void> {
  const channel = `us:${user}`;
  const item = (n: number) => ({ channel, data: { id: itemId(n), body: bodyOf(n) } });
  if ("items" in write) {
    for (const batch of batches(write.items)) {
      await post(`${address}/api/batch`, { commands: batch.map((n) => ({ publish: item(n) })) });
    }
  } else if ("item" in write) await post(`${address}/api/publish`, item(write.item));
  else {
    const { name, value } = write;
    await post(`${address}/api/publish`, { channel, data: { id: name, body: value } });
  }
}

const batches = (items: number): readonly (readonly number[])[] =>
  range(Math.ceil(items / BATCH)).map((batch) =>
    range(items).slice(batch * BATCH, (batch + 1) * BATCH),
  );

async function post(url: string, body: object): Promise<void> {
  const headers = { "Content-Type": "application/json" };
  const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(body) });
  const text = await response.text();
  if (!response.ok || text.includes('"error":{')) throw new Error(`${url}: ${text}`);
}
