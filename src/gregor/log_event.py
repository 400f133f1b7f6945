"""Structured log messages of the library: an event and its fields, through standard logging.

Library code configures no handlers and never prints; the program that uses it decides where its
logs go. `gregor serve` formats them as readable lines or as JSON (`cli/log_format.py`).
"""


class LogEvent:
    """A log message that keeps its fields: `log.warning(LogEvent("shard down", shard=name))`.

    As a string it is "shard down shard='a'". A structured formatter reads `event` and `fields`
    from the record's `msg`. (The logging cookbook calls this a structured message.)
    """

    __slots__ = ("event", "fields")

    def __init__(self, event: str, /, **fields: object) -> None:
        self.event = event
        self.fields = fields

    def __str__(self) -> str:
        return " ".join([self.event, *(f"{name}={value!r}" for name, value in self.fields.items())])
