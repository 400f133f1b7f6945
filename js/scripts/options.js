// How the client is minified: private members begin with an underscore, and are renamed.

export const bundleOptions = {
  bundle: true,
  minify: true,
  mangleProps: /^_/,
  target: "es2022",
  legalComments: "none",
  logLevel: "warning",
};
