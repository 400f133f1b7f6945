"""How long the history of a user is kept."""

from typing import NamedTuple

from gregor.core.instant import SECOND, Time

DAY = 86_400 * SECOND


class Cutoff(NamedTuple):
    """What is dead up to `floor` loses its contents. Ids whose contents are gone, and ids that were
    dismissed and have not arrived, are forgotten up to `ids`."""

    floor: Time
    ids: Time


class Retention(NamedTuple):
    """For how long contents and ids are kept, in microseconds; 0: for ever."""

    contents: Time = 90 * DAY
    ids: Time = 400 * DAY

    def cutoff(self, now: Time) -> Cutoff | None:
        """What is forgotten now; None if nothing ever is."""
        if not self.contents:
            return None
        return Cutoff(max(now - self.contents, 0), max(now - self.ids, 0) if self.ids else 0)

    @property
    def ids_days(self) -> int:
        """For how many whole days, at least, an id is kept; 0: for ever."""
        return max(1, self.ids // DAY) if self.contents and self.ids else 0


FOR_EVER = Retention(contents=0)
