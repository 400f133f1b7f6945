/**
 * Keeps a device connected: reconnects without limit, over WebSockets, or over streams of events
 * where WebSockets are blocked.
 *
 * The token function, the network and the node are somebody else's. Whatever they do (an exception,
 * no answer, an absurd one), it is an attempt that failed, and the next one follows.
 */

import { clientSession } from "./client-session.js";
import { ANSWER_MS, converse, type Conversation } from "./conversation.js";
import { inTime, type Environment, type Timer } from "./environment.js";
import { asError, problemOf, unavailable, type GregorError, type Problem } from "./errors.js";
import { openEventStream } from "./event-stream.js";
import type { Time } from "./instant.js";
import type { LiveReplica } from "./live-replica.js";
import type { OutOfBandMessage, UID } from "./message.js";
import { reconnectPolicy } from "./reconnect.js";
import type { ConnectionStatus } from "./status.js";
import { openWebSocket } from "./websocket.js";
import type { Transport, TransportListener } from "./transport.js";

/** A device that wakes up after so long without a frame asks whether its node is still there. */
const SILENCE_MS = 5_000;
/** Where WebSockets were blocked, they are tried again after so long. */
const PROBE_MS = 300_000;

/** The token that authenticates the device, or a function that returns it. The function is called
 * for each new connection. If it throws, or does not answer in 10 s, it is called again later. */
export type Token = string | (() => string | Promise<string>);

/** Where a server is, and who connects to it. */
export interface ConnectionOptions {
  readonly http: string;
  readonly ws: string;
  readonly user: UID;
  readonly token: Token;
  readonly exactIntegers: boolean | undefined;
}

export type ConnectionEvent =
  /** The client is connected, and the first sync is complete. */
  | { readonly type: "online" }
  /** A sync is complete: the replica has all that the node had stored at that time. */
  | { readonly type: "synced" }
  /** There is no connection: it is lost, or the first attempt to connect has failed. The attempts that
   * follow are not reported. With `final`, there are none until `reconnect`. */
  | { readonly type: "offline"; readonly reason: string; readonly final: boolean }
  /** An out-of-band message has arrived. */
  | { readonly type: "out_of_band"; readonly system: string; readonly body: unknown };

/** One device's connection to its nodes, over any number of transports, one at a time. */
export interface Connection {
  status(): ConnectionStatus;
  /** Connects now, instead of later or never. An attempt that goes on comes first. */
  reconnect(): void;
  /** Ends what is under way, and does not retry until `reconnect`. */
  stop(failure: GregorError): void;
  /** The device may have a network again, or (`hasSlept`) has certainly been away. Connects now. If
   * there is a connection, asks whether its node is still there, or makes another one. */
  wakeUp(hasSlept?: boolean): void;
  /** The outbox may have something to send. */
  sendOutbox(): void;
  /** Sends an out-of-band message, at most once. Rejects if there is no connection, if it breaks
   * before the node has acknowledged, or if the node rejects the message. */
  sendOutOfBand(message: OutOfBandMessage): Promise<void>;
  /** Ends the connection for good. */
  close(): void;
}

/** Connects, and reconnects whenever the connection is lost. `report` hears of what has happened; if
 * that is nothing, the status is another. */
