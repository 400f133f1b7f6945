"""Simulations in which devices are browsers, with the JavaScript client in each tab.

The tabs of all browsers run in one Node process (`js/tests/simulation/main.ts`). They know no world
but this simulation: it moves their clocks, and is their network and the people at them. Each call
into the process returns when nothing more happens in the browser before its next timer. So a seed
decides everything there as well.

Beyond what devices in Python go through: browsers open several tabs on one database, of which one
at a time is connected; tabs are closed and killed, hang, are frozen, kept for the way back, and
hidden; broadcasts between them get lost; and the database is slow, and fails.

Then each tab must agree with the store, like any replica; what a tab has hidden stays hidden; and
nothing has failed that nobody has caught.
"""

import asyncio
import subprocess
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple, Self, cast

import msgspec

from gregor.client import Disconnected
from gregor.core.facts import Facts
from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID, MsgID
from gregor.core.state import Item
from gregor.core.sync import Snapshot, Sync
from tests.javascript.node import JS, command, environment
from tests.simulation.simulation import (
    CATEGORIES,
    FORGED,
    KEYS,
    AcceptedWrite,
    Disagreement,
    SimulatedConnection,
    SimulatedDevice,
    Simulation,
    names,
)

MAX_TABS = 3
SLEEPS = ("hang", "hang", "freeze", "navigateAway", "hide")
FAILURES = {
    "unavailable": "cannot write, because the store fails or the client is closed",
    "erased": "cannot write, because its user was erased",
    "invalid": "cannot snooze what has gone, or expires before that",
}
"""Why a write may fail."""


class JavaScript:
    """Node with the browsers of one simulation after the other. It ends when its stdin does."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            command("node", "--enable-source-maps", "tests/simulation/run.js"),
            cwd=JS,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate()

    def ask(self, *question: Any) -> dict[str, Any]:
        """Raises Disagreement if the process has ended; it has said why on stderr."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(msgspec.json.encode(question) + b"\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise Disagreement("the browsers have ended")
        return cast("dict[str, Any]", msgspec.json.decode(answer))

    def new_device(self, simulation: Simulation, uid: UID, device_id: DeviceID) -> SimulatedDevice:
        """A device of either language, by the seed."""
        is_browser = Random(f"{simulation.seed} {uid} {device_id}").random() < 0.6
        if not is_browser:
            return SimulatedDevice(simulation, uid, device_id)
        return SimulatedBrowser(simulation, uid, device_id, self)


class Outcome(NamedTuple):
    """How the call with this number ended: with the code of an error, or with a result, at an epoch
    of the user (None: it is not known, or it changed meanwhile). A tab that ends leaves neither."""

    call: int
    failure: str | None = None
    result: Any = None
    epoch: Time | None = None


class Tab:
    """An open tab."""

    def __init__(self, number: int, device_name: str) -> None:
        self.number = number
        self.name = f"{device_name}.{number}"
        self.shown: set[tuple[MsgID, Time | None]] = set()  # and in which life of the user
        self.is_asleep = False
        self.calls: dict[int, asyncio.Future[Outcome | None]] = {}


