"""Snooze: the message that hides an item until later."""

from gregor.core.instant import Time, TimeOrOffset, to_rfc3339
from gregor.core.message import UID, Creation, Dismissal, InBandMessage, new_msg_id
from gregor.core.state import Item
from gregor.errors import InvalidMessage


def snoozed(uid: UID, item: Item, until: TimeOrOffset, now: Time) -> InBandMessage:
    """The message that creates the item again, to begin at `until`. It takes the item's place under
    its key; an item without a key is dismissed in the same message. Raises InvalidMessage unless
    `until` lies between now and the expiry of the item."""
    _check_until(until.after(now), item, now)
    expires = None if item.expires_at is None else TimeOrOffset(time=item.expires_at)
    creation = Creation(item.category, item.raw_body, expires=expires, starts=until, key=item.key)
    dismissal = Dismissal((item.msg_id,)) if item.key is None else None
    return InBandMessage(
        uid, new_msg_id(), device_id=item.device_id, creation=creation, dismissal=dismissal
    )


def _check_until(until: Time, item: Item, now: Time) -> None:
    if until <= now:
        raise InvalidMessage(
            f"`until` is {to_rfc3339(until)}, which has passed; give a later time", field="until"
        )
    if item.expires_at is not None and until >= item.expires_at:
        raise InvalidMessage(
            f"`until` is {to_rfc3339(until)}, and the item expires at"
            f" {to_rfc3339(item.expires_at)}; give a time before it",
            field="until",
        )
