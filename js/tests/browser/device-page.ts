/** A page or worker with one device, as its address says. */

import { createGregor } from "../../src/index.js";

declare global {
  /** Given by the test. */
  var token: () => Promise<string>;
  var gregor: ReturnType<typeof createGregor>;
}

const { url, user, deviceId, token: given } = Object.fromEntries(new URLSearchParams(location.search)) as {
  url: string;
  user: string;
  deviceId: string;
  token?: string;
};
globalThis.gregor = createGregor({ url, user, deviceId, token: given ?? (() => token()) });
