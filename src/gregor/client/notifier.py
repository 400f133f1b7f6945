"""Notifications, as a backend sends them: `spec/inbox.md`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from gregor.core.inbox import Topic, notification
from gregor.core.message import JSON, AnyID, InBandMessage, Key, When

Sent = TypeVar("Sent")


class Notifier(ABC, Generic[Sent]):
    """What sends notifications. The type parameter is what `notify` returns: a result, or something
    to await."""

    def notify(
        self,
        uid: AnyID,
        topic: Topic,
        body: JSON,
        *,
        key: Key | None = None,
        msg_id: AnyID | None = None,
        starts: When = None,
        expires: When = None,
        device_id: AnyID | None = None,
    ) -> Sent:
        """Put a notification into the user's inbox, unread: an item of the category
        `inbox.<topic>`, and its marker. Both are stored in one transaction, and returned is the
        result of the item. The notification takes the place of the one with the same key, which is
        the msg_id by default. The same call with the same msg_id stores nothing. The body is an
        object: `title`, `text`, `url`, `icon`, `severity` and `actions` are checked, other fields
        are free. A key has at most 248 bytes, a msg_id at most 57."""
        return self.send_together(
            notification(
                uid,
                topic,
                body,
                key=key,
                msg_id=msg_id,
                starts=starts,
                expires=expires,
                device_id=device_id,
            )
        )

    @abstractmethod
    def send_together(self, messages: Sequence[InBandMessage]) -> Sent:
        """Inject messages for one user in one request, which is one transaction. Returns the result
        of the first one. Raises the error of the first that is rejected."""
