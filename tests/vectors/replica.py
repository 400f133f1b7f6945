"""The vectors of a device's replica: stories of one device and its node, by hand and by seed."""

from collections import deque
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import (
    Category,
    Dismissal,
    InBandMessage,
    Key,
    KeyDismissal,
    MsgID,
    Range,
    create,
    dismiss,
    dismiss_category,
    dismiss_key,
    out_of_band,
    put,
)
from gregor.protocol.frames import OutOfBand
from gregor.testing import virtual_time
from tests.vectors.device import DEVICE, USER, DeviceRun, NodeRun
from tests.vectors.encoding import JSON, Case, Step, VectorFile, plain

KEYS = ("k", "l")

ABOUT = (
    "A device's replica with its session (spec/protocol.md, section 11). Feed the inputs of a case "
    "in order to one new device, `phone` of `alice`, whose clock shows `now` at each: what it "
    "shows, keeps to send, reports and sends must be as in `out`."
)


class Story:
    """One device and its node, and all that happened to the device."""

    def __init__(self) -> None:
        self.now = virtual_time.START
        self.device = DeviceRun()
        self.node = NodeRun(self.now)
        self.steps: list[Step] = []
        self.connected = False
        self._to_node: deque[JSON] = deque()

    # What the person and the network do

    async def write(self, message: InBandMessage) -> None:
        written = {k: v for k, v in plain(message).items() if k != "uid"}
        self._feed({"write": written})

    async def dismiss_category(self, category: Category, msg_id: MsgID, **options: Any) -> None:
        message = dismiss_category(USER, category, device_id=DEVICE, msg_id=msg_id, **options)
        written = {k: v for k, v in plain(message).items() if k != "uid"}
        self._feed({"dismiss_category": written})

    async def dismiss_key(self, *keys: Key, msg_id: MsgID) -> None:
        message = dismiss_key(USER, *keys, device_id=DEVICE, msg_id=msg_id)
        written = {k: v for k, v in plain(message).items() if k != "uid"}
        self._feed({"dismiss_key": written})

    async def snooze(self, msg_id: MsgID, seconds: float, new_msg_id: MsgID) -> None:
        until = self.now + round(seconds * SECOND)
        self._feed({"snooze": {"msg_id": msg_id, "until": until, "new_msg_id": new_msg_id}})

    async def get(self, key: Key) -> None:
        self._feed({"get": key})

    async def hide(self, msg_id: str) -> None:
        self._feed({"hide": msg_id})

    async def discard(self, *msg_ids: str) -> None:
        self._feed({"discard": list(msg_ids)})

    async def look_back(self, microseconds: int) -> None:
        self._feed({"state": self.now - microseconds})

    async def connect(self) -> None:
        self.node.connect()
        self.connected = True
        self._to_node.clear()
        self._feed({"connect": {}})

    async def disconnect(self) -> None:
        self.node.disconnect()
        self.connected = False
        self._feed({"disconnect": {}})

    async def restart(self) -> None:
        self.node.disconnect()
        self.connected = False
        self._feed({"restart": {}})

    async def erase(self) -> None:
        """A backend erases the user: the device is not asked."""
        self._tick()
        await self.node.erase()

    async def begin_again(self) -> None:
        self.connected = False
        self._feed({"begin_again": {}})

    async def wait(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)
        self.node.clock.now = self.now
        self._feed({"wait": {}})

    async def backend(self, *messages: InBandMessage) -> None:
        """Somebody else writes: the device is not asked."""
        self._tick()
        await self.node.inject(*messages)

    async def deliver(self) -> None:
        """Let node and device exchange frames until neither has anything more to say."""
        while self.connected and await self.deliver_once():
            pass

    async def deliver_once(self) -> bool:
        """Let the node take what the device has sent, and the device what the node then sends:
        if anything."""
        while self._to_node:
            await self.node.receive(self._to_node.popleft())
        frames = await self.node.frames()
        for frame in frames:
            self._feed({"frame": frame})
        return bool(frames)

    async def deliver_to_node_only(self) -> None:
        """The node takes what the device has sent, and its answer is lost."""
        while self._to_node:
            await self.node.receive(self._to_node.popleft())
        await self.node.frames()

    async def receive(self, frame: JSON) -> None:
        """A frame that the node has not sent."""
        self._feed({"frame": frame})

    # Underneath

    def _tick(self) -> None:
        """Each step is a millisecond after the one before."""
        self.now += 1_000
        self.node.clock.now = self.now

    def _feed(self, given: JSON) -> None:
        self._tick()
        given = {**given, "now": self.now}
        output = self.device.feed(given)
        self._to_node.extend(output.get("sent", ()))
        self.steps.append(Step(given, output))

    async def shows_what_the_node_has(self) -> None:
        """The law of the outbox: with nothing unsent, the device shows the node's state."""
        assert self.device.replica.unsent() == []
        state = await self.node.machine.state(USER, DEVICE)
        hidden = self.device.replica.hidden
        shown = [item.order() for item in self.device.replica.state(self.now)]
        expected = [item.order() for item in state if item.msg_id not in hidden]
        assert shown == expected, (shown, expected)


