"""What the Python client does in a history: the oracle of the JavaScript client.

python -m tests.javascript.oracle

Each line on stdin is a history: a JSON array of what happens to one device and its node, as arrays
of a name and its arguments. A line on stdout has the steps of the device, as in the vectors of
replicas: what went in, and what came out. What cannot happen at that moment is left out.
"""

import sys

import msgspec
from msgspec import Struct

from gregor.testing import virtual_time
from tests.vectors.device import NodeRun
from tests.vectors.encoding import JSON, Step, in_band
from tests.vectors.replica import Story


class Oracle(Struct):
    """Plays a history; in the end, everything is delivered."""

    story: Story

    async def play(self, history: list[JSON]) -> list[Step]:
        for action in history:
            await self._carry_out(action)
        await self._connect()
        if self.story.device.replica.erased:
            await self.story.begin_again()
            await self._connect()
        return self.story.steps

    async def _carry_out(self, action: list[JSON]) -> None:
        story = self.story
        match action:
            case ["write", message]:
                await story.write(in_band(message))
            case ["backend", messages]:
                await story.backend(*map(in_band, messages))
            case ["dismiss_category", category, msg_id, options]:
                await story.dismiss_category(category, msg_id, **options)
            case ["dismiss_key", key, msg_id]:
                await story.dismiss_key(key, msg_id=msg_id)
            case ["snooze", msg_id, seconds, new_msg_id]:
                await story.snooze(msg_id, seconds, new_msg_id)
            case ["get", key]:
                await story.get(key)
            case ["hide", msg_id]:
                await story.hide(msg_id)
            case ["discard", msg_id]:
                await story.discard(msg_id)
            case ["look_back", seconds]:
                await story.look_back(round(seconds * 1_000_000))
            case ["wait", seconds]:
                await story.wait(seconds)
            case ["deliver"]:
                await story.deliver()
            case ["connect"]:
                await self._connect()
            case ["lose"] if story.connected:
                await story.deliver_to_node_only()
                await story.disconnect()
            case ["disconnect"] if story.connected:
                await story.disconnect()
            case ["restart"]:
                await story.restart()
            case ["erase"]:
                await story.erase()
            case ["begin_again"] if story.device.replica.erased:
                await story.begin_again()
            case ["backup"]:
                await story.disconnect()
                story.node = NodeRun(story.now)

    async def _connect(self) -> None:
        if not self.story.connected:
            await self.story.connect()
        await self.story.deliver()


def main() -> None:
    for line in sys.stdin:
        steps = virtual_time.run(Oracle(Story()).play(msgspec.json.decode(line)))
        print(msgspec.json.encode(steps).decode(), flush=True)


if __name__ == "__main__":
    main()
