// The bundle for a <script> tag: one minified file, whose global is `gregor`.

import { build } from "esbuild";
import { bundleOptions } from "./options.js";

await build({
  ...bundleOptions,
  entryPoints: ["src/index.ts"],
  format: "iife",
  globalName: "gregor",
  outfile: "dist/gregor.min.js",
});
