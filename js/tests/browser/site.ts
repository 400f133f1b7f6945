import { once } from "node:events";
import { createServer, type Server as Listener } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { minified } from "../../scripts/minified.js";

const PAGE = '<!doctype html><meta charset="utf-8"><title>test</title><script src="/page.js"></script>';

/** A web site of one page, whose script is bundled and minified like the client for a script tag.
 * A page may run the script in a worker, too. */
export class Site {
  readonly origin: string;

  private constructor(private readonly listener: Listener) {
    this.origin = `http://127.0.0.1:${(listener.address() as AddressInfo).port}`;
  }

  static async serve(script: string): Promise<Site> {
    const entry = join(import.meta.dirname, script);
    const { code } = await minified({ entryPoints: [entry], format: "iife" });
    const listener = createServer(({ url }, response) => {
      const isScript = url?.startsWith("/page.js");
      response.setHeader("Content-Type", isScript ? "text/javascript" : "text/html");
      response.end(isScript ? code : PAGE);
    }).listen(0, "127.0.0.1");
    await once(listener, "listening");
    return new Site(listener);
  }

  close(): void {
    this.listener.closeAllConnections();
    this.listener.close();
  }
}
