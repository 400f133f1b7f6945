"""From the settings to the parts of a server: its databases, its pub/sub, its authenticator."""

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from gregor.config import Auth, Settings
from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.publisher import Publisher
from gregor.core.arguments import duration
from gregor.core.history import DAY, Retention
from gregor.core.instant import SECOND, Time
from gregor.errors import InvalidMessage, SetupError
from gregor.log_event import LogEvent
from gregor.node.node import Node
from gregor.node.pruning import Prunable, Pruner, Walks
from gregor.pubsub.link import Reason
from gregor.pubsub.remote import RemotePubSub, pubsub_at
from gregor.server.auth import Authenticator, JWTAuthenticator, OpenAuthenticator
from gregor.server.client_address import Networks
from gregor.server.descriptors import FOR_FILES, Descriptors
from gregor.server.jwt_secret import ADVICE
from gregor.server.metrics import Metrics, Reading, Readings, counters, gauge, gauges
from gregor.server.open_connections import ConnectionLimits
from gregor.server.tls import TLS
from gregor.shards.shard_map import establish
from gregor.shards.state_machine import Shard, ShardedStateMachine
from gregor.stores.sql.database import Database
from gregor.stores.sql.lazy import LazyDatabase
from gregor.stores.sql.migrations import migrate, require_served, requiring_no_shard
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at, is_shared

log = logging.getLogger("gregor.server")

CLOCK_CHECK_SECONDS = 10.0
USUAL_ABSENCE = 30 * DAY
"""For how long a device may be away, as on a holiday: then it should find its history."""


