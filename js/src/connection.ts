/**
 * Keeps a device connected: reconnects without limit, and executes what each session decides.
 *
 * ClientSession decides which frames to send, and Replica how its contents change. This module has
 * the time-outs, the sender of the outbox, and the backoff between two connections.
 *
 * The token function, the network and the node are somebody else's. Whatever they do (an exception,
 * no answer, an absurd one), it is an attempt that failed, and the next one follows.
 */

import { clientSession, type ClientSession, type Effect } from "./client-session.js";
import type { Environment, Timer } from "./environment.js";
import { GregorError, problemOf, unavailable, type Problem } from "./errors.js";
import { openEventStream } from "./event-stream.js";
import type { Result } from "./frames.js";
import { SECOND, type Time } from "./instant.js";
import type { LiveReplica, Operation } from "./live-replica.js";
import type { Message, OutOfBandMessage, UID } from "./message.js";
import { ReconnectPolicy } from "./reconnect.js";
import type { Transport, TransportListener } from "./transport.js";
import { openWebSocket } from "./websocket.js";

/** For a token, a connection, a welcome, the next frame of a sync. */
const ANSWER_MS = 10_000;
/** For the acknowledgement of a consume, which includes storing it. */
const ACK_MS = 60_000;
/** A device that wakes up after so long without a frame asks whether its node is still there. */
const SILENCE = 5 * SECOND;
const LONG_SILENCE = 300 * SECOND;
/** Where WebSockets were blocked, they are tried again after so long. */
const PROBE_MS = 300_000;
/** Of the messages in one consume. */
const WINDOW_BYTES = 512 * 1024;

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
  | { readonly type: "online" }
  | { readonly type: "synced" }
  | { readonly type: "offline"; readonly reason: string; readonly final: boolean }
  | { readonly type: "out_of_band"; readonly system: string; readonly body: unknown };

/** Why a conversation has ended; undefined: to be begun again, without a word to anybody. */
type Cause = { readonly error: GregorError; readonly retryAfter?: number | undefined } | undefined;

const asError = (error: unknown): GregorError =>
  error instanceof GregorError ? error : unavailable(`${error}`);

/** One device's connection to its nodes, over any number of transports, one at a time. */
export class Connection {
  /** Whether there is a conversation, of which the first sync is complete. */
  online = false;
  /** How often the hash of the replica differed from the node's after a sync. */
  mismatches = 0;
  /** Why the connection does not retry: its token is refused and always the same, or the user was
   * erased. */
  failure: GregorError | undefined;
  /** Why the last conversation ended, or could not begin; null after a sync. */
  lastError: Problem | null = null;
  /** When the next attempt begins, by the device's wall clock; null if none is planned. */
  retryAt: Time | null = null;
  private readonly _policy = new ReconnectPolicy();
  private _conversation: Conversation | undefined;
  private _withoutEpoch = false;
  private _closed = false;
  /** How many conversations over a WebSocket in succession have ended before a welcome. */
  private _blocked = 0;
  private _isRequested = false;
  private _resume = (): void => {};

  constructor(
    private readonly _live: LiveReplica,
    private readonly _environment: Environment,
    private readonly _options: ConnectionOptions,
    /** These events have happened; if that is none, something else is shown. */
    private readonly _emit: (...events: readonly ConnectionEvent[]) => void,
  ) {}

  /** Whether the replica is connected and up to date with the node. */
  get synced(): boolean {
    return this.online && !!this._conversation?.session.isUpToDate;
  }

  /** Connects, and reconnects whenever the connection is lost, until it is closed. */
  async run(): Promise<void> {
    while (!this._closed) {
      this._isRequested = false;
      const cause = this.failure ? { error: this.failure } : await this._attempt();
      this._conversation = undefined;
      if (!cause || this._closed) continue;
      this._onDisconnected(cause.error);
      await this._waitToReconnect(cause.retryAfter);
    }
  }

  /** Ends the connection for good. */
  close(): void {
    this._closed = true;
    this._conversation?.end();
    this._resume();
  }

  /** Connects now, instead of later or never. An attempt that goes on comes first. */
  reconnect(): void {
    this.failure = undefined;
    this._isRequested = true;
    this._resume();
  }

  /** Does not retry until `reconnect`. The conversation, if there is one, ends by itself. */
  stop(failure: GregorError): void {
    this.failure = failure;
    this.online = this._isRequested = false;
  }

  /** The device may have been asleep, or have a network again. Connects now; if there is a
   * connection, asks whether its node is still there, since a browser sends no pings. */
  wakeUp(restart?: boolean): void {
    const conversation = this._conversation;
    if (!restart && conversation && conversation.silence() < SILENCE) return;
    if (!restart && conversation?.session.isUpToDate) return conversation.verify();
    conversation?.end(unavailable("the device may have been asleep"));
    if (!this.failure) this.reconnect();
  }

