"""How long a test waits for what is to come in a moment: on a machine where each other process
and each fsync is slow, too. Tests give it to libraries, whose defaults of 5 or 10 s are less."""

TIMEOUT_SECONDS = 60.0
