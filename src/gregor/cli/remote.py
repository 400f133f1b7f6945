"""The HTTP client that commands use to query a running server and to send messages."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Raw

from gregor.config import Settings
from gregor.core.message import Message
from gregor.errors import Action, GregorError, Unavailable
from gregor.protocol.answers import (
    CountAnswer,
    MessagesAnswer,
    ProblemDocument,
    Results,
    StateAnswer,
)
from gregor.protocol.frames import Result

T = TypeVar("T")

REQUEST_TIMEOUT_SECONDS = 30.0


class RequestRefused(GregorError):
    """The server refused the request; the message is the server's. Change the command."""

    action = Action.STOP


class RemoteServer:
    """A server's HTTP interface. Open it with `async with`. Each method raises Unavailable if the
    server does not answer or asks to retry, and RequestRefused if a retry cannot succeed."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = url
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(REQUEST_TIMEOUT_SECONDS),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._http.__aexit__(*exc_info)

    async def state(
        self, uid: str, device: str | None = None, *, at: str | None = None, prefix: str = ""
    ) -> StateAnswer:
        parameters = {"device_id": device, "at": at, "prefix": prefix}
        return await self._query(StateAnswer, uid, "state", parameters)

    async def count(
        self, uid: str, device: str | None = None, prefixes: Sequence[str] = ()
    ) -> CountAnswer:
        parameters = {"device_id": device, "prefix": list(prefixes)}
        return await self._query(CountAnswer, uid, "count", parameters)

    async def messages(
        self, uid: str, device: str | None = None, *, since: str | None = None
    ) -> MessagesAnswer:
        parameters = {"device_id": device, "since": since}
        return await self._query(MessagesAnswer, uid, "messages", parameters)

    async def send(self, messages: Sequence[Message | Raw]) -> tuple[Result, ...]:
        """Inject up to 500 messages; the results are in the same order."""
        content = msgspec.json.encode({"messages": messages})
        response = await self._request("POST", "/v1/messages", content=content)
        return self._decode(Results, response).results

    async def check_server(self) -> None:
        """Check that a server answers."""
        await self._request("GET", "/healthz")

    async def metrics(self) -> str:
        """The server's metrics, in the format of Prometheus."""
        return (await self._request("GET", "/metrics")).text

    async def _query(
        self, kind: type[T], uid: str, resource: str, parameters: Mapping[str, Any]
    ) -> T:
        given = {name: value for name, value in parameters.items() if value}
        path = f"/v1/users/{quote(uid, safe='')}/{resource}"
        return self._decode(kind, await self._request("GET", path, params=given))

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, self._url.rstrip("/") + path, **options)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise RequestRefused(
                f"--url {self._url}: {error}; use a URL such as http://HOST:9911"
            ) from error
        except httpx.ConnectError as error:
            raise Unavailable(
                f"no server answers at {self._url}; start one with `gregor serve`, or give another "
                "--url"
            ) from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"{self._url} did not answer: {reason}; try again") from error
        if response.is_error:
            raise self._error(response)
        return response

    def _decode(self, kind: type[T], response: httpx.Response) -> T:
        try:
            return msgspec.json.decode(response.content, type=kind)
        except (msgspec.DecodeError, GregorError) as error:
            raise self._not_gregor(response) from error

    def _error(self, response: httpx.Response) -> GregorError:
        try:
            problem = msgspec.json.decode(response.content, type=ProblemDocument)
        except msgspec.DecodeError:
            return self._not_gregor(response)
        if problem.code == "unauthenticated":
            return RequestRefused(
                f"{problem.detail}; give --token, or set GREGOR_TOKEN (see gregor token)"
            )
        if problem.action is Action.RETRY:
            return Unavailable(f"{problem.detail}; try again in a moment")
        return RequestRefused(problem.detail)

    def _not_gregor(self, response: httpx.Response) -> GregorError:
        status = response.status_code
        kind = Unavailable if status in (502, 503, 504) else RequestRefused
        return kind(f"{self._url} answered {status}, but not as a Gregor server; check --url")


async def request(settings: Settings, call: Callable[[RemoteServer], Awaitable[T]]) -> T:
    """Make one call to the server in the settings."""
    async with remote_server(settings) as server:
        return await call(server)


def remote_server(settings: Settings) -> RemoteServer:
    """The server in the settings."""
    token = settings.token
    return RemoteServer(settings.url, None if token is None else token.get_secret_value())
