"""The URLs of a server, and what answers at each."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from gregor.core.message import UID
from gregor.server import exports, http
from gregor.server.openapi import describe
from gregor.server.service import Service
from gregor.server.sse import refusal
from gregor.server.welcome import get_welcome


def make_public_app(service: Service) -> Starlette:
    """The ASGI app for all who reach the server: it tells callers without a token no more than
    whether it is alive and ready. It has no lifespan: the service is opened elsewhere."""
    public = partial(http.public_endpoint, service)
    return _app([*_api(service), _Route("/readyz", public(http.get_ready), methods=["GET"])])


def make_admin_app(service: Service) -> Starlette:
    """The same for operators: it tells also how the server is, to callers without a token."""
    public = partial(http.public_endpoint, service)
    return _app(
        [
            *_api(service),
            _Route("/readyz", public(http.get_readiness), methods=["GET"]),
            _Route("/metrics", public(http.get_metrics), methods=["GET"]),
            _Route("/openapi.json", public(_get_openapi), methods=["GET"]),
        ]
    )


def _api(service: Service) -> list[BaseRoute]:
    """What both apps answer at."""
    user = "/v1/users/{uid:uid}"
    private = partial(http.authenticated_endpoint, service)
    public = partial(http.public_endpoint, service)
    return [
        _Route("/v1/messages", private(http.post_messages), methods=["POST"]),
        _UserRoute(user, private(http.delete_user), methods=["DELETE"]),
        _Route("/v1/limits", private(http.get_limits), methods=["GET"]),
        _Route("/v1/prune", private(http.post_prune), methods=["POST"]),
        _Route("/v1/export", private(exports.get_export), methods=["GET"]),
        _Route(f"{user}/export", private(exports.get_user_export), methods=["GET"]),
        _Route("/v1/import", private(exports.post_import), methods=["POST"]),
        _Route("/v1/backup", private(exports.get_backup), methods=["GET"]),
        _Route(f"{user}/state", private(http.get_state), methods=["GET"]),
        _Route(f"{user}/count", private(http.get_count), methods=["GET"]),
        _Route(f"{user}/messages", private(http.get_messages), methods=["GET"]),
        _ItemRoute(
            f"{user}/items/{{msg_id:uid}}/history",
            private(http.get_item_history),
            methods=["GET"],
        ),
        _Route(
            f"{user}/events",
            private(http.get_events, admit=http.admit_stream, refuse=refusal),
            methods=["GET"],
        ),
        _Route("/healthz", public(http.get_health), methods=["GET"]),
        _Route("/", public(get_welcome), methods=["GET"]),
    ]


def _app(routes: Sequence[BaseRoute]) -> Starlette:
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: http.on_http_exception,
            Exception: http.on_exception,
        },
    )
    app.router.redirect_slashes = False  # each resource has exactly one URL
    return app


async def _get_openapi(service: Service, request: Request) -> Response:
    return Response(
        msgspec.json.encode(describe(service.limiter.limits)), media_type="application/json"
    )


class _Route(Route):
    """A URL whose own words are not encoded: a rule of a proxy that names one of them would not
    find it."""

    def __init__(self, path: str, *arguments: Any, **options: Any) -> None:
        super().__init__(path, *arguments, **options)
        self._words = [word.encode() for word in re.split(r"\{.*?\}", self.path_format)]

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        raw = _raw_path(scope)
        if not raw.endswith(self._words[-1]) or any(word not in raw for word in self._words):
            return Match.NONE, {}
        return super().matches(scope)


class _UserRoute(_Route):
    """The URL of a user itself, which ends with the uid. A slash in the uid must be encoded, so
    that no address below a user is taken for another user."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if not _raw_path(scope).rpartition(b"/")[0].endswith(b"/v1/users"):
            return Match.NONE, {}
        return super().matches(scope)


class _ItemRoute(_Route):
    """The URL of an item of a user. Slashes in the two ids must be encoded: with both as they are,
    it would not be clear where one ends."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match _raw_path(scope).rsplit(b"/", 5):
            case [root, b"users", uid, b"items", msg_id, b"history"] if root.endswith(b"/v1"):
                found, child = super().matches(scope)
                ids = {"uid": _unquoted(uid), "msg_id": _unquoted(msg_id)}
                return found, {**child, "path_params": {**child.get("path_params", {}), **ids}}
            case _:
                return Match.NONE, {}


def _raw_path(scope: Scope) -> bytes:
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return path


def _unquoted(segment: bytes) -> str:
    return unquote_to_bytes(segment).decode(errors="replace")


class _UID(Convertor[str]):
    """Accepts any uid. It is opaque, so it may contain slashes and line breaks."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> UID:
        return value

    def to_string(self, value: UID) -> str:
        return value


register_url_convertor("uid", _UID())
