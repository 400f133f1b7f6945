"""Errors as problem documents (RFC 9457)."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from gregor.errors import Erased, GregorError, Unauthenticated, Unavailable
from gregor.protocol.answers import ProblemDocument

RETRY_AFTER_SECONDS = 1


def problem(
    error: GregorError,
    headers: Mapping[str, str] | None = None,
    problems: Sequence[str] = (),
) -> Response:
    """The error as a problem document."""
    status = HTTPStatus(error.status)
    document = ProblemDocument(
        f"urn:gregor:error:{error.code}",
        status.phrase,
        error.status,
        error.message,
        error.code,
        error.action,
        error.field,
        tuple(problems),
        error.epoch if isinstance(error, Erased) else None,
    )
    headers = dict(headers or {})
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    body = msgspec.json.encode(document)
    return Response(body, status, headers, media_type="application/problem+json")
