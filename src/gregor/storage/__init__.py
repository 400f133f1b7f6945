"""The database: how it is opened, its tables, the questions asked of it, and its migrations."""
