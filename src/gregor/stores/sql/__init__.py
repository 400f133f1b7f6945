"""A state machine of record on SQLite or PostgreSQL, its SQL, its drivers and its schema."""
