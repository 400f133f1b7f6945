"""spec/vectors/inbox.json is true of a Client, and spec/inbox.md lists what is in it."""

import asyncio
import re

import msgspec
import pytest

from gregor.client import Client
from gregor.core.instant import SECOND
from gregor.core.notification_body import valid_fields
from gregor.testing import virtual_time
from tests.vectors import SPEC
from tests.vectors.device import DEVICE, TOKEN
from tests.vectors.encoding import Case, VectorFile
from tests.vectors.inbox import InboxRun, sent

CASES = msgspec.json.decode((SPEC / "inbox.json").read_bytes(), type=VectorFile).cases
SENT = [case for case in CASES if "notify" in case.steps[0].input]
BODIES = [case for case in CASES if "body" in case.steps[0].input]
DONE = [case for case in CASES if case not in SENT + BODIES]
LISTED = set(re.findall(r"`(\w+)`", (SPEC.parent / "inbox.md").read_text().partition("## 7.")[2]))


@pytest.mark.parametrize("case", SENT, ids=lambda case: case.name)
def test_notification_has_the_messages_or_the_error_of_the_vector(case: Case) -> None:
    for step in case.steps:
        assert sent(**step.input["notify"]) == step.output


@pytest.mark.parametrize("case", BODIES, ids=lambda case: case.name)
def test_device_shows_the_fields_of_the_vector(case: Case) -> None:
    for step in case.steps:
        assert valid_fields(step.input["body"]) == step.output["fields"]


@pytest.mark.parametrize("case", DONE, ids=lambda case: case.name)
def test_client_writes_and_shows_what_the_vector_says(case: Case) -> None:
    async def play() -> None:
        async with Client(
            "http://nowhere",
            TOKEN,
            device_id=DEVICE,
            connect=asyncio.Event().wait,  # type: ignore[arg-type]  # no network, ever
            clock=virtual_time.clock,
        ) as client:
            run = InboxRun(client)
            for step in case.steps:
                await asyncio.sleep((step.input["now"] - virtual_time.clock()) / SECOND)
                assert await run.feed(step.input) == step.output

    virtual_time.run(play())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_inputs_and_outputs_are_those_listed_in_the_spec(case: Case) -> None:
    for step in case.steps:
        assert {*step.input, *step.output} <= LISTED
