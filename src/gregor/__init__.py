"""Gregor: replicated, per-user state and notifications.

A backend injects messages. Each device of the user holds a replica that works offline, and all
replicas converge. This package exports what both sides share; `gregor.client` is for devices and
backends, `gregor.server` for operators of a server.
"""

from gregor.core.instant import TimeOrOffset
from gregor.core.message import (
    InBandMessage,
    OutOfBandMessage,
    create,
    dismiss,
    dismiss_category,
    dismiss_key,
    out_of_band,
    put,
)
from gregor.core.state import Item, State
from gregor.errors import GregorError
from gregor.protocol.frames import Result

__version__ = "0.1.0"

__all__ = [
    "GregorError",
    "InBandMessage",
    "Item",
    "OutOfBandMessage",
    "Result",
    "State",
    "TimeOrOffset",
    "__version__",
    "create",
    "dismiss",
    "dismiss_category",
    "dismiss_key",
    "out_of_band",
    "put",
]
