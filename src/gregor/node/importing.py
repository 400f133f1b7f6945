"""The import of an export, line by line, in bounded memory.

Lines go into the store in batches, each of which is durable when the next one is read. An import
that was interrupted is run again from the beginning: what is known already changes nothing. A user
is complete only when all its lines are in, which the line after them shows.
"""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field

from gregor.core.export import (
    MAX_LINE,
    ExportedMessage,
    ExportedTombstone,
    ExportedUser,
    ExportEnd,
    ImportPart,
    Record,
    Taken,
    accepted,
    check_head,
    decode_line,
)
from gregor.errors import GregorError, Malformed, TooLarge
from gregor.interfaces import StateMachineOfRecord
from gregor.protocol.answers import ImportAnswer, ImportProblem

BATCH_LINES = 500
BATCH_BYTES = 1024 * 1024
MAX_PROBLEMS = 1_000
"""How many are named. All are counted."""


async def import_export(
    machine: StateMachineOfRecord, chunks: AsyncIterable[bytes]
) -> ImportAnswer:
    """Import what these chunks contain. Idempotent. Raises Malformed if it is no export, or one of
    another version, and Unavailable; then run it again."""
    importing = _Importing(machine)
    head = b""
    async for number, line in _numbered(chunks):
        if head:
            await importing.take(number, line)
        else:
            check_head(head := line)
    check_head(head)
    await importing.commit()
    return importing.answer()


async def _numbered(chunks: AsyncIterable[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    """The lines with their numbers, without blank ones. Of one that is too long there is only the
    beginning, which is too long as well."""
    number, rest = 1, b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield number, line
            number += 1
        rest = rest[: MAX_LINE + 1]
    if rest.strip():
        yield number, rest


@dataclass
class _Block:
    """Lines of one user on their way into the store, with their numbers. Of the lines before them,
    so many messages were accepted."""

    user: ExportedUser
    accepted: int = 0
    numbers: list[int] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    ends: bool = False

    @property
    def part(self) -> ImportPart:
        return ImportPart(self.user, self.records, self.accepted, self.ends)


class _Importing:
    """An import that runs."""

    def __init__(self, machine: StateMachineOfRecord) -> None:
        self._machine = machine
        self._blocks: list[_Block] = []
        self._lines = self._bytes = 0  # of the batch
        self._users = self._messages = 0  # lines
        self._stored = self._known = self._refused = 0
        self._problems: list[ImportProblem] = []
        self._ended = False

    async def take(self, number: int, line: bytes) -> None:
        try:
            self._add(number, line)
        except GregorError as error:
            self._refuse(number, error.code, error.message)
        self._lines, self._bytes = self._lines + 1, self._bytes + len(line)
        if self._lines >= BATCH_LINES or self._bytes >= BATCH_BYTES:
            await self.commit()

    def _add(self, number: int, line: bytes) -> None:
        if len(line) > MAX_LINE:
            raise TooLarge(f"a line has at most {MAX_LINE} bytes")
        if self._ended:
            raise Malformed("this line comes after the end")
        match decode_line(line):
            case ExportedUser() as user:
                self._begin(user)
                self._users += 1
            case ExportEnd() as end:
                self._end(number, end)
            case record:
                self._messages += isinstance(record, ExportedMessage)
                block = self._block_of(record)
                block.numbers.append(number)
                block.records.append(record)

    def _begin(self, user: ExportedUser) -> _Block:
        self._end_user()
        self._blocks.append(_Block(user))
        return self._blocks[-1]

    def _block_of(self, record: Record) -> _Block:
        """If the line of the user is broken, what follows is stored all the same."""
        last = self._blocks[-1] if self._blocks else None
        if last is None or last.ends or last.user.uid != record.uid:
            return self._begin(ExportedUser(record.uid))
        return last

    def _end_user(self) -> None:
        """The user is complete: the next line is not one of the user's."""
        for block in self._blocks[-1:]:
            block.ends = True

    def _end(self, number: int, end: ExportEnd) -> None:
        self._end_user()
        self._ended = True
        if end != ExportEnd(self._users, self._messages) and not self._problems:
            self._refuse(
                number,
                Malformed.code,
                f"the end says {end.users} users and {end.messages} messages, but before it are"
                f" {self._users} and {self._messages}: lines are missing",
            )

    def _refuse(self, number: int, code: str, reason: str) -> None:
        self._refused += 1
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(ImportProblem(number, code, reason))

    async def commit(self) -> None:
        """Store what was read. The user of the last lines goes on if its end was not read."""
        if not self._blocks:
            return
        blocks, self._blocks = self._blocks, []
        self._lines = self._bytes = 0
        results = await self._machine.import_parts([block.part for block in blocks])
        for block, verdicts in zip(blocks, results, strict=True):
            for number, record, verdict in zip(block.numbers, block.records, verdicts, strict=True):
                self._count(number, record, verdict)
            if not block.ends:
                taken = block.accepted + accepted(block.records, verdicts)
                self._blocks.append(_Block(block.user, taken))

    def _count(self, number: int, record: Record, verdict: Taken | GregorError) -> None:
        if isinstance(verdict, GregorError):
            self._refuse(number, verdict.code, f"{record.uid} {record.msg_id}: {verdict.message}")
        elif not isinstance(record, ExportedTombstone):
            self._stored += verdict is Taken.STORED
            self._known += verdict is not Taken.STORED

    def answer(self) -> ImportAnswer:
        return ImportAnswer(
            self._users,
            self._stored,
            self._known,
            self._refused,
            self._ended,
            tuple(self._problems),
        )
