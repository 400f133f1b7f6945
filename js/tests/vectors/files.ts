/** The vectors of spec/vectors, which all languages share. */

import { readFileSync } from "node:fs";

export interface Case {
  readonly name: string;
  readonly steps: readonly { readonly in: Readonly<Record<string, any>>; readonly out: unknown }[];
}

export const vectors = (name: string): any =>
  JSON.parse(readFileSync(new URL(`../../../spec/vectors/${name}.json`, import.meta.url), "utf8"));
