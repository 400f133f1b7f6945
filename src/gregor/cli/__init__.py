"""The command `gregor`: starts a server, and has the client and test commands for it."""
