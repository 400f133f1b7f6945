"""Messages, and the user's state that results from them. Pure: no I/O, no clock, no randomness."""
