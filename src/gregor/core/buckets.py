"""Buckets: parts of all users, by a hash of the uid, and the plan of a rebalance.

Shards hold buckets, so a rebalance moves whole groups of users.
"""

from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

from gregor.core.message import UID

BUCKETS = 4096


@lru_cache(maxsize=65_536)  # called several times for each message
def bucket_of(uid: UID) -> int:
    """The bucket of a user, from 0 to BUCKETS - 1: the first 12 bits of SHA-256 of the uid in
    UTF-8. `spec/vectors/buckets.json` has examples for other languages."""
    return int.from_bytes(sha256(uid.encode()).digest()[:2], "big") >> 4


class Move(NamedTuple):
    """A bucket to move from one shard to another."""

    bucket: int
    source: str
    target: str


def plan_rebalance(weights: Mapping[str, Mapping[int, int]]) -> list[Move]:
    """The moves after which all shards carry about the same weight.

    `weights` maps each shard to the weights of the buckets that it holds. Heavy buckets move
    first, so that few moves are needed; buckets of weight 0 stay.
    """
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
                # A shard may end up to half a bucket beyond the mean; no plan is more even.
                if 0 < weight <= min(surplus[source], -surplus[target]) + weight / 2:
                    moves.append(Move(bucket, source, target))
                    heaviest_first[source].remove(bucket)
                    surplus[source] -= weight
                    surplus[target] += weight
    return moves
