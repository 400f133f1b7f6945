"""A server as a process of its own: it is asked to stop, and it is killed."""

import asyncio
import os
import random
import re
import signal
import socket
import sqlite3
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from gregor import InBandMessage, create, dismiss
from gregor.core.message import dismiss_category
from gregor.core.state import Facts
from gregor.errors import SetupError
from gregor.protocol.client import (
    Acked,
    Apply,
    ClientSession,
    Compare,
    Deferred,
    Effect,
    Reconnect,
    Replace,
)
from gregor.protocol.server import Send
from gregor.server.app import now
from gregor.server.serving import listen
from tests.server.world import PATIENCE

PROGRAM = """
import asyncio, sys
from gregor.config import Settings
from gregor.server.serving import serve
asyncio.run(serve(Settings(listen=sys.argv[1], store=sys.argv[2], drain_seconds=1)))
"""

GONE = (ConnectionClosed, InvalidHandshake, OSError)


class Running(NamedTuple):
    """A server process that answers."""

    process: Process
    url: str
    log: Path

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE + 10):
            return await self.process.wait()


@asynccontextmanager
async def server(directory: Path) -> AsyncIterator[Running]:
    """A server on a file of that directory. Whatever it has written is in `log` afterwards."""
    log = directory / "log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, "127.0.0.1:0", f"sqlite:///{directory}/gregor.db"),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            stdin=DEVNULL,
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            while not (
                port := re.search(rb"127\.0\.0\.1:(\d+)", line := await process.stdout.readline())
            ):
                assert line, log.read_text()
        yield Running(process, f"ws://127.0.0.1:{int(port[1])}/v1/connect", log)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


class Replica:
    """A device that writes and listens as long as it is connected, and outlives its connections.

    `outbox` is what it has not heard back of; `acked` what was acknowledged, with its ctime.
    """

    def __init__(self, uid: str, device_id: str, seed: random.Random) -> None:
        self.uid = uid
        self.device_id = device_id
        self.facts = Facts()
        self.cursor = 0
        self.outbox: list[InBandMessage] = []
        self.acked: dict[str, int] = {}
        self.mismatches = 0
        self.sent_away = 0
        self.agreed = asyncio.Event()
        self._random = seed
        self._numbers = 0
        self._sending: list[InBandMessage] = []
        self._leaving = False

    async def live(self, url: str) -> None:
        """One connection, from its beginning to its end."""
        self.agreed.clear()
        session = ClientSession(self.uid, self.device_id, self.cursor)
        self._sending = []
        self._leaving = False
        try:
            async with connect(url, compression=None, proxy=None, close_timeout=1) as device:
                effects = session.opened()
                while True:
                    for frame in [*self._take_all(effects, session), *self._write(session)]:
                        # What has arrived before the end still counts when we cannot write on.
                        with suppress(ConnectionClosed):
                            await device.send(frame.text)
                    effects = session.receive(await device.recv())
        except GONE:
            pass

    def _take_all(self, effects: list[Effect], session: ClientSession) -> list[Send]:
        return [send for effect in effects for send in self._take(effect, session)]

    def _take(self, effect: Effect, session: ClientSession) -> list[Send]:
        match effect:
            case Send():
                return [effect]
            case Apply(messages, cursor):
                self.facts, self.cursor = self.facts.replay_all(messages), cursor
            case Replace(snapshot, cursor):
                self.facts, self.cursor = snapshot.facts(), cursor
            case Compare(as_of, hash_):
                equal = self.facts.state(self.device_id, as_of).hash() == hash_
                self.mismatches += not equal
                self.agreed.set()
                return [e for e in session.compared(equal) if isinstance(e, Send)]
            case Acked(results):
                for message, result in zip(self._sending, results, strict=True):
                    assert result.status in ("stored", "duplicate"), result
                    assert result.ctime is not None
                    self.acked[message.msg_id] = result.ctime
                    self.outbox.remove(message)
                self._sending = []
            case Deferred():
                self._leaving = True  # it takes nothing now; to be sent again elsewhere
            case Reconnect():
                self.sent_away += 1
        return []

    def _write(self, session: ClientSession) -> list[Send]:
        if self._leaving or not session.may_consume:
            return []
        while len(self.outbox) < self._random.randint(1, 5):
            self.outbox.append(self._compose())
        self._sending = self.outbox[:5]
        return [e for e in session.consume(self._sending) if isinstance(e, Send)]

    def _compose(self) -> InBandMessage:
        self._numbers += 1
        msg_id = f"{self.device_id}-{self._numbers}"
        category = self._random.choice(["a", "a.b", "c"])
        match self._random.randrange(6):
            case 0 if self.acked:
                return dismiss(self.uid, self._random.choice(list(self.acked)), msg_id=msg_id)
            case 1:
                return dismiss_category(self.uid, category, prefix=True, msg_id=msg_id)
            case _:
                return create(self.uid, category, self._numbers, msg_id=msg_id)


