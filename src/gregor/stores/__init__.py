"""The state machines of record: in memory, and on a SQL database."""
