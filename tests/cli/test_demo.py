"""The demo says that replicas agree where they do, and where they do not it says in what."""

import socket
from random import Random

import pytest
from typer.testing import CliRunner
from websockets.asyncio.server import serve

from gregor.cli import devices, rehearsal, servers
from gregor.cli.devices import difference
from gregor.cli.main import app
from gregor.cli.remote import Remote
from gregor.core.message import raw
from gregor.core.state import Item, State
from gregor.protocol.answers import StateAnswer
from tests.cli.conftest import Shell

A = Item("a", 1, "c", raw(1))
B = Item("b", 2, "c", raw(2))


def answer(*items: Item) -> StateAnswer:
    state = State.of(items, 9)
    return StateAnswer(state.items, 9, state.hash())


def test_equal_replicas_do_not_differ() -> None:
    assert difference(State.of([B, A], 9), answer(A, B)) is None
    assert difference(State((), 9), answer()) is None


@pytest.mark.parametrize(
    ("mine", "what"),
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
def test_a_tampered_replica_is_found_out(mine: list[Item], what: str) -> None:
    assert (difference(State.of(mine, 9), answer(A, B)) or "").startswith(what)


def test_another_hash_or_order_of_the_same_items_is_found_out() -> None:
    lie = StateAnswer((A, B), 9, "0" * 64)
    assert "has the hash" in (difference(State.of([A, B], 9), lie) or "")
    assert difference(State((B, A), 9), answer(A, B)) == "has another order"


def test_many_items_are_not_all_named() -> None:
    items = [Item(f"m{n}", n, "c", raw(0)) for n in range(9)]
    assert (difference(State((), 9), answer(*items)) or "").endswith("and 6 more")


async def test_a_device_goes_to_another_server_at_once_where_one_is_down() -> None:
    async with serve(lambda device: device.wait_closed(), "127.0.0.1", 0) as there:
        with socket.socket() as down:  # bound, so that nobody else is there, and not listening
            down.bind(("127.0.0.1", 0))
            ports = [end.getsockname()[1] for end in (down, *there.sockets)]
            urls = [f"http://127.0.0.1:{port}" for port in ports]
            for seed in range(8):
                cable = devices.Cable(urls, Random(seed), lambda cursor, items: None)
                await (await cable.connect()).close()


@pytest.mark.slow
def test_a_small_demo_ends_with_every_replica_equal(shell: Shell) -> None:
    said = shell.process("demo", "--devices", "40", "--seconds", "4", "--seed", "7", "--json")
    assert said.status == 0, said.err
    figures = said.json
    assert figures["sent"] == figures["acknowledged"] > 5_042
    assert figures["agree"] == figures["devices"] == 40
    assert figures["mismatches"] == 0
    assert figures["differences"] == []
    assert min(figures[name] for name in ("duplicates", "delivered", "dropped_off", "resynced")) > 0


@pytest.mark.slow
def test_a_demo_in_words_ends_with_a_sentence(shell: Shell) -> None:
    said = shell.process("demo", "--devices", "4", "--seconds", "1")
    assert said.status == 0
    assert said.err == ""  # nothing is drawn where there is no terminal
    assert said.out.splitlines()[-1] == "All 4 replicas agree with the server."


class Liar(Remote):
    """A server that keeps the last item from one device."""

    async def state(
        self, uid: str, device: str | None = None, *, at: str | None = None, prefix: str = ""
    ) -> StateAnswer:
        truth = await super().state(uid, device, at=at, prefix=prefix)
        return answer(*truth.items[:-1]) if device == "device-002" else truth


@pytest.mark.slow
def test_a_demo_that_ends_in_disagreement_names_the_device_and_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers, "Remote", Liar)
    monkeypatch.setattr(devices, "PATIENCE_SECONDS", 2.0)
    said = CliRunner().invoke(app, ["demo", "--devices", "3", "--seconds", "1"])
    assert said.exit_code == 1
    assert "gregor: device-002 of u0000 still shows" in said.stderr
    assert said.stdout.splitlines()[-1] == "1 of 3 replicas do not agree with the server."


def test_devices_are_those_of_the_busiest_users() -> None:
    lines = [b'{"t":1,"uid":"u%d","msg_id":"m","create":{"category":"c","body":1}}' % n
             for n in (1, 2, 2, 3, 3, 3)]  # fmt: skip
    tape = list(enumerate([*lines, b"no message"], start=1))
    assert rehearsal.busiest(tape, 2) == ["u3", "u2"]


async def test_an_answer_that_is_lost_is_a_message_sent_twice() -> None:
    sent = []

    async def send(messages: object) -> list[object]:
        sent.append(messages)
        return []

    forgetful = rehearsal.forgetful(send, Random(1))  # type: ignore[arg-type]  # it is not read
    for _ in range(200):
        await forgetful([])
    assert 200 < len(sent) < 230
