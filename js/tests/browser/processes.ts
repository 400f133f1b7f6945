/** The Python processes that a test talks to: a real server, and a real Python device. */

import { createHmac, randomInt } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";
import { Program } from "../program.js";

const SECRET = "a secret of tests, which has 32 bytes";
const LEEWAY_SECONDS = 30; // for which a server accepts an expired token

/** A node on a free port, which is stopped, killed and started again. */
class ServerNode {
  #program: Program | undefined;
  #ahead = 0;

  private constructor(
    readonly port: number,
    private readonly adminPort: number,
    private readonly args: (address: string) => readonly string[],
  ) {}

  static async onFreePorts(args: (address: string) => readonly string[]): Promise<ServerNode> {
    return new ServerNode(await freePort(), await freePort(), args);
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Where its metrics are. */
  get adminUrl(): string {
    return `http://127.0.0.1:${this.adminPort}`;
  }

  async start(): Promise<void> {
    const args = this.args(`127.0.0.1:${this.port}`);
    const environment = {
      GREGOR_JWT_SECRET: SECRET,
      GREGOR_ADMIN_LISTEN: `127.0.0.1:${this.adminPort}`,
    };
    this.#program = new Program("tests.javascript.server", args, environment);
    this.setAhead(this.#ahead);
    await this.#program.whileItRuns(
      until("the node is ready", async () => (await fetch(`${this.url}/readyz`)).ok),
    );
  }

  /** Stops it gracefully, or kills it. */
  async stop(signal?: NodeJS.Signals): Promise<void> {
    await this.#program?.end(signal);
  }

  /** By how many seconds its clock is ahead. */
  setAhead(seconds: number): void {
    this.#ahead = seconds;
    this.#program?.write(String(seconds));
  }
}

/** A real server for the pages of an origin: one node on SQLite, or a fleet of two. */
export class Server {
  #ahead = 0;

  private constructor(
    readonly nodes: readonly ServerNode[],
    private readonly backends?: Program,
  ) {}

  /** One node, with an SQLite file in this folder. */
  static async start(folder: string, origin: string): Promise<Server> {
    const args = (address: string) => [`sqlite:///${folder}/gregor.db`, address, origin];
    const server = new Server([await ServerNode.onFreePorts(args)]);
    await server.start();
    return server;
  }

  /** Two nodes, with PostgreSQL and Redis. */
  static async startFleet(origin: string): Promise<Server> {
    const backends = new Program("tests.javascript.backends");
    const [store, pubsub] = JSON.parse(await backends.read()) as [string, string];
    const args = (address: string) => [store, address, origin, pubsub];
    const nodes = [await ServerNode.onFreePorts(args), await ServerNode.onFreePorts(args)];
    const server = new Server(nodes, backends);
    await server.start();
    return server;
  }

  /** Starts each node: the first one migrates the database. */
  async start(): Promise<void> {
    for (const node of this.nodes) await node.start();
  }

  /** Stops all of it gracefully, or kills the nodes. */
  async stop(signal?: NodeJS.Signals): Promise<void> {
    await Promise.all(this.nodes.map((node) => node.stop(signal)));
    if (signal === undefined) await this.backends?.end();
  }

  /** The address of a node. */
  get url(): string {
    return (this.nodes[0] as ServerNode).url;
  }

  /** The address of a node for operators. */
  get adminUrl(): string {
    return (this.nodes[0] as ServerNode).adminUrl;
  }

  /** Where its nodes listen. */
  get ports(): readonly number[] {
    return this.nodes.map(({ port }) => port);
  }

  /** Whether its clock can be set. PostgreSQL has its own, and a node refuses to differ from it. */
  get hasClock(): boolean {
    return this.backends === undefined;
  }

  /** Sets its clock ahead by some more seconds. */
  advance(seconds: number): void {
    this.#ahead += seconds;
    for (const node of this.nodes) node.setAhead(this.#ahead);
  }

  /** A token of a user, which the server accepts for some seconds. */
  token(user: string, seconds: number, role = "device"): string {
    const now = Date.now() / 1000;
    const expires = now + this.#ahead + seconds - LEEWAY_SECONDS;
    return signed({ sub: user, role, iat: Math.floor(now), exp: expires });
  }

  /** What the server answers to a service: lines of JSON. */
  async request(path: string, body?: unknown): Promise<readonly any[]> {
    const response = await fetch(`${this.url}/v1/${path}`, {
      method: body === undefined ? "GET" : "POST",
      headers: { Authorization: `Bearer ${this.token("tests", 3600, "service")}` },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${path}: ${response.status} ${text}`);
    return text.trim().split("\n").map((line) => JSON.parse(line));
  }
}

/** A real Python device. */
export class PythonDevice {
  readonly #program: Program;
  #last: Promise<unknown> = Promise.resolve();

  constructor(url: string, token: string, deviceId: string, file: string) {
    this.#program = new Program("tests.javascript.device", [url, token, deviceId, file]);
  }

  /** Calls a method of its client. */
  call(method: string, args: readonly unknown[] = [], options: object = {}): Promise<any> {
    const answer = this.#last.then(async () => {
      this.#program.write(JSON.stringify([method, args, options]));
      return JSON.parse(await this.#program.read()) as unknown;
    });
    this.#last = answer.catch(() => undefined);
    return answer;
  }

  async close(signal?: NodeJS.Signals): Promise<void> {
    await this.#program.end(signal);
  }
}

/** Waits until something is so. A failure to find out counts as no. */
export async function until(what: string, isSo: () => Promise<boolean>, seconds = 60): Promise<void> {
  const end = Date.now() + seconds * 1000;
  let failure: unknown;
  const isSoNow = (): Promise<boolean> => isSo().catch((error: unknown) => ((failure = error), false));
  while (!(await isSoNow())) {
    if (Date.now() > end) throw new Error(`not within ${seconds} s: ${what}`, { cause: failure });
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/**
 * A port on which nothing listens. It is below those that the system gives to clients and to who asks for any, so
 * that nobody has it before a server is started there, or while the server is down; and apart from those of the Python
 * tests, which run at the same time.
 */
export async function freePort(): Promise<number> {
  while (true) {
    const port = randomInt(11_000, 20_000);
    const listener = createServer().listen(port, "127.0.0.1");
    try {
      await once(listener, "listening");
    } catch {
      continue; // it is taken
    }
    listener.close();
    await once(listener, "close");
    return port;
  }
}

function signed(claims: object): string {
  const [head, body] = [{ alg: "HS256", typ: "JWT" }, claims].map((part) =>
    Buffer.from(JSON.stringify(part)).toString("base64url"),
  );
  const signature = createHmac("sha256", SECRET).update(`${head}.${body}`).digest("base64url");
  return `${head}.${body}.${signature}`;
}
