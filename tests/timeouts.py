"""How long a test waits for what is to come in a moment."""

TIMEOUT_SECONDS = 10.0  # a busy machine needs some of them
