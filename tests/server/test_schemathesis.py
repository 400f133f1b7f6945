"""The server answers as its OpenAPI document says, whatever it is sent: schemathesis makes the
requests, those that the schema allows and others."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import positive_data_acceptance
from schemathesis.config import SchemathesisConfig

from gregor.cli.server_process import running_server
from gregor.clock import now
from gregor.core.admission import EARLIEST_TIME
from gregor.core.arguments import duration
from gregor.errors import InvalidMessage
from gregor.protocol.requests import JSON_LINES
from gregor.server.openapi import describe
from tests.timeouts import TIMEOUT_SECONDS

# Beside success: what is not there, a cursor or an epoch that is not the user's, what is forgotten,
# and a prune that another one is ahead of.
CONFIG = SchemathesisConfig.from_dict(
    {
        "request-timeout": TIMEOUT_SECONDS,
        "max-stream-events": 1,  # a stream of events does not end by itself
        "checks": {
            "positive_data_acceptance": {"expected-statuses": ["2xx", 404, 409, 410, 503]},
        },
    }
)
# The body of the one and a parameter of the other are what a server has given before.
GIVEN_BEFORE = {"/v1/import", "/v1/users/{uid}/state"}
SCHEMA = schemathesis.openapi.from_dict(describe(), config=CONFIG)


def no_schema_can_say(case: schemathesis.Case[Any]) -> bool:
    """Whether a request may be wrong by two fields together, by its token, by the length of a text
    in bytes, or by the day on which it is sent."""
    query, sent = (
        dict(case.query or {}),
        f"{unquote(case.formatted_path)} {case.query} {case.body!r}",
    )
    match case.path, query:
        case "/v1/messages", {"device_id": _}:
            return True  # no token is that of a service, which has no device
        case "/v1/prune", _:
            return reaches_back_too_far(case.body)
        case "/v1/users/{uid}/count", {"by": _, "prefix": list(prefixes)} if len(prefixes) != 1:
            return True
        case "/v1/users/{uid}/messages", {"since": _, "after": _}:
            return True
    return not sent.isascii() or ("starts" in sent and "expires" in sent)


def reaches_back_too_far(body: Any) -> bool:
    """Whether a prune is asked for what is older than any message can be."""
    try:
        return now() - duration("older_than", body["older_than"]) < EARLIEST_TIME
    except (TypeError, KeyError, InvalidMessage):
        return False


@schemathesis.serializer(JSON_LINES)
def lines(context: schemathesis.SerializationContext, value: object) -> bytes:
    return str(value).encode(errors="replace")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a process of its own."""
    store: Path = tmp_path_factory.mktemp("schemathesis") / "gregor.db"
    with asyncio.Runner() as runner:
        server = running_server(f"sqlite:///{store}", options=())
        yield runner.run(server.__aenter__())
        runner.run(server.__aexit__(None, None, None))


@pytest.mark.slow
@SCHEMA.parametrize()
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_server_answers_as_its_document_says(case: schemathesis.Case[Any], url: str) -> None:
    is_left_out = case.path in GIVEN_BEFORE or no_schema_can_say(case)
    excluded = [positive_data_acceptance] if is_left_out else []
    case.call_and_validate(base_url=url, excluded_checks=excluded)
