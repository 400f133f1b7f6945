"""The end of one side of a connection."""

from asyncio import Transport
from contextlib import suppress


def end_output(transport: Transport) -> bool:
    """Say that nothing more is sent, and go on reading. Returns whether that is possible: with TLS
    it is not."""
    if not transport.can_write_eof():
        return False
    with suppress(OSError):  # the client has reset the connection, and the loop will say so
        transport.write_eof()
    return True
