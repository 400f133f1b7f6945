"""The formats of the logs on stderr: a readable line for each entry, or a JSON object."""

import logging
from collections.abc import Mapping

import msgspec

from gregor.core.instant import SECOND, to_rfc3339
from gregor.log_event import LogEvent
from gregor.protocol.json_line import json_line


class LineFormatter(logging.Formatter):
    """An entry as a line for people. The `context` is added to each entry."""

    def __init__(self, context: Mapping[str, object]) -> None:
        fields = "".join(f" {name}={value!r}" for name, value in context.items())
        super().__init__("%(asctime)s [%(levelname)s] %(name)s: %(message)s" + fields)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return to_rfc3339(round(record.created * SECOND))


class JSONFormatter(logging.Formatter):
    """An entry as a JSON object, in which each field of a LogEvent is a field. The `context` is
    added to each entry."""

    def __init__(self, context: Mapping[str, object]) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            **_event_and_fields(record),
            **self._context,
            "logger": record.name,
            "level": record.levelname.lower(),
            "timestamp": to_rfc3339(round(record.created * SECOND)),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json_line(msgspec.json.encode(entry, enc_hook=repr).decode())


def _event_and_fields(record: logging.LogRecord) -> dict[str, object]:
    match record.msg:
        case LogEvent(event=event, fields=fields):
            return {"event": event, **fields}
        case _:
            return {"event": record.getMessage()}
