/**
 * One conversation with a node, from the hello to its end: executes what the session decides, and
 * sends the outbox.
 *
 * The session decides which frames to send, and the replica how its contents change. This module has
 * the time-outs, and the windows of the outbox.
 */

import type { ClientSession, Effect } from "./client-session.js";
import type { Environment, Timer } from "./environment.js";
import { asError, GregorError, unavailable, type Problem } from "./errors.js";
import type { Result } from "./frames.js";
import type { LiveReplica, Operation } from "./live-replica.js";
import type { Message, OutOfBandMessage } from "./message.js";
import { reconnectPolicy } from "./reconnect.js";
import type { Transport, TransportListener } from "./transport.js";

/** For a connection, a welcome, the next frame of a sync. */
export const ANSWER_MS = 10_000;
/** For the acknowledgement of a consume, which includes storing it. */
const ACK_MS = 60_000;
/** A browser sends no pings. So after so long without a frame, a device asks for a sync. */
const SILENCE_MS = 300_000;
/** Of the messages in one consume. */
const WINDOW_BYTES = 512 * 1024;

export interface Conversation {
  /** Whether the node has said anything. */
  readonly isAnswered: boolean;
  readonly isSynced: boolean;
  /** How long ago the last frame arrived, in milliseconds. */
  silence(): number;
  /** Asks for a sync, which shows whether the node is still there. */
  verify(): void;
  sendOutbox(): void;
  sendOutOfBand(message: OutOfBandMessage): Promise<void>;
  /** Ends the conversation, because of an error or to begin another one. Idempotent. */
  end(error?: GregorError): void;
}

/** What hears of a conversation. */
export interface ConversationListener {
  onSynced(): void;
  /** The node is leaving. Returns in how many milliseconds to connect again. */
  onGoaway(within: number): number;
  onOutOfBand(system: string, body: unknown): void;
  /** `retryAfter` is for how many milliseconds the server wants to be left alone. */
  onEnd(error?: GregorError, retryAfter?: number): void;
}

interface PendingOutOfBand {
  readonly message: OutOfBandMessage;
  readonly resolve: () => void;
  readonly reject: (error: GregorError) => void;
}

