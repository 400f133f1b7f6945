import { expect, test } from "vitest";
import { Facts } from "../../src/facts.js";
import type { StoredMessage } from "../../src/message.js";
import { State } from "../../src/state.js";
import { isVisible } from "../../src/visibility.js";
import { vectors } from "./files.js";

interface View {
  readonly device_id?: string;
  readonly at?: number;
  readonly known?: number;
  readonly now?: number;
  readonly visible: readonly string[];
}

interface VisibilityCase {
  readonly name: string;
  readonly messages: readonly StoredMessage[];
  readonly views: readonly View[];
}

const { cases } = vectors("visibility") as { cases: readonly VisibilityCase[] };

function seen(
  messages: readonly StoredMessage[],
  { device_id, at, known, now = 0 }: View,
): readonly string[] {
  const facts = new Facts();
  // A page of a state is a state that knows fewer messages.
  for (const message of messages) if (message.ctime <= (known ?? Infinity)) facts.replay(message);
  const items = at === undefined || known ? [...facts.items.values()] : facts.at(at);
  return new State(
    items.filter((item) => isVisible(item, device_id, at ?? now)),
    now,
  ).items.map(({ msg_id }) => msg_id);
}

/** A device is told in the order of the ctimes, whatever the order in which messages were given. */
const told = (messages: readonly StoredMessage[]): StoredMessage[] =>
  messages.toSorted((a, b) => a.ctime - b.ctime);

test.each(cases)("$name", ({ messages, views }) => {
  const once = told(messages);
  for (const view of views) {
    expect(seen(once, view)).toStrictEqual(view.visible);
    expect(seen([...once, ...once], view), "told again").toStrictEqual(view.visible);
  }
});
