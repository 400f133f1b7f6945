// Prints the size of the client, minified and compressed, and what each file adds to it before
// compression. Exits with 1 if it is over its budget.

import { gzipSync } from "node:zlib";
import { existsSync } from "node:fs";
import { build } from "esbuild";
import { bundleOptions } from "./options.js";

const BUDGETS = { "src/index.ts": 8_000, "src/react/index.ts": 9_500 };

let isOver = false;
for (const [entry, budget] of Object.entries(BUDGETS)) {
  if (!existsSync(entry)) continue;
  const { outputFiles, metafile } = await build({
    ...bundleOptions,
    entryPoints: [entry],
    external: ["react"],
    format: "esm",
    metafile: true,
    write: false,
  });
  const size = gzipSync(outputFiles[0].contents, { level: 9 }).length;
  isOver ||= size > budget;
  console.log(`${entry}: ${size} bytes of ${budget}, minified and gzipped`);
  const [output] = Object.values(metafile.outputs);
  const shares = Object.entries(output.inputs).map(([file, { bytesInOutput }]) => [bytesInOutput, file]);
  for (const [bytes, file] of shares.sort(([a], [b]) => b - a)) {
    console.log(`  ${String(bytes).padStart(6)}  ${file}`);
  }
}
process.exitCode = isOver ? 1 : 0;
