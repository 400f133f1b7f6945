"""The state machines: in memory, on a SQL database, and over several shards."""
