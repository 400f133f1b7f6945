// @vitest-environment happy-dom
/** The code of the README runs as it stands there. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { transformSync } from "esbuild";
import * as React from "react";
import { createRoot } from "react-dom/client";
import { expect, test } from "vitest";
import * as hooks from "../src/react/index.js";
import { TestServer } from "../src/testing/index.js";

const readme = readFileSync(join(import.meta.dirname, "../README.md"), "utf8");

/** The first code of a language below a heading that begins like this. */
function codeBelow(heading: string, language: string): string {
  const section = readme.slice(readme.indexOf(`\n## ${heading}`) + 1);
  const [, code] = new RegExp(`\`\`\`${language}\n(.*?)\`\`\``, "s").exec(section) ?? [];
  expect(code, heading).toBeDefined();
  return code ?? "";
}

/** Runs code that imports from this package, with what it imports, and returns what it exports. */
function run(code: string, names: object): Record<string, unknown> {
  const { code: script } = transformSync(code.replace(/^import .*;$/gm, ""), { loader: "tsx", format: "cjs" });
  const module = { exports: {} };
  new Function("module", ...Object.keys(names), script)(module, ...Object.values(names));
  return module.exports;
}

test("the page of fifteen lines is the example", () => {
  const page = codeBelow("A page of fifteen lines", "html");
  expect(page).toBe(readFileSync(join(import.meta.dirname, "../../examples/badge.html"), "utf8"));
  expect(page.trim().split("\n").length).toBeLessThanOrEqual(15);
});

test("the components show what the device has, and change it", async () => {
  Object.assign(globalThis, { IS_REACT_ACT_ENVIRONMENT: true });
  const { App } = run(codeBelow("React:", "tsx"), { ...hooks, React }) as { App: React.FC<{ options: object }> };
  const server = new TestServer();
  const container = document.createElement("div");
  const root = createRoot(container);
  const happens = (what: () => unknown) =>
    React.act(async () => {
      await what();
      await server.settled();
    });
  await happens(() => root.render(React.createElement(App, { options: server.device("alice").options })));
  await happens(() => server.notify("alice", "likes", { title: "Ann liked your photo" }));
  expect(container.textContent).toBe("1Ann liked your photolight");
  await happens(() => container.querySelector("button")?.click());
  await happens(() => container.querySelector("i")?.click());
  expect(container.textContent).toBe("0Ann liked your photodark");
  expect(server.items("alice").map((item) => item.category)).toEqual(["inbox.likes", "settings.theme"]);
  await happens(() => root.unmount());
});

run(codeBelow("Tests of your app", "ts"), { TestServer, test, expect });