  /** A browser sends no pings, so a long silence is broken by a question. */
  breakSilence(): void {
    const conversation = this._conversation;
    if (conversation?.session.isUpToDate && conversation.silence() > LONG_SILENCE) conversation.verify();
  }

  /** The outbox may have something to send. */
  sendOutbox(): void {
    this._conversation?.sendOutbox();
  }

  /** Sends an out-of-band message, at most once. Rejects if there is no connection, if it breaks
   * before the node has acknowledged, or if the node rejects the message. */
  async sendOutOfBand(message: OutOfBandMessage): Promise<void> {
    if (this.failure?.code == "erased") throw this.failure;
    if (!this.online || !this._conversation) {
      throw unavailable("there is no connection, and out-of-band messages are not queued");
    }
    await this._conversation.sendOutOfBand(message);
  }

  private async _attempt(): Promise<Cause> {
    const isStream = this._blocked > 1;
    let conversation: Conversation | undefined;
    try {
      const token = await this._currentToken();
      return await new Promise((ended) => {
        conversation = this._converse(token, isStream, ended);
      });
    } catch (error) {
      return { error: asError(error) };
    } finally {
      this._conversation = undefined;
      if (conversation && !isStream) this._blocked++;
      if (conversation && isStream != conversation.isWelcomed) this._blocked = 0;
    }
  }

  private async _currentToken(): Promise<string> {
    const { setTimeout, clearTimeout } = this._environment;
    const { token } = this._options;
    let timer: Timer;
    const isLate = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(unavailable("the token function did not answer in time")), ANSWER_MS);
    });
    try {
      const given: unknown = await Promise.race([isLate, typeof token == "string" ? token : token()]);
      if (!given || typeof given != "string") throw unavailable("the token function gave no text");
      return given;
    } finally {
      clearTimeout(timer);
    }
  }

  private _converse(token: string, isStream: boolean, ended: (cause: Cause) => void): Conversation {
    const { device_id, cursor, epoch, uid } = this._live.replica.device;
    const { http, user, exactIntegers } = this._options;
    const session = clientSession({
      token,
      deviceId: device_id,
      cursor,
      epoch,
      uid,
      withoutEpoch: this._withoutEpoch,
      exactIntegers,
    });
    const conversation = new Conversation(this, this._live, this._environment, session, this._emit, ended);
    this._conversation = conversation;
    conversation.open((listener) =>
      isStream
        ? openEventStream(this._environment, http, user, listener)
        : this._openWebSocket(listener),
    );
    if (isStream) this._probe(conversation);
    return conversation;
  }

  private _openWebSocket(listener: TransportListener): Transport {
    return openWebSocket(this._environment.WebSocket!, this._options.ws, listener);
  }

  /** Goes back to WebSockets, once one can be opened. */
  private _probe(conversation: Conversation): void {
    this._environment.setTimeout(() => {
      if (this._conversation != conversation) return;
      const socket = this._openWebSocket({
        opened: () => {
          this._blocked = 1; // one that opens and does nothing else is as good as none
          socket.close();
          conversation.end();
        },
        frame() {},
        closed: () => this._probe(conversation),
      });
    }, PROBE_MS);
  }

  /** Reports the first failure of an outage, and one that is final; not each attempt. A failure is
   * final if its cause is a token that is always the same. Anything else may change: a node is
   * replaced, a clock is set, a token is renewed. */
  private _onDisconnected(error: GregorError): void {
    const { code, message, action } = error;
    if (code == "protocol") this._withoutEpoch = !this._withoutEpoch; // it may be a node without epochs
    const isRefused = action == "reauthenticate" || code == "forbidden" || code == "setup";
    if (isRefused && typeof this._options.token == "string") this.failure = error;
    const isFirst = !this.lastError;
    this.online = false;
    this.lastError = problemOf(error);
    const final = !!this.failure;
    this._emit(...(isFirst || final ? [{ type: "offline", reason: message, final } as const] : []));
  }

  private async _waitToReconnect(retryAfter?: number): Promise<void> {
    const { setTimeout, clearTimeout, monotonic, now, random } = this._environment;
    let timer: Timer;
    const resumed = new Promise<void>((resolve) => {
      this._resume = resolve;
      if (this._isRequested) return resolve();
      if (this.failure) return;
      const ms = 1000 * this._policy.wait(monotonic() / 1000, random(), retryAfter);
      this.retryAt = Math.round((now() + ms) * 1000);
      timer = setTimeout(resolve, ms);
    });
    this._emit();
    await resumed;
    clearTimeout(timer);
    this.retryAt = null;
  }

  // Called by the conversation

  /** A sync is complete: the replica is up to date. */
  onSynced(): void {
    const wasOnline = this.online;
    this._policy.synced();
    this.lastError = null;
    this.online = true;
    this._emit(...(wasOnline ? [] : [{ type: "online" } as const]), { type: "synced" });
  }

  /** The node is leaving. Returns in how many milliseconds to connect again. */
  onGoaway(withinMs: number): number {
    const now = this._environment.monotonic() / 1000;
    return 1000 * (this._policy.goaway(now, this._environment.random(), withinMs) - now);
  }
}

