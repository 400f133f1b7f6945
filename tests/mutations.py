"""Planted bugs: each is one that was made once, somewhere, and one named test must notice it.

    python -m tests.mutations            # all of them
    python -m tests.mutations prefix     # those whose name contains this

To add one, append a Mutation: what goes wrong, in which file of src/gregor, the text there (which
must occur exactly once), what a tired programmer would write, and the test that must fail.
"""

import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

EXHAUSTIVE = "tests/core/test_exhaustive.py::"
VECTORS = "tests/core/test_vectors.py::"
MEMORY = "tests/conformance/test_state_machines.py::TestMemory::"
SQL = "tests/conformance/test_state_machines.py::TestSQLiteInMemory::"
FILE = "tests/conformance/test_state_machines.py::TestSQLiteFile::"
MANY_WRITERS = "tests/conformance/test_postgresql.py::"
NODE_SIDE = "tests/protocol/test_server_session.py::"
DEVICE_SIDE = "tests/protocol/test_client_session.py::"
BROADCASTER = "tests/consumers/test_broadcaster.py::"
REPLICA = "tests/client/test_replica.py::"
FAULTS = "tests/pubsub/test_faults.py::"
REDIS = "tests/pubsub/test_remote.py::TestRedis::"
BOTH_SIDES = "tests/protocol/test_conversation.py::"
FLEET = "tests/node/test_fleet.py::"
SHARDED = "tests/shards/test_sharded.py::"
MOVING = "tests/shards/test_moving.py::"

FRESH = multiprocessing.get_context("forkserver")
"""Makes processes that have imported what tests need, all but gregor itself: most of a test's time
would go into that."""
FRESH.set_forkserver_preload(
    [
        *("hypothesis.stateful", "pytest_asyncio.plugin"),
        *("sqlalchemy.ext.asyncio", "sqlalchemy.dialects.postgresql.asyncpg", "alembic.context"),
        *("nats", "pydantic_settings", "redis.asyncio", "starlette.applications", "structlog"),
    ]
)
PATIENCE_SECONDS = 120
RAN = 100
"""Added to pytest's exit code: a process that dies before its test must not count as one that
failed, for both end with 1."""


