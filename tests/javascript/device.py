"""A Python device for the tests of JavaScript. Each line on stdin is a JSON array of a member of
Client, its positional and its named arguments; a line on stdout is the result.

python -m tests.javascript.device http://127.0.0.1:9911 TOKEN laptop device.db

Its clock is that of its machine: it learns from the node what time it is.
"""

import asyncio
import inspect
import json
import sys
from typing import Any

import msgspec

from gregor.client import Client, SQLiteStore
from gregor.errors import GregorError


async def answer(client: Client, name: str, arguments: list[Any], options: Any) -> object:
    """What this member of the client is or returns, or the error that it raises."""
    member = getattr(client, name)
    try:
        result = member(*arguments, **options) if callable(member) else member
        return await result if inspect.isawaitable(result) else result
    except GregorError as error:
        return {"code": error.code, "message": error.message}


async def main() -> None:
    url, token, device_id, path = sys.argv[1:]
    store = SQLiteStore(path)
    async with Client(url, token, device_id=device_id, store=store) as client:
        while line := await asyncio.to_thread(sys.stdin.readline):
            result = await answer(client, *json.loads(line))
            print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
