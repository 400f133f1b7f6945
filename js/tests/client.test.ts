import { expect, test } from "vitest";
import { TestServer } from "../src/testing/index.js";

test("what is written offline shows at once, and is sent when there is a network", async () => {
  const server = new TestServer();
  const phone = server.device("alice");
  await phone.goOffline();
  const gregor = await phone.open();
  const written = gregor.put("theme", "dark");
  expect(gregor.get("theme")?.body).toBe("dark");
  await written;
  expect(gregor.status).toMatchObject({ online: false, unsent: 1, lastError: { code: "unavailable" } });
  await phone.goOnline();
  expect(gregor.status).toMatchObject({ online: true, synced: true, unsent: 0, lastError: null });
  const laptop = await server.device("alice").open();
  expect(laptop.items().map(({ body }) => body)).toEqual(["dark"]);
});
