"""One node: accepts messages, stores them, and delivers them to devices."""
