"""A recorded stream, sent to a server."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterable, Sequence

import pytest
from msgspec import Raw

from gregor.cli.lanes import Tally, send_all
from gregor.cli.stream import Bad, parse
from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import InBandMessage
from gregor.data import SAMPLE
from gregor.data.make_sample import packed, sample
from gregor.errors import Unavailable
from gregor.protocol.frames import Result
from tests.cli.conftest import Shell

T = 1_242_729_073_000


def line(uid: str, msg_id: str, **contents: object) -> bytes:
    return json.dumps({"t": T, "uid": uid, "msg_id": msg_id, **contents}).encode() + b"\n"


def creation(uid: str, msg_id: str, **more: object) -> bytes:
    return line(uid, msg_id, create={"category": "c", "body": 1, **more})


# What a line means


def parsed(json_line: bytes) -> InBandMessage:
    message = parse(json_line)
    assert isinstance(message, InBandMessage)
    return message


def test_a_line_is_a_message_and_its_clock_is_no_ctime() -> None:
    message = parsed(creation("u", "m"))
    assert message.creation is not None
    assert (message.uid, message.msg_id, message.creation.body) == ("u", "m", 1)
    assert not message.stamped


def test_a_line_may_dismiss_ids_and_ranges() -> None:
    dismissal = parsed(
        line("u", "m", dismiss={"msg_ids": ["a"], "ranges": [{"category": "c", "prefix": True}]})
    ).dismissal
    assert dismissal is not None
    assert dismissal.msg_ids == ("a",)
    assert (dismissal.ranges[0].prefix, dismissal.ranges[0].end_time) == (True, None)


def test_a_time_of_the_senders_clock_keeps_its_distance_from_the_line() -> None:
    earlier = {"time": T * 1000 - 5 * SECOND}
    ranges = [{"category": "c", "end_time": earlier}, {"category": "d", "end_time": {"offset": 0}}]
    dismissal = parsed(line("u", "m", dismiss={"ranges": ranges})).dismissal
    assert dismissal is not None
    assert [r.end_time for r in dismissal.ranges] == [
        TimeOrOffset(offset=-5 * SECOND),
        TimeOrOffset(offset=0),
    ]
    made = parsed(creation("u", "m", dtime={"time": T * 1000 + SECOND})).creation
    assert made is not None
    assert made.dtime == TimeOrOffset(offset=SECOND)


def test_what_was_to_expire_before_its_line_expires_at_once() -> None:
    made = parsed(creation("u", "m", dtime=earlier_than_the_line())).creation
    assert made is not None
    assert made.dtime == TimeOrOffset(offset=0)


def earlier_than_the_line() -> dict[str, int]:
    return {"time": T * 1000 - SECOND}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"not json", "malformed"),
        (b"[]", "object"),
        (b'{"t": 1}', "uid"),
        (line("u", "m"), "creation"),
        (line("u", "m", create={"category": "c"}), "body"),
        (line("u", "m", creation={}), "creation"),
        (line("u", "m", dismiss={"ranges": [{}]}), "category"),
        (creation("u" * 129, "m"), "uid"),
        (b"\xff\xfe", "malformed"),
    ],
)
def test_a_bad_line_says_why(bad: bytes, why: str) -> None:
    message = parse(bad)
    assert isinstance(message, Bad)
    assert why in message.reason


# How it is sent


async def each(lines: Iterable[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    for numbered in enumerate(lines, start=1):
        yield numbered


class Ear:
    """A server that takes its time, stores each message once, and does not always answer."""

    def __init__(self, failures: int = 0) -> None:
        self.heard: list[InBandMessage] = []
        self.batches: list[int] = []
        self._failures = failures

    async def send(self, messages: Sequence[InBandMessage | Raw]) -> Sequence[Result]:
        self.batches.append(len(messages))
        known = {(message.uid, message.msg_id) for message in self.heard}
        results = []
        for message in messages:
            assert isinstance(message, InBandMessage)
            new = (message.uid, message.msg_id) not in known
            self.heard += [message] if new else []
            results.append(Result("stored" if new else "duplicate"))
        await asyncio.sleep(0)
        if self._failures:
            self._failures -= 1
            raise Unavailable("the answer is lost")
        return results


async def test_the_messages_of_a_user_arrive_in_order() -> None:
    ear, tally = Ear(), Tally()
    lines = [creation(f"u{n % 7}", f"{n:04}") for n in range(3_000)]
    await send_all(each(lines), ear.send, tally)
    for user in range(7):
        ids = [m.msg_id for m in ear.heard if m.uid == f"u{user}"]
        assert ids == sorted(ids)
    assert (tally.lines, tally.stored, tally.done) == (3_000, 3_000, 3_000)
    assert max(ear.batches) <= 500


async def test_a_lost_answer_is_asked_for_again() -> None:
    ear, tally = Ear(failures=2), Tally()
    await send_all(each([creation("u", "a"), creation("u", "b")]), ear.send, tally)
    assert [m.msg_id for m in ear.heard] == ["a", "b"]
    assert tally.duplicates == 2


async def test_large_bodies_make_small_batches() -> None:
    ear, tally = Ear(), Tally()
    lines = [creation("u", str(n), more="") for n in range(3)]
    lines = [line("u", str(n), create={"category": "c", "body": "x" * 60_000}) for n in range(200)]
    await send_all(each(lines), ear.send, tally)
    assert max(ear.batches) * 60_000 < 8 * 1024 * 1024
    assert tally.stored == 200


# The command


def test_the_sample_replayed_twice_is_stored_once(gregor: Shell) -> None:
    replay = ("replay", str(SAMPLE), "--json")
    once, twice = gregor(*replay).json, gregor(*replay).json
    assert (once["lines"], once["stored"], once["duplicates"]) == (5042, 5042, 0)
    assert (twice["lines"], twice["stored"], twice["duplicates"]) == (5042, 0, 5042)
    assert once["bad"] == once["rejected"] == 0
    assert "5,042" in gregor("replay", str(SAMPLE)).out


def test_bad_lines_are_told_and_the_others_sent(gregor: Shell) -> None:
    good, same_id = creation("bad", "m1"), creation("bad", "m1", category="other")
    lines = [b"no json\n", b"\n", good, line("bad", "m2"), same_id, creation("bad", "m3")]
    stream = b"".join(lines).decode()
    said = gregor.process("replay", "-", stdin=stream)
    assert said.status == 1
    told = said.err.splitlines()
    assert [text.split(":")[1] for text in told] == [" line 1", " line 4", " line 5"]
    assert "known with other contents" in told[2]
    again = gregor.process("replay", "-", "--json", stdin=stream).json
    assert (again["lines"], again["bad"], again["rejected"], again["duplicates"]) == (5, 2, 1, 2)
    assert [problem["line"] for problem in again["problems"]] == [1, 4, 5]
    assert gregor("count", "bad").out == "2\n"


def test_a_file_that_cannot_be_read_is_named(gregor: Shell) -> None:
    assert gregor("replay", "no.jsonl").complained("no.jsonl", "No such file")
    (gregor.folder / "letter.gz").write_text("this is no gzip")
    assert gregor("replay", "letter.gz").complained("letter.gz", "cannot be read")
    (gregor.folder / "cut.gz").write_bytes(SAMPLE.read_bytes()[:1000])
    assert gregor("replay", "cut.gz").complained("cut.gz", "cannot be read")


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_has_it_all(shell: Shell) -> None:
    store = ("--store", "sqlite:///gregor.db")
    with shell.serving(*store) as first_server:
        address = shell.environment["GREGOR_URL"].removeprefix("http://")
        with shell.started("replay", str(SAMPLE), "--json", stdout=-1) as replaying:
            while not int(shell("count", "u0000").out):
                pass
            first_server.kill()
            first_server.wait()
            with shell.serving(*store, listen=address):
                out, _ = replaying.communicate(timeout=60)
                said = json.loads(out)
                again = shell("replay", str(SAMPLE), "--json").json
    assert said["stored"] + said["duplicates"] == 5042
    assert again["duplicates"] == 5042


# The sample


def test_the_sample_is_made_the_same_each_time_and_stands_alone() -> None:
    with gzip.open(SAMPLE) as file:
        lines = list(file)
    messages = [parsed(json_line) for json_line in lines]
    assert packed(sample(lines)) == packed(sample(lines))
    made: set[tuple[str, str]] = set()
    for message in messages:
        if message.dismissal is not None:
            assert {(message.uid, id_) for id_ in message.dismissal.msg_ids} <= made
        made.add((message.uid, message.msg_id))
    assert len(lines) == 5042
    assert len({message.uid for message in messages}) == 100
