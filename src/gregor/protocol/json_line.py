"""JSON on one line, for formats in which a line is a record: server-sent events, JSON Lines."""

import msgspec

# Many readers of lines also split at these. In JSON they occur in strings only.
_SEPARATORS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def json_line(json: str) -> str:
    """The same JSON without line breaks. Bodies are stored as they were sent, and may have some
    between their tokens, though never in a string."""
    if "\n" in json or "\r" in json:
        json = msgspec.json.format(json, indent=-1)
    if not json.isascii():
        for separator, escape in _SEPARATORS.items():
            json = json.replace(separator, escape)
    return json