def replicas(seed: random.Random) -> list[Replica]:
    return [Replica(f"u{user}", f"u{user}d{n}", seed) for user in range(3) for n in range(2)]


def check_log(directory: Path, devices: list[Replica]) -> int:
    """Everything acknowledged is in the log, once, where it was said to be, and each message
    knows the one before. Returns how many there are."""
    database = sqlite3.connect(directory / "gregor.db")
    rows = database.execute("SELECT uid, ctime, prev, msg_id FROM messages ORDER BY uid, ctime")
    log = rows.fetchall()
    database.close()
    ctimes = {(uid, msg_id): ctime for uid, ctime, _, msg_id in log}
    assert len(ctimes) == len(log)
    before: dict[str, int] = {}
    for uid, ctime, prev, _ in log:
        assert prev == before.get(uid, 0)
        before[uid] = ctime
    for device in devices:
        for msg_id, ctime in device.acked.items():
            assert ctimes.get((device.uid, msg_id)) == ctime, (device.uid, msg_id)
    return len(log)


async def converge(url: str, devices: list[Replica]) -> None:
    """Each comes back from its cursor, and agrees with the server."""
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for device in devices:
            lives = tasks.create_task(device.live(url))
            await device.agreed.wait()
            lives.cancel()
    assert [device.mismatches for device in devices] == [0] * len(devices)


async def test_a_server_that_is_asked_to_stop_loses_nothing_and_says_goodbye(
    tmp_path: Path,
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    devices = replicas(random.Random(seed))
    async with server(tmp_path) as running, asyncio.TaskGroup() as tasks:
        for device in devices:
            tasks.create_task(device.live(running.url))
        async with asyncio.timeout(PATIENCE):
            while min(len(device.acked) for device in devices) < 20:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
    assert running.log.read_text() == ""
    assert [device.sent_away for device in devices] == [1] * len(devices)
    assert [device.mismatches for device in devices] == [0] * len(devices)
    check_log(tmp_path, devices)
    async with server(tmp_path) as running:
        await converge(running.url, devices)


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGINT)
        assert await running.ended() == 0
    assert running.log.read_text() == ""


@pytest.mark.slow
async def test_a_server_that_is_killed_twenty_times_loses_nothing_that_it_acknowledged(
    tmp_path: Path,
) -> None:
    number = int(os.environ.get("GREGOR_TEST_SEED") or now() % 2**32)
    print(f"repeat it with GREGOR_TEST_SEED={number}")
    seed = random.Random(number)
    devices = replicas(seed)
    lengths = []
    for _ in range(20):
        async with server(tmp_path) as running, asyncio.TaskGroup() as tasks:
            for device in devices:
                tasks.create_task(device.live(running.url))
            await asyncio.sleep(seed.uniform(0.0, 0.8))
            running.process.kill()
            assert await running.ended() == -signal.SIGKILL
        lengths.append(sum(len(device.acked) for device in devices))
    assert lengths[-1] > lengths[0]
    assert len(set(lengths)) > 10, lengths  # it was killed at work
    async with server(tmp_path) as running:
        await converge(running.url, devices)
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
    stored = check_log(tmp_path, devices)
    print(f"{lengths[-1]} acknowledged, {stored} stored")


async def test_a_port_that_is_taken_is_named_with_a_way_out() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"127.0.0.1:{port}.*--listen"):
            listen("127.0.0.1", port)


async def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SetupError, match=r"192\.0\.2\.1:1"):
        listen("192.0.2.1", 1)


async def test_small_frames_are_not_held_back_for_larger_ones() -> None:
    """Nagle's algorithm and delayed acknowledgements together cost 40 ms a frame."""
    without_delay: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        without_delay.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with listen("127.0.0.1", 0) as listening:
        async with await asyncio.start_server(accept, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            assert await without_delay == 1
            writer.close()
            await writer.wait_closed()
