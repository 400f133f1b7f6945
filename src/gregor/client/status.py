"""How a client is doing: what an app shows next to its data."""

from msgspec import Struct

from gregor.core.instant import Time
from gregor.protocol.frames import Problem


class Status(Struct, frozen=True):
    """How a client is doing at one moment.

    - `online`: it is connected, and the first sync is complete.
    - `synced`: it also has all that it has heard of since.
    - `durable`: what is written here survives the process: the store is not in memory, could save
      the last change, and has not been busy with the next one for more than a few seconds.
    - `unsent`: how many written messages no node has acknowledged.
    - `last_error`: why the last connection ended, or could not be made; None after a sync.
    - `retry_at`: when it connects again, by the device's clock; None if it does not wait for that.
    - `set_aside`: how many records of its store cannot be read; `Client.set_aside` has them.
    """

    online: bool
    synced: bool
    durable: bool
    unsent: int
    last_error: Problem | None
    retry_at: Time | None
    set_aside: int = 0
