"""The body of a message as a person types it: JSON, or plain text."""

import re
import sys

import msgspec
import typer

from gregor.core.message import JSON

# Objects, strings, arrays, numbers, and what other languages write in their place; but not
# "[urgent] call back", "3 new" or "1.2.3".
_LIKE_JSON = re.compile(
    r"""\s*(
        [{"] | \[\s*[]{"'\d[+-] | \[\s*(true|false|null)\b | \[[\w\s,]*\]\s*$
        | [+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*$ | [+-]?(NaN|Infinity)\s*$
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def read_body(argument: str, is_text: bool) -> JSON:
    """The body: JSON as it was typed, or text; `-` stands for stdin. Raises BadParameter for what
    was surely meant to be JSON, and is not."""
    typed = sys.stdin.read() if argument == "-" else argument
    return typed.rstrip("\n") if is_text else _json_or_text(typed)


def _json_or_text(typed: str) -> JSON:
    try:
        json = typed.encode()
        msgspec.json.decode(json)
        return msgspec.Raw(json.strip())
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        if _LIKE_JSON.match(typed) or isinstance(error, UnicodeError):
            raise typer.BadParameter(
                f"BODY looks like JSON, but is not: {error}; with --text it is sent as plain text"
            ) from error
        return typed.rstrip("\n")
