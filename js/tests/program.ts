import { spawn, type ChildProcessByStdio } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";

const ROOT = join(import.meta.dirname, "../..");

/** A Python module of this repository, which runs. It ends when its stdin does, so that none outlives a test. */
export class Program {
  readonly #process: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines: AsyncIterator<string>;

  constructor(module: string, args: readonly string[] = [], variables: NodeJS.ProcessEnv = {}) {
    this.#process = spawn("python", ["-m", module, ...args], {
      cwd: ROOT,
      env: { ...process.env, ...variables },
      stdio: ["pipe", "pipe", "inherit"],
    });
    this.#lines = createInterface(this.#process.stdout)[Symbol.asyncIterator]();
  }

  write(line: string): void {
    this.#process.stdin.write(`${line}\n`);
  }

  async read(): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error("the Python program has ended");
    return value as string;
  }

  /** What the work results in. Fails as soon as the program ends before it. */
  async whileItRuns<T>(work: Promise<T>): Promise<T> {
    const stop = new AbortController();
    const ended = once(this.#process, "exit", { signal: stop.signal }).then(() => {
      throw new Error(`the Python program has ended: ${this.#process.spawnargs.join(" ")}`);
    });
    try {
      return await Promise.race([work, ended]);
    } finally {
      stop.abort();
    }
  }

  /** Ends the program: gracefully, or by a signal. */
  async end(signal?: NodeJS.Signals): Promise<void> {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    const exited = once(this.#process, "exit");
    if (signal === undefined) this.#process.stdin.end();
    else this.#process.kill(signal);
    await exited;
  }
}
