import { Program } from "../program.js";
import type { Action } from "./histories.js";

/** What goes into a device, and what comes out of it. */
export interface Step {
  readonly in: { readonly now: number };
  readonly out: unknown;
}

/** The Python client, as a process that says what it does in a history. */
export class Oracle {
  readonly #program = new Program("tests.javascript.oracle");

  async steps(history: readonly Action[]): Promise<readonly Step[]> {
    this.#program.write(JSON.stringify(history));
    return JSON.parse(await this.#program.read()) as readonly Step[];
  }

  close(): Promise<void> {
    return this.#program.end();
  }
}
