/** Pages, and the sizes of clients: all of them minified as Gregor is. */

import { join } from "node:path";
import { gzipSync } from "node:zlib";
import type { BuildOptions } from "esbuild";
import { minified } from "../../js/scripts/minified.js";

const HERE = import.meta.dirname;
const JS = join(HERE, "../../js");

/** Private members begin with `_` in Gregor, and are renamed there. */
const scriptWith = async (options: BuildOptions, isGregor: boolean): Promise<string> => {
  const { code } = await minified({
    ...options,
    ...(!isGregor && { mangleProps: undefined }),
    alias: {
      "gregor-sync": join(JS, "src/index.ts"),
      "gregor-sync/react": join(JS, "src/react/index.ts"),
    },
    define: { "process.env.NODE_ENV": '"production"' },
    format: "esm",
    jsx: "automatic",
    nodePaths: [join(JS, "node_modules")],
  } as BuildOptions);
  return code ?? "";
};

/** The script of a page in `pages/`. */
export function scriptOf(page: string): Promise<string> {
  const isReact = page.endsWith("-react"); // React has names with an underscore that others read
  const entry = join(HERE, "pages", `${page}.${isReact ? "tsx" : "ts"}`);
  return scriptWith({ entryPoints: [entry] }, page === "gregor");
}

const TINYBASE = `
  export { createMergeableStore } from "tinybase/mergeable-store";
  export { createIndexedDbPersister } from "tinybase/persisters/persister-indexed-db";
  export { createWsSynchronizer } from "tinybase/synchronizers/synchronizer-ws-client";`;

/** What a page imports of each system. */
const CLIENTS = {
  gregor: 'export { createGregor } from "gregor-sync"',
  "gregor with React": 'export * from "gregor-sync/react"; export { createGregor } from "gregor-sync"',
  tinybase: TINYBASE,
  "tinybase with React": `${TINYBASE}
    export { Provider, useCell, useRowCount, useRowIds, useValue } from "tinybase/ui-react";`,
  centrifuge: 'export { Centrifuge } from "centrifuge"',
} as const;

export type Client = keyof typeof CLIENTS;

/** The bytes of a client, minified and compressed, without React itself. */
export async function sizeOf(client: Client): Promise<number> {
  const options: BuildOptions = {
    stdin: { contents: CLIENTS[client], resolveDir: HERE },
    external: ["react", "react/jsx-runtime"],
  };
  return gzipSync(await scriptWith(options, client.startsWith("gregor")), { level: 9 }).length;
}
