import { defaultEnvironment } from "../../src/environment.js";
import { openStore } from "../../src/stores/indexeddb.js";
import { runStoreCase, STORE_CASES } from "../stores/cases.js";

declare global {
  /** Runs the conformance case of this name in the IndexedDB of this page. */
  var runCase: (name: string) => Promise<void>;
}

globalThis.runCase = async (name) => {
  const storeCase = STORE_CASES.find((each) => each.name === name);
  if (storeCase === undefined) throw new Error(`no case ${name}`);
  const onLost = (error: Error): void => console.error(error);
  await runStoreCase(storeCase, () => openStore(name, defaultEnvironment(), onLost));
};
