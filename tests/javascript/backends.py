"""PostgreSQL and Redis from wheels, for the nodes of a server that tests of JavaScript start.

python -m tests.javascript.backends

prints a JSON array of the URLs of an empty database and of the pub/sub, and stops when stdin ends.
"""

import asyncio
import json
import sys

from tests.fleet.servers import PostgreSQL, Redis


async def main() -> None:
    async with PostgreSQL() as postgresql, Redis() as redis:
        print(json.dumps([await postgresql.create_database(), redis.url]), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
