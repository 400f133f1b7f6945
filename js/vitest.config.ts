import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["tests/**/*.test.{ts,tsx}"],
    exclude: ["tests/browser/**", "node_modules/**"],
    // None waits without an end, and none fails because the machine is busy.
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});
