// Runs `main.ts`, which Node cannot read, until stdin ends: see there.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";

const folder = mkdtempSync(join(tmpdir(), "gregor-simulation-"));
const outfile = join(folder, "main.mjs");
try {
  await build({
    entryPoints: [join(import.meta.dirname, "main.ts")],
    outfile,
    bundle: true,
    platform: "node",
    format: "esm",
    target: "node20",
    sourcemap: "inline",
    logLevel: "warning",
  });
  await import(outfile);
} finally {
  rmSync(folder, { recursive: true });
}
