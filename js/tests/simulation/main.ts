/**
 * The browsers of a simulation that runs in Python (`tests/simulation/browsers.py`), which is their
 * people, their network and their time.
 *
 * A line on stdin is a JSON array: what happens to which browser at what time. The line on stdout
 * that answers it says what has come of it, once nothing more happens before the browser's next
 * timer. So a simulation is the same each time.
 */

import { createInterface } from "node:readline";
import { Random } from "../random.js";
import { SimulatedBrowser } from "./simulated-browser.js";

type Question =
  /** A device of a user is a browser. It replaces that of an earlier simulation. */
  | readonly ["browser", browser: string, user: string, deviceId: string, seed: number]
  /** A method of the browser is called, at this many milliseconds. */
  | readonly ["call", browser: string, time: number, method: string, ...args: unknown[]];

let random = new Random(0);
const browsers = new Map<string, SimulatedBrowser>();
/** Errors that nobody has caught. */
const uncaught: string[] = [];

for (const event of ["uncaughtException", "unhandledRejection"]) {
  process.on(event, (error: unknown) => uncaught.push((error as Error).stack ?? String(error)));
}

// The ids that a browser makes follow from its seed.
Object.defineProperty(globalThis, "crypto", {
  value: { getRandomValues: (words: Uint32Array) => words.map(() => random.below(2 ** 32)) },
});

async function answer(question: Question): Promise<object> {
  switch (question[0]) {
    case "browser": {
      const [, name, user, deviceId, seed] = question;
      browsers.set(name, new SimulatedBrowser(new Random(seed), user, deviceId));
      return {};
    }
    case "call": {
      const [, name, time, method, ...args] = question;
      const browser = browsers.get(name) as SimulatedBrowser;
      random = browser.random;
      return { ...(await browser.call(time, method, args)), uncaught: uncaught.splice(0) };
    }
  }
}

for await (const line of createInterface(process.stdin)) {
  process.stdout.write(`${JSON.stringify(await answer(JSON.parse(line)))}\n`);
}
