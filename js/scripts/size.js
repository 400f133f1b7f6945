// Prints the size of the client, minified and compressed, and what each file adds to it before
// compression. Exits with 1 if it is over its budget.

import { gzipSync } from "node:zlib";
import { minified } from "./minified.js";

const BUDGETS = { "src/index.ts": 18_790, "src/react/index.ts": 19_310 };

for (const [entry, budget] of Object.entries(BUDGETS)) {
  const { code, shares } = await minified({ entryPoints: [entry], external: ["react"], format: "esm" });
  const size = gzipSync(code, { level: 9 }).length;
  if (size > budget) process.exitCode = 1;
  console.log(`${entry}: ${size} bytes of ${budget}, minified and gzipped`);
  const files = Object.entries(shares).map(([file, { bytesInOutput }]) => [bytesInOutput, file]);
  for (const [bytes, file] of files.sort(([a], [b]) => b - a)) {
    console.log(`  ${String(bytes).padStart(6)}  ${file}`);
  }
}
