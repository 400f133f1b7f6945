"""How long the history of a user is kept."""

from typing import NamedTuple

from gregor.core.instant import Time


class Cutoff(NamedTuple):
    """What is dead up to `floor` loses its contents. Ids whose contents are gone, and ids that were
    dismissed and have not arrived, are forgotten up to `ids`."""

    floor: Time
    ids: Time
