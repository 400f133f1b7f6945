"""The server answers as its OpenAPI document says, whatever it is sent: schemathesis makes the
requests, those that the schema allows and others."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import positive_data_acceptance
from schemathesis.config import SchemathesisConfig

from gregor.cli.server_process import running_server
from gregor.protocol.requests import JSON_LINES
from gregor.server.openapi import describe

# What a schema cannot say is refused with one of these: lengths in bytes, a start that is not
# before the expiry, an epoch that is not the user's.
CONFIG = SchemathesisConfig.from_dict(
    {
        "checks": {
            "positive_data_acceptance": {
                "expected-statuses": ["2xx", 404, 409, 410, 413, 422, 503],
            }
        }
    }
)
# The body of the one and a parameter of the other are what a server has given before.
GIVEN_BEFORE = {"/v1/import", "/v1/users/{uid}/state"}
ENDLESS = "/events"  # a stream of events does not end by itself
SCHEMA = schemathesis.openapi.from_dict(describe(), config=CONFIG).exclude(path_regex=ENDLESS)


@schemathesis.serializer(JSON_LINES)
def lines(context: schemathesis.SerializationContext, value: object) -> bytes:
    return str(value).encode(errors="replace")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a process of its own."""
    store: Path = tmp_path_factory.mktemp("schemathesis") / "gregor.db"
    with asyncio.Runner() as runner:
        server = running_server(f"sqlite:///{store}")
        yield runner.run(server.__aenter__())
        runner.run(server.__aexit__(None, None, None))


@pytest.mark.slow
@SCHEMA.parametrize()
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_server_answers_as_its_document_says(case: schemathesis.Case[Any], url: str) -> None:
    excluded = [positive_data_acceptance] if case.path in GIVEN_BEFORE else []
    case.call_and_validate(base_url=url, excluded_checks=excluded)
