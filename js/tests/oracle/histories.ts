/** Random histories of one device and its node, for the oracle (tests/javascript/oracle.py). */

import fc from "fast-check";

export type Action = readonly [name: string, ...args: readonly unknown[]];

const SECOND = 1_000_000;

const id = fc.nat(9).map((number) => `m${number}`);
/** The last three are in another order by code points, which is that of bytes, than by UTF-16. */
const category = fc.constantFrom("chat", "chat.room", "theme", "chat\u00e4", "chat\uff5e", "chat\u{1d306}");
const key = fc.constantFrom("k", "l");
const scope = fc.constantFrom(undefined, undefined, "phone", "laptop");
const seconds = fc.constantFrom(0.5, 1, 2, 70);

const offset = (...values: readonly number[]) =>
  fc.constantFrom(...values.map((value) => ({ offset: value * SECOND })));
const optional = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined, freq: 2 });

const creation = fc.record({
  category,
  body: fc.constantFrom(null, 1, "x", { a: [1.5] }, "\u00e4\u{1d306}"),
  starts: optional(offset(1)),
  expires: optional(offset(2, 3600)),
  key: optional(key),
});
const range = fc.record({
  category,
  prefix: optional(fc.constant(true)),
  scheduled: optional(fc.constant(true)),
  end_time: optional(offset(-1, 0, 1)),
  skip_msg_ids: optional(fc.uniqueArray(id, { minLength: 1, maxLength: 2 })),
});
const dismissal = fc
  .record({
  msg_ids: optional(fc.uniqueArray(id, { minLength: 1, maxLength: 2 })),
  ranges: optional(fc.array(range, { minLength: 1, maxLength: 2 })),
  keys: optional(
    fc.array(fc.record({ key, end_time: optional(offset(-1, 0, 1)) }), { minLength: 1, maxLength: 2 }),
  ),
})
  .filter((parts) => Object.values(parts).some((part) => part !== undefined));
const message = fc.oneof(
  { weight: 4, arbitrary: fc.record({ msg_id: id, device_id: scope, creation }) },
  { weight: 2, arbitrary: fc.record({ msg_id: id, device_id: scope, dismissal }) },
  { weight: 1, arbitrary: fc.record({ msg_id: id, device_id: scope, creation, dismissal }) },
);

const action: fc.Arbitrary<Action> = fc.oneof(
  { weight: 6, arbitrary: fc.tuple(fc.constant("write"), message) },
  {
    weight: 6,
    arbitrary: fc.tuple(fc.constant("backend"), fc.array(message, { minLength: 1, maxLength: 3 })),
  },
  { weight: 6, arbitrary: fc.constant<Action>(["deliver"]) },
  { weight: 3, arbitrary: fc.constant<Action>(["connect"]) },
  { weight: 2, arbitrary: fc.constantFrom<Action>(["lose"], ["disconnect"], ["restart"]) },
  { weight: 1, arbitrary: fc.constantFrom<Action>(["erase"], ["begin_again"], ["backup"]) },
  { weight: 2, arbitrary: fc.tuple(fc.constant("wait"), seconds) },
  { weight: 1, arbitrary: fc.tuple(fc.constant("look_back"), seconds) },
  { weight: 2, arbitrary: fc.tuple(fc.constantFrom("hide", "discard"), id) },
  { weight: 1, arbitrary: fc.tuple(fc.constant("get"), key) },
  { weight: 2, arbitrary: fc.tuple(fc.constant("snooze"), id, seconds, id) },
  { weight: 1, arbitrary: fc.tuple(fc.constant("dismiss_key"), key, id) },
  {
    weight: 1,
    arbitrary: fc.tuple(
      fc.constant("dismiss_category"),
      category,
      id,
      fc.record({ prefix: fc.boolean(), scheduled: fc.boolean() }),
    ),
  },
);

export const history = fc.array(action, { maxLength: 30, size: "max" });