class Parts:
    """The parts that the settings ask for: the metrics, the databases by shard name (None for a
    single one), the state machine of record on them, the pub/sub, and the node."""

    def __init__(self, settings: Settings, clock: Callable[[], Time]) -> None:
        self._settings = settings
        self.metrics = Metrics()
        self.databases = {n: _database(url, n, settings) for n, url in settings.stores.items()}
        self.state_machine = _state_machine(self.databases, settings, clock, self.metrics)
        self.pubsub = None if settings.pubsub is None else pubsub_at(settings.pubsub)
        self.node = Node(
            self.state_machine,
            Broadcaster(),
            None if self.pubsub is None else Publisher(self.pubsub),
            clock=clock,
            observer=self.metrics,
            sweep_seconds=settings.sweep_seconds,
            pruner=Pruner(prunable(self.state_machine), retention_of(settings), clock),
        )
        self.metrics.readings += _readings(self.state_machine)
        self.metrics.readings += _pruner_readings(self.node.pruner)
        self.metrics.readings += _pool_readings(self.databases)
        if self.pubsub is not None:
            self.metrics.readings.append(_reconnects(self.pubsub))

    @asynccontextmanager
    async def opened_store(self) -> AsyncIterator[None]:
        """While the block runs, the databases and the state machine are open, and nothing else: for
        commands that need no server. Raises SetupError if one cannot be used."""
        async with AsyncExitStack() as stack:
            for database in self.databases.values():
                await stack.enter_async_context(database)
            if isinstance(self.state_machine, ShardedStateMachine) and self._may_add_shards():
                await establish(self.state_machine.databases)
            await stack.enter_async_context(self.state_machine)
            yield

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """While the block runs, the parts are open: each before those that use it. Raises
        SetupError if one cannot be used."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.opened_store())
            if self.pubsub is not None:
                await stack.enter_async_context(self.pubsub)
            await stack.enter_async_context(self.node)
            yield

    def _may_add_shards(self) -> bool:
        """Whether new shards may be added to the map: with --migrate, or if all are files, as
        for the schema."""
        return self._settings.migrate or not any(map(is_shared, self._settings.stores.values()))


def _database(url: str, shard: str | None, settings: Settings) -> Database:
    """The store, or one of its shards. A file belongs to this server alone, so its schema is
    migrated; the schema of a shared database is migrated only with --migrate."""
    prepare = require_served if is_shared(url) and not settings.migrate else migrate
    database = database_at(
        url,
        prepare if shard is not None else requiring_no_shard(prepare),
        connections=settings.store_connections,
        seconds=settings.store_seconds,
    )
    # A server can start while a shard is down, but not if it has to migrate that shard.
    return database if shard is None or settings.migrate else LazyDatabase(database)


def _state_machine(
    databases: Mapping[str | None, Database],
    settings: Settings,
    clock: Callable[[], Time],
    metrics: Metrics,
) -> SQLStateMachine | ShardedStateMachine:
    """The state machine of record: of one database, or of several shards."""
    machines = {
        name: SQLStateMachine(
            database,
            clock,
            metrics.committed,
            clock_check_seconds=CLOCK_CHECK_SECONDS if is_shared(settings.stores[name]) else None,
            may_become_shard=name is not None or is_shared(settings.stores[name]),
            limits=settings.limits,
        )
        for name, database in databases.items()
    }
    if None in machines:
        return machines[None]
    return ShardedStateMachine({name or "": machine for name, machine in machines.items()})


def _readings(state_machine: SQLStateMachine | ShardedStateMachine) -> Iterator[Reading]:
    """The metrics whose values the state machine keeps."""
    yield gauge(
        "clock_skew_seconds",
        "By how much, at the least, the store's clock is ahead of this machine's",
        lambda: state_machine.skew / SECOND,
    )
    if isinstance(state_machine, SQLStateMachine):
        yield _writes_failing(state_machine, {})
    else:
        for shard in state_machine.shards.values():
            yield _writes_failing(shard.machine, {"shard": shard.name})
        for shard in state_machine.shards.values():
            yield gauge(
                "shard_up",
                "1 while the shard answers; otherwise requests of its users fail",
                partial(_is_up, shard),
                {"shard": shard.name},
            )


def prunable(machine: SQLStateMachine | ShardedStateMachine) -> Mapping[str, Prunable]:
    """The parts that are pruned by themselves."""
    return {"": machine} if isinstance(machine, SQLStateMachine) else machine.shards


def _pruner_readings(pruner: Pruner) -> Iterator[Reading | Readings]:
    """What was forgotten, and whether pruning goes on. Without shards the name of the shard is
    empty."""

    def read(value: Callable[[Walks], float]) -> Callable[[], Mapping[tuple[str, ...], float]]:
        return lambda: {(walks.name,): value(walks) for walks in pruner.walks}

    yield counters(
        "pruned_messages",
        "Messages whose contents were forgotten, because they were past for long",
        ("shard",),
        read(lambda walks: walks.forgotten.contents),
    )
    yield counters(
        "forgotten_ids",
        "Ids of messages that were forgotten; such a message would be stored again",
        ("shard",),
        read(lambda walks: walks.forgotten.ids),
    )
    yield counters(
        "prune_failures",
        "Attempts to prune that failed; the log has the reason",
        ("shard",),
        read(lambda walks: walks.failures),
    )
    yield gauges(
        "prune_age_seconds",
        "Time since all users of the store were last pruned, or since the start",
        ("shard",),
        read(lambda walks: walks.age if pruner.retention.contents else 0),
    )


def _writes_failing(machine: SQLStateMachine, labels: Mapping[str, str]) -> Reading:
    return gauge(
        "writes_failing",
        "1 while the store refuses writes; readiness and the log give the reason",
        lambda: machine.writes.failing.is_set(),
        labels,
    )


def _pool_readings(databases: Mapping[str | None, Database]) -> Iterator[Readings]:
    """How the pools of the databases are used. Without shards the name of the shard is empty."""

    def read(field: str) -> Mapping[tuple[str, ...], float]:
        return {
            (shard or "", pool): getattr(use, field)
            for shard, database in databases.items()
            for pool, use in database.pools().items()
        }

    for field, text in (
        ("in_use", "Connections to the store that a transaction uses now"),
        ("limit", "Connections to the store that there may be"),
        ("waiting", "Transactions that wait for a connection to the store"),
    ):
        labels = ("shard", "pool")
        yield gauges(f"store_connections_{field}", text, labels, partial(read, field))


def _reconnects(pubsub: RemotePubSub) -> Readings:
    return counters(
        "pubsub_reconnects",
        "Connections to the pub/sub that were lost, and attempts to reconnect that failed",
        ("reason",),
        lambda: {(reason.value,): pubsub.reconnects[reason] for reason in Reason},
    )


def _is_up(shard: Shard) -> bool:
    return shard.problem is None


def retention_of(settings: Settings) -> Retention:
    """For how long history is kept. Raises SetupError if that makes no sense."""
    contents, ids = _duration("history", settings.history), _duration("ids", settings.ids)
    if contents and ids and ids <= contents:
        raise SetupError(
            f"setting `ids`: {settings.ids} must be longer than `history`, {settings.history}: an"
            " id outlives its contents, so that a message that is sent again is not stored twice",
            field="ids",
        )
    return Retention(contents, ids)


def _duration(name: str, text: str) -> Time:
    try:
        time = duration(name, text)
    except InvalidMessage as error:
        raise SetupError(f"setting {error.message}", field=name) from error
    if time < 0 or 0 < time < SECOND:
        raise SetupError(
            f"setting `{name}`: give a duration such as 90d, or 0 to keep it for ever", field=name
        )
    return time


def warn_of_short_history(settings: Settings) -> None:
    """Log that devices will have to read more than they need."""
    contents = retention_of(settings).contents
    if 0 < contents < USUAL_ABSENCE:
        log.warning(
            LogEvent(
                "short history",
                history=settings.history,
                reason="a device that was away for longer gets a snapshot, and `gregor state --at`"
                " and `gregor log` cannot look further back; the default is 90d",
            )
        )


def authenticator_of(settings: Settings) -> Authenticator:
    """The authenticator for these settings. Raises SetupError if they are unsafe."""
    if settings.auth is Auth.JWT:
        if settings.jwt_secret is None:
            raise SetupError(f"--auth jwt needs a secret: {ADVICE}")
        return JWTAuthenticator(settings.jwt_secret.get_secret_value())
    if not settings.loopback:
        raise SetupError(
            "--auth open accepts every caller, so it listens on loopback addresses only, not on "
            f"{' and '.join(filter(None, (settings.listen, settings.admin_listen)))}; use --auth "
            "jwt, or --listen 127.0.0.1:9911"
        )
    return OpenAuthenticator()


def descriptors_of(settings: Settings) -> Descriptors:
    """The file descriptors of a server with these settings. Each connection to the store has one
    reserved, and one more for that which replaces it."""
    shared = sum(map(is_shared, settings.stores.values()))
    return Descriptors(FOR_FILES + 2 * (settings.store_connections + 1) * shared)


def connection_limits_of(settings: Settings) -> ConnectionLimits:
    """What clients of a server with these settings may do. Raises SetupError if they make no
    sense."""
    if settings.proxy_protocol and not settings.trusted_proxy:
        raise SetupError(
            "--proxy-protocol needs the addresses of the proxies that speak it: --trusted-proxy",
            field="trusted_proxy",
        )
    if settings.proxy_protocol and settings.auth is Auth.OPEN:
        raise SetupError(
            "--proxy-protocol forwards clients that may be anywhere, and --auth open is for this"
            " machine only: set --auth to jwt",
            field="auth",
        )
    return ConnectionLimits(
        max_connections=settings.max_connections,
        connections_per_address=settings.connections_per_address,
        head=settings.head_seconds,
        body=settings.body_seconds,
        keep_alive=settings.keep_alive_seconds,
        trusted=Networks.parse(settings.trusted_proxy),
        proxy_protocol=settings.proxy_protocol,
    )


def tls_of(settings: Settings) -> TLS | None:
    """The certificate of a server with these settings, if it has one. Raises SetupError if it
    cannot be used."""
    match settings.tls_cert, settings.tls_key:
        case None, None:
            return None
        case Path() as certificate, Path() as key:
            return TLS(certificate, key)
        case _:
            raise SetupError("give --tls-cert and --tls-key, or neither", field="tls_key")