class SimulatedBrowser(SimulatedDevice):
    """A browser and its user. It goes offline, and its tabs come and go; the database stays."""

    def __init__(
        self, simulation: Simulation, uid: UID, device_id: DeviceID, javascript: JavaScript
    ) -> None:
        super().__init__(simulation, uid, device_id)
        self.name = f"{uid}/{device_id}.js"
        self._javascript = javascript
        self._hidden: list[AcceptedWrite] = []
        self._tabs: dict[int, Tab] = {}
        self._tab_count = 0
        self._call_count = 0
        self._connections: dict[int, SimulatedConnection] = {}  # by the numbers of the sockets
        self._mismatch_count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_calm = False
        self._is_over = False

    async def run(self) -> None:
        seed = Random(f"{self._simulation.seed} {self.name}").getrandbits(32)
        self._javascript.ask("browser", self.name, self.uid, self.device_id, seed)
        self._set_clock()
        for _ in range(self._simulation.rng.randrange(1, MAX_TABS + 1)):
            self._open_tab()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._is_over = True
            self._stop_timer()
            for tab in self._tabs.values():
                _abandon(tab)
            self.break_connection("the simulation ends")

    # Calls into the browser

    def _tell(self, method: str, *arguments: Any, at: float = 0) -> Any:
        """Call a method of the browser; `at` is a time in milliseconds that may just have come."""
        if self._is_over:
            return None
        if self._simulation.faults_over and not self._is_calm:
            self._is_calm = True
            self._calm()
        now = max(at, asyncio.get_running_loop().time() * 1000)
        answer = self._javascript.ask("call", self.name, now, method, *arguments)
        self._mismatch_count += answer["mismatches"]
        if answer["uncaught"]:
            raise Disagreement(f"{self.name}: nobody caught {answer['uncaught']}")
        self._set_timer(answer.get("due"))
        for name, *details in answer["events"]:
            self._on_event(name, details)
        return answer.get("result")

    def _set_timer(self, due: float | None) -> None:
        self._stop_timer()
        if due is not None:
            create_task = self._simulation.tasks.create_task
            self._timer = asyncio.get_running_loop().call_at(
                due / 1000, lambda: create_task(self._wait_until(due))
            )

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def _wait_until(self, due: float) -> None:
        self._tell("wait", at=due)

    # What happens in the browser

    def _on_event(self, name: str, details: Sequence[Any]) -> None:
        match name, details:
            case "connects", [tab, socket]:
                self._start(self._serve(tab, socket))
            case "sends", [socket, text] if socket in self._connections:
                self._start(_send(self._connections[socket], text))
            case "closes", [socket] if socket in self._connections:
                self._connections[socket].cut("closed by the device")
            case "token", [number]:
                self._start(self._give_token(number))
            case "opens", [number, visible, epoch]:
                self._on_open(self._tabs.get(number), visible, epoch)
            case (("shows" | "hides" | "erased"), [number, *rest]) if number in self._tabs:
                self._on_change(self._tabs[number], name, rest)
            case "done", [call, result, epoch]:
                self._settle(Outcome(call, result=result, epoch=epoch))
            case "failed", [call, code]:
                self._settle(Outcome(call, failure=code))
            case "not saved", [number, reason] if number in self._tabs:
                self._simulation.record(self._tabs[number].name, f"cannot save: {reason}")
                self._tabs[number].shown.clear()  # what has been hidden is shown again
            case "problem", [text]:
                raise Disagreement(f"{self.name}: {text}")

    def _on_open(self, tab: Tab | None, visible: Sequence[MsgID], epoch: Time | None) -> None:
        if tab is not None:
            self._require_hidden(visible, epoch)
            tab.shown = {(msg_id, epoch) for msg_id in visible}

    def _on_change(self, tab: Tab, name: str, details: Sequence[Any]) -> None:
        match name, details:
            case "shows", [msg_id, epoch]:
                self._simulation.record(tab.name, f"shows {msg_id}")
                if msg_id == FORGED or (msg_id, epoch) in tab.shown:
                    raise Disagreement(f"{tab.name} shows {msg_id} twice, or it was never stored")
                tab.shown.add((msg_id, epoch))
            case "hides", [msg_id, epoch, why, may_come_back]:
                self._simulation.record(tab.name, f"hides ({why}) {msg_id}")
                if may_come_back:
                    # A node whose clock is behind shows it for another moment, or not yet. And a
                    # tab that has missed a broadcast may not have what it hears of, until it reads.
                    tab.shown.discard((msg_id, epoch))
            case _:
                self._simulation.record(tab.name, "hears that its user was erased")
                tab.shown.clear()
                self._start(self._press_button(tab))

    def _settle(self, outcome: Outcome) -> None:
        for tab in self._tabs.values():
            if outcome.call in tab.calls:
                tab.calls.pop(outcome.call).set_result(outcome)

    def _require_hidden(self, visible: Sequence[MsgID], epoch: Time | None) -> None:
        for msg_id, hidden_at, *_ in self._hidden:
            if hidden_at == epoch and msg_id in visible:
                raise Disagreement(f"{self.name} shows {msg_id}, which it has hidden")

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._simulation.tasks.create_task(coroutine)

    def _record(self, event: str) -> None:
        self._simulation.record(self.name, event)

    # The network

    async def _serve(self, tab: int, socket: int) -> None:
        """Carry frames to a socket, as long as it is connected."""
        try:
            connection = self._connections[socket] = await self.connect()
            if tab not in self._tabs or self._is_over:
                connection.cut("closed by the device")
            self._tell("opened", socket)
            while True:
                self._tell("frame", socket, await connection.receive())
        except Disconnected as end:
            self._connections.pop(socket, None)
            self._tell("closed", socket, end.code or 1006, end.reason)

    async def _give_token(self, number: int) -> None:
        answer: list[object] = []
        with suppress(KeyError):
            answer = [await self.token()]
        self._tell("giveToken", number, *answer)

    async def _press_button(self, tab: Tab) -> None:
        """The person presses a button until it works; or, after an erase, closes the tab."""
        while not self._is_over:
            await asyncio.sleep(self._simulation.rng.random() * 5)
            if tab.number not in self._tabs or self._is_over:
                return
            if not tab.is_asleep:
                status = self._tell("look", tab.number)["status"]
                if status["online"]:
                    return
                if status["lastError"] is not None and status["lastError"]["code"] == "erased":
                    self._tell("reconnect", tab.number)

    def break_connection(self, reason: str) -> None:
        for connection in tuple(self._connections.values()):
            connection.cut(reason)

    # The person

    async def act(self) -> None:
        awake = [tab for tab in self._tabs.values() if not tab.is_asleep]
        if not awake or self._is_over:
            return
        tab = self._simulation.rng.choice(awake)
        match self._simulation.choice(
            write=15, hide=3, offline=2, clock=1, tab=2, sleep=3, end=2, lose=1
        ):
            case "write":
                await self._write(tab)
            case "hide":
                await self._hide(tab)
            case "offline":
                await self._go_offline()
                self._tell("online")
            case "clock":
                self._set_clock()
            case "tab" if len(self._tabs) < MAX_TABS:
                self._open_tab()
            case "sleep":
                await self._sleep(tab)
            case "end":
                await self._end(tab)
            case "lose":
                self._record("loses a broadcast")
                self._tell("loseBroadcasts", self._simulation.rng.randrange(1, 4))

    async def _write(self, tab: Tab) -> None:
        simulation = self._simulation
        items = self._tell("look", tab.number)["visible"]
        category, msg_id = simulation.rng.choice(CATEGORIES), simulation.new_msg_id()
        outcome: Outcome | None
        match simulation.choice(create=4, put=3, snooze=1, dismiss=4, category=1, key=1):
            case "create":
                options = {"msgId": msg_id, **self._item_options()}
                outcome = await self._call(tab, "create", category, None, options)
            case "put":
                key, body = simulation.rng.choice(KEYS), simulation.rng.randrange(1_000)
                options = {"msgId": msg_id, "key": key, **self._item_options()}
                outcome = await self._call(tab, "put", category, body, options)
            case "snooze" if items:
                until = f"{simulation.rng.randrange(1, 20)}s"
                outcome = await self._call(tab, "snooze", simulation.rng.choice(items), until)
            case "dismiss" if items:
                outcome = await self._call(tab, "dismiss", simulation.rng.choice(items))
            case "category":
                options = {"msgId": msg_id, "prefix": simulation.chance(0.5)}
                options["scheduled"] = simulation.chance(0.3)
                if simulation.chance(0.3):
                    options["endTime"] = "0s"
                outcome = await self._call(tab, "dismissCategory", category, options)
            case "key":
                outcome = await self._call(tab, "dismissKey", simulation.rng.choice(KEYS))
            case _:
                return
        if outcome is not None and outcome.failure is None:
            self.accepted.append(
                AcceptedWrite(outcome.result, outcome.epoch, tab.name, outcome.call)
            )
            simulation.record(tab.name, f"writes {outcome.result}")

    def _item_options(self) -> Mapping[str, Any]:
        starts, expires = self._simulation.lifetime()
        return {
            "thisDevice": self._simulation.chance(0.3),
            **({"starts": f"{starts.total_seconds()}s"} if starts else {}),
            **({"expires": f"{expires.total_seconds()}s"} if expires else {}),
        }

    async def _hide(self, tab: Tab) -> None:
        """Hide an item, perhaps before it has come."""
        known = self._tell("look", tab.number)["visible"] + self._simulation.sent_to(self.uid)[-5:]
        if known:
            msg_id = self._simulation.rng.choice(known)
            outcome = await self._call(tab, "hide", msg_id)
            if outcome is not None and outcome.failure is None and outcome.epoch is not None:
                self._hidden.append(AcceptedWrite(msg_id, outcome.epoch))

    async def _call(self, tab: Tab, method: str, *arguments: Any) -> Outcome | None:
        """Call a method of a tab's client. Raises Disagreement if it fails for no good reason."""
        self._call_count += 1
        call = self._call_count
        done = tab.calls[call] = asyncio.get_running_loop().create_future()
        self._tell("act", call, tab.number, method, *arguments)
        outcome: Outcome | None = await done
        if outcome is None:
            self._simulation.record(tab.name, "cannot write, because it was killed")
        elif outcome.failure is not None:
            if outcome.failure not in FAILURES:
                raise Disagreement(f"{tab.name} cannot {method}: {outcome.failure}")
            self._simulation.record(tab.name, FAILURES[outcome.failure])
        return outcome

    # The faults of a browser

    def _set_clock(self) -> None:
        self._record("sets its clock")
        self._skew = self._simulation.device_skew()
        self._tell("setClock", self._skew / 1000)

    def _open_tab(self) -> None:
        tab = Tab(self._tab_count, self.name)
        self._tab_count += 1
        self._tabs[tab.number] = tab
        self._simulation.record(tab.name, "is opened")
        self._tell("openTab", tab.number)

    async def _sleep(self, tab: Tab) -> None:
        how = self._simulation.rng.choice(SLEEPS)
        self._simulation.record(tab.name, f"sleeps ({how})")
        tab.is_asleep = how != "hide"
        self._tell("sleep", tab.number, how)
        await asyncio.sleep(self._simulation.rng.random() * 20)
        tab.is_asleep = False
        self._simulation.record(tab.name, "wakes up")
        self._tell("waken", tab.number)

    async def _end(self, tab: Tab) -> None:
        """End a tab, or all of them, and open another one if there is none."""
        how = self._simulation.choice(kill=2, close=1, crash=1)
        if how == "close":
            await self._call(tab, "close")
        for ended in tuple(self._tabs.values()) if how == "crash" else (tab,):
            if self._tabs.pop(ended.number, None) is not None:
                self._simulation.record(ended.name, f"was ended ({how})")
                self._tell("endTab", ended.number, "close" if how == "close" else "kill")
                _abandon(ended)
        if not self._tabs and not self._is_over:
            self._open_tab()

    def _calm(self) -> None:
        """There are no more faults."""
        self._tell("calm")
        for tab in self._tabs.values():
            tab.is_asleep = False

    # The final check

    def unsettled(self) -> str | None:
        for tab in self._tabs.values():
            status = self._tell("look", tab.number)["status"]
            if not (status["online"] and status["synced"]) or status["unsent"]:
                return f"is not settled: {status}"
        return None

    def mismatches(self) -> int:
        return self._mismatch_count

    def rejected(self) -> set[MsgID]:
        views = [self._tell("look", tab.number) for tab in self._tabs.values()]
        return {msg_id for view in views for msg_id in view["rejected"]}

    def difference(self, sync: Sync) -> str | None:
        for tab in self._tabs.values():
            view = self._tell("look", tab.number)
            problem = self._problem(view) or self._deviation(tab, view["items"], sync)
            if problem is not None:
                return f"in tab {tab.number} {problem}"
        return None

    def _deviation(self, tab: Tab, items: Sequence[Any], sync: Sync) -> str | None:
        assert isinstance(sync.content, Snapshot)
        held = Facts.of(msgspec.json.decode(msgspec.json.encode(items), type=list[Item]))
        stored = sync.content.facts()
        states = [_plain(facts.state(self.device_id, sync.as_of)) for facts in (held, stored)]
        if held.hash(self.device_id, sync.as_of) != sync.hash or states[0] != states[1]:
            return f"holds {names(held)}, and the store {names(stored)}"
        if not self._tell("hasHash", tab.number, sync.as_of, sync.hash):
            return "has a sum of hashes that differs from that of its items"
        return None

    def _problem(self, view: Mapping[str, Any]) -> str | None:
        """What a tab shows that it should not, or does not show."""
        self._require_hidden(view["visible"], view["epoch"])
        hidden, visible = set(view["hidden"]), set(view["visible"])
        if hidden & visible:
            return f"shows {hidden & visible}, which are hidden"
        timeless = {
            item["msg_id"]
            for item in view["items"]
            if "starts_at" not in item and "expires_at" not in item
        }
        if not view["outbox"] and not timeless <= visible | hidden:
            return f"does not show {timeless - visible - hidden}"
        return None


async def _send(connection: SimulatedConnection, text: str) -> None:
    with suppress(Disconnected):
        await connection.send(text)


def _abandon(tab: Tab) -> None:
    """Nothing comes of the calls that have not ended."""
    for call in tab.calls.values():
        call.set_result(None)
    tab.calls.clear()


def _plain(state: object) -> Any:
    """Values as they are in both languages, however they are written."""
    return msgspec.json.decode(msgspec.json.encode(state))
