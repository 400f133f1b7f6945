"""The export of a store as a stream of lines, in bounded memory.

The lines of a user are those of one instant. Most users are read at once. A larger one is read page
by page into a temporary file, and from the beginning again if the user's history changes meanwhile,
so that an export never shows half of an erase.
"""

from collections.abc import AsyncIterator
from tempfile import SpooledTemporaryFile
from typing import IO

from gregor.core.export import ExportedMessage, ExportEnd, ExportPlace, encode_line, head_line
from gregor.core.message import UID
from gregor.errors import Unavailable
from gregor.interfaces import StateMachineOfRecord

USERS_AT_ONCE = 500
MAX_IN_MEMORY = 4 * 1024 * 1024
CHUNK = 64 * 1024
MAX_ATTEMPTS = 5
"""How often a user is read from the beginning. Only a prune, an erase or a late replay makes that
necessary."""


async def export(machine: StateMachineOfRecord, uid: UID | None = None) -> AsyncIterator[bytes]:
    """The export of all users, or of one, in chunks. A user about whom nothing is known is left
    out. Raises Unavailable; what came before is then not whole."""
    users = messages = 0
    buffer = head_line()
    async for each in _users(machine, uid):
        with SpooledTemporaryFile(MAX_IN_MEMORY) as lines:
            count = await _write(machine, each, lines)
            if count is None:
                continue
            users, messages = users + 1, messages + count
            lines.seek(0)
            while chunk := lines.read(CHUNK):
                buffer += chunk
                if len(buffer) >= CHUNK:
                    yield buffer
                    buffer = b""
    yield buffer + encode_line(ExportEnd(users, messages))


async def _users(machine: StateMachineOfRecord, uid: UID | None) -> AsyncIterator[UID]:
    if uid is not None:
        yield uid
        return
    after = ""
    while uids := await machine.users_after(after, USERS_AT_ONCE):
        for each in uids:
            yield each
        after = uids[-1]


async def _write(machine: StateMachineOfRecord, uid: UID, lines: IO[bytes]) -> int | None:
    """Write the lines of a user. Returns how many messages these have; None: nothing is known."""
    for _ in range(MAX_ATTEMPTS):
        lines.seek(0)
        lines.truncate()
        first = page = await machine.export_page(uid, ExportPlace())
        if not first.user.ctime:
            return None
        messages = 0
        lines.write(encode_line(first.user))
        while page.user.continues(first.user):
            for record in page.records:
                if record.time <= first.user.ctime:  # what came later is not of this instant
                    lines.write(encode_line(record))
                    messages += isinstance(record, ExportedMessage)
            if page.next is None:
                return messages
            page = await machine.export_page(uid, page.next)
    raise Unavailable(f"the history of the user {uid!r} changes all the time; export again later")
