/** The client of Gregor: a replica of one user's state, on one device. */

export {};
