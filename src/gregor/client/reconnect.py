"""When a device connects again after its connection has ended. Pure, as `Outage` is."""

from gregor.backoff import Backoff, Outage, asked_delay

BACKOFF = Backoff(0.5, 60.0)


class ReconnectPolicy:
    """The rules of `spec/protocol.md`, section 7: backoff, `goaway` and `Retry-After`."""

    def __init__(self) -> None:
        self._outage = Outage(BACKOFF)
        self._return_at: float | None = None  # when a node that is leaving wants its devices back

    def synced(self) -> None:
        """The replica has been brought to the present: the outage, if there was one, is over."""
        self._outage.end()

    def goaway(self, now: float, random: float, within_ms: int) -> float:
        """The node is leaving. Returns when to connect again, on the clock of `now`."""
        self._return_at = now + random * asked_delay(within_ms / 1000)
        return self._return_at

    def wait(self, now: float, random: float, retry_after: float = 0.0) -> float:
        """Seconds to wait after a connection, or an attempt to connect, that ended at `now`.
        `retry_after` is what the server has asked for, in seconds."""
        if self._return_at is not None:
            return_at, self._return_at = self._return_at, None
            return max(0.0, return_at - now)
        return asked_delay(retry_after) + self._outage.delay(now, random)
