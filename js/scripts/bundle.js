// The bundle for a <script> tag: one minified file, whose global is `gregor`.

import { writeFile } from "node:fs/promises";
import { minified } from "./minified.js";

const { code } = await minified({ entryPoints: ["src/index.ts"], format: "iife", globalName: "gregor" });
await writeFile("dist/gregor.min.js", code);
