"""What a user has in the store, as far as it is limited, and why there may be no more of it."""

from msgspec import Struct, structs

from gregor.errors import LimitExceeded
from gregor.limits import Limits

_ADVICE = {
    "live_items": "live items",
    "live_bytes": "bytes of live items",
    "scheduled_items": "items that have not begun",
    "tombstones": "dismissed ids that have not arrived",
}


class Holdings(Struct, frozen=True, gc=False):
    """How much a user has of what is limited under the same names, or gets more of it."""

    live_items: int = 0
    live_bytes: int = 0
    scheduled_items: int = 0
    tombstones: int = 0

    def plus(self, more: "Holdings") -> "Holdings":
        return Holdings(
            self.live_items + more.live_items,
            self.live_bytes + more.live_bytes,
            self.scheduled_items + more.scheduled_items,
            self.tombstones + more.tombstones,
        )

    def minus(self, less: "Holdings") -> "Holdings":
        return self.plus(Holdings(*(-count for count in structs.astuple(less))))

    def is_within(self, maxima: "Holdings") -> bool:
        """Whether nothing of it is more than this."""
        return (
            self.live_items <= maxima.live_items
            and self.live_bytes <= maxima.live_bytes
            and self.scheduled_items <= maxima.scheduled_items
            and self.tombstones <= maxima.tombstones
        )


NOTHING = Holdings()
LIMITED = Holdings.__struct_fields__


def refusal(has: Holdings, more: Holdings, limits: Limits) -> LimitExceeded | None:
    """Why a user who has this much may not have more, if so. What does not grow is allowed."""
    for name in LIMITED:
        maximum: int = getattr(limits, name)
        had, added = getattr(has, name), getattr(more, name)
        if maximum and added > 0 and had + added > maximum:
            return LimitExceeded(
                f"a user has at most {maximum} {_ADVICE[name]}; dismiss what is not needed",
                limit=name,
                maximum=maximum,
            )
    return None
