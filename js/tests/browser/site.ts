import { join } from "node:path";
import { build } from "esbuild";
import type { BrowserContext } from "playwright-core";
import { bundleOptions } from "../../scripts/options.js";

const PAGE = '<!doctype html><meta charset="utf-8"><title>test</title><script src="/page.js"></script>';

/**
 * A web site of one page, whose script is bundled and minified like the client for a script tag.
 * The browser has it also while it is offline, as from a service worker.
 */
export class Site {
  readonly url = "http://127.0.0.1/";

  private constructor(private readonly script: string) {}

  static async of(script: string): Promise<Site> {
    const { outputFiles } = await build({
      ...bundleOptions,
      entryPoints: [join(import.meta.dirname, script)],
      format: "iife",
      write: false,
    });
    return new Site(outputFiles?.[0]?.text ?? "");
  }

  async appearIn(context: BrowserContext): Promise<void> {
    await context.route(`${this.url}**`, (route) =>
      new URL(route.request().url()).pathname === "/page.js"
        ? route.fulfill({ contentType: "text/javascript", body: this.script })
        : route.fulfill({ contentType: "text/html", body: PAGE }),
    );
  }
}
