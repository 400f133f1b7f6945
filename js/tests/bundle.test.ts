/** The bundle for a `<script>` tag. */

import { join } from "node:path";
import { createContext, runInContext } from "node:vm";
import { expect, test } from "vitest";
import { minified } from "../scripts/minified.js";

test("gives the page one global, gregor, with what the package exports", async () => {
  const entryPoints = [join(import.meta.dirname, "../src/index.ts")];
  const { code } = await minified({ entryPoints, format: "iife", globalName: "gregor" });
  const page = createContext({ TextEncoder });
  runInContext(code ?? "", page);
  expect(Object.keys(page)).toEqual(["TextEncoder", "gregor"]);
  expect(typeof page["gregor"].createGregor).toBe("function");
});
