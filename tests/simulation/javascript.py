"""JavaScript devices in a simulation: the client of `js/` runs under Node, within the schedule.

Its clocks, network and store are given: Node does nothing between two calls, and each call returns
when all that the device does has been done. So a seed gives the same run each time.
"""

import asyncio
import json
import subprocess
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Self

import msgspec

from gregor.client import Disconnected
from gregor.core.facts import Facts
from gregor.core.message import UID, DeviceID, MsgID
from gregor.core.state import Item
from gregor.core.sync import Snapshot, Sync
from tests.javascript.node import JS, command, environment, run
from tests.simulation.simulation import (
    CATEGORIES,
    FORGED,
    KEYS,
    Disagreement,
    SimulatedConnection,
    SimulatedDevice,
    Simulation,
    names,
)


class JavaScript:
    """Node with the devices of one simulation after the other."""

    def __enter__(self) -> Self:
        self._folder = TemporaryDirectory()
        script = Path(self._folder.name) / "devices.mjs"
        bundle = ("--bundle", "--platform=node", "--format=esm", f"--outfile={script}")
        run("esbuild", "tests/simulation/devices.ts", *bundle, "--log-level=error")
        self._process = subprocess.Popen(
            command("node", str(script)),
            cwd=JS,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate()
        self._folder.cleanup()

    def call(self, **call: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise Disagreement("the JavaScript devices have ended")
        return json.loads(answer)

    def new_device(self, simulation: Simulation, uid: UID, device_id: DeviceID) -> SimulatedDevice:
        """A device of either language, by the seed."""
        is_javascript = Random(f"{simulation.seed} {uid} {device_id}").random() < 0.6
        if not is_javascript:
            return SimulatedDevice(simulation, uid, device_id)
        return JavaScriptDevice(simulation, uid, device_id, self)


class JavaScriptDevice(SimulatedDevice):
    """A device whose client is that of JavaScript."""

    def __init__(
        self, simulation: Simulation, uid: UID, device_id: DeviceID, node: JavaScript
    ) -> None:
        super().__init__(simulation, uid, device_id)
        self.name = f"{uid}/{device_id}.js"
        self._node = node
        self._connections: dict[int, SimulatedConnection] = {}
        self._killed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._shown: set[MsgID] = set()
        self._wrong: str | None = None

    async def run(self) -> None:
        self._call("new", Random(f"{self._simulation.seed} {self.name}").getrandbits(32))
        while True:
            self._shown.clear()
            self._killed.clear()
            self._call("start", self.uid, self.device_id)
            self._simulation.record(self.name, "starts")
            await self._killed.wait()
            self._call("kill")
            for connection in tuple(self._connections.values()):
                connection.cut("the process ends")
            self._simulation.record(self.name, "was killed")

    def _call(self, name: str, *args: object) -> Any:
        """Let something happen to the device, and carry out what it does then."""
        time = asyncio.get_running_loop().time()
        answer = self._node.call(
            device=self.name,
            now=self.clock() / 1000,
            monotonic=time * 1000,
            name=name,
            args=args,
        )
        for effect in answer["effects"]:
            self._carry_out(*effect)
        if self._timer is not None:
            self._timer.cancel()
        if answer["due"] is not None:
            due = (
                max(answer["due"] / 1000, time) + 0.000_001
            )  # so that it is due in spite of rounding
            self._timer = asyncio.get_running_loop().call_at(due, self._call, "tick")
        return answer["result"]

    def _carry_out(self, effect: str, *args: Any) -> None:
        tasks = self._simulation.tasks
        match effect, *args:
            case "token", int(number):
                tasks.create_task(self._answer_token(number))
            case "open", int(number):
                tasks.create_task(self._converse(number))
            case "send", int(number), str(text):
                tasks.create_task(self._send(number, text))
            case "close", int(number):
                if number in self._connections:
                    self._connections[number].cut("closed by the device")
            case "event", {"type": "erased"}:
                self._shown.clear()
                self._begin_new_life_soon()
            case "event", {"item": _} as event:
                self._watch_item(**event)

    async def _answer_token(self, number: int) -> None:
        answer: list[object] = []
        with suppress(KeyError):
            answer = [await self.token()]
        self._call("token", number, *answer)

    async def _converse(self, number: int) -> None:
        try:
            connection = await self.connect()
            self._connections[number] = connection
            self._call("opened", number)
            while True:
                self._call("frame", number, await connection.receive())
        except Disconnected as end:
            self._connections.pop(number, None)
            self._call("closed", number, end.code or 1006, end.reason)

    async def _send(self, number: int, text: str) -> None:
        with suppress(Disconnected, KeyError):
            await self._connections[number].send(text)

    def _begin_new_life_soon(self) -> None:
        self._simulation.record(self.name, "hears that its user was erased")
        delay = self._simulation.rng.random() * 5
        asyncio.get_running_loop().call_later(delay, self._call, "reconnect")

    def _watch_item(self, type: str, item: dict[str, Any], why: str | None = None) -> None:
        msg_id = item["msg_id"]
        told = "shows" if type == "created" else f"hides ({why})"
        self._simulation.record(self.name, f"{told} {msg_id}")
        if type == "created":
            if msg_id == FORGED or msg_id in self._shown:
                self._wrong = self._wrong or f"shows {msg_id} twice, or it was never stored"
            self._shown.add(msg_id)
        elif item.get("starts_at") is not None or item.get("expires_at") is not None:
            # A node whose clock is behind shows it for another moment, or not yet.
            self._shown.discard(msg_id)

    # What the user does

    async def act(self) -> None:
        simulation = self._simulation
        match simulation.choice(write=17, offline=2, kill=1, clock=1):
            case "offline":
                await self._go_offline()
            case "kill":
                self._killed.set()
            case "clock":
                self._skew = simulation.device_skew()
                simulation.record(self.name, "sets its clock")
            case _:
                self._write()

    def _write(self) -> None:
        before = self._call("shown")
        method, *args = self._random_write([item["msg_id"] for item in before["items"]])
        match self._call(method, *args):
            case {"value": str(msg_id)}:
                self._record_write(msg_id, before["epoch"])
            case {"code": "erased" | "invalid" | "unavailable" as code}:
                self._simulation.record(self.name, f"cannot {method}: {code}")
            case {"code": _} as error:
                self._wrong = self._wrong or f"cannot {method}: {error}"

    def _random_write(self, shown: list[MsgID]) -> list[Any]:
        simulation = self._simulation
        rng = simulation.rng
        category, key = rng.choice(CATEGORIES), rng.choice(KEYS)
        id_ = rng.choice(shown) if shown else simulation.new_msg_id()
        times = zip(("starts", "expires"), simulation.lifetime(), strict=True)
        options: dict[str, Any] = {
            name: f"{time.total_seconds():.0f}s" for name, time in times if time is not None
        }
        options["thisDevice"] = simulation.chance(0.3)
        match simulation.choice(create=4, put=3, snooze=1, dismiss=4, category=1, key=1, hide=1):
            case "create":
                return ["create", category, None, options]
            case "put":
                return ["put", category, rng.random(), {"key": key, **options}]
            case "snooze":
                return ["snooze", id_, f"{rng.randrange(1, 20)}s"]
            case "dismiss":
                return ["dismiss", id_]
            case "category":
                end = {"endTime": "0s"} if simulation.chance(0.3) else {}
                prefix, scheduled = simulation.chance(0.5), simulation.chance(0.3)
                return [
                    "dismissCategory",
                    category,
                    {"prefix": prefix, "scheduled": scheduled, **end},
                ]
            case "key":
                return ["dismissKey", key]
            case _:
                return ["hide", id_]

    def break_connection(self, reason: str) -> None:
        for connection in tuple(self._connections.values()):
            connection.cut(reason)

    # The final check

    def unsettled(self) -> str | None:
        status = self._call("shown")["status"]
        if self._wrong is not None:
            raise Disagreement(f"{self.name} {self._wrong}")
        if not (status["online"] and status["synced"]) or status["unsent"]:
            return f"is not settled: {status}"
        return None

    def rejected(self) -> set[MsgID]:
        return set(self._call("shown")["rejected"])

    def difference(self, sync: Sync) -> str | None:
        assert isinstance(sync.content, Snapshot)
        text = json.dumps(self._call("shown")["held"])
        held = Facts.of(msgspec.json.decode(text, type=list[Item]))
        stored = sync.content.facts()
        states = [facts.state(self.device_id, sync.as_of) for facts in (held, stored)]
        if held.hash(self.device_id, sync.as_of) != sync.hash or _plain(states[0]) != _plain(
            states[1]
        ):
            return f"holds {names(held)}, and the store {names(stored)}"
        return None


def _plain(state: object) -> Any:
    """Values as they are in both languages, however they are written."""
    return msgspec.json.decode(msgspec.json.encode(state))
