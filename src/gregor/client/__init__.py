"""Clients: a user's state on a device, online and offline, and the producers for backends."""

from typing import TYPE_CHECKING

from gregor.client.client import Client
from gregor.client.connection import Connect, Transport
from gregor.client.events import (
    Created,
    Dismissed,
    Event,
    Missed,
    Offline,
    Online,
    OutOfBandReceived,
    Synced,
    WriteRejected,
)
from gregor.client.inbox import Inbox
from gregor.client.outside import Disconnected
from gregor.client.state_machine import DeviceStateMachine
from gregor.client.status import Status
from gregor.client.store import ClientStore, MemoryStore, SQLiteStore
from gregor.core.inbox import InboxEntry, Undo
from gregor.errors import Erased

if TYPE_CHECKING:
    from gregor.client.producer import AsyncProducer, Producer
else:

    def __getattr__(name):
        """Load the producers when they are used: a device does without their HTTP client, which
        takes as long to load as the rest."""
        if name not in ("AsyncProducer", "Producer"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import gregor.client.producer as producers

        return getattr(producers, name)


__all__ = [
    "AsyncProducer",
    "Client",
    "ClientStore",
    "Connect",
    "Created",
    "DeviceStateMachine",
    "Disconnected",
    "Dismissed",
    "Erased",
    "Event",
    "Inbox",
    "InboxEntry",
    "MemoryStore",
    "Missed",
    "Offline",
    "Online",
    "OutOfBandReceived",
    "Producer",
    "SQLiteStore",
    "Status",
    "Synced",
    "Transport",
    "Undo",
    "WriteRejected",
]
