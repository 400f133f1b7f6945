"""The bucket of a user, and the plan of a rebalance."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.core.buckets import BUCKETS, bucket_of, plan_rebalance

VECTORS = Path(__file__).parents[2] / "spec" / "vectors"

CASES = json.loads((VECTORS / "buckets.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"bucket {case['bucket']}")
def test_bucket_of_matches_the_vectors(case: dict[str, object]) -> None:
    assert bucket_of(str(case["uid"])) == case["bucket"]


@given(st.text())
def test_bucket_of_any_uid_is_in_range(uid: str) -> None:
    assert 0 <= bucket_of(uid) < BUCKETS


def test_users_are_spread_evenly_over_buckets() -> None:
    users = Counter(bucket_of(f"user{number}") >> 9 for number in range(80_000))
    assert len(users) == 8
    assert max(users.values()) < 1.05 * min(users.values())


shards = st.lists(st.lists(st.integers(1, 1_000), max_size=40), min_size=1, max_size=5).map(
    lambda weights: {
        f"shard{s}": {100 * s + n: weight for n, weight in enumerate(held)}
        for s, held in enumerate(weights)
    }
)


def imbalance(weights: dict[str, dict[int, int]]) -> int:
    """The difference between the heaviest and the lightest shard."""
    sums = [sum(held.values()) for held in weights.values()]
    return max(sums) - min(sums)


@given(shards)
def test_law_plan_moves_each_bucket_at_most_once_and_never_increases_the_imbalance(
    weights: dict[str, dict[int, int]],
) -> None:
    before = imbalance(weights)
    moves = plan_rebalance(weights)
    assert len({move.bucket for move in moves}) == len(moves)
    for move in moves:
        weights[move.target][move.bucket] = weights[move.source].pop(move.bucket)
    assert imbalance(weights) <= before


def test_new_shard_gets_its_share_with_the_fewest_moves() -> None:
    weights = {
        "a": dict.fromkeys(range(BUCKETS // 2), 1),
        "b": dict.fromkeys(range(BUCKETS // 2, BUCKETS), 1),
        "c": {},
    }
    moves = plan_rebalance(weights)
    assert len(moves) in (BUCKETS // 3, BUCKETS // 3 + 1)
    assert {move.target for move in moves} == {"c"}


def test_heavy_buckets_move_first() -> None:
    moves = plan_rebalance({"a": {1: 1, 2: 1, 3: 100, 4: 100}, "b": {}})
    assert len(moves) <= 2
    assert {move.bucket for move in moves} & {3, 4}


def test_balanced_shards_need_no_moves() -> None:
    assert plan_rebalance({"a": {1: 5, 2: 5}, "b": {3: 10}}) == []
