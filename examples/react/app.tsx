/** A customer's page of the shop: an inbox, settings, and the count of what is unread in the title.
 *
 * All of it works without a network: what is shown comes from the replica in this browser, and what
 * is done is kept in its outbox until it is sent. */

import { useEffect, useState, type ReactElement } from "react";
import { createRoot } from "react-dom/client";
import { GregorProvider, useCount, useGregor, useGregorStatus, useInbox, useValue } from "gregor-sync/react";

/** The values that the shop keeps for a customer, by key. */
interface ShopBodies {
  "settings.theme": "light" | "dark";
  "settings.newsletter": boolean;
}

declare module "gregor-sync/react" {
  interface Register {
    bodies: ShopBodies;
  }
}

const customer = new URLSearchParams(location.search).get("customer") ?? "alice";

/** A token of the shop for this customer. Gregor asks for another one when it has expired. */
async function token(): Promise<string> {
  const response = await fetch(`/token?customer=${encodeURIComponent(customer)}`, { method: "POST" });
  if (!response.ok) throw new Error(`the shop gives no token: ${response.status}`);
  return ((await response.json()) as { token: string }).token;
}

const options = { url: new URL("/gregor", location.href).href, user: customer, token };

function Page(): ReactElement {
  const theme = useValue("settings.theme") ?? "light";
  const unread = useCount("unread.");
  useEffect(() => {
    document.title = unread ? `(${unread}) The shop` : "The shop";
  }, [unread]);
  return (
    <main data-theme={theme}>
      <header>
        <h1>The shop</h1>
        <Connection />
      </header>
      <Inbox />
      <Settings />
    </main>
  );
}

function Connection(): ReactElement {
  const { online, unsent, lastError } = useGregorStatus();
  const waiting = unsent ? `, ${unsent} to send` : "";
  return (
    <p className="connection" data-online={online} title={lastError?.message}>
      {online ? "online" : "offline"}
      {waiting}
    </p>
  );
}

function Inbox(): ReactElement {
  const inbox = useGregor()?.inbox;
  const entries = useInbox();
  const [undo, setUndo] = useState<() => void>();
  const archive = async (key: string): Promise<void> => {
    const archived = await inbox?.archive(key);
    setUndo(() => archived && (() => void inbox?.undo(archived)));
  };
  return (
    <section aria-label="Inbox">
      <h2>Inbox</h2>
      <nav>
        <button onClick={() => void ship()}>Order an umbrella</button>
        <button disabled={!entries.some((entry) => entry.unread)} onClick={() => void inbox?.readAll()}>
          Mark all as read
        </button>
        {undo && (
          <button
            onClick={() => {
              undo();
              setUndo(undefined);
            }}
          >
            Undo
          </button>
        )}
      </nav>
      {entries.length === 0 && <p className="empty">Nothing here.</p>}
      <ul>
        {entries.map(({ key, unread, fields }) => (
          <li key={key} data-unread={unread}>
            <div>
              <strong>{fields.title}</strong>
              <p>{fields.text}</p>
            </div>
            <button onClick={() => void (unread ? inbox?.read(key) : inbox?.unread(key))}>
              {unread ? "Mark as read" : "Mark as unread"}
            </button>
            <button onClick={() => void inbox?.snooze(key, "10s")}>Snooze for 10 s</button>
            <button onClick={() => void archive(key)}>Archive</button>
          </li>
        ))}
      </ul>
    </section>
  );
}

/** Asks the shop, which tells all devices of the customer. This alone needs a network. */
const ship = (): Promise<unknown> =>
  fetch(`/shipments?customer=${encodeURIComponent(customer)}&item=umbrella`, { method: "POST" }).catch(() =>
    alert("The shop does not answer."),
  );

function Settings(): ReactElement {
  const gregor = useGregor();
  const theme = useValue("settings.theme") ?? "light";
  const newsletter = useValue("settings.newsletter") ?? false;
  return (
    <section aria-label="Settings">
      <h2>Settings</h2>
      <label>
        <input
          type="checkbox"
          checked={theme === "dark"}
          onChange={(event) => void gregor?.put("settings.theme", event.target.checked ? "dark" : "light")}
        />
        Dark
      </label>
      <label>
        <input
          type="checkbox"
          checked={newsletter}
          onChange={(event) => void gregor?.put("settings.newsletter", event.target.checked)}
        />
        Send me the newsletter
      </label>
    </section>
  );
}

createRoot(document.getElementById("root") as HTMLElement).render(
  <GregorProvider options={options}>
    <Page />
  </GregorProvider>,
);
