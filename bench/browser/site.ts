/** The web site whose pages are measured. It also carries what a backend writes to the server. */

import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { json } from "node:stream/consumers";
import { scriptOf } from "./bundle.ts";
import { bodyOf, range } from "./items.ts";
import type { BackendWrite, ServerSystem } from "./systems.ts";

const page = (script: string): string =>
  `<!doctype html><meta charset="utf-8"><title>bench</title><body><script type="module" src="${script}"></script>`;

/** Serves `/NAME`, its script `/NAME.js`, `/items/COUNT` for the bare browser, and takes
 * `/write/NAME?user=…` for the server of a system. */
export async function serve(port: number, pages: readonly string[], systems: readonly ServerSystem[]): Promise<Server> {
  const scripts = new Map<string, string>();
  for (const name of pages) scripts.set(`/${name}.js`, await scriptOf(name));

  async function write(request: IncomingMessage, url: URL): Promise<void> {
    const name = url.pathname.replace("/write/", "").replace("-react", "");
    const system = systems.find((each) => each.name === name);
    await system?.write(url.searchParams.get("user") ?? "", (await json(request)) as BackendWrite);
  }

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? "/", "http://127.0.0.1");
    const [, kind, argument] = url.pathname.split("/");
    const script = scripts.get(url.pathname);
    if (script) response.setHeader("Content-Type", "text/javascript").end(script);
    else if (kind === "write") response.end(await write(request, url));
    else if (kind === "items") response.end(JSON.stringify(range(Number(argument)).map(bodyOf)));
    else response.setHeader("Content-Type", "text/html").end(page(`${url.pathname}.js`));
  }

  const server = createServer((request, response) => {
    answer(request, response).catch((error: unknown) => response.writeHead(500).end(String(error)));
  });
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  return server;
}