class Mutation(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    # Shards
    Mutation(
        "a shard takes what it gave away",
        "state_machines/transactions.py",
        """    if not elsewhere:
        return messages, {}
""",
        """    return messages, {}
""",
        MOVING + "test_nothing_is_lost_while_buckets_move_under_writers",
    ),
    Mutation(
        "a shard tells of users that it gave away",
        "state_machines/transactions.py",
        """        raise gone
""",
        """        del gone
""",
        SHARDED + "test_a_node_that_was_not_told_finds_the_user_who_moved",
    ),
    Mutation(
        "a bucket is given away though it is open again",
        "storage/statements.py",
        """        buckets.c.closed_until > now_there,
    )
    .values(shard""",
        """    )
    .values(shard""",
        SHARDED + "test_what_has_opened_again_is_not_given_away",
    ),
    Mutation(
        "a bucket that somebody else has closed is given away",
        "storage/statements.py",
        """        buckets.c.closed_until == _number(1),
        buckets.c.closed_until > now_there,
""",
        """        _number(1) > 0,
        buckets.c.closed_until > now_there,
""",
        SHARDED + "test_what_has_opened_again_is_not_given_away",
    ),
    Mutation(
        "of several buckets those are given away that are still closed",
        "state_machines/shard_map.py",
        "_all(buckets, statements.ask(connection, statements.release_buckets, rows))",
        "_all([], statements.ask(connection, statements.release_buckets, rows))",
        SHARDED + "test_several_buckets_are_given_away_together_or_not_at_all",
    ),
    Mutation(
        "nobody waits for those who write",
        "state_machines/shard_map.py",
        """        connection.execute(statements.await_writers)
""",
        """        pass
""",
        MOVING + "test_a_bucket_is_closed_only_when_those_who_are_writing_have_committed",
    ),
    Mutation(
        "older news of a bucket is believed",
        "storage/statements.py",
        """        where=insert.excluded.version > buckets.c.version,
""",
        "",
        MOVING + "test_older_news_that_had_to_wait_for_newer_is_not_believed",
    ),
    Mutation(
        "what a target has from earlier is not looked at",
        "state_machines/moving.py",
        """        await self._expect_nothing_else(group)
""",
        "",
        MOVING + "test_a_target_that_has_other_messages_is_refused",
    ),
    Mutation(
        "a copy goes on from where the target's clock is",
        "state_machines/moving.py",
        "return 0 if ours is None or ours.ctime >= theirs.ctime else ours.ctime",
        "return 0 if ours is None else ours.ctime",
        MOVING + "test_what_was_stored_behind_the_clock_meanwhile_moves_as_well",
    ),
    Mutation(
        "what came until the bucket was closed stays behind",
        "state_machines/moving.py",
        """                if not await self._copy(group):
                    raise NotClosed("not all has been copied in time")
""",
        "",
        MOVING + "test_nothing_is_lost_while_buckets_move_under_writers",
    ),
    Mutation(
        "a shard that is back is not told what it may have forgotten",
        "state_machines/shard_map.py",
        """    adopt(connection, known)
    return [Placement""",
        """    return [Placement""",
        SHARDED + "test_a_shard_that_is_restored_while_it_is_down_is_told_when_it_is_back",
    ),
    Mutation(
        "a target is not told that buckets are on their way",
        "state_machines/moving.py",
        """                await self._tell([group.target], closed)
""",
        "",
        MOVING + "test_what_is_on_its_way_is_not_taken_for_what_was_left_behind",
    ),
    Mutation(
        "a bucket whose copy may have been removed is released",
        "storage/statements.py",
        "    .values(version=buckets.c.version + 1, closed_until=0)\n    .returning(",
        "    .values(version=buckets.c.version + 1)\n    .returning(",
        MOVING + "test_what_is_on_its_way_is_not_taken_for_what_was_left_behind",
    ),
    # Many nodes over one database
    Mutation(
        "a clock that nobody locks",
        "state_machines/transactions.py",
        "statements.ask(connection, statements.lock, named)",
        "pass",
        MANY_WRITERS + "test_who_follows_the_cursor_misses_nothing",
    ),
    Mutation(
        "what is read while waiting for the lock is believed",
        "state_machines/transactions.py",
        """        statements.ask(connection, statements.lock, named)
    rows = statements.ask(connection, statements.users_taken, named)
""",
        """    both = statements.users_taken.with_for_update(of=tables.users)
    rows = statements.ask(connection, both, named)
""",
        MANY_WRITERS + "test_who_waited_for_a_user_sees_what_was_stored_meanwhile",
    ),
    Mutation(
        "ids are looked up before their users are locked",
        "state_machines/transactions.py",
        """    users = _take_users(connection, {message.uid for message in messages})
    messages, refused = (messages, {}) if moving else _admit(connection, messages)
    known = _read_known(connection, messages)
""",
        """    known = _read_known(connection, messages)
    users = _take_users(connection, {message.uid for message in messages})
    messages, refused = (messages, {}) if moving else _admit(connection, messages)
""",
        MANY_WRITERS + "test_who_looks_for_an_id_waits_for_who_may_be_storing_it",
    ),
    Mutation(
        "a commit without an answer is taken for one that failed",
        "state_machines/sql.py",
        "return recognised(found, told)",
        "return found",
        MANY_WRITERS + "test_a_commit_without_an_answer_is_looked_for",
    ),
    Mutation(
        "new users are made in any order",
        "storage/statements.py",
        """        .order_by(_text(0)),
    )
    .on_conflict_do_nothing()""",
        """    )
    .on_conflict_do_nothing()""",
        MANY_WRITERS + "test_nodes_that_meet_the_same_new_users_do_not_lock_each_other_out",
    ),
    Mutation(
        "plans are left to a planner that knows nothing of the tables",
        "storage/postgresql.py",
        "**PLANS,",
        "",
        "tests/storage/test_cost.py::test_d15_a_long_history_costs_nothing_on_postgresql",
    ),
    # The core
    Mutation(
        "an id is forgotten if its item has yet to come",
        "core/state.py",
        "facts = facts._with(ids=facts.ids.set(msg_id, at))",
        "facts = facts._with()",
        EXHAUSTIVE + "test_every_order_of_arrival_gives_the_same_facts",
    ),
    Mutation(
        "the end of a range is left out of it",
        "core/state.py",
        "return item.ctime <= self.end and",
        "return item.ctime < self.end and",
        VECTORS + "test_visibility",
    ),
    Mutation(
        "a prefix is taken for a category",
        "core/state.py",
        "return category.startswith(self.category) if self.prefix else category == self.category",
        "return category == self.category",
        VECTORS + "test_visibility",
    ),
    Mutation(
        "an item lives on at the instant of its expiry",
        "core/state.py",
        "self.expires_at <= now",
        "self.expires_at < now",
        VECTORS + "test_visibility",
    ),
    Mutation(
        "an item is still there at the instant of its death",
        "core/state.py",
        "if dead.at > at]",
        "if dead.at >= at]",
        VECTORS + "test_visibility",
    ),
    Mutation(
        "a dismissal that comes late is not an earlier death",
        "core/state.py",
        "if range_.ctime < self.latest_death:",
        "if range_.ctime < 0:",
        EXHAUSTIVE + "test_every_order_of_arrival_gives_the_same_facts",
    ),
    Mutation(
        "a dismissal made on one device is withheld from the syncs of others",
        "core/state.py",
        "        creation, dismissal = message.creation, message.dismissal\n",
        "        if not seen_on(message.device_id, device_id):\n            continue\n"
        "        creation, dismissal = message.creation, message.dismissal\n",
        MEMORY + "test_d09_a_dismissal_from_one_device_reaches_the_others",
    ),
    Mutation(
        "a dismissal made on one device is not told to others",
        "core/message.py",
        "return self.reduced(None, self.dismissal)",
        "return None",
        NODE_SIDE + "test_what_is_made_for_another_device_stays_here_and_its_dismissal_does_not",
    ),
    Mutation(
        "an unknown id is left out of the messages since",
        "core/state.py",
        "return item is None or (",
        "return item is not None and (",
        VECTORS + "test_since",
    ),
    Mutation(
        "a message for another device counts as the same one sent again",
        "core/message.py",
        "return canonical((self.device_id, creation,",
        "return canonical((creation,",
        MEMORY + "test_a_known_id_with_other_contents_is_a_conflict_and_changes_nothing",
    ),
    # The state machine on SQL
    Mutation(
        "the end of a range is left out of it, in SQL",
        "storage/statements.py",
        "messages.c.ctime <= _number(2),",
        "messages.c.ctime < _number(2),",
        SQL + "test_all_devices",
    ),
    Mutation(
        "messages since a time are those after it",
        "storage/statements.py",
        'messages.c.ctime >= bindparam("start")',
        'messages.c.ctime > bindparam("start")',
        SQL + "test_d26_an_update_that_dismisses_several_is_synced_whole",
    ),
    Mutation(
        "a late dismissal is not an earlier death, in SQL",
        "state_machines/transactions.py",
        "statements.items_covered_ever if late else statements.items_covered",
        "statements.items_covered",
        SQL + "test_d06_the_earliest_death_counts_though_it_is_told_last",
    ),
    Mutation(
        "the clock alone gives the ctime",
        "state_machines/transactions.py",
        "message.ctime or max(now, clock + 1)",
        "message.ctime or now",
        SQL + "test_ctime_increases_strictly_though_the_clock_runs_backwards",
    ),
    Mutation(
        "a duplicate comes back as it was sent, not as it was stored",
        "state_machines/transactions.py",
        "return Duplicate(earlier)",
        "return Duplicate(message)",
        SQL + "test_a_message_that_is_sent_twice_is_stored_once",
    ),
    Mutation(
        "a snapshot is told without its tombstones",
        "state_machines/transactions.py",
        "tuple((msg_id, at) for msg_id, at in ids)",
        "()",
        SQL + "test_a_snapshot_holds_the_tombstones_of_what_may_still_come",
    ),
    Mutation(
        "an expiry at time 0 is none",
        "state_machines/transactions.py",
        "if expires_at is None:",
        "if not expires_at:",
        SQL + "test_an_expiry_at_the_beginning_of_time_is_an_expiry",
    ),
    Mutation(
        "a message is acknowledged though its transaction was not committed",
        "storage/sqlite.py",
        "with opened as connection, connection.begin():",
        "with opened as connection:\n                connection.begin()",
        FILE + "test_what_was_stored_is_there_after_a_restart",
    ),
    Mutation(
        "a commit returns before it is on disk",
        "storage/sqlite.py",
        '"synchronous = FULL"',
        '"synchronous = NORMAL"',
        "tests/storage/test_engine.py::test_a_commit_is_on_disk_when_it_returns",
    ),
    # The conversation
    Mutation(
        "a stretch that straddles the position is believed",
        "protocol/server.py",
        "if publication.prev != self.position:",
        "if publication.prev > self.position:",
        BOTH_SIDES + "test_a_stretch_that_straddles_the_position_does_not_bring_back_the_dead",
    ),
    Mutation(
        "what waited before a sync is told after it",
        "protocol/server.py",
        "        self._forget_what_waits()\n        held,",
        "        held,",
        BOTH_SIDES + "test_what_waited_before_a_sync_is_not_told_after_it",
    ),
    Mutation(
        "a queue that overflows is dropped, and that was that",
        "protocol/server.py",
        "        self._behind = self.cursor\n\n    # The writing hand",
        "\n    # The writing hand",
        BOTH_SIDES + "test_a_slow_device_lags_catches_up_and_has_missed_nothing",
    ),
    Mutation(
        "a page of changes claims to be all of them",
        "protocol/frames.py",
        "cursor = last.ctime if more and",
        "cursor = sync.cursor if more and",
        BOTH_SIDES + "test_a_device_whose_line_breaks_between_pages_goes_on_where_it_was",
    ),
    Mutation(
        "a frame that comes again is applied again, and moves the cursor back",
        "protocol/client.py",
        "        if cursor <= self.cursor:\n            return []",
        "        if cursor < 0:\n            return []",
        DEVICE_SIDE + "test_a_frame_that_lies_behind_is_not_applied_again",
    ),
    # The node
    Mutation(
        "a feed is as far as the first of its devices, not as the least",
        "consumers/broadcaster.py",
        "(feed.position is None or position < feed.position)",
        "feed.position is None",
        BROADCASTER + "test_a_feed_is_only_as_far_as_the_least_of_its_devices",
    ),
    # The pub/sub
    Mutation(
        "what was subscribed to is forgotten with the pub/sub connection",
        "pubsub/remote.py",
        "self._round = _Round(self._wanted)",
        "self._round = _Round([self._heart])",
        FAULTS + "test_a_server_that_is_killed_is_missed_and_after_it_everything_is_as_before",
    ),
    Mutation(
        "nobody minds that the pub/sub is silent",
        "pubsub/remote.py",
        "await self._beat(2 * self._heartbeat_seconds)",
        "pass",
        FAULTS + "test_a_line_that_goes_deaf_without_a_word_is_noticed",
    ),
    Mutation(
        "the pub/sub comes back without a word",
        "pubsub/remote.py",
        "            self._arrivals.take(Interrupted())\n",
        "",
        FAULTS + "test_connections_that_break_again_and_again_are_had_again_and_again",
    ),
    Mutation(
        "a channel that is being left counts as subscribed to",
        "pubsub/remote.py",
        "        self._confirmed.difference_update(old)\n",
        "",
        REDIS + "test_of_calls_that_overlap_the_last_counts",
    ),
    Mutation(
        "a subscription is not waited for, on Redis",
        "pubsub/redis.py",
        "        await self._confirmed.wait()\n",
        "",
        FAULTS + "test_who_waits_for_a_subscription_while_it_breaks_is_let_go",
    ),
    Mutation(
        "a subscription is not waited for, on NATS",
        "pubsub/nats.py",
        "= subscription\n        await self._taken_in()\n",
        "= subscription\n",
        FAULTS + "test_who_waits_for_a_subscription_while_it_breaks_is_let_go",
    ),
    # The client
    Mutation(
        "what was acknowledged leaves the outbox before the node has told it",
        "client/replica.py",
        "if 0 < o.message.ctime <= self.cursor]",
        "if 0 < o.message.ctime]",
        REPLICA + "test_an_acknowledged_message_is_shown_with_its_ctime_until_the_node_tells_it",
    ),
    Mutation(
        "the node's tombstones kill what waits in the outbox",
        "client/replica.py",
        "shown=shown.deathless()",
        "shown=shown",
        REPLICA + "test_what_waits_does_not_vanish_under_what_the_node_dismisses_meanwhile",
    ),
    Mutation(
        "only the message itself counts as told, not those before it",
        "client/replica.py",
        "outbound.number <= last and",
        "outbound.number == last and",
        REPLICA + "test_what_the_node_took_before_a_message_that_it_tells_us_is_not_shown_again",
    ),
    # A fleet of nodes
    Mutation(
        "the sweep never asks",
        "node.py",
        "if not positions and not self.behind:",
        "if not self.behind:",
        FLEET + "test_a_lost_publication_reaches_the_devices_within_one_sweep",
    ),
    Mutation(
        "a sweep may take half as long again as it promises",
        "node.py",
        "(0.5 + self._jitter() / 2)",
        "(0.5 + self._jitter())",
        FLEET + "test_a_lost_publication_reaches_the_devices_within_one_sweep",
    ),
    Mutation(
        "the sweep takes for lost what is on its way",
        "node.py",
        "if waiting and not interrupted:",
        "if waiting and interrupted:",
        FLEET + "test_what_is_on_its_way_is_not_taken_for_lost",
    ),
    Mutation(
        "users are healed one after the other",
        "node.py",
        "for _ in range(HEALERS)",
        "for _ in range(1)",
        FLEET + "test_after_an_interruption_many_are_healed_at_once_and_not_all",
    ),
    Mutation(
        "nobody is behind whom the store did not answer",
        "node.py",
        "        self._unhealed[uid] = None",
        "        self._unhealed.pop(uid, None)",
        FLEET + "test_a_part_of_the_store_that_is_down_delays_only_its_own_users",
    ),
    Mutation(
        "whoever has left is behind for ever",
        "node.py",
        "for uid in self._unhealed if uid in waiting",
        "for uid in self._unhealed",
        FLEET + "test_nobody_waits_for_the_store_who_has_left",
    ),
    Mutation(
        "an interruption is ignored",
        "consumers/relay.py",
        "                    self._interrupted()",
        "                    pass",
        FLEET + "test_an_interrupted_pubsub_is_made_up_for_at_once",
    ),
    Mutation(
        "a pub/sub that ends is only quiet",
        "consumers/relay.py",
        "raise RuntimeError(",
        "print(",
        FLEET + "test_a_pubsub_that_ends_without_a_word_ends_the_node",
    ),
    Mutation(
        "a ctime from the far future is believed",
        "consumers/relay.py",
        "return message.ctime > self._clock() + FURTHEST_AHEAD",
        "return False",
        FLEET + "test_garbage_on_a_channel_is_counted_and_nothing_else",
    ),
    Mutation(
        "a channel is left though its user has come back",
        "consumers/relay.py",
        "        self._left.pop(uid, None)\n",
        "",
        FLEET + "test_who_comes_back_just_before_the_channel_is_left_is_heard_of",
    ),
    Mutation(
        "a channel is subscribed to while it is being left",
        "consumers/relay.py",
        "        async with self._turn(uid):\n            await self._pubsub.subscribe",
        "        if uid:\n            await self._pubsub.subscribe",
        FLEET + "test_who_comes_back_while_the_channel_is_being_left_is_heard_of",
    ),
    Mutation(
        "a channel is left with its last device",
        "consumers/relay.py",
        "since > _now() - self._linger_seconds",
        "since > _now()",
        FLEET + "test_a_device_that_flaps_leaves_its_channel_alone",
    ),
    Mutation(
        "a feed goes on with whatever is later, in the order in which it arrives",
        "consumers/broadcaster.py",
        "new[0].prev != position",
        "new[0].ctime <= position",
        FLEET + "test_what_is_answered_late_is_told_in_its_place",
    ),
    Mutation(
        "what is huge is read all the same",
        "consumers/publisher.py",
        "if len(received.payload) > MAX_PUBLICATION:",
        "if not received.payload:",
        "tests/consumers/test_relay.py::test_what_is_huge_is_not_even_read",
    ),
]


