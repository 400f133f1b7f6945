"""The errors that Gregor raises, and what their receiver should do about them."""

from enum import StrEnum
from typing import Self


class Action(StrEnum):
    """What the receiver of an error should do."""

    RETRY = "retry"  # send the same request later
    RESYNC = "resync"  # ask for a snapshot, then continue
    REAUTHENTICATE = "reauthenticate"  # reconnect with another token
    STOP = "stop"  # do not send this again without a change


class GregorError(Exception):
    """Base class of all errors that Gregor raises deliberately.

    `code` is sent over the wire; `spec/protocol.md` lists the codes of this version. `field` names
    the invalid part of the input, where there is one.

    `message` is for everybody. The text of the exception (`str`) is the same, or the `detail`: what
    only operators may see, such as the name of a file or of a host.
    """

    code = "internal"
    action = Action.RETRY
    status = 500  # HTTP status
    close_code = 1011  # WebSocket close code, if the error closes the connection

    def __init__(
        self, message: str, *, field: str | None = None, detail: str | None = None
    ) -> None:
        super().__init__(message if detail is None else detail)
        self.message = message
        self.field = field

    def as_value(self) -> Self:
        """This error, to be kept instead of raised: without the frames in which it was raised. They
        hold what was read there, and often the error itself: a cycle, which only a garbage
        collection frees."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class Malformed(GregorError):
    """Not JSON, or JSON of the wrong type, or the page token of another request. Fix the sender."""

    code, action, status, close_code = "malformed", Action.STOP, 400, 4000


class InvalidMessage(GregorError, ValueError):
    """One message breaks a rule of the data model; `field` says where. The rest of the batch is
    not affected. It is a ValueError as well, so that a decoder adds the place."""

    code, action, status, close_code = "invalid", Action.STOP, 422, 4000


class InvalidTime(InvalidMessage):
    """Not a time or an offset."""


class Conflict(GregorError):
    """A message with this msg_id and other contents is stored. Nothing changed; use another id."""

    code, action, status = "conflict", Action.STOP, 409


class TooLarge(GregorError, ValueError):
    """A body, a message, a batch or a frame exceeds its size limit. Split it. It is a ValueError as
    well, so that a decoder adds the place."""

    code, action, status, close_code = "too-large", Action.STOP, 413, 1009


class LimitExceeded(GregorError, ValueError):
    """More than a limit of the node allows: `maximum` of what `limit` names. Nothing was done.

    Where `retry_after_ms` says how long to wait, send the same later: then the HTTP status is 429.
    Otherwise it never fits (422): send less at once, or dismiss what is not needed any more. It is
    a ValueError as well, so that a decoder adds the place."""

    code, action, status, close_code = "limit", Action.RETRY, 429, 1013

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        limit: str = "",
        maximum: int = 0,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message, field=field)
        self.limit = limit
        self.maximum = maximum
        self.retry_after_ms = retry_after_ms
        if retry_after_ms is None:
            self.action, self.status = Action.STOP, 422


class ProtocolError(GregorError):
    """The frame is not allowed in this phase of the conversation. Fix the client."""

    code, action, status, close_code = "protocol", Action.STOP, 400, 4002


class Unauthenticated(GregorError):
    """The token is missing, invalid or expired. Reconnect with another token."""

    code, action, status, close_code = "unauthenticated", Action.REAUTHENTICATE, 401, 4001


class NotYetValid(Unauthenticated):
    """The token is signed, and begins to be valid later by the server's clock. One of the clocks is
    wrong, or the token is early: retry later with the same token."""

    code, action = "not-yet-valid", Action.RETRY


class Forbidden(GregorError):
    """The token is valid, but not for this user. Nothing was read or changed."""

    code, action, status, close_code = "forbidden", Action.STOP, 403, 4003


class NotFound(GregorError):
    """No resource has this URL."""

    code, action, status = "not-found", Action.STOP, 404


class MethodNotAllowed(GregorError):
    """The URL exists, but does not support this method."""

    code, action, status = "method-not-allowed", Action.STOP, 405


class HelloTimeout(GregorError):
    """No hello came in time. Reconnect, and send the hello immediately."""

    code, action, status, close_code = "hello-timeout", Action.RETRY, 408, 4008


class TooSlow(GregorError):
    """A slow consumer: the device accepted no data for too long. Reconnect; no message is lost."""

    code, action, status, close_code = "too-slow", Action.RETRY, 408, 4009


class Resync(GregorError):
    """The server cannot continue from this cursor. Send `verify` with cursor 0."""

    code, action, status = "resync", Action.RESYNC, 409


class Unavailable(GregorError):
    """The store or the authenticator did not answer, or the node is stopping. Retry later with the
    same messages; storing a message is idempotent."""

    code, action, status, close_code = "unavailable", Action.RETRY, 503, 1013


class StorageUnavailable(Unavailable):
    """The database did not answer, or refuses. Retry with the same messages. What it says is the
    detail: it names files, hosts or statements."""

    def __init__(
        self, detail: str, message: str = "the store cannot do this now; retry later"
    ) -> None:
        super().__init__(message, detail=detail)


class NodeTooOld(StorageUnavailable):
    """The database accepts nothing more from code as old as this node's. Upgrade the node; until
    then, send the messages to another one."""

    def __init__(self, message: str) -> None:
        super().__init__(message, message)


class NotMigrated(Unavailable):
    """The database has no place yet for what was sent: `gregor migrate` has not run. Retry later
    with the same messages."""


class LeaseHeld(Unavailable):
    """Another node does now what only one may do at a time. Nothing was done; retry when it has
    ended, or when its lease may have run out."""


class ClockSkew(Unavailable):
    """This node's clock differs too much from the database's, so the node stamps no messages.
    Correct the clock; until then, send the messages to another node."""


class WrongShard(Unavailable):
    """Another shard holds the bucket of this user, or the bucket is closed while it moves to
    another shard. `shard` and `version` are the placement as far as the asked shard knows it."""

    def __init__(self, bucket: int, shard: str, version: int) -> None:
        super().__init__(
            f"shard {shard!r} holds the user's bucket {bucket}, or the bucket is moving there;"
            " retry"
        )
        self.bucket = bucket
        self.shard = shard
        self.version = version


class HistoryForgotten(GregorError):
    """What happened up to this time is forgotten: it is before the user's history floor, or, on a
    device, before the replica's first knowledge. Read the state, and go on from its cursor."""

    code, action, status = "history-forgotten", Action.RESYNC, 410


