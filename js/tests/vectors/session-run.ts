/** A session and the reconnect policy beside it, which are fed the inputs of spec/vectors. */

import { clientSession, type ClientSession, type Effect } from "../../src/client-session.js";
import { GregorError } from "../../src/errors.js";
import type { Message } from "../../src/message.js";
import { reconnectPolicy } from "../../src/reconnect.js";

/** An input, as section 11 of spec/protocol.md describes it: one of these. */
export interface SessionInput {
  readonly connected?: { token: string; device_id: string; cursor: number; epoch?: number };
  readonly disconnected?: { now: number; random: number; retry_after?: number; code?: number };
  readonly synced?: object;
  readonly frame?: unknown;
  readonly now?: number;
  readonly random?: number;
  readonly consume?: { messages: readonly Omit<Message, "uid">[] };
  readonly verify?: { cursor?: number };
  readonly compared?: { equal: boolean };
}

export interface SessionCase {
  readonly name: string;
  readonly steps: readonly { readonly in: SessionInput; readonly out: unknown }[];
}

export class SessionRun {
  private readonly _policy = reconnectPolicy();
  private _session: ClientSession | undefined;

  /** The effects of one input. */
  feed(given: SessionInput): unknown[] {
    if (given.connected) return this._connect(given.connected);
    if (given.disconnected) return this._disconnect(given.disconnected);
    if (given.synced) this._policy.synced();
    if (given.synced || !this._session) return [];
    if (given.consume) {
      const messages = given.consume.messages.map((message) => ({ uid: "alice", ...message }));
      return this._session.consume(messages).map(plain);
    }
    if (given.verify) return this._session.verify(given.verify.cursor).map(plain);
    if (given.compared) return this._session.hashCompared(given.compared.equal).map(plain);
    return this._receive(this._session, given);
  }

  private _connect({ token, device_id, cursor, epoch }: NonNullable<SessionInput["connected"]>) {
    this._session = clientSession({ token, deviceId: device_id, cursor, epoch });
    return this._session.opened().map(plain);
  }

  private _disconnect(given: NonNullable<SessionInput["disconnected"]>) {
    const { now, random, retry_after = 0, code = 1006 } = given;
    const effects = this._session?.disconnected(code).map(plain) ?? [];
    this._session = undefined;
    const ms = this._policy.wait(now * 1000, random, retry_after * 1000);
    return [...effects, { wait: { seconds: Math.round(ms * 1000) / 1e6 } }];
  }

  private _receive(session: ClientSession, { frame, now = 0, random = 0 }: SessionInput) {
    try {
      const effects = session.receive(typeof frame === "string" ? frame : JSON.stringify(frame));
      for (const effect of effects) {
        if (effect.type === "reconnect") this._policy.goaway(now * 1000, random, effect.within_ms);
      }
      return effects.map(plain);
    } catch (error) {
      if (error instanceof GregorError && error.code === "malformed") return [{ malformed: {} }];
      throw error;
    }
  }
}

/** An effect as the vectors write it. */
const plain = (effect: Effect): unknown => ({ [effect.type]: contentsOf(effect) });

function contentsOf(effect: Effect): unknown {
  switch (effect.type) {
    case "send":
      return effect.frame;
    case "failed":
    case "deferred":
      return effect.error;
    default: {
      const { type: _, ...rest } = effect;
      return rest;
    }
  }
}
