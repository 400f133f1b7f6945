"""Which bucket a user falls into. Shards hold buckets, so that users move in handfuls."""

from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

from gregor.core.message import UID

BUCKETS = 4096


@lru_cache(maxsize=65_536)  # it is asked for several times a message
def bucket_of(uid: UID) -> int:
    """The first 12 bits of SHA-256 of the uid in UTF-8: from 0 up to BUCKETS. Any language can
    tell; `spec/vectors/buckets.json` has examples."""
    return int.from_bytes(sha256(uid.encode()).digest()[:2], "big") >> 4


class Move(NamedTuple):
    """A bucket is to go from one shard to another."""

    bucket: int
    source: str
    target: str


def levelled(weights: Mapping[str, Mapping[int, int]]) -> list[Move]:
    """Which buckets to move, so that each shard carries about as much: the heaviest that fit, so
    that they are few; those that weigh nothing stay. `weights` are of what each shard holds."""
    surplus = {name: float(sum(held.values())) for name, held in weights.items()}
    mean = sum(surplus.values()) / len(surplus)
    surplus = {name: weight - mean for name, weight in surplus.items()}
    heaviest_first = {
        name: sorted(held, key=lambda bucket: (-held[bucket], bucket))
        for name, held in weights.items()
    }
    moves: list[Move] = []
    for target in sorted(surplus, key=lambda name: (surplus[name], name)):
        for source in sorted(surplus, key=lambda name: (-surplus[name], name)):
            for bucket in tuple(heaviest_first[source]):
                weight = weights[source][bucket]
                # Half a bucket beyond the mean, on either side, is as level as it gets.
                if 0 < weight <= min(surplus[source], -surplus[target]) + weight / 2:
                    moves.append(Move(bucket, source, target))
                    heaviest_first[source].remove(bucket)
                    surplus[source] -= weight
                    surplus[target] += weight
    return moves
