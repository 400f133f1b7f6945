"""The demo reports agreement of replicas, and each difference with the device that has it."""

import asyncio
import socket
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec import structs
from typer.testing import CliRunner
from websockets.asyncio.server import serve

from gregor.cli import demo_devices, demo_run, demo_servers
from gregor.cli.demo_devices import difference
from gregor.cli.main import app
from gregor.cli.sample import SAMPLE
from gregor.cli.server_process import running_server
from gregor.client import AsyncProducer
from gregor.core.message import AnyID, raw
from gregor.core.state import Item, State
from gregor.core.state_hash import hash_of
from gregor.protocol.answers import StateAnswer
from tests.cli.conftest import Shell

A = Item("a", 1, "c", raw(1))
B = Item("b", 2, "c", raw(2))


def answer(*items: Item) -> StateAnswer:
    state = State.of(items, 9)
    return StateAnswer(state.items, 9, hash_of(map(Item.order, state)), 0)


def difference_of(replica: State, server: StateAnswer) -> str | None:
    return difference(replica, hash_of(map(Item.order, replica)), server)


def test_equal_replica_has_no_difference() -> None:
    assert difference_of(State.of([B, A], 9), answer(A, B)) is None
    assert difference_of(State((), 9), answer()) is None


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([A], "lacks b in c"),
        ([A, B, Item("x", 3, "d", raw(0))], "still shows x in d"),
        ([A, Item("b", 2, "c", raw(3))], "differs in b in c"),
        (
            [Item("b", 2, "d", raw(2)), Item("x", 3, "d", raw(0))],
            "lacks a in c; still shows x in d",
        ),
    ],
)
def test_tampered_replica_is_reported_with_the_items(items: list[Item], expected: str) -> None:
    assert (difference_of(State.of(items, 9), answer(A, B)) or "").startswith(expected)


def test_different_hash_or_order_of_equal_items_is_reported() -> None:
    wrong_hash = StateAnswer((A, B), 9, "0" * 64, 0)
    assert "has the hash" in (difference_of(State.of([A, B], 9), wrong_hash) or "")
    assert difference_of(State((B, A), 9), answer(A, B)) == "has the items in a different order"


def test_difference_names_three_items_and_counts_the_others() -> None:
    items = [Item(f"m{n}", n, "c", raw(0)) for n in range(9)]
    assert (difference_of(State((), 9), answer(*items)) or "").endswith("and 6 more")


async def test_device_fails_over_to_another_server_in_the_same_attempt() -> None:
    async with serve(lambda device: device.wait_closed(), "127.0.0.1", 0) as server:
        with socket.socket() as down:  # bound, so that no other process uses it; not listening
            down.bind(("127.0.0.1", 0))
            ports = [listener.getsockname()[1] for listener in (down, *server.sockets)]
            urls = [f"http://127.0.0.1:{port}" for port in ports]
            for seed in range(8):
                network = demo_devices.FlakyNetwork(urls, Random(seed), lambda cursor, items: None)
                await (await network.connect()).close()


@pytest.mark.slow
def test_demo_ends_with_all_replicas_equal(shell: Shell) -> None:
    result = shell.process("demo", "--devices", "40", "--seconds", "4", "--seed", "7", "--json")
    assert result.status == 0, result.err
    figures = result.json
    assert figures["sent"] == figures["acknowledged"] > 5_042
    assert figures["agree"] == figures["devices"] == 40
    assert figures["mismatches"] == 0
    assert figures["differences"] == []
    for name in ("duplicates", "delivered", "dropped_off", "resynced"):
        assert figures[name] > 0, name
    assert figures["began_offline"] >= 40, "at the end, on each device"


@pytest.mark.slow
async def test_devices_of_a_user_who_is_erased_meanwhile_begin_again_and_agree(
    tmp_path: Path,
) -> None:
    async with running_server(f"sqlite:///{tmp_path}/server.db") as url:
        lines = await demo_run.read_stream(SAMPLE)
        (uid,) = demo_run.busiest(lines, 1)

        async def erase() -> None:
            async with AsyncProducer(url) as producer:
                await asyncio.sleep(1.7)
                await producer.erase(uid)

        result = await demo_run.run_on_servers(SAMPLE, [url], 6, 2.0, 7, erase())
    assert result.all_agree, result.differences
    assert result.figures()["erased"] > 0


@pytest.mark.slow
def test_demo_without_json_ends_with_the_verdict(shell: Shell) -> None:
    result = shell.process("demo", "--devices", "4", "--seconds", "1")
    assert result.status == 0
    assert result.err == ""  # without a terminal there is no progress bar
    assert result.out.splitlines()[-1] == "All 4 replicas agree with the server."


class IncompleteServer(AsyncProducer):
    """A server whose answer to one device lacks the last item."""

    async def state(
        self, uid: AnyID, device_id: AnyID | None = None, **options: Any
    ) -> StateAnswer:
        full = await super().state(uid, device_id, **options)
        is_cut = device_id == "device-002"
        return structs.replace(full, items=full.items[:-1]) if is_cut else full


@pytest.mark.slow
def test_demo_with_a_different_replica_names_the_device_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo_servers, "AsyncProducer", IncompleteServer)
    monkeypatch.setattr(demo_devices, "SETTLE_TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr(demo_devices, "SNOOZE_SECONDS", 0.5)
    result = CliRunner().invoke(app, ["demo", "--devices", "3", "--seconds", "1"])
    assert result.exit_code == 1
    assert "gregor: device-002 of u0000 still shows" in result.stderr
    assert result.stdout.splitlines()[-1] == "1 of 3 replicas do not agree with the server."


def test_busiest_users_are_those_with_most_messages() -> None:
    lines = [b'{"t":1,"uid":"u%d","msg_id":"m","create":{"category":"c","body":1}}' % n
             for n in (1, 2, 2, 3, 3, 3)]  # fmt: skip
    numbered = list(enumerate([*lines, b"not a message"], start=1))
    assert demo_run.busiest(numbered, 2) == ["u3", "u2"]


async def test_lost_response_causes_a_second_request() -> None:
    sent = []

    async def send(messages: object) -> list[object]:
        sent.append(messages)
        return []

    lossy_send = demo_run.with_lost_responses(send, Random(1))  # type: ignore[arg-type]  # messages are not read
    for _ in range(200):
        await lossy_send([])
    assert 200 < len(sent) < 230
