"""Files of a store are for the user of their process alone: they hold everybody's state."""

import logging
import os
import stat
from contextlib import suppress

from gregor.log_event import LogEvent

log = logging.getLogger("gregor.store.sqlite")

MODE = 0o600


def make_private(path: str) -> None:
    """Make the file, empty and for this user alone, whatever the umask says; SQLite gives the files
    beside it the same mode. One that exists is left as it is, because somebody may want it so. What
    cannot be made fails when it is opened."""
    with suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, MODE))


def warn_if_public(path: str) -> None:
    """Log if every account of the machine can use the file."""
    with suppress(OSError):
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if os.name == "posix" and mode & stat.S_IRWXO:
            log.warning(
                LogEvent(
                    "every account of this machine can use the file",
                    store=path,
                    mode=f"{mode:04o}",
                    advice=f"chmod {MODE:o} it, and the files beside it",
                )
            )