Tell = Callable[[Story], Awaitable[None]]
STORIES: dict[str, Tell] = {}


def story(tell: Tell) -> Tell:
    """Add a written story under its name, in words."""
    STORIES[tell.__name__.replace("_", " ")] = tell
    return tell


@story
async def first_connection_gets_a_snapshot(s: Story) -> None:
    await s.backend(
        create(USER, "chat", {"n": 1}, msg_id="a"),
        create(USER, "chat", 2, msg_id="b", device_id="laptop"),
        create(USER, "mail", 3, msg_id="c", device_id=DEVICE),
        dismiss(USER, "never-arrived", msg_id="d"),
    )
    await s.connect()
    await s.deliver()


@story
async def messages_are_shown_and_dismissed_as_they_come(s: Story) -> None:
    await s.connect()
    await s.deliver()
    await s.backend(create(USER, "chat", 1, msg_id="a"))
    await s.deliver()
    await s.backend(dismiss(USER, "a", msg_id="d"))
    await s.deliver()


@story
async def writes_offline_are_shown_at_once_and_sent_on_connecting(s: Story) -> None:
    await s.write(create(USER, "notes", "written on a train", msg_id="n1"))
    await s.write(create(USER, "notes", "and another", msg_id="n2"))
    await s.write(dismiss(USER, "n1", msg_id="n3"))
    await s.connect()
    await s.deliver()


@story
async def acknowledged_message_stays_in_place_until_the_feed_brings_it(s: Story) -> None:
    await s.connect()
    await s.deliver()
    await s.write(create(USER, "notes", 1, msg_id="n"))
    ctime = s.now + 5
    result = {"status": "stored", "uid": USER, "msg_id": "n", "ctime": ctime}
    await s.receive({"type": "ack", "n": 1, "results": [result]})
    message = {"uid": USER, "msg_id": "n", "ctime": ctime, "prev": 0,
               "creation": {"category": "notes", "body": 1}}  # fmt: skip
    await s.receive({"type": "messages", "prev": 0, "messages": [message], "cursor": ctime})


@story
async def lost_acknowledgement_is_answered_by_a_duplicate(s: Story) -> None:
    await s.connect()
    await s.deliver()
    await s.write(create(USER, "notes", 1, msg_id="n"))
    await s.deliver_to_node_only()
    await s.disconnect()
    await s.connect()
    await s.deliver()


@story
async def item_echoed_by_a_sync_and_dismissed_elsewhere_is_not_shown_from_the_outbox(
    s: Story,
) -> None:
    await s.backend(create(USER, "chat", 0, msg_id="w"))
    await s.connect()
    await s.deliver()
    await s.write(create(USER, "notes", 1, msg_id="n1"))
    await s.deliver_to_node_only()
    await s.disconnect()
    await s.write(create(USER, "notes", 2, msg_id="n2"))
    await s.backend(dismiss(USER, "n1", msg_id="d"), create(USER, "chat", 1, msg_id="x"))
    await s.connect()
    await s.deliver()


@story
async def message_that_was_echoed_is_not_shown_from_the_outbox_after_a_restart(s: Story) -> None:
    await s.backend(create(USER, "chat", 0, msg_id="w"))
    await s.connect()
    await s.deliver()
    await s.disconnect()
    await s.write(create(USER, "notes", 1, msg_id="n1"))
    await s.write(create(USER, "notes", 2, msg_id="n2"))
    await s.connect()
    await s.deliver_once()
    await s.deliver_to_node_only()
    await s.disconnect()
    await s.backend(dismiss(USER, "n1", msg_id="d"))
    await s.connect()
    await s.deliver_once()
    await s.restart()
    await s.connect()
    await s.deliver()


