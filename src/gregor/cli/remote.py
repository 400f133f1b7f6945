"""A running server, as a command sees it: questions and messages over HTTP."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Raw

from gregor.config import Settings
from gregor.core.message import Message
from gregor.errors import GregorError, Turn, Unavailable
from gregor.protocol.answers import (
    CountAnswer,
    MessagesAnswer,
    ProblemDocument,
    Results,
    StateAnswer,
)
from gregor.protocol.frames import Result

T = TypeVar("T")

SECONDS = 30.0


class Refused(GregorError):
    """The server said no, in its own words. Change the command."""

    turn = Turn.STOP


class Remote:
    """A server's HTTP interface. Open it with `async with`. Everything raises Unavailable if the
    server does not answer, or not now, and Refused if it never will."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = url
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(SECONDS),
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
        asked = {"device_id": device, "at": at, "prefix": prefix}
        return await self._ask(StateAnswer, uid, "state", asked)

    async def count(
        self, uid: str, device: str | None = None, prefixes: Sequence[str] = ()
    ) -> CountAnswer:
        asked = {"device_id": device, "prefix": list(prefixes)}
        return await self._ask(CountAnswer, uid, "count", asked)

    async def messages(
        self, uid: str, device: str | None = None, *, since: str | None = None
    ) -> MessagesAnswer:
        asked = {"device_id": device, "since": since}
        return await self._ask(MessagesAnswer, uid, "messages", asked)

    async def send(self, messages: Sequence[Message | Raw]) -> tuple[Result, ...]:
        """Inject up to 500 messages; the results are in the same order."""
        content = msgspec.json.encode({"messages": messages})
        answer = await self._request("POST", "/v1/messages", content=content)
        return self._read(Results, answer).results

    async def greet(self) -> None:
        """Only see whether a server is there."""
        await self._request("GET", "/healthz")

    async def metrics(self) -> str:
        """What the server tells about itself, as Prometheus has it."""
        return (await self._request("GET", "/metrics")).text

    async def _ask(self, kind: type[T], uid: str, what: str, asked: Mapping[str, Any]) -> T:
        given = {name: value for name, value in asked.items() if value}
        path = f"/v1/users/{quote(uid, safe='')}/{what}"
        return self._read(kind, await self._request("GET", path, params=given))

    async def _request(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, self._url.rstrip("/") + path, **more)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Refused(
                f"--url {self._url}: {error}; give one such as http://HOST:9911"
            ) from error
        except httpx.ConnectError as error:
            raise Unavailable(
                f"no server answers at {self._url}; start one with `gregor serve`, or name "
                "another with --url"
            ) from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"{self._url} gave no answer: {reason}; try again") from error
        if answer.is_error:
            raise self._error(answer)
        return answer

    def _read(self, kind: type[T], answer: httpx.Response) -> T:
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except (msgspec.DecodeError, GregorError) as error:
            raise self._stranger(answer) from error

    def _error(self, answer: httpx.Response) -> GregorError:
        try:
            problem = msgspec.json.decode(answer.content, type=ProblemDocument)
        except msgspec.DecodeError:
            return self._stranger(answer)
        if problem.code == "unauthenticated":
            return Refused(
                f"{problem.detail}; give --token, or set GREGOR_TOKEN (see gregor token)"
            )
        if problem.turn is Turn.RETRY:
            return Unavailable(f"{problem.detail}; try again in a moment")
        return Refused(problem.detail)

    def _stranger(self, answer: httpx.Response) -> GregorError:
        kind = Unavailable if answer.status_code in (502, 503, 504) else Refused
        return kind(f"{self._url} answered {answer.status_code}, and not as Gregor does; see --url")


async def ask(settings: Settings, question: Callable[[Remote], Awaitable[T]]) -> T:
    """Put one question to the server that the settings name."""
    async with remote(settings) as server:
        return await question(server)


def remote(settings: Settings) -> Remote:
    """The server that the settings name."""
    token = settings.token
    return Remote(settings.url, None if token is None else token.get_secret_value())
