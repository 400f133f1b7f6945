"""`gregor replay`: parsing of lines, ordered sending, and the command with the sample."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterable, Sequence

import pytest

from gregor.cli.make_sample import packed, sample
from gregor.cli.ordered_sender import Tally, send_all
from gregor.cli.sample import SAMPLE
from gregor.cli.stream import BadLine, parse
from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import InBandMessage
from gregor.errors import Action, Unavailable
from gregor.protocol.frames import Problem, Result
from tests.cli.conftest import Shell

T = 1_242_729_073_000


def line(uid: str, msg_id: str, **contents: object) -> bytes:
    return json.dumps({"t": T, "uid": uid, "msg_id": msg_id, **contents}).encode() + b"\n"


def creation(uid: str, msg_id: str, **more: object) -> bytes:
    return line(uid, msg_id, create={"category": "c", "body": 1, **more})


# Parsing of a line


def parsed(json_line: bytes) -> InBandMessage:
    message = parse(json_line)
    assert isinstance(message, InBandMessage)
    return message


def test_line_becomes_a_message_without_ctime() -> None:
    message = parsed(creation("u", "m"))
    assert message.creation is not None
    assert (message.uid, message.msg_id, message.creation.body) == ("u", "m", 1)
    assert not message.stamped


def test_line_can_dismiss_ids_and_ranges() -> None:
    dismissal = parsed(
        line("u", "m", dismiss={"msg_ids": ["a"], "ranges": [{"category": "c", "prefix": True}]})
    ).dismissal
    assert dismissal is not None
    assert dismissal.msg_ids == ("a",)
    assert (dismissal.ranges[0].prefix, dismissal.ranges[0].end_time) == (True, None)


def test_time_of_the_senders_clock_becomes_an_offset_from_the_line() -> None:
    earlier = {"time": T * 1000 - 5 * SECOND}
    ranges = [{"category": "c", "end_time": earlier}, {"category": "d", "end_time": {"offset": 0}}]
    dismissal = parsed(line("u", "m", dismiss={"ranges": ranges})).dismissal
    assert dismissal is not None
    assert [r.end_time for r in dismissal.ranges] == [
        TimeOrOffset(offset=-5 * SECOND),
        TimeOrOffset(offset=0),
    ]
    created = parsed(creation("u", "m", expires={"time": T * 1000 + SECOND})).creation
    assert created is not None
    assert created.expires == TimeOrOffset(offset=SECOND)


def test_line_can_have_a_key_and_a_start_and_dismiss_keys() -> None:
    start, later = {"time": T * 1000 + 5 * SECOND}, {"time": T * 1000 + 9 * SECOND}
    created = parsed(creation("u", "m", key="k", starts=start, expires=later)).creation
    assert created is not None
    assert (created.key, created.starts) == ("k", TimeOrOffset(offset=5 * SECOND))
    keys = [{"key": "k"}, {"key": "l", "end_time": before_the_line()}]
    ranges = [{"category": "c", "scheduled": True}]
    dismissal = parsed(line("u", "m", dismiss={"keys": keys, "ranges": ranges})).dismissal
    assert dismissal is not None
    assert [key.key for key in dismissal.keys] == ["k", "l"]
    assert [key.end_time for key in dismissal.keys] == [None, TimeOrOffset(offset=-SECOND)]
    assert dismissal.ranges[0].scheduled


def test_start_before_the_line_is_at_once() -> None:
    created = parsed(creation("u", "m", starts=before_the_line())).creation
    assert created is not None
    assert created.starts == TimeOrOffset(offset=0)


def test_expiry_before_the_line_becomes_the_shortest_that_a_server_admits() -> None:
    created = parsed(creation("u", "m", expires=before_the_line())).creation
    assert created is not None
    assert created.expires == TimeOrOffset(offset=SECOND)


RANGE_UNTIL_1970 = {"category": "c", "end_time": {"time": 5}}


def before_the_line() -> dict[str, int]:
    return {"time": T * 1000 - SECOND}


@pytest.mark.parametrize(
    ("invalid_line", "reason"),
    [
        (b"not json", "malformed"),
        (b"[]", "object"),
        (b'{"t": 1}', "uid"),
        (line("u", "m"), "creation"),
        (line("u", "m", create={"category": "c"}), "body"),
        (line("u", "m", creation={}), "creation"),
        (line("u", "m", dismiss={"ranges": [{}]}), "category"),
        (creation("u" * 129, "m"), "uid"),
        (creation("u", "m", key=""), "key"),
        (creation("u", "m", starts={"offset": "2h"}, expires={"offset": "1h"}), "starts"),
        (line("u", "m", dismiss={"keys": [{}]}), "key"),
        (b"\xff\xfe", "malformed"),
        (
            line(
                "u", "m", t=10**18, dismiss={"ranges": [{"category": "c", "end_time": {"time": 5}}]}
            ),
            "at most",
        ),
    ],
)
def test_bad_line_has_a_reason(invalid_line: bytes, reason: str) -> None:
    message = parse(invalid_line)
    assert isinstance(message, BadLine)
    assert reason in message.reason


# Sending


async def numbered(lines: Iterable[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    for numbered_line in enumerate(lines, start=1):
        yield numbered_line


class RecordingSender:
    """A fake server that stores everything."""

    def __init__(self) -> None:
        self.received: list[InBandMessage] = []
        self.batches: list[int] = []

    async def send(self, messages: Sequence[InBandMessage]) -> Sequence[Result]:
        self.batches.append(len(messages))
        self.received += messages
        await asyncio.sleep(0)
        return [Result("stored") for _ in messages]


async def test_messages_of_a_user_arrive_in_order() -> None:
    server, tally = RecordingSender(), Tally()
    lines = [creation(f"u{n % 7}", f"{n:04}") for n in range(3_000)]
    await send_all(numbered(lines), server.send, tally)
    for user in range(7):
        ids = [m.msg_id for m in server.received if m.uid == f"u{user}"]
        assert ids == sorted(ids)
    assert (tally.lines, tally.stored, tally.done) == (3_000, 3_000, 3_000)
    assert max(server.batches) <= 500


class RefusingSender(RecordingSender):
    """Stores one batch, and then refuses all for a while."""

    async def send(self, messages: Sequence[InBandMessage]) -> Sequence[Result]:
        await super().send(messages)
        error = Problem("limit", "used up", Action.RETRY, retry_after_ms=100)
        refused = Result("rejected", error=error)
        return [Result("stored") if len(self.batches) == 1 else refused for _ in messages]


async def test_nothing_is_sent_past_a_message_that_may_be_retried() -> None:
    server, tally = RefusingSender(), Tally()
    lines = [creation("u", f"{n:04}") for n in range(3_000)]
    with pytest.RaisesGroup(pytest.RaisesExc(Unavailable, match="line [0-9]+: used up")):
        await send_all(numbered(lines), server.send, tally)
    assert len(server.batches) == 2


# The command


def test_sample_replayed_twice_is_stored_once(gregor: Shell) -> None:
    replay = ("replay", str(SAMPLE), "--json")
    first, second = gregor(*replay).json, gregor(*replay).json
    assert (first["lines"], first["stored"], first["duplicates"]) == (5042, 5042, 0)
    assert (second["lines"], second["stored"], second["duplicates"]) == (5042, 0, 5042)
    assert first["bad"] == first["rejected"] == 0
    assert "5,042" in gregor("replay", str(SAMPLE)).out


def test_bad_lines_are_reported_and_the_others_sent(gregor: Shell) -> None:
    good, same_id = creation("bad", "m1"), creation("bad", "m1", category="other")
    lines = [b"no json\n", b"\n", good, line("bad", "m2"), same_id, creation("bad", "m3")]
    stream = b"".join(lines).decode()
    result = gregor.process("replay", "-", stdin=stream)
    assert result.status == 1
    errors = result.err.splitlines()
    assert [text.split(":")[1] for text in errors] == [" line 1", " line 4", " line 5"]
    assert "known with other contents" in errors[2]
    second = gregor.process("replay", "-", "--json", stdin=stream).json
    assert (second["lines"], second["bad"], second["rejected"], second["duplicates"]) == (
        5,
        2,
        1,
        2,
    )
    assert [problem["line"] for problem in second["problems"]] == [1, 4, 5]
    assert gregor("count", "bad").out == "2\n"


def test_unreadable_file_is_named(gregor: Shell) -> None:
    assert gregor("replay", "no.jsonl").failed_with("no.jsonl", "No such file")
    (gregor.folder / "letter.gz").write_text("this is no gzip")
    assert gregor("replay", "letter.gz").failed_with("letter.gz", "cannot be read")
    (gregor.folder / "cut.gz").write_bytes(SAMPLE.read_bytes()[:1000])
    assert gregor("replay", "cut.gz").failed_with("cut.gz", "cannot be read")


@pytest.mark.slow
def test_replay_continues_after_the_server_is_killed_and_restarted(shell: Shell) -> None:
    store = ("--store", "sqlite:///gregor.db")
    with shell.serving(*store) as first_server:
        address = shell.environment["GREGOR_URL"].removeprefix("http://")
        with shell.running("replay", str(SAMPLE), "--json", stdout=-1) as replaying:
            while not int(shell("count", "u0000").out):
                pass
            first_server.kill()
            first_server.wait()
            with shell.serving(*store, listen=address):
                out, _ = replaying.communicate(timeout=60)
                result = json.loads(out)
                second = shell("replay", str(SAMPLE), "--json").json
    assert result["stored"] + result["duplicates"] == 5042
    assert second["duplicates"] == 5042


# The sample


def test_sample_is_reproducible_and_dismisses_only_its_own_messages() -> None:
    with gzip.open(SAMPLE) as file:
        lines = list(file)
    messages = [parsed(json_line) for json_line in lines]
    assert packed(sample(lines)) == packed(sample(lines))
    created: set[tuple[str, str]] = set()
    for message in messages:
        if message.dismissal is not None:
            assert {(message.uid, id_) for id_ in message.dismissal.msg_ids} <= created
        created.add((message.uid, message.msg_id))
    assert len(lines) == 5042
    assert len({message.uid for message in messages}) == 100
