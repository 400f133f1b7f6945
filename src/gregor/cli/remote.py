"""The producer of the commands that use a running server: its errors say what to change."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TypeVar

import httpx

from gregor.client import AsyncProducer
from gregor.client.calls import (
    LIMITS,
    Attempts,
    Call,
    MismatchedAnswer,
    UnexpectedAnswer,
    authorization,
    server_url,
)
from gregor.config import Settings
from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID, InBandMessage, When
from gregor.errors import Action, GregorError, SetupError, Unauthenticated, Unavailable

T = TypeVar("T")

REQUEST_TIMEOUT_SECONDS = 30.0
STREAM_TIMEOUT_SECONDS = 3600.0  # a server copies a whole file before it sends the first byte
REPLAY_ATTEMPTS = 15  # about a minute, in which a server can be restarted
HEALTH = Call("GET", "/healthz", bytes.decode)
METRICS = Call("GET", "/metrics", bytes.decode)


class CommandProducer(AsyncProducer):
    """An AsyncProducer whose errors name the option of the command. A person decides about a retry,
    so by default there is none. Proxies of the environment are ignored."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        max_attempts: int = 1,
        timeout: float = REQUEST_TIMEOUT_SECONDS,
    ) -> None:
        try:
            super().__init__(
                url,
                token,
                timeout=timeout,
                max_attempts=max_attempts,
                transport=httpx.AsyncHTTPTransport(trust_env=False, limits=LIMITS),
            )
        except SetupError as error:
            example = "use a URL such as http://HOST:9911"
            raise SetupError(f"--url {url}: not the URL of a server; {example}") from error
        self._url = url

    async def check_server(self) -> None:
        """Check that a server answers."""
        await self.perform(HEALTH)

    async def metrics(self) -> str:
        """The server's metrics, in the format of Prometheus."""
        return await self.perform(METRICS)

    async def perform(self, call: Call[T]) -> T:
        try:
            return await super().perform(call)
        except GregorError as error:
            raise _with_options(error, self._url) from error


def _with_options(error: GregorError, url: str) -> GregorError:
    match error.__cause__, error:
        case httpx.ConnectError(), _:
            return Unavailable(
                f"no server answers at {url}; start one with `gregor serve`, or give another --url"
            )
        case httpx.RequestError(), _:
            return Unavailable(f"{url} did not answer: {error.message}; try again")
        case _, UnexpectedAnswer() | MismatchedAnswer():
            return UnexpectedAnswer(f"{url}: {error.message}; check --url")
        case _, Unauthenticated():
            return Unauthenticated(
                f"{error.message}; give --token, or set GREGOR_TOKEN (see gregor token)"
            )
        case _ if error.action is Action.RETRY:
            return Unavailable(f"{error.message}; try again in a moment")
        case _:
            return error


async def request(settings: Settings, call: Callable[[CommandProducer], Awaitable[T]]) -> T:
    """Make one call to the server in the settings."""
    async with producer(settings) as server:
        return await call(server)


async def read_messages(
    settings: Settings, uid: UID, device_id: DeviceID | None, since: When, after: Time | None
) -> list[InBandMessage]:
    """The messages since an instant or after a cursor: those of all pages."""
    messages: list[InBandMessage] = []
    async with producer(settings) as server:
        page = await server.messages(uid, device_id, since=since, after=after)
        messages += page.messages
        while page.more:
            page = await server.messages(uid, device_id, after=page.cursor)
            messages += page.messages
    return messages


async def streamed(
    settings: Settings, method: str, path: str, content: AsyncIterable[bytes] | None = None
) -> AsyncIterator[bytes]:
    """The answer to one request of the server in the settings, chunk by chunk. It may be of any
    size, and so may the content. Raises as a CommandProducer does."""
    token = None if settings.token is None else settings.token.get_secret_value()
    http = httpx.AsyncClient(
        base_url=server_url(settings.url),
        headers=authorization(token),
        timeout=httpx.Timeout(REQUEST_TIMEOUT_SECONDS, read=STREAM_TIMEOUT_SECONDS),
        transport=httpx.AsyncHTTPTransport(trust_env=False),
    )
    attempt = Attempts(Call(method, path, bytes), 1)
    try:
        async with http, http.stream(method, path, content=content) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                attempt.after(response, 0.0)
            async for chunk in response.aiter_bytes():
                yield chunk
    except httpx.HTTPError as failure:
        try:
            attempt.after(failure, 0.0)
        except GregorError as error:
            raise _with_options(error, settings.url) from error
    except GregorError as error:
        raise _with_options(error, settings.url) from error


def producer(
    settings: Settings, *, max_attempts: int = 1, timeout: float = REQUEST_TIMEOUT_SECONDS
) -> CommandProducer:
    """For the server in the settings."""
    token = None if settings.token is None else settings.token.get_secret_value()
    return CommandProducer(settings.url, token, max_attempts=max_attempts, timeout=timeout)
