// Builds the React example into one page: examples/react/dist/index.html.

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { build } from "esbuild";
import { bundleOptions } from "./options.js";

const JS = join(import.meta.dirname, "..");
const EXAMPLE = join(JS, "../examples/react");

const { outputFiles } = await build({
  ...bundleOptions,
  mangleProps: undefined, // React has names with an underscore that others read
  entryPoints: [`${EXAMPLE}/app.tsx`],
  alias: { "gregor-sync/react": join(JS, "src/react/index.ts") },
  define: { "process.env.NODE_ENV": '"production"' },
  format: "esm",
  jsx: "automatic",
  nodePaths: [join(JS, "node_modules")],
  write: false,
});
// In a page, the text of a script must not hold what would end it.
const script = outputFiles[0].text.replaceAll("</script", "<\\/script");
const page = await readFile(`${EXAMPLE}/page.html`, "utf8");
await mkdir(`${EXAMPLE}/dist`, { recursive: true });
await writeFile(`${EXAMPLE}/dist/index.html`, page.replace("/* app.tsx */", () => script));
