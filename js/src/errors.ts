/** The errors that Gregor raises, and what their receiver should do about them. */

import type { Time } from "./instant.js";
import { present } from "./json.js";

/** What the receiver of an error should do: send the same later, ask for a snapshot, connect again
 * with another token, or not send this again without a change. */
export type Action = "retry" | "resync" | "reauthenticate" | "stop";

/** An error as data, as it travels. `field` names the part of the input that is wrong. Only
 * `erased` has an `epoch`; only `limit` has the name of the limit, its maximum, and, where waiting
 * helps, after how long to send the same again. `spec/protocol.md`, section 8, lists the codes. */
export interface Problem {
  readonly code: string;
  readonly message: string;
  readonly action: Action;
  readonly field?: string;
  readonly epoch?: Time;
  readonly limit?: string;
  readonly maximum?: number;
  readonly retry_after_ms?: number;
}

/** The one class of errors; `code` says which. */
export class GregorError extends Error implements Problem {
  override readonly name = "GregorError";
  declare readonly code: string;
  declare readonly action: Action;
  declare readonly field?: string;
  declare readonly epoch?: Time;
  declare readonly limit?: string;
  declare readonly maximum?: number;
  declare readonly retry_after_ms?: number;

  constructor(problem: Problem) {
    super(problem.message);
    Object.assign(this, problem);
  }
}

/** An error that no retry ends: something has to be changed first. */
export const stop = (code: string, message: string, field?: string): GregorError =>
  new GregorError({ code, message, action: "stop", ...present({ field }) });

/** A value that breaks a rule of the data model. `` `field` reason `` is what the message says. */
export const invalid = (field: string, reason: string): GregorError =>
  stop("invalid", `\`${field}\` ${reason}`, field);

/** What is not to be had now, but perhaps later. */
export const unavailable = (message: string): GregorError =>
  new GregorError({ code: "unavailable", message, action: "retry" });

/** What somebody else's code has thrown, which may do better the next time. */
export const asError = (error: unknown): GregorError =>
  error instanceof GregorError ? error : unavailable(`${error}`);

/** An error as it travels to another tab, and as an app sees it in the status. */
export const problemOf = ({
  code,
  message,
  action,
  field,
  epoch,
  limit,
  maximum,
  retry_after_ms,
}: Problem): Problem => present({ code, message, action, field, epoch, limit, maximum, retry_after_ms });