@story
async def unsent_item_is_not_covered_by_a_range_that_arrives_meanwhile(s: Story) -> None:
    await s.connect()
    await s.deliver()
    await s.disconnect()
    await s.write(create(USER, "chat", "mine", msg_id="n"))
    await s.backend(
        create(USER, "chat", "theirs", msg_id="a"), dismiss_category(USER, "chat", msg_id="d")
    )
    await s.connect()
    await s.deliver()


@story
async def replacing_a_value_reports_the_old_one_as_replaced(s: Story) -> None:
    await s.connect()
    await s.deliver()
    await s.backend(put(USER, "theme", "dark", msg_id="r1"))
    await s.deliver()
    await s.backend(put(USER, "theme", "light", msg_id="r2"))
    await s.deliver()
    await s.write(put(USER, "theme", "blue", msg_id="r3"))
    await s.deliver()


@story
async def category_is_dismissed_with_all_below_its_prefix(s: Story) -> None:
    await s.backend(
        create(USER, "chat.room1", 1, msg_id="a"),
        create(USER, "chat.room2", 2, msg_id="b"),
        create(USER, "chat", 3, msg_id="c"),
    )
    await s.connect()
    await s.deliver()
    await s.write(dismiss_category(USER, "chat.", prefix=True, skip_msg_ids=["b"], msg_id="d"))
    await s.deliver()


@story
async def category_dismissed_offline_leaves_what_arrived_meanwhile(s: Story) -> None:
    await s.backend(create(USER, "chat", "seen", msg_id="a"))
    await s.connect()
    await s.deliver()
    await s.disconnect()
    await s.write(create(USER, "chat", "written here", msg_id="n"))
    await s.dismiss_category("chat", "d")
    await s.backend(create(USER, "chat", "never seen", msg_id="b"))
    await s.connect()
    await s.deliver()


@story
async def category_dismissal_names_acknowledged_items_that_the_feed_has_not_brought(
    s: Story,
) -> None:
    await s.connect()
    await s.deliver()
    await s.write(create(USER, "chat.room", 1, msg_id="n"))
    ctime = s.now + 5
    result = {"status": "stored", "uid": USER, "msg_id": "n", "ctime": ctime}
    await s.receive({"type": "ack", "n": 1, "results": [result]})
    await s.write(create(USER, "chat.room", 2, msg_id="kept"))
    for _ in range(2):
        await s.dismiss_category("chat.", "d", prefix=True, skip_msg_ids=["kept"])
    await s.dismiss_category("mail", "d")


@story
async def category_dismissed_before_the_first_sync_takes_own_items_only(s: Story) -> None:
    await s.backend(create(USER, "chat", "not yet seen", msg_id="a"))
    await s.write(create(USER, "chat", "written here", msg_id="n"))
    await s.dismiss_category("chat", "d")
    await s.connect()
    await s.deliver()


@story
async def rejected_write_is_no_longer_shown_and_holds_up_nothing(s: Story) -> None:
    await s.backend(create(USER, "chat", "theirs", msg_id="taken"))
    await s.write(create(USER, "notes", 1, msg_id="before"))
    await s.write(create(USER, "notes", 2, msg_id="taken"))
    await s.write(create(USER, "notes", 3, msg_id="after"))
    await s.connect()
    await s.deliver()
    await s.discard("taken")


@story
async def same_message_written_again_is_idempotent_and_another_is_a_conflict(s: Story) -> None:
    await s.write(create(USER, "notes", {"a": 1, "b": 2}, msg_id="n"))
    await s.write(create(USER, "notes", {"b": 2, "a": 1}, msg_id="n"))
    await s.write(create(USER, "notes", {"a": 2}, msg_id="n"))


@story
async def item_expires_by_the_clock_without_a_message(s: Story) -> None:
    await s.connect()
    await s.deliver()
    await s.backend(create(USER, "chat", 1, expires="2s", msg_id="a"))
    await s.deliver()
    await s.wait(1)
    await s.wait(1)


