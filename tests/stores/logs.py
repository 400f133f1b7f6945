"""A user's log as a database has it."""

from gregor.core.instant import Time
from gregor.core.message import UID, InBandMessage
from gregor.shards.bucket_contents import MESSAGES
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.rows import message_of


def stored_log(connection: DatabaseConnection, uid: UID, after: Time = 0) -> list[InBandMessage]:
    """The first page of the messages after this ctime."""
    return [message_of(row) for row in MESSAGES.page(connection, {uid: after})]
