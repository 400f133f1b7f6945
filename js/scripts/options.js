// How the client is minified: private members begin with an underscore, and are renamed.

/** @satisfies {import("esbuild").BuildOptions} */
export const bundleOptions = {
  bundle: true,
  minify: true,
  mangleProps: /^_/,
  target: "es2022",
  legalComments: "none",
  logLevel: "warning",
};
