/** The client of Gregor: a replica of one user's state, on one device. */

export { createGregor, type Gregor, type GregorEvent, type GregorOptions, type Missed } from "./client.js";
export type { ConnectionEvent, Token } from "./connection.js";
export { browserEnvironment, type Environment } from "./environment.js";
export { GregorError, type Action, type Problem } from "./errors.js";
export type { Created, Dismissed, Why, WriteRejected } from "./events.js";
export type { Inbox, InboxEntry, Topic, Undo } from "./inbox.js";
export type { Time, TimeOrOffset, When } from "./instant.js";
export type { Erased } from "./live-replica.js";
export type {
  Category,
  CreateOptions,
  DeviceID,
  DismissCategoryOptions,
  DismissKeyOptions,
  Item,
  JSONValue,
  Key,
  Message,
  MsgID,
  PutOptions,
  UID,
} from "./message.js";
export type { NotificationAction, NotificationFields } from "./notification-body.js";
export type { State } from "./state.js";
export type { Status } from "./status.js";
export { memoryDatabase } from "./stores/memory.js";
export type { Database } from "./stores/store.js";
