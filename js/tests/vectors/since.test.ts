import { expect, test } from "vitest";
import { Facts } from "../../src/facts.js";
import type { StoredMessage } from "../../src/message.js";
import { isVisible } from "../../src/visibility.js";
import { vectors } from "./files.js";

interface Ask {
  readonly since?: number;
  readonly after?: number;
  readonly now: number;
  readonly device_id?: string;
  readonly messages: readonly StoredMessage[];
}

interface SinceCase {
  readonly name: string;
  readonly log: readonly StoredMessage[];
  readonly asks: readonly Ask[];
}

const { cases } = vectors("since") as { cases: readonly SinceCase[] };

function factsOf(messages: readonly StoredMessage[]): Facts {
  const facts = new Facts();
  for (const message of messages) facts.replay(message);
  return facts;
}

const visible = (facts: Facts, { now, device_id }: Ask): string[] =>
  [...facts.items.values()]
    .filter((item) => isVisible(item, device_id, now))
    .map(({ msg_id }) => msg_id)
    .sort();

test.each(cases)("$name", ({ log, asks }) => {
  for (const ask of asks) {
    const { since = Infinity, after = since, messages } = ask;
    // Of the log, it knows what is before the instant; also with it; or what is up to the cursor.
    for (const known of new Set([Math.min(since - 1, after), after])) {
      const facts = factsOf(log.filter(({ ctime }) => ctime <= known));
      facts.forget(-1); // it keeps nothing of what is dead
      for (const message of messages) facts.replay(message);
      expect(visible(facts, ask)).toStrictEqual(visible(factsOf(log), ask));
    }
  }
});