export function connect(
  live: LiveReplica,
  environment: Environment,
  { http, ws, user, token, exactIntegers }: ConnectionOptions,
  report: (events: readonly ConnectionEvent[]) => void,
): Connection {
  const { setTimeout, clearTimeout, monotonic, now, random } = environment;
  const policy = reconnectPolicy();
  let conversation: Conversation | undefined;
  let online = false;
  let lastError: Problem | null = null;
  let retryAt: Time | null = null;
  /** Why it does not retry: the token is refused and always the same, or the user was erased. */
  let failure = live.replica.erasure();
  let retryAfter: number | undefined;
  let withoutEpoch = false;
  let isClosed = false;
  /** How many WebSockets in succession have ended before the node has said anything. */
  let blocked = 0;
  let isRequested = false;
  let resume = (): void => {};

  function emit(...events: readonly ConnectionEvent[]): void {
    if (!isClosed) report(events);
  }

  async function run(): Promise<void> {
    await undefined; // nothing is reported before the caller has this connection
    while (!isClosed) {
      isRequested = false;
      try {
        if (failure) throw failure;
        const given = await currentToken();
        if (!isClosed && !failure) await attempt(given); // it may have been stopped meanwhile
      } catch (error) {
        if (!isClosed) await pauseAfter(failure ?? asError(error));
      }
    }
  }

  async function currentToken(): Promise<string> {
    const ask = async (): Promise<unknown> => (typeof token === "string" ? token : token());
    const given = await inTime(environment, ask(), ANSWER_MS, "the token function did not answer in time");
    if (!given || typeof given !== "string") throw unavailable("the token function gave no text");
    return given;
  }

  /** Resolves if another one is to follow without a word. Rejects with why it has ended. */
  function attempt(given: string): Promise<void> {
    const { device_id: deviceId, cursor, epoch, uid } = live.replica.device;
    const session = clientSession({ token: given, deviceId, cursor, epoch, uid, withoutEpoch, exactIntegers });
    const isStream = blocked > 1;
    return new Promise((resolve, reject) => {
      const open = (listener: TransportListener) =>
        isStream ? openEventStream(environment, http, user, listener) : openSocket(listener);
      const current = converse(live, environment, session, open, {
        onSynced,
        onGoaway: (within) => policy.goaway(monotonic(), random(), within),
        onOutOfBand: (system, body) => emit({ type: "out_of_band", system, body }),
        onEnd(error, delay) {
          conversation = undefined;
          if (!isStream) blocked++;
          if (isStream !== current.isAnswered) blocked = 0;
          retryAfter = delay;
          if (error) reject(error);
          else resolve();
        },
      });
      conversation = current;
      if (isStream) probe(current);
    });
  }

  const openSocket = (listener: TransportListener): Transport => openWebSocket(environment.WebSocket!, ws, listener);

  /** Goes back to WebSockets, once one can be opened. */
  function probe(stream: Conversation): void {
    setTimeout(() => {
      if (conversation !== stream) return;
      const socket = openSocket({
        opened() {
          blocked = 1; // one that opens and does nothing else is as good as none
          socket.close();
          stream.end();
        },
        frame() {},
        closed: () => probe(stream),
      });
    }, PROBE_MS);
  }

  function onSynced(): void {
    const wasOnline = online;
    policy.synced();
    lastError = null;
    online = true;
    emit(...(wasOnline ? [] : [{ type: "online" } as const]), { type: "synced" });
  }

  /** Reports the first failure of an outage, and one that is final; not each attempt. A failure is
   * final if its cause is a token that is always the same. Anything else may change: a node is
   * replaced, a clock is set, a token is renewed. */
  async function pauseAfter(error: GregorError): Promise<void> {
    const { code, message, action } = error;
    const isFirst = !lastError;
    if (code === "protocol") withoutEpoch = !withoutEpoch; // it may be a node without epochs
    const isRefused = action === "reauthenticate" || code === "forbidden" || code === "setup";
    if (isRefused && typeof token === "string") failure = error;
    online = false;
    lastError = problemOf(error);
    const resumed = new Promise<void>((resolve) => (resume = resolve));
    let timer: Timer;
    if (isRequested) resume();
    else if (!failure) {
      const ms = policy.wait(monotonic(), random(), retryAfter ?? error.retry_after_ms);
      retryAt = Math.round(1000 * (now() + ms));
      timer = setTimeout(resume, ms);
    }
    const final = !!failure;
    emit(...(isFirst || final ? [{ type: "offline", reason: message, final } as const] : []));
    await resumed;
    clearTimeout(timer);
    retryAt = null;
  }

  function reconnect(): void {
    failure = undefined;
    isRequested = true;
    resume();
  }

  void run();
  return {
    status: () => ({
      online,
      synced: online && !!conversation?.isSynced,
      lastError,
      retryAt,
      isFinal: !!failure,
    }),
    reconnect,
    stop(error) {
      failure = error;
      online = isRequested = false;
      conversation?.end(error);
      resume();
    },
    wakeUp(hasSlept) {
      if (conversation && !hasSlept) {
        if (conversation.silence() < SILENCE_MS) return;
        if (conversation.isSynced) return conversation.verify();
      }
      conversation?.end(unavailable("the device may have been asleep"));
      if (!failure) reconnect();
    },
    sendOutbox: () => conversation?.sendOutbox(),
    async sendOutOfBand(message) {
      if (failure?.code === "erased") throw failure;
      if (!online || !conversation) throw unavailable("there is no connection");
      return conversation.sendOutOfBand(message);
    },
    close() {
      isClosed = true;
      conversation?.end();
      resume();
    },
  };
}
