"""What waits for the socket of one device, in order of urgency, within limits."""

from collections.abc import Sequence

from gregor.core.message import OutOfBandMessage
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import Frame, OutOfBand
from gregor.protocol.publication import Publication

QUEUE_MESSAGES = 256
QUEUE_BYTES = 256 * 1024


class OutboundQueue:
    """Control frames, and then the end of the conversation; out-of-band messages; publications.

    There are at most QUEUE_MESSAGES control frames, as many out-of-band messages, and as many
    messages of publications. Messages have at most QUEUE_BYTES. Who adds more is told, and decides
    what to drop."""

    __slots__ = (
        "_bytes",
        "_close",
        "_control_frames",
        "_out_of_band",
        "_publication_bytes",
        "_publication_messages",
        "_publications",
    )

    def __init__(self) -> None:
        self._control_frames: list[Frame] = []
        self._close: Close | None = None
        self._out_of_band: list[OutOfBandMessage] = []
        self._publications: list[Publication] = []
        self._publication_messages = 0
        self._publication_bytes = 0
        self._bytes = 0  # of publications and out-of-band messages

    # Adding

    def add_control_frame(self, frame: Frame) -> bool:
        """Add a frame that does not wait for messages. Returns False if there are too many."""
        if len(self._control_frames) >= QUEUE_MESSAGES:
            return False
        self._control_frames.append(frame)
        return True

    def end(self, close: Close) -> None:
        """Close the connection after the control frames. All messages are dropped."""
        self.drop_out_of_band()
        self.take_publications()
        self._close = close

    def add_out_of_band(self, message: OutOfBandMessage) -> bool:
        """Add an out-of-band message. Returns False, and drops it, if the queue is full."""
        size = _size(message)
        if len(self._out_of_band) >= QUEUE_MESSAGES or self._bytes + size > QUEUE_BYTES:
            return False
        self._out_of_band.append(message)
        self._bytes += size
        return True

    def add_publication(self, publication: Publication) -> bool:
        """Add a publication. Returns False if the queue is too large now."""
        self._publications.append(publication)
        self._publication_messages += len(publication.messages)
        self._publication_bytes += publication.size
        self._bytes += publication.size
        return self._publication_messages <= QUEUE_MESSAGES and self._bytes <= QUEUE_BYTES

    # Taking

    def next_urgent(self) -> Send | Close | None:
        """What does not wait for publications: the next control frame; after the last one the
        Close, once; the next out-of-band message."""
        if self._control_frames:
            return Send(self._control_frames.pop(0))
        if self._close is not None:
            close, self._close = self._close, None
            return close
        if self._out_of_band:
            message = self._out_of_band.pop(0)
            self._bytes -= _size(message)
            return Send(OutOfBand(message.system, message.raw_body))
        return None

    def take_publications(self) -> Sequence[Publication]:
        """All publications, in order. They are no longer in the queue."""
        if not self._publications:
            return ()
        taken, self._publications = self._publications, []
        self._bytes -= self._publication_bytes
        self._publication_messages = self._publication_bytes = 0
        return taken

    def drop_out_of_band(self) -> None:
        """Drop the out-of-band messages: a slow consumer misses them."""
        self._out_of_band.clear()
        self._bytes = self._publication_bytes


def _size(message: OutOfBandMessage) -> int:
    return len(memoryview(message.raw_body))