class Erased(GregorError):
    """The user was erased, at the ctime `epoch`, after what the sender knows of. Nothing was
    stored. A device wipes what it holds of the user."""

    code, action, status, close_code = "erased", Action.STOP, 410, 4010

    def __init__(self, message: str, *, field: str | None = None, epoch: int = 0) -> None:
        super().__init__(message, field=field)
        self.epoch = epoch


class SetupError(GregorError):
    """The process cannot start; the message says what to change. Exit status 1."""

    code, action = "setup", Action.STOP


class WrongEventLoop(GregorError):
    """The object belongs to another event loop, so nothing was done. From another thread, use
    `asyncio.run_coroutine_threadsafe(client.create(…), loop)`."""

    code, action = "wrong-event-loop", Action.STOP


WIRE_ERRORS: dict[str, type[GregorError]] = {
    error_class.code: error_class
    for error_class in (
        GregorError,
        Malformed,
        InvalidMessage,
        Conflict,
        TooLarge,
        LimitExceeded,
        ProtocolError,
        Unauthenticated,
        NotYetValid,
        Forbidden,
        NotFound,
        MethodNotAllowed,
        HelloTimeout,
        TooSlow,
        Resync,
        Unavailable,
        HistoryForgotten,
        Erased,
    )
}
"""The class of each code that can arrive over the wire. Subclasses that share a code with their
base class (StorageUnavailable, NodeTooOld, NotMigrated, ClockSkew, WrongShard) exist within one
process only."""


def error_from_code(
    code: str,
    message: str,
    field: str | None,
    action: Action,
    epoch: int | None = None,
    *,
    limit: str | None = None,
    maximum: int | None = None,
    retry_after_ms: int | None = None,
) -> GregorError:
    """The error that was received over the wire, with the action that was received with it. An
    unknown code, of a later version, makes a GregorError with that code."""
    error = WIRE_ERRORS.get(code, GregorError)(message, field=field)
    if isinstance(error, LimitExceeded):
        error = LimitExceeded(
            message,
            field=field,
            limit=limit or "",
            maximum=maximum or 0,
            retry_after_ms=retry_after_ms,
        )
    if isinstance(error, Erased) and epoch is not None:
        error.epoch = epoch
    error.code, error.action = code, action
    return error