@story
async def offsets_count_from_when_a_message_is_written(s: Story) -> None:
    await s.write(create(USER, "notes", 1, starts="2s", expires="4s", msg_id="n"))
    await s.write(create(USER, "notes", 2, starts="6s", msg_id="o"))
    for _ in range(4):
        await s.wait(1)
    await s.write(create(USER, "notes", 1, starts="2s", expires="4s", msg_id="n"))
    await s.write(create(USER, "notes", 1, starts="2s", expires="5s", msg_id="n"))
    too_early = TimeOrOffset(time=s.now + SECOND)
    await s.write(create(USER, "notes", 1, starts="2s", expires=too_early, msg_id="p"))
    await s.connect()
    await s.deliver()
    await s.wait(2)


@story
async def put_takes_the_place_of_the_item_with_its_key_and_scope(s: Story) -> None:
    await s.backend(
        put(USER, "setting.zoom", 100, key="zoom", msg_id="all"),
        put(USER, "setting.zoom", 150, key="zoom", device_id=DEVICE, msg_id="own"),
        put(USER, "setting.zoom", 200, key="zoom", device_id="laptop", msg_id="other"),
    )
    await s.connect()
    await s.deliver()
    await s.get("zoom")
    await s.write(put(USER, "zoom", 110, msg_id="all2"))
    await s.get("zoom")
    await s.dismiss_key("zoom", msg_id="d")
    await s.get("zoom")
    await s.deliver()


@story
async def last_put_offline_is_shown_and_all_are_sent(s: Story) -> None:
    await s.backend(put(USER, "theme", "dark", msg_id="r1"))
    await s.connect()
    await s.deliver()
    await s.disconnect()
    await s.write(put(USER, "theme", "light", msg_id="r2"))
    await s.write(put(USER, "theme", "blue", msg_id="r3"))
    await s.backend(put(USER, "theme", "red", msg_id="r4"))
    await s.get("theme")
    await s.connect()
    await s.deliver()
    await s.get("theme")


@story
async def put_that_is_dead_when_it_is_stored_has_replaced_its_predecessor(s: Story) -> None:
    await s.backend(put(USER, "theme", "dark", msg_id="r1"), dismiss(USER, "r2", msg_id="d"))
    await s.connect()
    await s.deliver()
    await s.write(put(USER, "theme", "light", msg_id="r2"))
    await s.deliver()


@story
async def predecessor_of_a_put_that_ended_while_the_device_was_away_is_gone(s: Story) -> None:
    await s.backend(
        put(USER, "theme", "dark", msg_id="r1"),
        put(USER, "theme", "for this device", device_id=DEVICE, msg_id="own"),
    )
    await s.connect()
    await s.deliver()
    await s.disconnect()
    await s.backend(put(USER, "theme", "light", msg_id="r2"), dismiss(USER, "r2", msg_id="d"))
    await s.connect()
    await s.deliver()


@story
async def key_dismissed_offline_leaves_what_arrived_meanwhile(s: Story) -> None:
    await s.backend(put(USER, "draft", "seen", msg_id="a"), put(USER, "x", 1, msg_id="x"))
    await s.connect()
    await s.deliver()
    await s.disconnect()
    await s.write(put(USER, "draft", "begins later", starts="1h", msg_id="n"))
    for _ in range(2):
        await s.dismiss_key("draft", "x", msg_id="d")
    await s.dismiss_key("draft", msg_id="d")
    await s.backend(put(USER, "draft", "never seen", msg_id="b"))
    await s.connect()
    await s.deliver()


@story
async def item_begins_by_the_clock_without_a_message(s: Story) -> None:
    await s.backend(create(USER, "chat", 1, starts="2s", expires="4s", msg_id="a"))
    await s.connect()
    await s.deliver()
    await s.disconnect()
    for _ in range(4):
        await s.wait(1)
    await s.restart()
    await s.connect()
    await s.deliver()


@story
async def snoozed_item_keeps_its_key_and_begins_again(s: Story) -> None:
    await s.backend(
        put(USER, "mail", {"n": 1}, key="k", expires="1h", device_id=DEVICE, msg_id="a")
    )
    await s.connect()
    await s.deliver()
    await s.snooze("a", 2, "s")
    await s.deliver()
    await s.disconnect()
    await s.wait(1)
    await s.wait(1)


@story
async def item_without_a_key_is_dismissed_and_created_again_when_it_is_snoozed(s: Story) -> None:
    await s.backend(create(USER, "mail", 1, expires="1h", msg_id="a"))
    await s.connect()
    await s.deliver()
    await s.disconnect()
    await s.snooze("a", 3600, "s")
    await s.snooze("unknown", 2, "s")
    await s.snooze("a", -1, "s")
    await s.snooze("a", 2, "s")
    await s.connect()
    await s.deliver()
    await s.wait(2)


