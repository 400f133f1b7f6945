import { afterEach, expect, test, vi } from "vitest";
import { browserEnvironment } from "../src/environment.js";

afterEach(() => {
  vi.unstubAllGlobals();
});

test("where there is no window, as on a server, nothing fails and nothing is heard", () => {
  for (const name of ["WebSocket", "BroadcastChannel", "navigator"]) vi.stubGlobal(name, undefined);
  const { listen, isVisible, ...environment } = browserEnvironment();
  expect(isVisible()).toBe(true);
  expect(listen("online", () => expect.fail())()).toBeUndefined();
  const { WebSocket, indexedDB, storage, locks, BroadcastChannel } = environment;
  for (const part of [WebSocket, indexedDB, storage, locks, BroadcastChannel]) expect(part).toBeUndefined();
});

test("events of the document are heard, too, though they do not bubble, until that is ended", () => {
  const listeners = new Set<string>();
  vi.stubGlobal("addEventListener", (...[type, , capture]: unknown[]) => listeners.add(`${type} ${capture}`));
  vi.stubGlobal("removeEventListener", (...[type, , capture]: unknown[]) => listeners.delete(`${type} ${capture}`));
  const end = browserEnvironment().listen("freeze", () => {});
  expect([...listeners]).toEqual(["freeze true"]); // captured
  end();
  expect([...listeners]).toEqual([]);
});

test("a page in the background is not visible", () => {
  const document = { visibilityState: "visible" };
  vi.stubGlobal("document", document);
  const { isVisible } = browserEnvironment();
  expect(isVisible()).toBe(true);
  document.visibilityState = "hidden";
  expect(isVisible()).toBe(false);
});

test("chance is at least 0 and below 1", () => {
  const { random } = browserEnvironment();
  vi.stubGlobal("crypto", { getRandomValues: (numbers: Uint32Array) => numbers.fill(0xffffffff) });
  expect(random()).toBeLessThan(1);
  vi.stubGlobal("crypto", { getRandomValues: (numbers: Uint32Array) => numbers.fill(0) });
  expect(random()).toBe(0);
});
