"""Messages, and what they make of a user's state. Pure: no I/O, no clock, no randomness."""
