"""What deleted rows leave behind in the pages of an SQLite file.

`secure_delete` overwrites what is deleted where it stands. But SQLite moves rows between pages to
balance a tree, and then leaves the bytes of the moved rows in the middle of the page where they
were, between its array of cell pointers and its cells. If such a row is deleted later, this copy
stays. No statement reads or writes these gaps, and VACUUM, which has none, rewrites the whole file.

So the gaps are overwritten in the file itself, by its documented format
(https://www.sqlite.org/fileformat2.html): while nothing else writes it, its WAL is empty, and no
page is cached. SQLite never reads what is overwritten here. Which pages are of trees is known from
the pointer maps, which a file with `auto_vacuum` has.
"""

import os
from collections.abc import Iterator
from struct import unpack_from
from typing import NamedTuple

LOCK_BYTE = 2**30
ENTRY_BYTES = 5  # of a pointer map
TREE_PAGES = {1, 5}  # the kinds of such an entry: a root, and another page of a tree
HEADER_BYTES = {2: 12, 5: 12, 10: 8, 13: 8}  # of a page of a tree, by its kind


class Layout(NamedTuple):
    """How a file is divided into pages. Each pointer map is followed by the pages that it maps."""

    page_bytes: int
    usable_bytes: int
    pages: int

    @classmethod
    def of(cls, file: int) -> "Layout":
        header = os.pread(file, 100, 0)
        (stated,) = unpack_from(">H", header, 16)
        page_bytes = 65536 if stated == 1 else stated
        return cls(page_bytes, page_bytes - header[20], os.fstat(file).st_size // page_bytes)

    @property
    def maps(self) -> int:
        """The number of pointer maps."""
        return -(-(self.pages - 1) // self._pages_per_map)

    @property
    def _pages_per_map(self) -> int:
        """The pages that a map maps, and itself."""
        return self.usable_bytes // ENTRY_BYTES + 1

    def pages_of(self, number: int) -> range:
        """The pages of a map, itself first."""
        first = 2 + number * self._pages_per_map
        end = min(first + self._pages_per_map, self.pages + 1)
        return range(first + (first == LOCK_BYTE // self.page_bytes + 1), end)


def overwrite_gaps(file: int, layout: Layout, number: int) -> None:
    """Overwrite the gaps of the pages of one pointer map."""
    pages = layout.pages_of(number)
    start = (pages.start - 1) * layout.page_bytes
    content = memoryview(os.pread(file, len(pages) * layout.page_bytes, start))
    for gap in _gaps(content, layout):
        if any(content[gap.start : gap.stop]):
            os.pwrite(file, bytes(len(gap)), start + gap.start)


def _gaps(content: memoryview, layout: Layout) -> Iterator[range]:
    """The gaps of the pages of a pointer map, with which the content begins."""
    for number, start in enumerate(range(layout.page_bytes, len(content), layout.page_bytes)):
        if content[number * ENTRY_BYTES] in TREE_PAGES:
            yield _gap(content, start)


def _gap(content: memoryview, start: int) -> range:
    """The bytes of a page between its cell pointers and its cells."""
    header = HEADER_BYTES.get(content[start], 0)
    cells, first = unpack_from(">HH", content, start + 3)
    if not header:
        return range(start, start)
    return range(start + header + 2 * cells, start + (first or 65536))
