/** The Python processes that a test talks to: a real server, and a real Python device. */

import { createHmac } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";
import { Program } from "../program.js";

const SECRET = "a secret of tests, which has 32 bytes";
const LEEWAY_SECONDS = 30; // for which a server accepts an expired token

/** A real server on a free port with an SQLite file, which is stopped, killed and started again. */
export class Server {
  #program: Program | undefined;
  #ahead = 0;

  private constructor(
    private readonly folder: string,
    private readonly origin: string,
    readonly port: number,
  ) {}

  /** A server for the pages of this origin. */
  static async start(folder: string, origin: string): Promise<Server> {
    const server = new Server(folder, origin, await freePort());
    await server.start();
    return server;
  }

  async start(): Promise<void> {
    const args = [`sqlite:///${this.folder}/gregor.db`, `127.0.0.1:${this.port}`, this.origin];
    this.#program = new Program("tests.javascript.server", args, { GREGOR_JWT_SECRET: SECRET });
    this.#program.write(String(this.#ahead));
    await until("the server is ready", async () => (await fetch(`${this.url}/readyz`)).ok);
  }

  /** Stops it gracefully, or kills it. */
  async stop(signal?: NodeJS.Signals): Promise<void> {
    await this.#program?.end(signal);
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Sets its clock ahead by some more seconds. */
  advance(seconds: number): void {
    this.#ahead += seconds;
    this.#program?.write(String(this.#ahead));
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

export async function freePort(): Promise<number> {
  const listener = createServer().listen(0, "127.0.0.1");
  await once(listener, "listening");
  const { port } = listener.address() as { port: number };
  listener.close();
  await once(listener, "close");
  return port;
}

function signed(claims: object): string {
  const [head, body] = [{ alg: "HS256", typ: "JWT" }, claims].map((part) =>
    Buffer.from(JSON.stringify(part)).toString("base64url"),
  );
  const signature = createHmac("sha256", SECRET).update(`${head}.${body}`).digest("base64url");
  return `${head}.${body}.${signature}`;
}
