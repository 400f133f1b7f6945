"""Which bucket a user falls into, and which buckets to move."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.core.buckets import BUCKETS, bucket_of, levelled

VECTORS = Path(__file__).parents[2] / "spec" / "vectors"

CASES = json.loads((VECTORS / "buckets.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"bucket {case['bucket']}")
def test_vectors(case: dict[str, object]) -> None:
    assert bucket_of(str(case["uid"])) == case["bucket"]


@given(st.text())
def test_every_user_has_a_bucket(uid: str) -> None:
    assert 0 <= bucket_of(uid) < BUCKETS


def test_users_spread_evenly() -> None:
    users = Counter(bucket_of(f"user{number}") >> 9 for number in range(80_000))
    assert len(users) == 8
    assert max(users.values()) < 1.05 * min(users.values())


shards = st.lists(st.lists(st.integers(1, 1_000), max_size=40), min_size=1, max_size=5).map(
    lambda weights: {
        f"shard{s}": {100 * s + n: weight for n, weight in enumerate(held)}
        for s, held in enumerate(weights)
    }
)


def spread(weights: dict[str, dict[int, int]]) -> int:
    sums = [sum(held.values()) for held in weights.values()]
    return max(sums) - min(sums)


@given(shards)
def test_law_a_plan_moves_each_bucket_once_and_makes_nothing_worse(
    weights: dict[str, dict[int, int]],
) -> None:
    before = spread(weights)
    moves = levelled(weights)
    assert len({move.bucket for move in moves}) == len(moves)
    for move in moves:
        weights[move.target][move.bucket] = weights[move.source].pop(move.bucket)
    assert spread(weights) <= before


def test_a_new_shard_gets_its_share_by_the_fewest_buckets() -> None:
    even = {
        "a": dict.fromkeys(range(BUCKETS // 2), 1),
        "b": dict.fromkeys(range(BUCKETS // 2, BUCKETS), 1),
        "c": {},
    }
    moves = levelled(even)
    assert len(moves) in (BUCKETS // 3, BUCKETS // 3 + 1)
    assert {move.target for move in moves} == {"c"}


def test_heavy_buckets_go_first() -> None:
    moves = levelled({"a": {1: 1, 2: 1, 3: 100, 4: 100}, "b": {}})
    assert len(moves) <= 2
    assert {move.bucket for move in moves} & {3, 4}


def test_what_is_level_stays() -> None:
    assert levelled({"a": {1: 5, 2: 5}, "b": {3: 10}}) == []