@story
async def category_dismissal_takes_what_has_begun_since(s: Story) -> None:
    await s.backend(
        create(USER, "mail", 1, starts="1s", msg_id="begun"),
        create(USER, "mail", 2, starts="3s", msg_id="later"),
    )
    await s.connect()
    await s.deliver()
    await s.wait(1)
    await s.dismiss_category("mail", "d")
    await s.deliver()
    await s.wait(2)
    await s.write(create(USER, "mail", 3, starts="1s", msg_id="own"))
    await s.dismiss_category("mail", "e", scheduled=True)
    await s.deliver()
    await s.wait(1)


@story
async def everything_up_to_now_includes_what_is_not_yet_sent(s: Story) -> None:
    await s.write(create(USER, "chat", "before", msg_id="a"))
    await s.write(create(USER, "chat", "begins later", starts="2s", msg_id="b"))
    await s.write(put(USER, "draft", "before", msg_id="c"))
    await s.write(
        InBandMessage(
            USER,
            "d",
            device_id=DEVICE,
            dismissal=Dismissal(
                ranges=(Range("chat", TimeOrOffset(offset=0)),),
                keys=(KeyDismissal("draft", TimeOrOffset(offset=0)),),
            ),
        )
    )
    await s.write(create(USER, "chat", "after", msg_id="e"))
    await s.connect()
    await s.deliver()
    await s.wait(2)


@story
async def replay_behind_the_clock_is_brought_by_a_snapshot(s: Story) -> None:
    await s.backend(put(USER, "theme", "dark", msg_id="r1"))
    await s.connect()
    await s.deliver()
    await s.disconnect()
    await s.backend(put(USER, "theme", "before", msg_id="r0").stamp(s.now - SECOND, 0))
    await s.backend(create(USER, "chat", 1, msg_id="a"))
    await s.connect()
    await s.deliver()


@story
async def hidden_item_is_dismissed_here_only_and_forgotten_with_its_item(s: Story) -> None:
    await s.backend(create(USER, "chat", 1, msg_id="a"), create(USER, "chat", 2, msg_id="b"))
    await s.connect()
    await s.deliver()
    await s.hide("a")
    await s.hide("unknown")
    await s.restart()
    await s.connect()
    await s.deliver()
    await s.backend(dismiss(USER, "a", msg_id="d"))
    await s.deliver()


@story
async def item_hidden_before_it_arrives_is_never_shown(s: Story) -> None:
    await s.connect()
    await s.deliver()
    await s.hide("a")
    await s.restart()
    await s.connect()
    await s.deliver()
    await s.backend(create(USER, "chat", 1, msg_id="a"), create(USER, "chat", 2, msg_id="b"))
    await s.deliver()
    await s.backend(dismiss(USER, "a", msg_id="d"))
    await s.deliver()


@story
async def restart_keeps_the_replica_and_the_outbox(s: Story) -> None:
    await s.backend(create(USER, "chat", 1, msg_id="a"))
    await s.connect()
    await s.deliver()
    await s.disconnect()
    await s.write(create(USER, "notes", 1, msg_id="n"))
    await s.restart()
    await s.connect()
    await s.deliver()


@story
async def scope_of_another_device_is_not_shown_and_can_be_dismissed(s: Story) -> None:
    await s.connect()
    await s.deliver()
    await s.write(create(USER, "notes", 1, device_id="laptop", msg_id="theirs"))
    await s.write(create(USER, "notes", 2, device_id=DEVICE, msg_id="ours"))
    await s.deliver()
    await s.write(dismiss(USER, "theirs", "ours", msg_id="d"))
    await s.deliver()


@story
async def past_before_a_sync_of_changes_is_forgotten(s: Story) -> None:
    await s.backend(create(USER, "chat", 0, msg_id="before"))
    await s.connect()
    await s.deliver()
    await s.disconnect()
    away = create(USER, "chat", 1, msg_id="away")
    await s.backend(away, dismiss(USER, "away", msg_id="d"))
    await s.backend(create(USER, "chat", 2, msg_id="after"))
    await s.connect()
    await s.deliver()
    await s.look_back(0)
    await s.look_back(5_500)


@story
async def out_of_band_message_is_an_event_and_nothing_else(s: Story) -> None:
    await s.connect()
    await s.deliver()
    typing = out_of_band(USER, "typing", {"room": 7})
    await s.receive(plain(OutOfBand(typing.system, typing.raw_body)))


