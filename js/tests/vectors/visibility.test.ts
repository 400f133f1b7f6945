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

function seen(facts: Facts, { device_id, at, known, now = 0 }: View): readonly string[] {
  const visible = [...facts.items.values()].filter((item) => isVisible(item, device_id, now));
  const state = at === undefined ? new State(visible, now) : facts.stateAt(device_id, at, known);
  return state.items.map(({ msg_id }) => msg_id);
}

/** A device is told in the order of the ctimes, whatever the order in which messages were given. */
const told = (messages: readonly StoredMessage[]): StoredMessage[] =>
  messages.toSorted((a, b) => a.ctime - b.ctime);

test.each(cases)("$name", ({ messages, views }) => {
  const facts = new Facts();
  for (const times of ["once", "again"]) {
    for (const message of told(messages)) facts.replay(message);
    for (const view of views) expect(seen(facts, view), times).toStrictEqual(view.visible);
  }
});
