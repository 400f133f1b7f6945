/** The client of Gregor: a replica of one user's state, on one device. */

export { createGregor, Gregor, type GregorEvent, type GregorOptions } from "./client.js";
export type { InboxEntry, Topic, Undo } from "./inbox.js";
export type { When } from "./instant.js";
export type { Item, Message } from "./message.js";
export type { NotificationAction, NotificationFields } from "./notification-body.js";
export type { Status } from "./status.js";
export { GregorError, type Problem } from "./errors.js";
