"""uvicorn's HTTP, in which a client can neither take much nor hold anything for long.

Each state of a connection has a deadline that is set once, and not again by each byte. A head has a
limit of bytes and fields, and so has what surrounds a body: the sizes and extensions of its chunks,
and its trailer. What comes in tiny pieces is read with pauses, and so is what is dropped. A client
that breaks a rule gets a problem document, is counted, and is not worth a line in the log. Of a
body that nobody has asked for, uvicorn holds 64 KiB and what a read brings.
"""

import re
from asyncio import Transport
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gregor.errors import GregorError, Malformed, TooLarge, TooSlow, Unavailable
from gregor.server.client_address import forwarded_host
from gregor.server.deadlines import Deadlines
from gregor.server.half_close import end_output
from gregor.server.open_connections import ClientConnection, OpenConnections
from gregor.server.peer_errors import PeerError, PeerErrors, Throttled
from gregor.server.problems import problem
from gregor.server.read_pace import DROP_PAUSE_SECONDS, ReadPace, RestingFlow, a_rest
from gregor.server.upgrades import UpgradingHTTP

HEAD_BYTES = 32 * 1024
HEAD_FIELDS = 100
PIPELINED = 32  # requests that wait for the answer to the one before
PIECE = 2 * 1024  # bytes that are parsed before the limits are looked at
SMALL_CHUNK = 512  # bytes of a body that come by themselves
SMALL_CHUNKS = 100  # that are taken in one turn of the event loop
BYTES_PER_SECOND = 16 * 1024  # the slowest line on which a body may come
DROPPED_BODY = 16 * 1024 * 1024  # bytes after the last answer, of which none is kept
DROPPED_HEAD = 64 * 1024

_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?")


class HeadTooLarge(TooLarge):
    """A head has more bytes or fields than a server reads. Send less."""

    status = 431


class RequestPhase(Enum):
    """What a connection waits for."""

    IDLE = auto()  # the first byte of a request
    HEAD = auto()  # the rest of a head
    BODY = auto()  # the rest of a body
    ANSWER = auto()  # the application
    LAST = auto()  # the same, after a request that is the last one; what follows it is dropped
    END = auto()  # the client, to take the last answer; all that it sends is dropped
    HANDED_OVER = auto()  # nothing: it is a WebSocket now


BEFORE_A_REQUEST = frozenset({RequestPhase.IDLE, RequestPhase.HEAD})
UNFINISHED = frozenset({RequestPhase.HEAD, RequestPhase.BODY})
AFTER_THE_LAST = frozenset({RequestPhase.LAST, RequestPhase.END, RequestPhase.HANDED_OVER})


class ClientAccount:
    """The client of a WebSocket, whose connection counts until it ends, as its violations do."""

    __slots__ = ("_connection", "_connections", "_errors")

    def __init__(
        self, connection: ClientConnection, connections: OpenConnections, errors: PeerErrors
    ) -> None:
        self._connection = connection
        self._connections = connections
        self._errors = errors

    def waits(self) -> None:
        self._connections.become_silent(self._connection)

    def speaks(self) -> None:
        self._connections.become_busy(self._connection)

    def stalls(self) -> None:
        self._connections.become_stalled(self._connection)

    def ends(self) -> None:
        self._connections.become_ended(self._connection)

    def violated(self) -> None:
        self._errors.count(PeerError.WEBSOCKET, self._connection.host)

    def left(self) -> None:
        self._connections.discard(self._connection)


