/** A map that is made by hand, of what a channel publishes. It is not stored. */

import { Centrifuge, type Subscription } from "centrifuge";
import type { Body } from "../items.ts";
import { address, measure, user } from "./page.ts";

interface Publication {
  readonly id: string;
  readonly body: Body | number;
}

const map = new Map<string, Body | number>();
let subscription: Subscription;
let listener: (name: string, value: number) => void = () => {};

function apply({ id, body }: Publication): void {
  map.set(id, body);
  if (typeof body === "number") listener(id, body);
}

measure({
  async load() {},

  async sync(items) {
    const centrifuge = new Centrifuge(`${address.replace("http", "ws")}/connection/websocket`);
    subscription = centrifuge.newSubscription(`us:${user}`, { recoverable: true });
    subscription.on("publication", ({ data }) => apply(data as Publication));
    const subscribed = new Promise<{ epoch: string }>((resolve) => {
      subscription.on("subscribed", ({ streamPosition }) => resolve(streamPosition ?? { epoch: "" }));
    });
    subscription.subscribe();
    centrifuge.connect();
    const { epoch } = await subscribed;
    const history = await subscription
      .history({ limit: items + 1_000, since: { offset: 0, epoch } })
      .catch((error: { message: string }) => Promise.reject(new Error(`history: ${error.message}`)));
    for (const { data } of history.publications) apply(data as Publication);
  },

  async stored() {},
  count: () => map.size,
  put: (id, body) => void subscription.publish({ id, body } satisfies Publication),
  onValue(onValue) {
    listener = onValue;
  },
});
