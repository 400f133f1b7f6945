/**
 * JavaScript devices for the simulation (tests/simulation), which gives them clocks, network and
 * store. Each line on stdin is a call: what happens to one device, and what time it is then. A line
 * on stdout says what the device does in answer, once all its tasks wait, and when its next timer is
 * due. So each run of a simulation is the same.
 */

import { createInterface } from "node:readline";
import type { Environment, Timer } from "../../src/environment.js";
import { createGregor, type Gregor } from "../../src/index.js";
import { memoryDatabase } from "../../src/stores/memory.js";
import { Random } from "../random.js";

interface Call {
  readonly device: string;
  /** By the device's clocks, in milliseconds. */
  readonly now: number;
  readonly monotonic: number;
  readonly name: string;
  readonly args: readonly any[];
}

const EVENTS = ["created", "dismissed", "erased"] as const;

class Device {
  readonly effects: unknown[] = [];
  #call: Call;
  readonly random: Random;
  readonly #store = memoryDatabase(true);
  #client: Gregor | undefined;
  #timers = new Map<number, { readonly due: number; readonly callback: () => void }>();
  #sockets = new Map<number, SimulatedSocket>();
  #tokens = new Map<number, (token: unknown) => void>();
  #count = 0; // of timers, sockets and tokens

  constructor(call: Call, seed: number) {
    this.#call = call;
    this.random = new Random(seed);
  }

  /** When the next timer is due; null if there is none. */
  get due(): number | null {
    const times = [...this.#timers.values()].map(({ due }) => due);
    return times.length === 0 ? null : Math.min(...times);
  }

  /** What the call returns. */
  async carryOut(call: Call): Promise<unknown> {
    this.#call = call;
    const [first, ...rest] = call.args;
    switch (call.name) {
      case "start":
        return this.#start(first, rest[0]);
      case "kill":
        return this.#kill();
      case "tick":
        return this.#tick();
      case "token":
        return this.#tokens.get(first)?.(rest[0]);
      case "opened":
        return this.#sockets.get(first)?.onopen?.();
      case "frame":
        return this.#sockets.get(first)?.onmessage?.({ data: rest[0] });
      case "closed":
        return this.#sockets.get(first)?.onclose?.({ code: rest[0], reason: rest[1] });
      case "shown":
        return this.#shown();
      default:
        return this.#write(call.name, call.args);
    }
  }

  #start(user: string, deviceId: string): void {
    const client = createGregor({
      url: "http://simulated",
      user,
      deviceId,
      token: () => this.#token(),
      store: this.#store,
      environment: this.#environment(),
    });
    this.#client = client;
    for (const type of EVENTS) {
      client.on(type, (event) => {
        if (this.#client === client) this.effects.push(["event", event]);
      });
    }
  }

  /** Its process ends: nothing more is heard of it. */
  #kill(): void {
    this.#client = undefined;
    this.#timers = new Map();
    this.#sockets = new Map();
    this.#tokens = new Map();
  }

  #tick(): void {
    const due = [...this.#timers].filter(([, timer]) => timer.due <= this.#call.monotonic);
    for (const [id, { callback }] of due.sort(([, a], [, b]) => a.due - b.due)) {
      if (this.#timers.delete(id)) callback();
    }
  }

  #token(): Promise<string> {
    const id = ++this.#count;
    this.effects.push(["token", id]);
    return new Promise((resolve, reject) =>
      this.#tokens.set(id, (token) => (token === undefined ? reject(new Error("no token")) : resolve(token as string))),
    );
  }

  async #write(method: string, args: readonly unknown[]): Promise<unknown> {
    try {
      return { value: await (this.#client as any)[method](...args) };
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      if (code === undefined) throw error;
      return { code, message };
    }
  }

  #shown(): unknown {
    const client = this.#client as Gregor;
    const { replica } = client;
    return {
      status: client.status,
      items: client.items(),
      held: [...replica.facts.items.values()],
      rejected: client.rejected().map(({ message }) => message.msg_id),
      epoch: replica.device.epoch ?? null,
    };
  }

  #environment(): Environment {
    const timers = this.#timers;
    const sockets = this.#sockets;
    const device = this;
    return {
      now: () => device.#call.now,
      monotonic: () => device.#call.monotonic,
      setTimeout(callback, ms) {
        const id = ++device.#count;
        timers.set(id, { due: device.#call.monotonic + ms, callback });
        return id as Timer;
      },
      clearTimeout: (timer) => void timers.delete(timer as number),
      random: () => device.random.number(),
      listen: () => () => undefined,
      isVisible: () => true,
      fetch: () => Promise.reject(new TypeError("there is no HTTP")),
      WebSocket: class {
        constructor() {
          const id = ++device.#count;
          const tell = (...effect: readonly unknown[]): void => {
            if (sockets === device.#sockets) device.effects.push(effect);
          };
          const socket = new SimulatedSocket(id, tell);
          sockets.set(id, socket);
          return socket as unknown as WebSocket;
        }
      } as unknown as typeof WebSocket,
      indexedDB: undefined,
      storage: undefined,
      locks: undefined,
      BroadcastChannel: undefined,
    };
  }
}

class SimulatedSocket {
  onopen?: () => void;
  onmessage?: (event: { readonly data: string }) => void;
  onclose?: (event: { readonly code: number; readonly reason: string }) => void;

  constructor(
    private readonly id: number,
    private readonly tell: (...effect: readonly unknown[]) => void,
  ) {
    tell("open", id);
  }

  send(text: string): void {
    this.tell("send", this.id, text);
  }

  close(): void {
    this.tell("close", this.id);
  }
}

const devices = new Map<string, Device>();
let random = new Random(0); // that of the device that is called

Object.defineProperty(crypto, "getRandomValues", {
  value: (numbers: Uint32Array) => numbers.map(() => random.below(2 ** 32)),
});
process.on("unhandledRejection", (error) => {
  throw error;
});

for await (const line of createInterface(process.stdin)) {
  const call = JSON.parse(line) as Call;
  if (call.name === "new") devices.set(call.device, new Device(call, call.args[0]));
  const device = devices.get(call.device) as Device;
  ({ random } = device);
  const result = device.carryOut(call.name === "new" ? { ...call, name: "tick" } : call);
  await new Promise(setImmediate); // all tasks of the device wait now: they wait for nothing else
  const effects = device.effects.splice(0);
  const outcome = await Promise.race([result, undefined]);
  console.log(JSON.stringify({ result: outcome ?? null, effects, due: device.due }));
}