interface PendingOutOfBand {
  readonly message: OutOfBandMessage;
  readonly resolve: () => void;
  readonly reject: (error: GregorError) => void;
}

/** One transport, from hello to its end: a reader, and a sender of the outbox. */
class Conversation {
  /** Whether the token belongs to the user of the replica. */
  isWelcomed = false;
  private _transport: Transport | undefined;
  private _isOver = false;
  /** What has arrived is processed one by one. */
  private _last = Promise.resolve();
  /** By the monotonic clock. */
  private _heardAt: number;
  private _helloAt = 0;
  private _maxMessages = 1;
  /** Sent in a consume, of which the results are not saved yet. */
  private _inFlight: readonly (Message | OutOfBandMessage)[] = [];
  private readonly _outOfBand: PendingOutOfBand[] = [];
  /** Counts how often the node has deferred a consume in succession. */
  private readonly _deferrals = new ReconnectPolicy();
  private _isPaused = false;
  private _answerTimer: Timer;
  private _ackTimer: Timer;

  constructor(
    private readonly _connection: Connection,
    private readonly _live: LiveReplica,
    private readonly _environment: Environment,
    readonly session: ClientSession,
    private readonly _emit: (...events: readonly ConnectionEvent[]) => void,
    private readonly _ended: (cause: Cause) => void,
  ) {
    this._heardAt = _live.clock.monotonic();
  }

  open(connect: (listener: TransportListener) => Transport): void {
    this._expectAnswer();
    this._transport = connect({
      opened: () =>
        this._process(() => {
          this._helloAt = this._heardAt;
          return this._execute(this.session.opened());
        }),
      frame: (text) => this._process(() => this._execute(this.session.receive(text))),
      closed: (code, reason, retryAfter) =>
        this._process(async () => {
          await this._execute(this.session.disconnected(code));
          this.end(unavailable(reason), retryAfter);
        }),
    });
  }

  /** How long ago the last frame arrived, in microseconds. */
  silence(): number {
    return this._live.clock.monotonic() - this._heardAt;
  }

  verify(): void {
    this._process(() => this._execute(this.session.verify()));
  }

  /** Ends the conversation, and closes its transport. Idempotent. */
  end(error?: GregorError, retryAfter?: number): void {
    if (this._isOver) return;
    this._isOver = true;
    this._environment.clearTimeout(this._answerTimer);
    this._environment.clearTimeout(this._ackTimer);
    this._transport?.close();
    const lost = unavailable("the connection was lost before the acknowledgement");
    for (const { reject } of this._outOfBand) reject(this._connection.failure ?? lost);
    this._ended(error && { error, retryAfter });
  }

  // The reader

  /** Runs a step after those before it. Frames that came before the end of a connection count. */
  private _process(step: () => Promise<void>): void {
    this._heardAt = this._live.clock.monotonic();
    this._last = this._last
      .then(() => (this._isOver ? undefined : step()))
      .catch((error) => this.end(asError(error)));
  }

  private async _execute(effects: readonly Effect[]): Promise<void> {
    this._environment.clearTimeout(this._answerTimer); // a store may take its time
    for (const effect of effects) if (!this._isOver) await this._executeOne(effect);
    this._expectAnswer();
  }

  /** A live conversation may be silent; one that waits for a welcome or a sync may not. */
  private _expectAnswer(): void {
    const { setTimeout, clearTimeout } = this._environment;
    clearTimeout(this._answerTimer);
    if (this._isOver || (this.session.isUpToDate && this.isWelcomed)) return;
    const giveUp = () => this.end(unavailable("the node did not answer in time"));
    this._answerTimer = setTimeout(giveUp, ANSWER_MS);
  }

