"""A mounted server drains when its process is told to stop, before its host acts on that."""

import asyncio
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from gregor.server.going_away import STOP_SIGNALS, draining_on_stop


class HostSignals:
    """The handlers of a host, which record what they get."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self.events.append(signal.Signals(number).name)

    async def drain(self) -> None:
        self.events.append("drain")
        await asyncio.sleep(0)
        self.events.append("drained")


@pytest.fixture
def host() -> Iterator[HostSignals]:
    signals = HostSignals()
    previous = {number: signal.signal(number, signals.on_signal) for number in STOP_SIGNALS}
    yield signals
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == [signals.on_signal] * 2
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
async def test_first_signal_drains_before_the_host_gets_it(
    host: HostSignals, number: signal.Signals
) -> None:
    async with draining_on_stop(host.drain):
        signal.raise_signal(number)
    assert host.events == ["drain", "drained", number.name]


async def test_second_signal_reaches_the_host_at_once_and_ends_the_drain(host: HostSignals) -> None:
    async with draining_on_stop(host.drain):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert host.events == ["SIGTERM"]
    assert host.events == ["SIGTERM"]


async def test_without_a_signal_nothing_is_drained(host: HostSignals) -> None:
    async with draining_on_stop(host.drain):
        pass
    assert host.events == []


async def test_ignored_signal_stays_ignored(host: HostSignals) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    async with draining_on_stop(host.drain):
        signal.raise_signal(signal.SIGINT)
    assert host.events == []
    signal.signal(signal.SIGINT, host.on_signal)


async def test_thread_that_gets_no_signals_intercepts_none(host: HostSignals) -> None:
    async def open_and_close() -> None:
        async with draining_on_stop(host.drain):
            assert signal.getsignal(signal.SIGTERM) == host.on_signal

    await asyncio.to_thread(asyncio.run, open_and_close())
