"""`spec/protocol.md` says what the code does: frames, fields, limits and codes, both ways."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from msgspec import Struct

from gregor.core.arguments import MAX_DEPTH
from gregor.core.instant import TimeOrOffset
from gregor.core.message import (
    MAX_BODY,
    Creation,
    Dismissal,
    InBandMessage,
    KeyDismissal,
    OutOfBandMessage,
    Range,
    parse_message,
)
from gregor.core.state import Item
from gregor.errors import (
    WIRE_ERRORS,
    Action,
    Malformed,
    SetupError,
    WrongEventLoop,
)
from gregor.limits import Limits
from gregor.protocol import frames
from gregor.protocol.later_versions import decode_node_frame
from gregor.protocol.outbound_queue import QUEUE_BYTES, QUEUE_MESSAGES
from gregor.server import connections, service
from gregor.server.process import config

SPEC = (Path(__file__).parents[2] / "spec" / "protocol.md").read_text()

DEVICE_FRAMES: dict[str, type[Struct]] = {
    kind.__struct_config__.tag: kind for kind in get_args(frames.DeviceFrame)
}
NODE_FRAMES: dict[str, type[Struct]] = {
    kind.__struct_config__.tag: kind for kind in get_args(frames.NodeFrame)
}
VALUES: dict[str, type[Struct]] = {
    "message": InBandMessage,
    "creation": Creation,
    "dismissal": Dismissal,
    "range": Range,
    "key dismissal": KeyDismissal,
    "time or offset": TimeOrOffset,
    "out-of-band message": OutOfBandMessage,
    "item": Item,
    "limits": Limits,
    "result": frames.Result,
    "problem": frames.Problem,
}
NEVER_TRAVEL = {SetupError.code, WrongEventLoop.code}


def sections(kind: str) -> dict[str, str]:
    """The text below each heading such as "### Frame `hello`"."""
    found = re.findall(rf"^### {kind} `(.+?)`\n(.*?)(?=^##)", SPEC, re.MULTILINE | re.DOTALL)
    return dict(found)


def rows(text: str) -> Iterator[list[str]]:
    """The cells of the tables, but for headings."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            yield cells


def examples(text: str) -> list[str]:
    return re.findall(r"```json\n(.*?)```", text, re.DOTALL)


def fields(kind: type[Struct]) -> dict[str, Any]:
    """The names in JSON, and the default of each (NODEFAULT if it must be there)."""
    return {field.encode_name: field.default for field in msgspec.structs.fields(kind)}


def test_spec_has_exactly_one_section_per_frame_and_value() -> None:
    assert sections("Frame").keys() == {*DEVICE_FRAMES, *NODE_FRAMES}
    assert sections("Value").keys() == VALUES.keys()


ALL = [("Frame", name, kind) for name, kind in {**DEVICE_FRAMES, **NODE_FRAMES}.items()]
ALL += [("Value", name, kind) for name, kind in VALUES.items()]


@pytest.mark.parametrize(("what", "name", "kind"), ALL)
def test_spec_fields_match_code(what: str, name: str, kind: type[Struct]) -> None:
    written = {cells[0].strip("`"): cells[2] for cells in rows(sections(what)[name])}
    assert written.keys() == fields(kind).keys()
    for field, default in fields(kind).items():
        sender_may_leave_it_out = "message" in name and field in ("uid", "msg_id")
        required = default is msgspec.NODEFAULT and not sender_may_leave_it_out
        assert (written[field] == "") == required, field
        if default is False or default == 0 or default == ():
            assert written[field] in ("false", "0", "[]")


@pytest.mark.parametrize("name", DEVICE_FRAMES)
def test_spec_examples_of_device_frames_decode(name: str) -> None:
    texts = examples(sections("Frame")[name])
    assert texts
    for text in texts:
        frame = frames.decode_device_frame(text)
        assert type(frame) is DEVICE_FRAMES[name]
        if isinstance(frame, frames.Consume):
            for message in frame.messages:
                parse_message(message, uid="alice")


@pytest.mark.parametrize("name", NODE_FRAMES)
def test_spec_examples_of_node_frames_match_encoding(name: str) -> None:
    texts = examples(sections("Frame")[name])
    assert texts
    for text in texts:
        frame = decode_node_frame(text)
        assert type(frame) is NODE_FRAMES[name]
        assert json.loads(frames.encode(frame)) == json.loads(text)


@pytest.mark.parametrize("name", VALUES)
def test_spec_examples_of_values_decode(name: str) -> None:
    (text,) = examples(sections("Value")[name])
    if name in ("message", "out-of-band message"):
        assert type(parse_message(text)) is VALUES[name]
    else:
        msgspec.json.decode(text, type=VALUES[name])


def test_spec_error_table_matches_code() -> None:
    table = {
        cells[0].strip("`"): cells
        for cells in rows(SPEC.partition("## 8. Errors")[2].partition("\n## ")[0])
    }
    assert table.keys() == WIRE_ERRORS.keys() - NEVER_TRAVEL
    for code, (_, meaning, status, close, action) in table.items():
        kind = WIRE_ERRORS[code]
        assert meaning
        assert int(status) == kind.status
        assert action == kind.action
        if close != "–":
            assert int(close) == kind.close_code
    for code in NEVER_TRAVEL:
        assert f"`{code}`" in SPEC


def test_spec_explains_every_action() -> None:
    for action in Action:
        assert f"- `{action}`: " in SPEC


def test_spec_numbers_match_code() -> None:
    limits = msgspec.to_builtins(Limits())
    for cells in rows(sections("Value")["limits"]):
        assert int(cells[2]) == limits[cells[0].strip("`")]
    uvicorn = config(None)  # type: ignore[arg-type]
    unwrapped = " ".join(SPEC.split())  # a number may stand at the end of a line
    for number in (
        f"up to {MAX_BODY // 1024} KiB and {MAX_DEPTH} levels",
        f"({frames.MAX_FRAME:,} bytes)",
        f"beyond {QUEUE_MESSAGES} messages or {QUEUE_BYTES // 1024} KiB",
        f"within {service.DEFAULT_TIMEOUTS.hello:.0f} s",
        f"accepts nothing for {service.WRITE_TIMEOUT_SECONDS:.0f} s",
        f"**{connections.SERVICE_RESTART}** after `goaway`",
        f"ping themselves every {uvicorn.ws_ping_interval:.0f} s",
        f"answer within {uvicorn.ws_ping_timeout:.0f} s",
        f"| {frames.PROTOCOL} |",
    ):
        assert number in unwrapped, number


@pytest.mark.parametrize("text", ['{"type": "verify", "cursor": 1, "x": 1}', '{"type": "x"}'])
def test_node_refuses_device_frame_with_unknown_type_or_field(text: str) -> None:
    with pytest.raises(Malformed):
        frames.decode_device_frame(text)
