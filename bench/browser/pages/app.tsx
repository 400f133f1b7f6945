/** A page with a badge, a setting and a list of rows, whose renders are counted. */

import { memo, type ComponentType, type ReactElement } from "react";
import { createRoot } from "react-dom/client";
import { writeOnServer } from "./page.ts";

/** What a system gives to React: hooks, a provider, and a write. */
export interface Hooks {
  readonly Provider: ComponentType<{ readonly children: ReactElement[] }>;
  readonly useCount: () => number;
  readonly useTheme: () => unknown;
  /** The rows of the list; a row shows what `useTitle` says of it. */
  readonly useRows: () => readonly { readonly id: string; readonly row: unknown }[];
  readonly useTitle: (row: unknown) => unknown;
  readonly write: (write: Write) => void;
}

/** An item with a number, or a value with a name. */
export type Write = { readonly item: number } | { readonly name: string; readonly value: string };

declare global {
  var app: {
    /** The renders of all components so far. */
    renders(): number;
    /** How many rows the page shows, and which theme. */
    shown(): readonly [rows: number, theme: string];
    write(write: Write): void;
    writeOnServer(write: Write): Promise<void>;
  };
}

export function show({ Provider, useCount, useTheme, useRows, useTitle, write }: Hooks): void {
  let renders = 0;

  function Badge(): ReactElement {
    renders++;
    return <b>{useCount()}</b>;
  }
  function Theme(): ReactElement {
    renders++;
    return <i>{String(useTheme() ?? "")}</i>;
  }
  const Row = memo(({ row }: { readonly row: unknown }): ReactElement => {
    renders++;
    return <li>{String(useTitle(row))}</li>;
  });
  function List(): ReactElement {
    renders++;
    return (
      <ul>
        {useRows().map(({ id, row }) => (
          <Row key={id} row={row} />
        ))}
      </ul>
    );
  }

  const root = document.body.appendChild(document.createElement("main"));
  createRoot(root).render(
    <Provider>
      {[<Badge key="badge" />, <Theme key="theme" />, <List key="list" />]}
    </Provider>,
  );
  globalThis.app = {
    renders: () => renders,
    shown: () => [root.querySelectorAll("li").length, root.querySelector("i")?.textContent ?? ""],
    write,
    writeOnServer,
  };
}
