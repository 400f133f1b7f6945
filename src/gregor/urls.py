"""URLs of stores and pub/subs as they may be shown: in logs, errors and output."""

import re

_PARTS = re.compile(r"([a-z][a-z0-9+.-]*://|)([^?#]*)(.*)", re.DOTALL | re.IGNORECASE)
_WITHOUT_TOKENS = ("postgresql://", "postgres://")


def redacted(url: str) -> str:
    """The URL without anything in it that might be a secret, well-formed or not. The options are
    left out, and so is a user name without a password if it may be a token."""
    match = _PARTS.fullmatch(url)
    assert match is not None  # each part may be empty
    scheme, address, options = match.groups()
    if scheme == "sqlite://":  # the rest is the name of a file
        return url
    if "@" in options:
        # Either a password has a "?" or "#" that is not percent-encoded, or an option has an "@".
        # So it is unknown which parts are secret.
        return f"{scheme}…"
    credentials, at, location = address.rpartition("@")
    user, _, password = credentials.partition(":")
    if password:
        return f"{scheme}{user}:***@{location}"
    if at and scheme not in _WITHOUT_TOKENS:
        return f"{scheme}***@{location}"
    return scheme + address
