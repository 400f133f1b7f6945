"""The command `gregor`: a server to start, and the small tools around it."""
