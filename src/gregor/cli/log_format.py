"""Logging to stderr, in one of two formats: a readable line for each entry, or a JSON object."""

import logging
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from gregor.core.instant import SECOND, to_rfc3339
from gregor.log_event import LogEvent
from gregor.protocol.json_line import json_line

log = logging.getLogger("gregor.cli")

CONSOLE, JSON = FORMATS = ("console", "json")
QUIET = logging.CRITICAL  # for client commands, which print their own errors


def log_to_stderr(format_: str, level: int, **context: object) -> None:
    """Write all logs, ours and those of libraries, to stderr in one format, with the `context` in
    each entry."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter(context) if format_ == JSON else LineFormatter(context))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("gregor").setLevel(level)


def logs_are_json() -> bool:
    """Whether stderr is a log of JSON objects."""
    return any(isinstance(h.formatter, JSONFormatter) for h in logging.getLogger().handlers)


def log_failure(reason: str) -> bool:
    """Log why this process ends, if logs are JSON. Otherwise return False: it is to be printed."""
    if logs_are_json():
        log.critical(LogEvent("failed", reason=reason))
    return logs_are_json()


def requested_log_format(file: Path | None = None, option: str | None = None) -> str:
    """The valid format that the option, the environment or the file asks for. It is read before
    the settings are, so that what is invalid in them is reported in this format."""
    variables = {name.upper(): value for name, value in os.environ.items()}
    requests = (option, variables.get("GREGOR_LOG_FORMAT"), _log_format_in(file))
    return next((request for request in requests if request in FORMATS), CONSOLE)


def _log_format_in(file: Path | None) -> Any:
    try:
        return None if file is None else tomllib.loads(file.read_text()).get("log_format")
    except (OSError, ValueError):  # which is reported when the settings are read
        return None


def printable(text: str) -> str:
    """The text, with escapes in place of line breaks and of all else that is not printable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LineFormatter(logging.Formatter):
    """An entry as a line for people. The `context` is added to each entry."""

    def __init__(self, context: Mapping[str, object]) -> None:
        fields = "".join(f" {name}={value!r}" for name, value in context.items())
        super().__init__("%(asctime)s [%(levelname)s] %(name)s: %(message)s" + fields)

    def format(self, record: logging.LogRecord) -> str:
        """One line, and below it the traceback, if there is one. What a peer has sent can neither
        begin a line of its own, nor control the terminal."""
        entry = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None})
        entry.msg, entry.args = printable(record.getMessage()), None
        lines = [super().format(entry)]
        if record.exc_info:
            traceback = self.formatException(record.exc_info).split("\n")
            lines += ["  " + printable(line) for line in traceback]
        return "\n".join(lines)

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
