// Minifies the client in two steps: esbuild makes one file of it, and terser finds better names.

import { build } from "esbuild";
import { minify } from "terser";
import { bundleOptions } from "./options.js";

/** The code, and what each file adds to it, before terser.
 * @param {import("esbuild").BuildOptions} options */
export async function minified(options) {
  const bundle = { ...bundleOptions, ...options, metafile: true, write: false };
  const { outputFiles, metafile } = await build(bundle);
  // In a script, the name at the top is the global.
  const module = options.format === "esm";
  const { code } = await minify(outputFiles[0].text, { module, compress: { passes: 2 } });
  return { code, shares: Object.values(metafile.outputs)[0].inputs };
}
