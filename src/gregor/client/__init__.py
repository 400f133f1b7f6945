"""A user's state on a device, with or without a network; and the way in for backends."""

from gregor.client.client import Client
from gregor.client.connection import Connect, Disconnected, Transport
from gregor.client.events import (
    Created,
    Dismissed,
    Event,
    Missed,
    Offline,
    Online,
    PassedBy,
    Rejected,
    Synced,
)
from gregor.client.producer import Producer
from gregor.client.state_machine import DeviceStateMachine
from gregor.client.store import ClientStore, MemoryStore, SQLiteStore

__all__ = [
    "Client",
    "ClientStore",
    "Connect",
    "Created",
    "DeviceStateMachine",
    "Disconnected",
    "Dismissed",
    "Event",
    "MemoryStore",
    "Missed",
    "Offline",
    "Online",
    "PassedBy",
    "Producer",
    "Rejected",
    "SQLiteStore",
    "Synced",
    "Transport",
]
