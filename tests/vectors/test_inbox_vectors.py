"""spec/vectors/inbox.json is true of a Client, and spec/inbox.md lists what is in it."""

import asyncio
import re

import msgspec
import pytest

from gregor.client import Client
from gregor.core.instant import SECOND
from gregor.core.notification_body import (
    ACTION_FIELDS,
    FIELDS,
    MAX_ACTION_ID,
    MAX_ACTIONS,
    MAX_LABEL,
    MAX_TEXT,
    MAX_TITLE,
    MAX_URL,
    SEVERITIES,
    valid_fields,
)
from gregor.testing import virtual_time
from tests.vectors import SPEC
from tests.vectors.device import DEVICE, TOKEN
from tests.vectors.encoding import Case, VectorFile
from tests.vectors.inbox import InboxRun, sent

CASES = msgspec.json.decode((SPEC / "inbox.json").read_bytes(), type=VectorFile).cases
SENT = [case for case in CASES if "notify" in case.steps[0].input]
BODIES = [case for case in CASES if "body" in case.steps[0].input]
DONE = [case for case in CASES if case not in SENT + BODIES]
PAGE = (SPEC.parent / "inbox.md").read_text()
LISTED = set(re.findall(r"`(\w+)`", PAGE.partition("## 7.")[2]))


def test_example_of_the_spec_is_what_a_producer_sends() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    body = {"title": "Ann liked your photo"}
    assert msgspec.json.decode(example) == sent(
        uid="alice", topic="likes", body=body, key="photo7", msg_id="m1"
    )


def test_spec_names_the_fields_of_a_body_in_the_order_of_their_checks() -> None:
    section = PAGE.partition("## 3. ")[2].partition("## 4. ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(FIELDS)
    assert "(of an action: `label`, `id`, `url`)" in section
    assert list(ACTION_FIELDS) == ["label", "id", "url"]
    for limit in (MAX_TITLE, MAX_TEXT, MAX_URL, MAX_LABEL, MAX_ACTION_ID):
        assert f"1 to {limit:,} bytes" in section
    assert f"at most {MAX_ACTIONS} actions" in section
    assert all(f"`{severity}`" in section for severity in SEVERITIES)


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
