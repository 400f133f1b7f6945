import { defineConfig } from "vitest/config";

/** Tests in a real browser: one after another, since each has several pages and processes. */
export default defineConfig({
  cacheDir: "../../node_modules/.vite",
  test: {
    root: import.meta.dirname,
    include: ["*.test.ts"],
    fileParallelism: false,
    testTimeout: 180_000,
    hookTimeout: 180_000,
  },
});