class GuardedHTTP(UpgradingHTTP):
    """One connection."""

    flow: RestingFlow

    def __init__(
        self,
        connections: OpenConnections,
        errors: PeerErrors,
        deadlines: Deadlines,
        *args: Any,
        connection: ClientConnection,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._connection = connection
        self._connections = connections
        self._limits = connections.limits
        self._errors = errors
        self._deadline = deadlines.deadline(self._on_deadline)
        self._write_deadline = deadlines.deadline(self._on_write_deadline)
        self._pace = ReadPace()
        self._small_chunks = 0  # that were taken in this turn
        self._untaken = b""  # what came after them
        self._keeps_alive = False  # the connection, after the request
        self._phase = RequestPhase.IDLE
        self._answering: RequestResponseCycle | None = None
        self._body_bytes = 0  # of this request
        self._other_bytes = 0  # the head, and what surrounds the body
        self._fields = 0
        self._droppable = DROPPED_HEAD  # bytes that may come after the last request
        self._body_seconds = 0.0  # that the body may take, besides what a slow line takes
        self._body_began = 0.0

    # The connection

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = RestingFlow(transport, self.loop)
        self._connection.abort = transport.abort
        self.client = (self._connection.host, self._connection.port)
        self._deadline.set(self._limits.head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter(RequestPhase.END)
        self._connections.discard(self._connection)
        self.flow.end()
        super().connection_lost(exc)
        # What refers to this protocol would keep its head and body until garbage is collected.
        self._deadline.close()
        self._write_deadline.close()
        self.cycle = self._answering = None  # type: ignore[assignment]
        self.pipeline.clear()
        self._untaken = b""

    def data_received(self, data: bytes) -> None:
        if self._phase in AFTER_THE_LAST:
            self._drop(data)
            return
        self._take(self._untaken + data)
        if self._phase in UNFINISHED and (rest := self._pace.rest(len(data), self.loop.time())):
            self.flow.rest(rest)

    def _take(self, data: bytes) -> None:
        """Parse what has come. If it is many small chunks, some of them are taken later: each costs
        as much as a large one."""
        self._untaken, self._small_chunks = b"", 0
        if self._phase is RequestPhase.IDLE:
            self._begin_head()
        for end in range(PIECE, len(data) + PIECE, PIECE):
            self._parse(data[end - PIECE : end])
            if self._phase in AFTER_THE_LAST:
                return
            if self._small_chunks > SMALL_CHUNKS and end < len(data):
                self._untaken = data[end:]
                self.flow.rest(a_rest(), self._take_untaken)
                break
        if self._phase is RequestPhase.BODY:
            # If the request is answered before the rest of its body is here, it is the last one.
            self.cycle.keep_alive = False
            self._note_stall()

    def _take_untaken(self) -> None:
        if self._untaken and self._phase not in AFTER_THE_LAST:
            self._take(self._untaken)

    def _drop(self, data: bytes) -> None:
        self._droppable -= len(data)
        if self._droppable < 0:
            self.transport.abort()
        else:  # otherwise the event loop would go on reading all that the client has written
            rest = self._pace.rest(len(data), self.loop.time())
            self.flow.rest(max(rest, DROP_PAUSE_SECONDS))

    def _parse(self, data: bytes) -> None:
        self._other_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._upgrade()
        except httptools.HttpParserError as error:
            self._refuse(_reason(error))
        else:
            if self._other_bytes > HEAD_BYTES + self._body_bytes:
                self._refuse(HeadTooLarge(f"a head has at most {HEAD_BYTES} bytes"))

    def _upgrade(self) -> None:
        """The request asks for another protocol. WebSocket is the only one: others are answered as
        if they were not asked for, and nothing is read after them."""
        if self._should_upgrade():
            self._enter(RequestPhase.HANDED_OVER)
            self.handle_websocket_upgrade()
        else:
            self._enter(RequestPhase.LAST)
            self.cycle.keep_alive = False

    def handle_websocket_upgrade(self) -> None:
        """Of this protocol nothing is left when the connection is a WebSocket."""
        self._write_deadline.cancel()
        super().handle_websocket_upgrade()
        if self.transport.get_protocol() is self:  # it was refused
            self._errors.count(PeerError.WEBSOCKET, self._connection.host)
            self._close()
        else:
            del self._deadline, self._write_deadline  # which refer to this protocol

    def account(self) -> ClientAccount:
        return ClientAccount(self._connection, self._connections, self._errors)

    # The phases

    def _enter(self, phase: RequestPhase) -> None:
        self._phase = phase
        self._deadline.cancel()

    def _note_stall(self) -> None:
        """Say whether the client is to go on, within a request, before this connection does."""
        if self._phase is RequestPhase.END:
            return
        if self._phase is RequestPhase.BODY or self.flow.write_paused:
            self._connections.become_stalled(self._connection)
        elif self._phase not in BEFORE_A_REQUEST:
            self._connections.become_busy(self._connection)

    def _begin_head(self) -> None:
        """The first byte of a request is here. For the first request of a connection the time runs
        since it was accepted."""
        self._phase = RequestPhase.HEAD
        if self.cycle is not None:
            self._deadline.set(self._limits.head)

    def _on_deadline(self) -> None:
        match self._phase:
            case RequestPhase.IDLE:
                self._close()
            case RequestPhase.HEAD:
                self._refuse(TooSlow("the head of the request did not come in time"))
            case RequestPhase.BODY:
                self._check_body()
            case _:
                self.transport.abort()

    def _check_body(self) -> None:
        """Go on waiting for the body if it has come as fast as a slow line allows."""
        if not self.flow.is_wanted:
            self._body_seconds += self._limits.body
        allowed = self._body_seconds + self._body_bytes / BYTES_PER_SECOND
        left = self._body_began + allowed - self.loop.time()
        if left > 0:
            self._deadline.set(left)
        else:
            self._refuse(TooSlow("the body of the request did not come in time"))

    def _close(self) -> None:
        """Close the connection, once the client has taken what is written, or after a while."""
        self._enter(RequestPhase.END)
        self._connections.become_ended(self._connection)
        self._deadline.set(self._limits.linger)
        self.transport.close()

    def _linger(self) -> None:
        """Close the connection, of which the client may still be writing a body that nobody wants.
        If it were closed at once, the client would be told so, and drop the answer."""
        if self._phase is RequestPhase.BODY:
            self._droppable = DROPPED_BODY
        self._enter(RequestPhase.END)
        self._connections.become_ended(self._connection)
        if self.transport.is_closing():
            return
        self._deadline.set(self._limits.linger)
        self.flow.resume_reading()
        end_output(self.transport)

    # Writing

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_deadline.set(self._limits.write)
        self._note_stall()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_deadline.cancel()
        self._note_stall()

    def _on_write_deadline(self) -> None:
        self.transport.abort()

    # Requests

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._body_bytes = self._other_bytes = self._fields = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > HEAD_FIELDS:
            raise HeadTooLarge(f"a head has at most {HEAD_FIELDS} fields")
        if self._phase is not RequestPhase.BODY:  # a trailer is counted, and dropped
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._check_head()
        self._forward()
        if len(self.pipeline) >= PIPELINED:
            raise Malformed(f"at most {PIPELINED} requests may wait for an answer")
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # such a client does not know it (RFC 9110, 10.1.1)
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.transport = LastAnswer(self, self.transport)  # type: ignore[assignment]
            self._keeps_alive = self.cycle.keep_alive
        self._enter(RequestPhase.BODY)
        self._body_began, self._body_seconds = self.loop.time(), self._limits.body
        self._deadline.set(self._body_seconds)
        self._connections.become_busy(self._connection)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _check_head(self) -> None:
        """Raise a GregorError unless the head has few enough bytes, and names one host."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > HEAD_BYTES:
            raise HeadTooLarge(f"a head has at most {HEAD_BYTES} bytes")
        hosts = [value for name, value in self.headers if name == b"host"]
        expected = (1,) if self.parser.get_http_version() == "1.1" else (0, 1)
        if len(hosts) not in expected or not all(map(_HOST.fullmatch, hosts)):
            raise Malformed("a request needs one valid `Host`", field="host")

    def _forward(self) -> None:
        """Take the client's address from a trusted proxy. Raises Throttled if it may not have this
        request."""
        connection = self._connection
        if connection.peer in self._limits.trusted:
            host = forwarded_host(self.headers, self._limits.trusted)
            # Also if it names none: the request before may have been of another client.
            self._connections.move(connection, host or connection.peer)
            own = (connection.peer, connection.port)
            self.client = self.scope["client"] = own if host is None else (host, 0)
        if self._errors.throttles(connection.host) or self._connections.exceeds(connection):
            self._connections.move(connection, connection.peer)  # it ends, and counts no more
            raise Throttled("too many errors, or connections, from this address; retry later")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._other_bytes -= len(body)
        self._small_chunks += len(body) < SMALL_CHUNK
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._enter(RequestPhase.ANSWER)
        self._pace.complete()
        self._note_stall()
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = self._keeps_alive
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self._phase is RequestPhase.END:
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._phase is RequestPhase.ANSWER:
            self._enter(RequestPhase.IDLE)
            self._deadline.set(self._limits.keep_alive)
            self._connections.become_idle(self._connection)

    def shutdown(self) -> None:
        """uvicorn stops: end the connection, after what is to be answered."""
        if self._phase is RequestPhase.BODY:
            self._refuse(Unavailable("this server is stopping; retry with another server"))
        else:
            super().shutdown()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is written."""
        return self._phase is RequestPhase.END

    def end(self) -> None:
        """The last answer is written."""
        if self._phase is RequestPhase.BODY:
            self._linger()
        else:
            self._close()

    # Refusals

    def _refuse(self, error: GregorError) -> None:
        """Answer with the error, unless an answer has begun, or one to an earlier request is still
        to come. Then end the connection."""
        if not isinstance(error, Unavailable):  # then it is not the client's
            self._errors.count(_kind(error, self._phase), self._connection.host)
        cycle = self._answering
        is_current = cycle is self.cycle and self._phase is RequestPhase.BODY
        if cycle is None or cycle.response_complete or (is_current and not cycle.response_started):
            self.transport.write(_as_bytes(error))
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self._linger()


class LastAnswer:
    """The transport, to which a request's answer is written. If it is the last one, it is not
    closed before the client has had time to take it."""

    __slots__ = ("_protocol", "_transport")

    def __init__(self, protocol: GuardedHTTP, transport: Transport) -> None:
        self._protocol = protocol
        self._transport = transport

    def write(self, data: bytes) -> None:
        if not self.is_closing():
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.has_ended or self._transport.is_closing()

    def close(self) -> None:
        self._protocol.end()


def _reason(error: httptools.HttpParserError) -> GregorError:
    """Why the parser has stopped: the error of a callback, or a rule of HTTP."""
    cause = error.__context__
    return cause if isinstance(cause, GregorError) else Malformed("not an HTTP request")


def _kind(error: GregorError, phase: RequestPhase) -> PeerError:
    if phase is RequestPhase.BODY:
        return PeerError.BODY
    return PeerError.HEAD if isinstance(error, HeadTooLarge | TooSlow) else PeerError.PROTOCOL


def _as_bytes(error: GregorError) -> bytes:
    """The answer of a connection that ends with it."""
    answer = problem(error)
    head = [b"HTTP/1.1 %d %b" % (answer.status_code, HTTPStatus(error.status).phrase.encode())]
    head += [b"%b: %b" % header for header in (*answer.raw_headers, (b"connection", b"close"))]
    return b"\r\n".join([*head, b"", bytes(answer.body)])
