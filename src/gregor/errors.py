"""What can go wrong, and whose turn it then is."""

from enum import StrEnum


class Turn(StrEnum):
    """What whoever receives an error should do about it."""

    RETRY = "retry"  # the same thing later
    RESYNC = "resync"  # ask for a snapshot, then go on
    REAUTHENTICATE = "re-authenticate"  # come back with another token
    STOP = "stop"  # do not send this again as it is


class GregorError(Exception):
    """Base of every error that Gregor raises on purpose.

    `code` is the word that goes over the wire; the set of codes is closed and documented in
    `spec/protocol.md`. `field` names the part of the input that is meant, where there is one.
    """

    code = "internal"
    turn = Turn.RETRY
    status = 500  # of an HTTP response
    close_code = 1011  # of a WebSocket, where the error ends it

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class Malformed(GregorError):
    """Not JSON, or not the JSON that belongs here. Mend the sender."""

    code, turn, status, close_code = "malformed", Turn.STOP, 400, 4000


class InvalidMessage(GregorError):
    """One message breaks a rule of the data model; `field` says where. Its neighbours are fine."""

    code, turn, status, close_code = "invalid", Turn.STOP, 422, 4000


class Conflict(GregorError):
    """The msg_id is known with other contents. Nothing changed; choose another id."""

    code, turn, status = "conflict", Turn.STOP, 409


class TooLarge(GregorError):
    """A body, a batch or a frame is over its limit. Split it."""

    code, turn, status, close_code = "too-large", Turn.STOP, 413, 1009


class ProtocolError(GregorError):
    """A frame that this phase of the conversation does not allow. Mend the client."""

    code, turn, status, close_code = "protocol", Turn.STOP, 400, 4002


class Unauthenticated(GregorError):
    """No token, or one that does not hold. Come back with another."""

    code, turn, status, close_code = "unauthenticated", Turn.REAUTHENTICATE, 401, 4001


class Forbidden(GregorError):
    """The token holds, but not for this user. Nothing was read or changed."""

    code, turn, status, close_code = "forbidden", Turn.STOP, 403, 4003


class NotFound(GregorError):
    """There is nothing at this address."""

    code, turn, status = "not-found", Turn.STOP, 404


class MethodNotAllowed(GregorError):
    """The address exists, the method does not."""

    code, turn, status = "method-not-allowed", Turn.STOP, 405


class HelloTimeout(GregorError):
    """No hello came in time. Connect again and say it at once."""

    code, turn, status, close_code = "hello-timeout", Turn.RETRY, 408, 4008


class TooSlow(GregorError):
    """The device accepted nothing for too long. Connect again; nothing is lost."""

    code, turn, status, close_code = "too-slow", Turn.RETRY, 408, 4009


class Resync(GregorError):
    """What the device claims to know cannot be continued. Send `verify` with cursor 0."""

    code, turn, status = "resync", Turn.RESYNC, 409


class Unavailable(GregorError):
    """Not now: the store did not answer, or the node is stopping. The same message may be sent
    again, as often as it takes: a message is stored once however often it arrives."""

    code, turn, status, close_code = "unavailable", Turn.RETRY, 503, 1013


class StorageUnavailable(Unavailable):
    """The database did not answer; the message may be sent again."""


class ClockSkew(Unavailable):
    """This node's clock is too far from the database's to stamp messages."""


class Elsewhere(Unavailable):
    """Another shard holds the bucket of this user, or it is closed, being on its way to one. It
    says who has it, as far as was known where it was looked for."""

    def __init__(self, bucket: int, shard: str, version: int) -> None:
        super().__init__(
            f"the user is in bucket {bucket}, which is with shard {shard!r} or on its way there;"
            " send it again"
        )
        self.bucket = bucket
        self.shard = shard
        self.version = version


class HistoryForgotten(GregorError):
    """A replica was asked about a time before its last sync. Ask the server, which knows."""

    code, turn, status = "history-forgotten", Turn.STOP, 410


class SetupError(GregorError):
    """The process cannot start like this; the message says what to do. Exit status 1."""

    code, turn = "setup", Turn.STOP


def named(code: str, message: str, field: str | None, turn: Turn) -> GregorError:
    """The error that came over the wire. A code that a later version has added is still an
    error with a turn."""
    for kind in GregorError.__subclasses__():
        if kind.code == code:
            return kind(message, field=field)
    error = GregorError(message, field=field)
    error.code, error.turn = code, turn
    return error