  private async _executeOne(effect: Effect): Promise<void> {
    switch (effect.type) {
      case "send":
        return this._transport?.send(effect.frame, this.session.epoch ?? 0);
      case "welcomed":
        return this._onWelcome(effect);
      case "apply":
        return this._changeFacts(
          (replica) => replica.apply(effect.messages, effect.cursor),
          effect.messages,
        );
      case "replace":
        return this._changeFacts((replica) =>
          replica.applySnapshot(effect.items, effect.cursor, effect.epoch),
        );
      case "compare":
        return this._compare(effect.as_of, effect.hash);
      case "acked":
        return this._onAck(effect.results);
      case "deferred":
        return this._onDeferred(effect.error);
      case "deliver_out_of_band":
        return this._emit({ type: "out_of_band", system: effect.system, body: effect.body });
      case "failed":
        throw new GregorError(effect.error);
      case "erased":
        await this._changeFacts((replica) => replica.wiped(effect.epoch));
        throw this._connection.failure ?? unavailable("the user was erased");
      case "reconnect": {
        const leave = () => this.end(unavailable("the node is shutting down"));
        this._environment.setTimeout(leave, this._connection.onGoaway(effect.within_ms));
      }
    }
  }

  private _changeFacts(operation: Operation<void>, messages?: readonly Message[]): Promise<void> {
    return this._live.change(operation, messages, "told");
  }

  private async _onWelcome({ uid, limits, now, epoch }: Effect & { type: "welcomed" }): Promise<void> {
    this._live.nodeToldTime(now, this._helloAt);
    await this._changeFacts((replica) => replica.welcomed(uid, epoch));
    this._maxMessages = limits.messages;
    this.isWelcomed = true;
    this.sendOutbox();
  }

  private async _compare(asOf: Time, hash: string): Promise<void> {
    this._live.nodeToldTime(asOf);
    const isEqual = this._live.replica.hashMatches(asOf, hash);
    if (!isEqual) this._connection.mismatches++;
    await this._execute(this.session.hashCompared(isEqual));
    if (!this.session.isUpToDate) return;
    await this._changeFacts((replica) => replica.synced(asOf));
    this._connection.onSynced();
  }

  // The sender

  async sendOutOfBand(message: OutOfBandMessage): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this._outOfBand.push({ message, resolve, reject });
      this.sendOutbox();
    });
  }

  /** Sends the next window of the outbox, if the last one is answered. */
  sendOutbox(): void {
    if (!this.isWelcomed || this._isOver || this._isPaused || this._inFlight.length || !this._live.isSaved) return;
    const [first] = this._outOfBand;
    this._inFlight = first ? [first.message] : this._live.replica.window(this._maxMessages, WINDOW_BYTES);
    if (!this._inFlight.length) return;
    const giveUp = () => this.end(unavailable("the node did not acknowledge in time"));
    this._ackTimer = this._environment.setTimeout(giveUp, ACK_MS);
    for (const effect of this.session.consume(this._inFlight)) {
      this._executeOne(effect).catch((error) => this.end(asError(error)));
    }
  }

  private async _onAck(results: readonly Result[]): Promise<void> {
    const deferred = results.find(({ error }) => error?.action == "retry");
    if (deferred) return this._onDeferred(deferred.error!);
    if (this._isOutOfBand()) {
      this._finishOutOfBand(results[0]?.error);
    } else {
      const messages = this._inFlight as readonly Message[];
      const pairs = results.map((result, place) => [messages[place]!, result] as const);
      await this._changeFacts((replica) => replica.applyResults(pairs), messages);
    }
    this._deferrals.synced();
    this._onAnswer();
  }

  /** The node did not take the window. Retries it after a backoff; if the action is `stop`, halves
   * it until the one message is found that the node refuses, and rejects that. */
  private async _onDeferred(error: Problem): Promise<void> {
    const isRefused = error.action == "stop";
    const { length } = this._inFlight;
    if (isRefused && length == 1) return this._onAck([{ status: "rejected", error }]);
    if (isRefused) this._maxMessages = length >> 1;
    if (this._isOutOfBand()) this._finishOutOfBand(error); // at most once: it is not sent again
    if (!isRefused) this._pause();
    this._onAnswer();
  }

  private _pause(): void {
    const { setTimeout, monotonic, random } = this._environment;
    this._isPaused = true;
    setTimeout(() => {
      this._isPaused = false;
      this.sendOutbox();
    }, 1000 * this._deferrals.wait(monotonic() / 1000, random()));
  }

  private _onAnswer(): void {
    this._environment.clearTimeout(this._ackTimer);
    this._inFlight = [];
    this.sendOutbox();
  }

  private _isOutOfBand(): boolean {
    return !!this._inFlight[0] && "system" in this._inFlight[0];
  }

  private _finishOutOfBand(error?: Problem): void {
    const { resolve, reject } = this._outOfBand.shift()!;
    if (error) reject(new GregorError(error));
    else resolve();
  }
}
