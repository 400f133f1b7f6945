"""What the users of one node still may do now: rates, connections and event streams.

Devices of one user share their rates. Each process of a node counts by itself, so with several
workers a user has as many times as much.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec import structs

from gregor.core.instant import SECOND, Time
from gregor.core.message import UID
from gregor.core.rates import Buckets
from gregor.errors import LimitExceeded
from gregor.limits import NO_LIMITS, SETTINGS, Limits

BURST_SECONDS = 10
"""A bucket holds as much as so many seconds bring: a device that was away sends all it has."""

BUSY_MS = 5_000
"""When to come back if one has too many connections: others of the user have to end first."""


def loop_time() -> Time:
    """The time of the event loop, which never goes back, and may be a virtual one."""
    return round(asyncio.get_running_loop().time() * SECOND)


class Limiter:
    """Counts what users do, and refuses what exceeds `limits`, of which 0 means none. `on_limited`
    is called with the name of each limit that is exceeded. A bucket holds what `burst_seconds`
    bring."""

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], Time] = loop_time,
        *,
        ids_days: int = 0,
        burst_seconds: int = BURST_SECONDS,
        on_limited: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.limits = structs.replace(_consistent(limits, burst_seconds), ids_days=ids_days)
        self._on_limited = on_limited
        self._clock = clock
        self._buckets: dict[str, Buckets[UID]] = {
            name: Buckets(rate, _burst(name, burst_seconds * rate, limits))
            for name in SETTINGS
            if name.endswith("_per_second") and (rate := getattr(limits, name))
        }
        self._connected = {"connections": Counter[UID](), "streams": Counter[UID]()}

    def exceeded(self, error: LimitExceeded) -> LimitExceeded:
        """The error, which is reported."""
        self._on_limited(error.limit)
        return error

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Report a LimitExceeded of the block."""
        try:
            yield
        except LimitExceeded as error:
            self.exceeded(error)
            raise

    # Rates

    def take(self, uid: UID, **amounts: int) -> LimitExceeded | None:
        """Take so much of each rate, or nothing: then it returns why."""
        if self._buckets.keys().isdisjoint(amounts):
            return None
        now = self._clock()
        waits = {name: self._wait(name, uid, amount, now) for name, amount in amounts.items()}
        name = max(waits, key=waits.__getitem__)
        if waits[name] > 0:
            return self.exceeded(self._refusal(name, amounts[name], waits[name]))
        for name, amount in amounts.items():
            if (buckets := self._buckets.get(name)) is not None:
                buckets.take(uid, amount, now)
        return None

    def take_messages(self, uid: UID, messages: int, size: int) -> LimitExceeded | None:
        """Take a consume of so many messages and bytes."""
        return self.take(uid, messages_per_second=messages, bytes_per_second=size)

    def take_request(self, uid: UID, *, is_service: bool) -> LimitExceeded | None:
        """Take a request of a device of this user, or of the service of this name."""
        if is_service:
            return self.take(uid, requests_per_second=1)
        return self.take(uid, frames_per_second=1)

    def take_sync(self, uid: UID) -> LimitExceeded | None:
        """Take a sync, or another read of much that a user has."""
        return self.take(uid, syncs_per_second=1)

    def take_some(self, uid: UID, messages: int) -> tuple[int, LimitExceeded | None]:
        """Take as many of these messages as may be taken now, but none if all of them never fit.
        Returns how many, and what stands against the others: it says when all can be sent again.
        """
        buckets = self._buckets.get("messages_per_second")
        if buckets is None:
            return messages, None
        if messages > buckets.burst:
            # What is sent again begins with what was stored, and would never get past it.
            return 0, self.exceeded(self._refusal("messages_per_second", messages, math.inf))
        now = self._clock()
        some = min(messages, buckets.available(uid, now))
        if some:
            buckets.take(uid, some, now)
        if some == messages:
            return some, None
        wait = buckets.wait(uid, messages, now)
        return some, self.exceeded(self._refusal("messages_per_second", messages, wait))

    def take_part(self, uid: UID, size: int, came: int) -> LimitExceeded | None:
        """Take the next bytes of a body whose length is not known, with which so many have come in
        all. What is taken stays taken, or one could send for ever what is refused in the end. So
        the refusal tells when the bucket is full: then any body that ever fits is taken."""
        buckets = self._buckets.get("bytes_per_second")
        if buckets is None:
            return None
        now = self._clock()
        if came > buckets.burst:
            return self.exceeded(self._refusal("bytes_per_second", came, math.inf))
        if buckets.wait(uid, size, now) > 0:
            wait = buckets.wait(uid, buckets.burst, now)
            return self.exceeded(self._refusal("bytes_per_second", came, wait))
        buckets.take(uid, size, now)
        return None

    def pause(self, uid: UID) -> float:
        """Take a frame. Returns for how many seconds not to read the next one."""
        buckets = self._buckets.get("frames_per_second")
        if buckets is None:
            return 0.0
        now = self._clock()
        wait = buckets.wait(uid, 1, now)
        buckets.take(uid, 1, now)
        if wait:
            self._on_limited("frames_per_second")
        return wait / SECOND

    def _wait(self, name: str, uid: UID, amount: int, now: Time) -> float:
        buckets = self._buckets.get(name)
        if buckets is None:
            return 0.0
        return math.inf if amount > buckets.burst else buckets.wait(uid, amount, now)

    def _refusal(self, name: str, amount: int, wait: float) -> LimitExceeded:
        rate = self._buckets[name].per_second
        if wait == math.inf:
            burst = self._buckets[name].burst
            return LimitExceeded(
                f"`{name}` is {rate}: {amount} at once are more than ever fit, which is {burst};"
                " send less at once",
                limit=name,
                maximum=burst,
            )
        ms = math.ceil(wait / (SECOND / 1000))
        return LimitExceeded(
            f"`{name}` is {rate}, and that is used up; send the same again in {ms} ms",
            limit=name,
            maximum=rate,
            retry_after_ms=ms,
        )

    # Connections

    def connect(self, uid: UID, *, is_stream: bool) -> None:
        """The user has one connection more, until `disconnect`. Raises LimitExceeded if that would
        be too many."""
        self.require_place(uid, is_stream=is_stream)
        for name in _kinds(is_stream):
            self._connected[name][uid] += 1

    def require_place(self, uid: UID, *, is_stream: bool) -> None:
        """Raise LimitExceeded if one connection more of the user would be too many."""
        for name in _kinds(is_stream):
            self._require_place(name, uid)

    def disconnect(self, uid: UID, *, is_stream: bool) -> None:
        """The user has one connection less."""
        for name in _kinds(is_stream):
            self._connected[name][uid] -= 1
            if not self._connected[name][uid]:
                del self._connected[name][uid]

    def _require_place(self, name: str, uid: UID) -> None:
        maximum: int = getattr(self.limits, name)
        if maximum and self._connected[name][uid] >= maximum:
            raise self.exceeded(
                LimitExceeded(
                    f"the user has {maximum} {name} here, which is the limit; close one",
                    limit=name,
                    maximum=maximum,
                    retry_after_ms=BUSY_MS,
                )
            )


def _kinds(is_stream: bool) -> tuple[str, ...]:
    return ("connections", "streams") if is_stream else ("connections",)


def _burst(name: str, burst: int, limits: Limits) -> int:
    """How much a full bucket holds: a whole frame must fit."""
    return max(burst, limits.frame_bytes) if name == "bytes_per_second" else burst


def _consistent(limits: Limits, burst_seconds: int) -> Limits:
    """The limits, in which a consume has no more messages than the rate ever takes at once."""
    burst = burst_seconds * limits.messages_per_second or limits.messages
    return structs.replace(limits, messages=min(limits.messages, burst))


def unlimited() -> Limiter:
    """A Limiter that refuses nothing."""
    return Limiter(NO_LIMITS)
