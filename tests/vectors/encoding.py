"""How the inputs and effects of a client's session are written in vectors: see spec/protocol.md."""

from typing import Any, TypeAlias

import msgspec
from msgspec import Raw, Struct

from gregor.core.message import InBandMessage, Message, parse_message
from gregor.protocol.client_session import (
    Acked,
    Apply,
    Compare,
    Deferred,
    DeliverOutOfBand,
    Effect,
    Failed,
    Reconnect,
    Replace,
    Welcomed,
    Wipe,
)
from gregor.protocol.effects import Send

JSON: TypeAlias = Any


def plain(value: object) -> JSON:
    """Structs as the JSON that travels."""
    if isinstance(value, Raw | Struct):
        return msgspec.json.decode(msgspec.json.encode(value))
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return value


def effect_json(effect: Effect) -> JSON:
    """One effect, from the closed list of spec/protocol.md."""
    match effect:
        case Send(frame=frame):
            return {"send": plain(frame)}
        case Welcomed(uid, limits, now, epoch):
            welcomed = {"uid": uid, "messages": limits.messages, "now": now, "epoch": epoch}
            return {"welcomed": welcomed}
        case Apply(messages, cursor):
            return {"apply": {"messages": plain(messages), "cursor": cursor}}
        case Replace(snapshot, cursor, epoch):
            items = plain(snapshot.items)
            return {"replace": {"items": items, "cursor": cursor, "epoch": epoch}}
        case Wipe(epoch):
            return {"erased": {"epoch": epoch}}
        case Compare(as_of, hash_):
            return {"compare": {"as_of": as_of, "hash": hash_}}
        case Acked(results):
            return {"acked": {"results": plain(results)}}
        case Deferred(error):
            return {"deferred": plain(error)}
        case DeliverOutOfBand(system, body):
            return {"deliver_out_of_band": {"system": system, "body": plain(body)}}
        case Failed(error):
            return {"failed": plain(error)}
        case Reconnect(within_ms):
            return {"reconnect": {"within_ms": within_ms}}


def message_of(json: JSON) -> Message:
    """A message as a device writes it."""
    return parse_message(msgspec.json.encode(json), uid="alice")


def in_band(json: JSON) -> InBandMessage:
    message = message_of(json)
    assert isinstance(message, InBandMessage)
    return message


def frame_text(frame: JSON) -> str:
    """A frame of a vector as the text that a device receives; a string stands for itself."""
    return frame if isinstance(frame, str) else msgspec.json.encode(frame).decode()


class Step(Struct):
    """What goes in, and what must come out."""

    input: JSON = msgspec.field(name="in")
    output: JSON = msgspec.field(name="out")


class Case(Struct):
    name: str
    steps: list[Step]


class VectorFile(Struct):
    about: str
    cases: list[Case]


def text_of(file: VectorFile) -> str:
    """The file, one step a line, so that a difference can be read."""
    cases = [
        f'  {{\n   "name": {_json(case.name)},\n   "steps": [\n'
        + ",\n".join(
            f'    {{"in": {_json(step.input)},\n     "out": {_json(step.output)}}}'
            for step in case.steps
        )
        + "\n   ]\n  }"
        for case in file.cases
    ]
    return f'{{\n "about": {_json(file.about)},\n "cases": [\n' + ",\n".join(cases) + "\n ]\n}\n"


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
