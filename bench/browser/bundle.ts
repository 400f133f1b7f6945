/** Pages, and the sizes of clients, as esbuild makes them. */

import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { build, type BuildOptions } from "esbuild";
import { bundleOptions } from "../../js/scripts/options.js";

const HERE = import.meta.dirname;
const JS = join(HERE, "../../js");

/** Private members are renamed in Gregor, where they begin with `_`, and nowhere else. */
const optionsOf = (isGregor: boolean): BuildOptions => {
  const { mangleProps, ...options } = bundleOptions;
  return {
    ...options,
    ...(isGregor && { mangleProps }),
    alias: {
      "gregor-sync": join(JS, "src/index.ts"),
      "gregor-sync/react": join(JS, "src/react/index.ts"),
    },
    define: { "process.env.NODE_ENV": '"production"' },
    format: "esm",
    jsx: "automatic",
    nodePaths: [join(JS, "node_modules")],
    write: false,
  };
};

const contents = async (options: BuildOptions): Promise<Uint8Array> =>
  (await build({ ...options, write: false })).outputFiles[0]!.contents;

/** The script of a page in `pages/`. */
export async function scriptOf(page: string): Promise<Uint8Array> {
  const isReact = page.endsWith("-react"); // React has names with an underscore that others read
  const entry = join(HERE, "pages", `${page}.${isReact ? "tsx" : "ts"}`);
  return contents({ ...optionsOf(page === "gregor"), entryPoints: [entry] });
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
  const script = await contents({
    ...optionsOf(client.startsWith("gregor")),
    stdin: { contents: CLIENTS[client], resolveDir: HERE },
    external: ["react", "react/jsx-runtime"],
  });
  return gzipSync(script, { level: 9 }).length;
}
