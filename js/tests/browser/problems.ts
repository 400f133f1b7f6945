import type { BrowserContext } from "playwright-core";

/** What the browser itself says about a network that fails, which no page can prevent. */
const NETWORK = /^Failed to load resource|^WebSocket connection to|net::ERR_/;

/**
 * What goes wrong in the pages of a profile: exceptions and rejections that nobody handles, and what
 * is logged as an error.
 */
export function problemsOf(context: BrowserContext): readonly string[] {
  const problems: string[] = [];
  context.on("weberror", (error) => problems.push(String(error.error().stack)));
  context.on("console", (message) => {
    if (message.type() === "error" && !NETWORK.test(message.text())) problems.push(message.text());
  });
  return problems;
}
