"""Clients: a user's state on a device, online and offline, and the producers for backends."""

from gregor.client.client import Client
from gregor.client.connection import Connect, Disconnected, Transport
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
from gregor.client.producer import AsyncProducer, Producer
from gregor.client.state_machine import DeviceStateMachine
from gregor.client.store import ClientStore, MemoryStore, SQLiteStore

__all__ = [
    "AsyncProducer",
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
    "OutOfBandReceived",
    "Producer",
    "SQLiteStore",
    "Synced",
    "Transport",
    "WriteRejected",
]
