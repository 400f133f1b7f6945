"""Opens a link to the first of several servers that answers."""

import asyncio
from collections.abc import Sequence

from gregor.pubsub.link import Link, LinkLost

STAGGER_SECONDS = 0.25
"""How long one server may take before the next one is tried as well. A server that is frozen
accepts connections and never answers."""


async def first_open(links: Sequence[Link]) -> Link:
    """Open the links in order, each when the one before has failed or has taken STAGGER_SECONDS.
    Returns the first one that is open, and closes the others. Raises LinkLost if all have
    failed."""
    waiting = list(links)
    opening: dict[asyncio.Task[None], Link] = {}
    failures: list[LinkLost] = []
    try:
        while waiting or opening:
            if waiting:
                link = waiting.pop(0)
                opening[asyncio.create_task(link.open())] = link
            done, _ = await asyncio.wait(
                opening,
                timeout=STAGGER_SECONDS if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                link = opening.pop(task)
                try:
                    task.result()
                    return link
                except LinkLost as error:
                    await link.close()
                    failures.append(error)
    finally:
        await _abandon(opening)
    reasons = dict.fromkeys(map(str, failures))
    raise LinkLost("; ".join(reasons), failures[0].reason)


async def _abandon(opening: dict[asyncio.Task[None], Link]) -> None:
    for task in opening:
        task.cancel()
    await asyncio.gather(*opening, return_exceptions=True)
    for link in opening.values():
        await link.close()
