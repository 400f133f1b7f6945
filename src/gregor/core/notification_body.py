"""What the body of a notification may hold: section 3 of `spec/inbox.md`.

A few fields mean the same in every app; all others are the app's own. A sender is refused what is
invalid. A device leaves it out, since what it receives may have been written by anyone.
"""

import re
from collections.abc import Callable, Mapping

from gregor.core.admission import check_text, kind_of
from gregor.core.message import JSON
from gregor.errors import InvalidMessage

MAX_TITLE = 1_024
MAX_TEXT = 16_384
MAX_URL = 2_048
MAX_ACTIONS = 8
MAX_ACTION_ID = 64
MAX_LABEL = 255

SEVERITIES = ("info", "success", "warning", "error")

# A browser ignores tabs and line ends in a URL, and takes a backslash for a slash: with them, what
# looks like a path can be a script or another host.
_NEVER_IN_A_URL = re.compile(r"[\x00-\x20\x7f\\]")
_ABSOLUTE = re.compile(r"https?://[^/?#:@]", re.IGNORECASE)
_RELATIVE = re.compile(r"(?!//)[^:/?#]*(?:[/?#]|$)")


def check_body(body: JSON) -> None:
    """Raise InvalidMessage, which names the field, unless it is the body of a notification."""
    _check_fields("body", body, FIELDS)


def valid_fields(body: JSON) -> dict[str, JSON]:
    """What a device may show of a body: all fields but those that are invalid."""
    fields = body if isinstance(body, Mapping) else {}
    return {name: value for name, value in fields.items() if _is_valid(name, value)}


def _is_valid(name: str, value: JSON) -> bool:
    try:
        check_body({name: value})
    except InvalidMessage:
        return False
    return True


def _check_fields(
    name: str,
    value: JSON,
    checks: Mapping[str, Callable[[str, JSON], None]],
    required: str | None = None,
) -> None:
    """Raise InvalidMessage unless it is an object whose fields pass these checks. It may have other
    fields, and lack any but the required one."""
    if not isinstance(value, Mapping):
        raise InvalidMessage(f"`{name}` must be an object, not {kind_of(value)}", field=name)
    for field, check in checks.items():
        if field in value:
            check(f"{name}.{field}", value[field])
        elif field == required:
            raise InvalidMessage(f"`{name}.{field}` is missing", field=f"{name}.{field}")


def _text(limit: int) -> Callable[[str, JSON], None]:
    return lambda name, value: check_text(name, value, limit)


def _check_url(name: str, value: JSON) -> None:
    check_text(name, value, MAX_URL)
    url = str(value)
    is_known = _ABSOLUTE.match(url) or _RELATIVE.match(url)
    if not is_known or _NEVER_IN_A_URL.search(url):
        raise InvalidMessage(
            f"`{name}` must begin with http:// or https:// and a host, or be a path of the app such"
            " as /orders/17, without spaces and backslashes",
            field=name,
        )


def _check_severity(name: str, value: JSON) -> None:
    if value not in SEVERITIES:
        raise InvalidMessage(f"`{name}` must be one of {', '.join(SEVERITIES)}", field=name)


def _check_actions(name: str, value: JSON) -> None:
    if not isinstance(value, list):
        raise InvalidMessage(f"`{name}` must be a list, not {kind_of(value)}", field=name)
    if len(value) > MAX_ACTIONS:
        raise InvalidMessage(
            f"`{name}` has {len(value)} actions; the limit is {MAX_ACTIONS}", field=name
        )
    ids = set[JSON]()
    for number, action in enumerate(value):
        _check_action(f"{name}[{number}]", action, ids)


def _check_action(name: str, action: JSON, ids: set[JSON]) -> None:
    """Check one action; `ids` are those of the actions before it, and get its own."""
    _check_fields(name, action, ACTION_FIELDS)
    assert isinstance(action, Mapping)
    if "label" not in action:
        raise InvalidMessage(
            f"`{name}.label` is missing: what its button says", field=f"{name}.label"
        )
    if "id" not in action and "url" not in action:
        raise InvalidMessage(
            f"`{name}` needs an `id`, a `url`, or both, to have an effect", field=name
        )
    if action.get("id") in ids:
        raise InvalidMessage(f"`{name}.id` is that of another action", field=f"{name}.id")
    if "id" in action:
        ids.add(action["id"])


ACTION_FIELDS = {"label": _text(MAX_LABEL), "id": _text(MAX_ACTION_ID), "url": _check_url}
FIELDS = {
    "title": _text(MAX_TITLE),
    "text": _text(MAX_TEXT),
    "url": _check_url,
    "icon": _check_url,
    "severity": _check_severity,
    "actions": _check_actions,
}
