/**
 * What the body of a notification may hold: section 3 of `spec/inbox.md`.
 *
 * A few fields mean the same in every app; all others are the app's own. A sender is refused what
 * is invalid. A device leaves it out, since what it receives may have been written by anyone.
 */

import { isText } from "./arguments.js";

/** A button of a notification. It has an `id`, a `url`, or both. */
export interface NotificationAction {
  readonly label: string;
  readonly id?: string;
  readonly url?: string;
  readonly [name: string]: unknown;
}

/** The fields that mean the same in every app, and those of the app. */
export interface NotificationFields {
  readonly title?: string;
  readonly text?: string;
  readonly url?: string;
  readonly icon?: string;
  readonly severity?: "info" | "success" | "warning" | "error";
  readonly actions?: readonly NotificationAction[];
  readonly [name: string]: unknown;
}

export type Fields = Readonly<Record<string, unknown>>;
export type Checks = Readonly<Record<string, (value: unknown) => boolean>>;

const text =
  (limit: number) =>
  (value: unknown): value is string =>
    isText(value, limit);

// A browser ignores tabs and line ends in a URL, and takes a backslash for a slash: with them, what
// looks like a path can be a script or another host.
const URL = /^(?![^]*[\0- \x7f\\])(https?:\/\/[^/?#:@]|(?!\/\/)[^:/?#]*([/?#]|$))/i;

const url = (value: unknown): boolean => text(2_048)(value) && URL.test(value);

export const isObject = (value: unknown): value is Fields =>
  Object(value) === value && !Array.isArray(value);

/** Whether the fields of an object pass these checks. It may have other fields, and lack any. */
export const fits = (value: Fields, checks: Checks): boolean =>
  Object.entries(checks).every(([name, check]) => !(name in value) || check(value[name]));

export const ACTION_FIELDS: Checks = { label: text(255), id: text(64), url };

const isAction = (value: unknown): value is Fields =>
  isObject(value) && fits(value, ACTION_FIELDS) && "label" in value && ("id" in value || "url" in value);

/** Whether it is a list of actions, no two of which have the same id. */
export const areActions = (value: unknown): boolean =>
  Array.isArray(value) &&
  value.length < 9 &&
  value.every(
    (action, place) =>
      isAction(action) && (!("id" in action) || value.findIndex(({ id }) => id === action["id"]) === place),
  );

export const FIELDS: Checks = {
  title: text(1_024),
  text: text(16_384),
  url,
  icon: url,
  severity: (value) => ["info", "success", "warning", "error"].includes(value as string),
  actions: areActions,
};

/** What a device may show of a body: all fields but those that are invalid. */
export const validFields = (body: unknown): NotificationFields =>
  Object.fromEntries(
    Object.entries(isObject(body) ? body : {}).filter(([name, value]) => fits({ [name]: value }, FIELDS)),
  );