@story
async def past_is_exact_back_to_when_an_item_was_last_forgotten(s: Story) -> None:
    await s.backend(create(USER, "chat", 0, msg_id="before"))
    await s.connect()
    await s.deliver()
    await s.wait(1)
    await s.backend(create(USER, "chat", 1, msg_id="a"))
    await s.deliver()
    await s.look_back(SECOND // 2)
    await s.backend(dismiss(USER, "a", msg_id="d"))
    await s.deliver()
    await s.look_back(0)
    await s.look_back(SECOND // 2)
    await s.look_back(3600 * SECOND)


@story
async def write_whose_id_was_dismissed_before_is_no_longer_shown_once_it_is_acknowledged(
    s: Story,
) -> None:
    await s.backend(dismiss(USER, "n", msg_id="d"))
    await s.connect()
    await s.deliver()
    await s.write(create(USER, "notes", 1, msg_id="n"))
    await s.deliver()


@story
async def write_for_another_device_leaves_the_outbox_with_its_acknowledgement(s: Story) -> None:
    await s.connect()
    await s.deliver()
    await s.write(create(USER, "notes", 1, device_id="laptop", msg_id="n"))
    await s.deliver()


@story
async def expired_item_is_forgotten_a_minute_later(s: Story) -> None:
    await s.connect()
    await s.deliver()
    await s.backend(create(USER, "chat", 1, expires="2s", msg_id="a"))
    await s.deliver()
    await s.wait(1)
    await s.look_back(SECOND // 2)
    await s.wait(62)
    await s.backend(create(USER, "chat", 2, msg_id="b"))
    await s.deliver()
    await s.look_back(63 * SECOND)
    await s.look_back(61 * SECOND)


@story
async def restored_backup_is_followed_back_by_a_snapshot(s: Story) -> None:
    await s.backend(create(USER, "chat", 1, msg_id="a"))
    await s.connect()
    await s.deliver()
    await s.disconnect()
    s.node = NodeRun(s.now)
    await s.connect()
    await s.deliver()


@story
async def erase_leaves_nothing_on_the_device_until_the_application_begins_again(s: Story) -> None:
    await s.backend(create(USER, "chat", 1, msg_id="a"), create(USER, "chat", 2, msg_id="b"))
    await s.connect()
    await s.deliver()
    await s.hide("a")
    await s.write(create(USER, "notes", 1, msg_id="n"))
    await s.erase()
    await s.deliver()
    await s.write(create(USER, "notes", 2, msg_id="o"))
    await s.hide("b")
    await s.dismiss_category("chat", "d")
    await s.look_back(0)
    await s.begin_again()
    await s.write(create(USER, "notes", 3, msg_id="n"))
    await s.backend(create(USER, "chat", 3, msg_id="a"))
    await s.connect()
    await s.deliver()
    await s.shows_what_the_node_has()


@story
async def device_that_was_offline_does_not_bring_an_erased_user_back(s: Story) -> None:
    await s.connect()
    await s.deliver()
    await s.disconnect()
    await s.write(create(USER, "notes", 1, msg_id="n"))
    await s.erase()
    await s.write(create(USER, "notes", 2, msg_id="o"))
    await s.connect()
    await s.deliver()
    await s.restart()
    await s.begin_again()
    await s.connect()
    await s.deliver()
    await s.shows_what_the_node_has()


@story
async def written_in_the_new_life_is_gone_with_it(s: Story) -> None:
    await s.connect()
    await s.deliver()
    await s.erase()
    await s.deliver()
    await s.begin_again()
    await s.write(create(USER, "notes", 1, msg_id="n"))
    await s.restart()
    await s.erase()
    await s.connect()
    await s.deliver()


@story
async def restored_backup_from_before_an_erase_keeps_the_outbox(s: Story) -> None:
    await s.connect()
    await s.deliver()
    await s.erase()
    await s.deliver()
    await s.begin_again()
    await s.connect()
    await s.deliver()
    await s.backend(create(USER, "chat", "of the second life", msg_id="a"))
    await s.deliver()
    await s.disconnect()
    await s.write(create(USER, "notes", "unsent", msg_id="n"))
    s.node = NodeRun(s.now)
    await s.backend(create(USER, "chat", "of the first life", msg_id="b"))
    await s.connect()
    await s.deliver()
    await s.shows_what_the_node_has()


@story
async def wrong_hash_is_repaired_by_a_snapshot(s: Story) -> None:
    await s.backend(create(USER, "chat", 1, msg_id="a"))
    await s.connect()
    await s.deliver()
    lie = {"uid": USER, "msg_id": "lie", "ctime": s.now, "prev": 0,
           "creation": {"category": "chat", "body": None}}  # fmt: skip
    cursor = s.device.replica.cursor
    await s.receive({"type": "messages", "prev": cursor, "messages": [lie], "cursor": s.now})
    await s.disconnect()
    await s.backend(create(USER, "chat", 2, msg_id="b"))
    await s.connect()
    await s.deliver()


async def walk(s: Story, rng: Random) -> None:
    """A day of one device, by a seed; in the end everything is delivered, and must agree."""
    ids: list[str] = []

    def message() -> InBandMessage:
        category = rng.choice(["chat", "chat.room", "theme"])
        msg_id = f"m{len(ids)}"
        starts, expires = rng.choice([None, None, "1s"]), rng.choice([None, None, "2s", "1h"])
        scope = rng.choice([None, None, DEVICE, "laptop"])
        ids.append(msg_id)
        match rng.choice(["create", "create", "create", "put", "put", "dismiss", "category",
                          "key"]):  # fmt: skip
            case "put":
                return put(
                    USER,
                    category,
                    rng.randrange(9),
                    key=rng.choice(KEYS),
                    starts=starts,
                    device_id=scope,
                    msg_id=msg_id,
                )
            case "key":
                return dismiss_key(USER, rng.choice(KEYS), device_id=scope, msg_id=msg_id)
            case "dismiss":
                return dismiss(USER, *rng.sample(ids, min(len(ids), 2)), msg_id=msg_id)
            case "category":
                end = rng.choice([None, "-1s", "1s"])
                return dismiss_category(
                    USER, category, prefix=rng.random() < 0.5, end_time=end, msg_id=msg_id
                )
            case _:
                body = rng.choice([None, 1, "x", {"a": [1.5]}])
                return create(
                    USER,
                    category,
                    body,
                    starts=starts,
                    expires=expires,
                    device_id=scope,
                    msg_id=msg_id,
                )

    for _ in range(rng.randrange(12, 24)):
        match rng.choice(["write", "write", "backend", "backend", "connect", "deliver",
                          "deliver", "lose", "hide", "snooze", "dismiss_category", "dismiss_key",
                          "restart", "wait"]):  # fmt: skip
            case "write":
                await s.write(message())
            case "snooze" if ids:
                ids.append(f"m{len(ids)}")
                await s.snooze(rng.choice(ids[:-1]), rng.choice([0.5, 1]), ids[-1])
            case "dismiss_category":
                ids.append(f"m{len(ids)}")
                scheduled = rng.random() < 0.5
                await s.dismiss_category("chat", ids[-1], prefix=True, scheduled=scheduled)
            case "dismiss_key":
                ids.append(f"m{len(ids)}")
                await s.dismiss_key(rng.choice(KEYS), msg_id=ids[-1])
            case "backend":
                await s.backend(*(message() for _ in range(rng.randrange(1, 4))))
            case "connect" if not s.connected:
                await s.connect()
                await s.deliver()
            case "deliver":
                await s.deliver()
            case "lose" if s.connected:
                await s.deliver_to_node_only()
                await s.disconnect()
            case "hide" if ids:
                await s.hide(rng.choice(ids))
            case "restart" if rng.random() < 0.3:
                await s.restart()
            case "wait":
                await s.wait(rng.choice([0.5, 1, 2]))
    if not s.connected:
        await s.connect()
    await s.deliver()
    await s.shows_what_the_node_has()


def vectors() -> VectorFile:
    """The file as it must be today. Raises AssertionError if a law does not hold in a walk."""
    cases = [_case(name, tell) for name, tell in STORIES.items()]
    cases += [_case(f"random walk {seed}", _walk(seed)) for seed in range(20)]
    return VectorFile(ABOUT, cases)


def _walk(seed: int) -> Tell:
    return lambda s: walk(s, Random(seed))


def _case(name: str, tell: Tell) -> Case:
    async def run_story() -> Case:
        s = Story()
        await tell(s)
        return Case(name, s.steps)

    return virtual_time.run(run_story())
