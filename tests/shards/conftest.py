"""Shards on databases of each kind."""

from collections.abc import AsyncIterator, Mapping

import pytest

from tests.shards.harness import ShardHarness, opened


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def urls(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """Three new databases, by the names of their shards."""
    if request.param == "SQLite":
        return dict.fromkeys("abc", "sqlite://")
    urls: Mapping[str, str] = request.getfixturevalue("shard_urls")
    return urls


@pytest.fixture
async def harness(urls: Mapping[str, str]) -> AsyncIterator[ShardHarness]:
    async with opened(urls) as harness:
        yield harness
