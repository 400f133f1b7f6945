/** The client of Gregor: a replica of one user's state, on one device. */

export { createGregor, Gregor, type GregorEvent, type GregorOptions } from "./client.js";
