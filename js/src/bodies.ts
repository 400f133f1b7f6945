/** The types of bodies, which an app may name by category or key. */

/** The body of this category or key; unknown if the app does not name it. */
export type BodyOf<Bodies, Name extends string> = Name extends keyof Bodies ? Bodies[Name] : unknown;

/** The bodies of the categories that may begin with a prefix; unknown if the app names none. */
export type BodyWithin<Bodies, Prefix extends string> = [NamesWithin<Bodies, Prefix>] extends [never]
  ? unknown
  : Bodies[NamesWithin<Bodies, Prefix>];

/** `chat.room7` is within `chat.`, and `chat.${string}` may be within `chat.room`. */
type NamesWithin<Bodies, Prefix extends string> = {
  [Name in keyof Bodies]: Name extends `${Prefix}${string}` ? Name : Prefix extends Name ? Name : never;
}[keyof Bodies];
