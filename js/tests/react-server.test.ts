/** Rendering where there is no window. */

import { createElement } from "react";
import { renderToString } from "react-dom/server";
import { expect, test, vi } from "vitest";
import { createGregor } from "../src/client.js";
import { GregorProvider, useCount, useGregor, useInbox, useItems, useValue } from "../src/react/index.js";

const Page = () =>
  [useCount(), useItems("chat.").length, useInbox().length, useValue("theme"), typeof useGregor()].map(String).join();

const options = { url: "http://127.0.0.1:9", user: "alice", token: "alice" };

test("a server renders what a new device shows, and connects to nothing", () => {
  expect(typeof window).toBe("undefined");
  const WebSocket = vi.spyOn(globalThis, "WebSocket");
  const fetch = vi.spyOn(globalThis, "fetch");
  expect(renderToString(createElement(GregorProvider, { options }, createElement(Page)))).toBe(
    "0,0,0,undefined,undefined",
  );
  expect([WebSocket, fetch].map((each) => each.mock.calls)).toEqual([[], []]);
});

test("a server renders the same with a client of its own", async () => {
  const client = createGregor(options);
  expect(renderToString(createElement(GregorProvider, { client }, createElement(Page)))).toBe(
    "0,0,0,undefined,object",
  );
  await client.close();
});