export function converse(
  live: LiveReplica,
  { setTimeout, clearTimeout, monotonic, random, isVisible }: Environment,
  session: ClientSession,
  connect: (listener: TransportListener) => Transport,
  listener: ConversationListener,
): Conversation {
  let isAnswered = false;
  /** Whether the token belongs to the user of the replica. */
  let isWelcomed = false;
  let isOver = false;
  let heardAt = monotonic();
  let helloAt = 0;
  let answerTimer: Timer;
  let ackTimer: Timer;
  /** What has arrived is processed in order. */
  let last = Promise.resolve();
  let maxMessages = 1;
  /** Sent in a consume, of which the results are not saved yet. */
  let inFlight: readonly (Message | OutOfBandMessage)[] = [];
  let isPaused = false;
  const outOfBand: PendingOutOfBand[] = [];
  /** Counts how often in succession the node has deferred a consume. */
  const deferrals = reconnectPolicy();

  function end(error?: GregorError, retryAfter?: number): void {
    if (isOver) return;
    isOver = true;
    clearTimeout(answerTimer);
    clearTimeout(ackTimer);
    transport.close();
    const lost = live.replica.erasure() ?? unavailable("the connection was lost before the acknowledgement");
    for (const { reject } of outOfBand) reject(lost);
    listener.onEnd(error, retryAfter);
  }

  // The reader

  /** Runs a step after those before it: what came before the end of a connection counts. */
  function process(step: () => Promise<void>): void {
    heardAt = monotonic();
    last = last.then(() => (isOver ? undefined : step())).catch((error) => end(asError(error)));
  }

  async function execute(effects: readonly Effect[]): Promise<void> {
    clearTimeout(answerTimer); // a store may take its time
    for (const effect of effects) if (!isOver) await executeOne(effect);
    expectAnswer();
  }

  /** A live conversation may be silent for long; one that waits for a welcome or a sync may not. */
  function expectAnswer(): void {
    clearTimeout(answerTimer);
    if (isOver) return;
    answerTimer =
      session.isUpToDate && isWelcomed
        ? setTimeout(() => (isVisible() ? verify() : expectAnswer()), SILENCE_MS)
        : setTimeout(() => end(unavailable("the node did not answer in time")), ANSWER_MS);
  }

  async function executeOne(effect: Effect): Promise<void> {
    switch (effect.type) {
      case "send":
        return transport.send(effect.frame, session.epoch ?? 0);
      case "welcomed":
        live.nodeToldTime(effect.now, helloAt);
        await change((replica) => replica.welcomed(effect.uid, effect.epoch));
        maxMessages = effect.messages;
        isWelcomed = true;
        return sendOutbox();
      case "apply":
        return change((replica) => replica.apply(effect.messages, effect.cursor));
      case "replace":
        return change((replica) => replica.applySnapshot(effect.items, effect.cursor, effect.epoch));
      case "compare":
        live.nodeToldTime(effect.as_of);
        await execute(session.hashCompared(live.replica.hashMatches(effect.as_of, effect.hash)));
        if (!session.isUpToDate) return;
        await change((replica) => replica.synced(effect.as_of));
        return listener.onSynced();
      case "acked":
        return onAck(effect.results);
      case "deferred":
        return onDeferred(effect.error);
      case "deliver_out_of_band":
        return listener.onOutOfBand(effect.system, effect.body);
      case "failed":
        throw new GregorError(effect.error);
      case "erased":
        await change((replica) => replica.wiped(effect.epoch));
        throw live.replica.erasure();
      case "reconnect":
        setTimeout(() => end(unavailable("the node is shutting down")), listener.onGoaway(effect.within_ms));
    }
  }

  const change = (operation: Operation<void>): Promise<void> =>
    live.change(operation, "told");

  const verify = (): void => process(() => execute(session.verify()));

  // The sender

  /** Sends the next window of the outbox, if the last one is answered. */
  function sendOutbox(): void {
    if (!isWelcomed || isOver || isPaused || inFlight.length || !live.mayBeSent) return;
    const [first] = outOfBand;
    inFlight = first ? [first.message] : live.replica.window(maxMessages, WINDOW_BYTES);
    for (const effect of session.consume(inFlight)) {
      ackTimer = setTimeout(() => end(unavailable("the node did not acknowledge in time")), ACK_MS);
      executeOne(effect).catch((error) => end(asError(error)));
    }
  }

  async function onAck(results: readonly Result[]): Promise<void> {
    const deferred = results.find(({ error }) => error?.action === "retry");
    if (deferred) return onDeferred(deferred.error!);
    if (!finishOutOfBand(results[0]?.error)) {
      const messages = inFlight as readonly Message[];
      const pairs = messages.map((message, place) => [message, results[place]!] as const);
      await change((replica) => replica.applyResults(pairs));
    }
    deferrals.synced();
    onAnswer();
  }

  /** The node did not take the window. Retries it after what the node asks for and a backoff, and
   * sends nothing else before; if the action is `stop`, halves it until the one message is found that
   * the node refuses, and rejects that. */
  async function onDeferred(error: Problem): Promise<void> {
    const isRefused = error.action === "stop";
    if (isRefused && inFlight.length === 1) return onAck([{ status: "rejected", error }]);
    if (isRefused) maxMessages = inFlight.length >> 1;
    else pause(error.retry_after_ms);
    finishOutOfBand(error); // at most once: it is not sent again
    onAnswer();
  }

  function pause(retryAfter?: number): void {
    isPaused = true;
    setTimeout(
      () => {
        isPaused = false;
        sendOutbox();
      },
      deferrals.wait(monotonic(), random(), retryAfter),
    );
  }

  function onAnswer(): void {
    clearTimeout(ackTimer);
    inFlight = [];
    sendOutbox();
  }

  /** Whether the window is an out-of-band message, of which the sender now knows what became. */
  function finishOutOfBand(error?: Problem): boolean {
    if (inFlight[0] !== outOfBand[0]?.message) return false;
    const { resolve, reject } = outOfBand.shift()!;
    if (error) reject(new GregorError(error));
    else resolve();
    return true;
  }

  const transport = connect({
    opened: () =>
      process(() => {
        helloAt = live.clock.monotonic();
        return execute(session.opened());
      }),
    frame: (text) =>
      process(() => {
        isAnswered = true;
        return execute(session.receive(text));
      }),
    closed: (code, reason, retryAfter) =>
      process(async () => {
        await execute(session.disconnected(code));
        end(unavailable(reason), retryAfter);
      }),
  });
  expectAnswer();
  return {
    get isAnswered() {
      return isAnswered;
    },
    get isSynced() {
      return session.isUpToDate;
    },
    silence: () => monotonic() - heardAt,
    verify,
    sendOutbox,
    sendOutOfBand: (message) =>
      new Promise((resolve, reject) => {
        outOfBand.push({ message, resolve, reject });
        sendOutbox();
      }),
    end,
  };
}