def run(mutation: Mutation) -> str | None:
    """Plant the bug in a copy and run its test there. Returns why it was not caught, or None."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "gregor", mutation.file)
        # All but the mutated file need not be compiled anew.
        stale = shutil.ignore_patterns(f"{path.stem}.*.pyc")
        shutil.copytree(ROOT / "src" / "gregor", Path(directory, "gregor"), ignore=stale)
        text = path.read_text()
        found = text.count(mutation.old)
        if found != 1:
            return f"the text to mutate occurs {found} times in {mutation.file}, not once"
        path.write_text(text.replace(mutation.old, mutation.new))
        return _test(mutation.test, directory)


def _test(node_id: str, directory: str) -> str | None:
    output = Path(directory, "output")
    child = FRESH.Process(target=_pytest, args=(node_id, directory, output))
    child.start()
    child.join(PATIENCE_SECONDS)
    if child.exitcode is None:
        child.kill()
        child.join()
    if child.exitcode == RAN + pytest.ExitCode.TESTS_FAILED:
        return None
    if child.exitcode == RAN + pytest.ExitCode.OK:
        return f"{node_id} passes all the same"
    words = output.read_text()[-4000:] if output.exists() else ""
    return f"{node_id} could not be run (exit code {child.exitcode}):\n{words}"


def _pytest(node_id: str, directory: str, output: Path) -> None:
    """In a process of its own, which has yet to import gregor."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    os.environ |= {"PYTHONPATH": directory, "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path.insert(0, directory)
    sys.dont_write_bytecode = True
    options = ["-x", "-q", "--no-header", "--assert=plain"]
    # What a test leaves behind when it fails is not looked at.
    options += ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:unraisableexception"]
    sys.exit(RAN + pytest.main([*options, node_id]))


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if all(word in m.name for word in words)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(zip(chosen, pool.map(run, chosen), strict=True))
    for mutation, verdict in verdicts:
        print(f"{'caught ' if verdict is None else 'MISSED '} {mutation.name}")
        if verdict is not None:
            print(f"        {verdict}")
    return any(verdict is not None for _, verdict in verdicts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
