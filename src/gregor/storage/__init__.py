"""The database: how it is opened, its tables, its SQL statements and its migrations."""
