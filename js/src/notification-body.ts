/**
 * What the body of a notification may hold: section 3 of `spec/inbox.md`.
 *
 * A few fields mean the same in every app; all others are the app's own. A sender is refused what
 * is invalid. A device leaves it out, since what it receives may have been written by anyone.
 */

import * as given from "./arguments.js";

/** Says where a value is invalid: the path inside it (empty: the value itself); undefined if it is
 * valid. */
type Check = (value: unknown) => string | undefined;

const is =
  (test: (value: unknown) => boolean): Check =>
  (value) =>
    test(value) ? undefined : "";

const text = (limit: number): Check =>
  is((value) => {
    try {
      return given.text("", value, limit), true;
    } catch {
      return false;
    }
  });

// A browser ignores tabs and line ends in a URL, and takes a backslash for a slash: with them, what
// looks like a path can be a script or another host.
const NEVER_IN_A_URL = /[\0- \x7f\\]/;
const ABSOLUTE_OR_RELATIVE = /^(https?:\/\/[^/?#:@]|(?!\/\/)[^:/?#]*([/?#]|$))/i;

const url: Check = (value) =>
  text(2_048)(value) ??
  is(() => ABSOLUTE_OR_RELATIVE.test(value as string) && !NEVER_IN_A_URL.test(value as string))(value);

const severity = is((value) => ["info", "success", "warning", "error"].includes(value as string));

type Fields = Readonly<Record<string, unknown>>;

const isObject = (value: unknown): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** An object whose fields pass these checks. It may have other fields, and lack any. */
const object =
  (checks: Readonly<Record<string, Check>>): Check =>
  (value) => {
    if (!isObject(value)) return "";
    for (const [name, check] of Object.entries(checks)) {
      const at = name in value ? check(value[name]) : undefined;
      if (at !== undefined) return `.${name}${at}`;
    }
    return undefined;
  };

const actionFields = object({ label: text(255), id: text(64), url });

/** One action. `ids` are those of the actions before it, and get its own. */
function action(value: unknown, ids: Set<unknown>): string | undefined {
  const at = actionFields(value);
  if (at !== undefined) return at;
  const { label, id, url } = value as Fields;
  if (label === undefined) return ".label";
  if (id === undefined) return url === undefined ? "" : undefined;
  return ids.size < ids.add(id).size ? undefined : ".id";
}

const actions: Check = (value) => {
  if (!Array.isArray(value) || value.length > 8) return "";
  const ids = new Set<unknown>();
  for (const [number, each] of value.entries()) {
    const at = action(each, ids);
    if (at !== undefined) return `[${number}]${at}`;
  }
  return undefined;
};

/** Where the body of a notification is invalid, such as `.actions[1].label`. */
export const whereInvalid: Check = object({
  title: text(1_024),
  text: text(16_384),
  url,
  icon: url,
  severity,
  actions,
});

/** What a device may show of a body: all fields but those that are invalid. */
export const validFields = (body: unknown): Fields =>
  Object.fromEntries(
    Object.entries(isObject(body) ? body : {}).filter(
      ([name, value]) => whereInvalid({ [name]: value }) === undefined,
    ),
  );
