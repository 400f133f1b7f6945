"""What a user has in the store, as far as it is limited, and why there may be no more of it."""

from typing import NamedTuple

from gregor.errors import LimitExceeded
from gregor.limits import Limits

_ADVICE = {
    "live_items": "live items",
    "live_bytes": "bytes of live items",
    "scheduled_items": "items that have not begun",
    "tombstones": "dismissed ids that have not arrived",
}


class Holdings(NamedTuple):
    """How much a user has of what is limited under the same names, or gets more of it."""

    live_items: int = 0
    live_bytes: int = 0
    scheduled_items: int = 0
    tombstones: int = 0

    def plus(self, more: "Holdings") -> "Holdings":
        items, size, scheduled, tombstones = self
        more_items, more_size, more_scheduled, more_tombstones = more
        return Holdings(
            items + more_items,
            size + more_size,
            scheduled + more_scheduled,
            tombstones + more_tombstones,
        )

    def minus(self, less: "Holdings") -> "Holdings":
        return self.plus(Holdings(*(-count for count in less)))

    def is_within(self, limits: Limits) -> bool:
        """Whether it is no more than is allowed."""
        maxima = (getattr(limits, name) for name in self._fields)
        return all(not most or had <= most for had, most in zip(self, maxima, strict=True))


NOTHING = Holdings()


def refusal(has: Holdings, more: Holdings, limits: Limits) -> LimitExceeded | None:
    """Why a user who has this much may not have more, if so. What does not grow is allowed."""
    for name, had, added in zip(Holdings._fields, has, more, strict=True):
        maximum: int = getattr(limits, name)
        if maximum and added > 0 and had + added > maximum:
            return LimitExceeded(
                f"a user has at most {maximum} {_ADVICE[name]}; dismiss what is not needed",
                limit=name,
                maximum=maximum,
            )
    return None
