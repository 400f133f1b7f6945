"""Errors as problem documents (RFC 9457)."""

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from gregor.errors import Erased, GregorError, LimitExceeded, Unauthenticated, Unavailable
from gregor.protocol.answers import ProblemDocument
from gregor.protocol.frames import exceeded

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
        *exceeded(error),
    )
    headers = dict(headers or {})
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if isinstance(error, LimitExceeded) and error.retry_after_ms is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_ms / 1000))
    body = msgspec.json.encode(document)
    return Response(body, status, headers, media_type="application/problem+json")
