"""Mutations: planted bugs, each of which a named test must notice.

To add one, append a Mutation: its name, the file in src/gregor, the text to replace (which must
occur exactly once in the file), the buggy text, and the test that must fail.
"""

from typing import NamedTuple

ADMISSION = "tests/core/test_admission.py::"
ARGUMENTS = "tests/client/test_arguments.py::"
EXHAUSTIVE = "tests/core/test_exhaustive.py::"
VECTORS = "tests/core/test_vectors.py::"
LAWS = "tests/core/test_laws.py::"
HISTORY = "tests/core/test_history.py::"
MEMORY = "tests/conformance/test_state_machines.py::TestMemory::"
SQL = "tests/conformance/test_state_machines.py::TestSQLiteInMemory::"
LAW_OF_HASHES = "test_law_hash_is_that_of_what_is_live_whatever_was_written_and_has_expired"
FILE = "tests/conformance/test_state_machines.py::TestSQLiteFile::"
POSTGRESQL = "tests/conformance/test_postgresql.py::"
DELIVERY_STATE = "tests/protocol/test_delivery_state.py::"
SERVER_SESSION = "tests/protocol/test_server_session.py::"
CLIENT_SESSION = "tests/protocol/test_client_session.py::"
BROADCASTER = "tests/consumers/test_broadcaster.py::"
CHANNELS = "tests/consumers/test_channels.py::"
PEERS = "tests/consumers/test_peers.py::"
STORE = "tests/client/test_store.py::"
REPLICA = "tests/client/test_replica.py::"
KEYS_AND_TIME = "tests/client/test_keys_and_time.py::"
OUTSIDE = "tests/client/test_outside.py::"
NODE_CLOCK = "tests/client/test_node_clock.py::"
INBOX = "tests/core/test_inbox.py::"
CLIENT_INBOX = "tests/client/test_inbox.py::"
CLIENT_ERASE = "tests/client/test_erase.py::"
AUTH = "tests/server/test_auth.py::"
LAME_DUCK = "tests/server/test_drain.py::"
DESCRIPTORS = "tests/server/test_descriptors.py::"
GUARDED_HTTP = "tests/server/test_guarded_http.py::"
ACCEPTOR = "tests/server/test_acceptor.py::"
PEER_ERRORS = "tests/server/test_peer_errors.py::"
PUBSUB_FAULTS = "tests/pubsub/test_faults.py::"
SEVERAL_SERVERS = "tests/pubsub/test_several_servers.py::"
SPLIT = "tests/node/test_split.py::"
PUBSUB_REDIS = "tests/pubsub/test_remote.py::TestRedis::"
SESSION_PAIR = "tests/protocol/test_session_pair.py::"
AUTHENTICATOR = "tests/server/test_authenticator.py::"
ENTRIES = "tests/protocol/test_entries.py::"
HTTP = "tests/server/test_http.py::"
SSE = "tests/server/test_sse.py::"
PRODUCER = "tests/client/test_producer.py::"
STATE_PAGES = "tests/server/test_state_pages.py::"
FLEET = "tests/node/test_fleet.py::"
NODE = "tests/node/test_node.py::"
NODE_ERASE = "tests/node/test_erase.py::"
ADMIN = "tests/server/test_admin.py::"
LOOPBACK = "tests/server/test_loopback.py::"
ORIGINS = "tests/server/test_origins.py::"
WEB_PAGES = "tests/server/test_web_pages.py::"
HTTP_ERASE = "tests/server/test_erase.py::"
SHARDED = "tests/shards/test_sharded.py::"
MEMORY_OF_REQUESTS = "tests/server/test_memory.py::"
LINEAR = "tests/stores/test_linear.py::"
CLIENT_COST = "tests/client/test_cost.py::"
CORE_COST = "tests/core/test_cost.py::"
ITEM_HISTORY = "tests/core/test_item_history.py::"
HISTORY_HTTP = "tests/server/test_item_history.py::"
RANGE_DEATHS = "tests/core/test_range_deaths.py::"
COMMIT_QUEUE = "tests/stores/test_commit_queue.py::"
TOO_LONG = "tests/stores/test_too_long.py::"
REBALANCE = "tests/shards/test_rebalance.py::"
EXPORTS = "tests/stores/test_exports.py::"
PROMPT_FUTURE = "tests/test_prompt_future.py::"
SOCKET = "tests/server/test_socket.py::"
WEBSOCKET_FRAMES = "tests/server/test_websocket_frames.py::"
CONVERSATION = "tests/node/test_conversation.py::"
WORKER_THREAD = "tests/stores/test_worker_thread.py::"
SCHEMA = "tests/stores/test_schema.py::"
PRUNE = "tests/stores/test_prune.py::"
SHARDS_ERASE = "tests/shards/test_erase.py::"
FORGOTTEN = "tests/shards/test_forgotten.py::"
CONSUME_ORDER = "tests/protocol/test_consume_order.py::"
COUNTS = "tests/protocol/test_counts.py::"
RATES = "tests/core/test_rates.py::"
ALLOWANCE = "tests/stores/test_allowance.py::"
LIMITS = "tests/server/test_limits.py::"
SQLITE_FILES = "tests/stores/test_sqlite_files.py::"


class Mutation(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    # Fuzzing
    Mutation(
        "a name that is not UTF-8 is an error that nobody expects",
        "protocol/json_parts.py",
        "except UnicodeError as error:",
        "except KeyError as error:",
        "tests/protocol/test_json_parts.py::test_name_that_is_not_utf8_is_refused",
    ),
    # History
    Mutation(
        "a floor hides a live item",
        "core/history.py",
        "return message.creation is None or is_dead or has_expired(message.expires_at, floor)",
        "return True",
        HISTORY + "test_creation_and_what_it_dismissed_are_forgotten_apart",
    ),
    Mutation(
        "what has died after the floor is past",
        "core/history.py",
        "dismissed_at is not None and dismissed_at <= floor",
        "dismissed_at is not None",
        MEMORY + "test_prune_takes_the_contents_of_what_is_past_and_counts_it",
    ),
    Mutation(
        "a digest ignores the scope",
        "core/message.py",
        "sha256(self.contents())",
        'sha256(self.contents().partition(b",")[2])',
        MEMORY + "test_message_sent_again_after_its_contents_are_gone_is_known_by_its_digest",
    ),
    Mutation(
        "a cursor below the floor and the clock gets changes",
        "core/sync.py",
        "self.mark <= cursor <= self.clock and not self.has_forgotten(cursor)",
        "self.mark <= cursor <= self.clock",
        MEMORY + "test_cursor_below_the_floor_gets_a_snapshot_and_its_messages_are_forgotten",
    ),
    Mutation(
        "a page of a state lacks what has died since the first one, and is forgotten",
        "core/history.py",
        "return as_of < floor or user.has_forgotten(known)",
        "return as_of < floor",
        MEMORY + "test_pages_of_a_state_across_a_floor_that_rises_are_right_or_forgotten",
    ),
    Mutation(
        "ids that have not arrived are forgotten with the contents of others",
        "core/facts.py",
        "facts = self.without_tombstones_of(msg_ids)",
        "facts = self.without_tombstones()",
        MEMORY + "test_ids_are_kept_until_they_are_forgotten",
    ),
    Mutation(
        "by a clock that is set back, a message is stored in forgotten history",
        "core/sync.py",
        "return max(now, self.clock + 1, self.floor + 1)",
        "return max(now, self.clock + 1)",
        SQL + "test_no_message_is_stored_at_the_floor_or_before_it",
    ),
    # The inbox
    Mutation(
        "a marker does not begin with its notification",
        "core/inbox.py",
        """        key=MARKER + own_key,
        starts=starts,
""",
        """        key=MARKER + own_key,
""",
        INBOX + "test_marker_begins_and_ends_with_its_item_on_the_same_device",
    ),
    Mutation(
        "a notification that is sent again is unread again",
        "core/inbox.py",
        "msg_id=MARKER + id_,",
        "msg_id=new_msg_id(),",
        "tests/client/test_notifier.py"
        "::test_notification_that_is_sent_again_stores_nothing[Producer]",
    ),
    Mutation(
        "an undo takes the place of what is newer",
        "core/inbox.py",
        " and (_place(item), is_marker(item)) not in kept",
        "",
        INBOX + "test_undo_leaves_what_is_newer",
    ),
    Mutation(
        "the topics below the longest topic are no range",
        "core/inbox.py",
        'MAX_TOPIC = MAX_CATEGORY - len(MARKERS) - len(".")',
        "MAX_TOPIC = MAX_CATEGORY - len(MARKERS)",
        INBOX + "test_longest_topic_leaves_room_for_the_topics_below_it",
    ),
    Mutation(
        "read all takes what the device has not been told of",
        "client/inbox.py",
        "replica.dismiss_seen(message, now), [message]",
        "replica.write(message, now), [message]",
        CLIENT_INBOX + "test_read_all_offline_leaves_what_came_in_meanwhile",
    ),
    Mutation(
        "an action of the inbox takes what is hidden",
        "client/replica.py",
        "if self._is_live_here(item, now)]",
        "if is_live(item, None, self.device_id, Now(now))]",
        CLIENT_INBOX + "test_action_leaves_a_hidden_notification_hidden",
    ),
    Mutation(
        "of several messages of one change, only the last one is saved",
        "client/replica.py",
        "changed |= replica.changed",
        "changed = replica.changed",
        CLIENT_INBOX + "test_action_is_one_transaction_of_the_store_and_one_frame[snooze]",
    ),
    Mutation(
        "a script hides its scheme from the check of URLs by a line end",
        "core/notification_body.py",
        "if not is_known or _NEVER_IN_A_URL.search(url):",
        "if not is_known:",
        "tests/core/test_notification_body.py"
        "::test_scripts_and_other_hosts_in_disguise_are_no_urls",
    ),
    # Observability
    Mutation(
        "HTTP requests are counted by the paths that callers send",
        "server/request_metrics.py",
        'self._templates.get(id(scope.get("endpoint")), NO_ROUTE)',
        'str(scope["path"])',
        "tests/server/test_request_metrics.py::test_number_of_labels_does_not_depend_on_callers",
    ),
    Mutation(
        "a counter of failed commits is absent until the first one",
        "server/metrics.py",
        "self._failed_commits.update({(reason.value,): 0 for reason in FailureReason})",
        "self._failed_commits.clear()",
        "tests/server/test_metrics.py::test_failed_commits_are_counted_by_reason",
    ),
    Mutation(
        "the reason of a failure is taken from what has caused the driver's error",
        "stores/sql/failure_reason.py",
        "while isinstance(cause, GregorError) and cause.__cause__ is not None:",
        "while cause.__cause__ is not None:",
        "tests/stores/test_failure_reason.py::test_reason_of_silence_is_the_timeout",
    ),
    Mutation(
        "a transaction that has given up waiting for a connection is shown as waiting",
        "stores/sql/postgresql/pool.py",
        "            self._waiting -= 1",
        "            pass",
        "tests/stores/test_pool_use.py::test_transaction_that_gives_up_waiting_is_not_counted",
    ),
    Mutation(
        "the page of all workers drops the other labels of a sample",
        "server/worker_metrics.py",
        'labels={**s.labels, "worker": worker}',
        'labels={"worker": worker}',
        "tests/server/test_worker_metrics.py"
        "::test_each_sample_of_each_worker_is_on_the_page_unchanged",
    ),
    Mutation(
        "an invalid setting is reported in another format than the option asks for",
        "cli/options.py",
        'requested_log_format(file, given.get("log_format"))',
        "requested_log_format()",
        "tests/cli/test_json_errors.py::test_option_and_file_ask_for_json_as_the_environment_does",
    ),
    Mutation(
        "a crash prints a traceback of many lines into a log of JSON lines",
        "cli/main.py",
        "        if not logs_are_json():\n            raise",
        "        if logs_are_json():\n            raise",
        "tests/cli/test_json_errors.py::test_crash_is_a_json_line_with_the_traceback",
    ),
    # Keys, starts and hashes in SQL
    Mutation(
        "an item that has expired stays in the hash that is kept",
        "stores/sql/hashes.py",
        "    _subtract(changes, _expired(connection, lagging, now))\n",
        "",
        SQL + LAW_OF_HASHES,
    ),
    Mutation(
        "a hash is kept for the wrong scope",
        "stores/sql/hashes.py",
        "changes[_Sum(message.uid, message.device_id or ALL_DEVICES)] += entry_hash(",
        "changes[_Sum(message.uid, ALL_DEVICES)] += entry_hash(",
        SQL + LAW_OF_HASHES,
    ),
    Mutation(
        "an item that dies earlier is subtracted from the hash again",
        "stores/sql/deaths.py",
        "        died,\n        _counted(",
        "        [*died, *earlier],\n        _counted(",
        "tests/stores/test_hashes.py::test_item_that_dies_earlier_than_was_known_is_subtracted_once",
    ),
    Mutation(
        "what has expired since is not left out of a hash that is read",
        "stores/sql/hashes.py",
        "total - difference if as_of > kept.hashed_until",
        "total if as_of > kept.hashed_until",
        SQL + LAW_OF_HASHES,
    ),
    Mutation(
        "a hash that differs is found, and stays as it is",
        "stores/sql/hashes.py",
        "        connection.execute_rows(statements.UPDATE_HASHES, own)\n    return",
        "        pass\n    return",
        "tests/stores/test_hashes.py::test_hash_that_differs_is_found_once_and_repaired",
    ),
    Mutation(
        "a late replay is not marked, in SQL",
        "stores/sql/transactions.py",
        "time._replace(clock=time.clock + 1, mark=time.clock + 1)",
        "time._replace(clock=time.clock + 1)",
        SQL + "test_late_replay_moves_the_clock_by_one_and_marks_it",
    ),
    Mutation(
        "a new item takes the place of one in another scope, in SQL",
        "stores/sql/statements.py",
        "coalesce(earlier.device_id, '') = coalesce(input.device_id, '')",
        "true",
        SQL + "test_outcomes_say_what_was_replaced_and_what_is_yet_to_begin",
    ),
    Mutation(
        "a message that cannot be new is refused although it is stored already",
        "stores/sql/transactions.py",
        "case Rejected(error=InvalidMessage() | LimitExceeded()):",
        "case Rejected(error=LimitExceeded()):",
        SQL + "test_start_that_is_not_before_the_expiry_rejects_that_message_alone",
    ),
    Mutation(
        "a device that missed one message is compared with all that is live",
        "stores/sql/reads.py",
        "few = max_changes(0)",
        "few = max_changes(len(_read_sent(connection, uid, device_id, now)))",
        "tests/stores/test_cost.py::test_device_that_missed_one_message_resumes_whatever_is_live",
    ),
    Mutation(
        "an item is in a page of a state before it begins, in SQL",
        "stores/sql/statements.py",
        "f\"{_begun(':time')} AND {condition}\"",
        "condition",
        SQL + "test_item_is_visible_from_its_start_on_and_in_the_order_of_starts",
    ),
    Mutation(
        "an item that its own message dismissed before schema 0007 lives again",
        "stores/sql/migrations/versions/0007_keys_and_starts.py",
        "sa.or_(item.c.ctime == dismissal.c.ctime, item.c.device_id != dismissal.c.device_id)",
        "item.c.device_id != dismissal.c.device_id",
        "tests/stores/test_migrations.py"
        "::test_items_that_died_of_ranges_that_do_not_reach_them_any_more_stay_dead",
    ),
    # Pruning
    Mutation(
        "a step of a prune is taken without its lease",
        "stores/sql/prune.py",
        """    lease.take(connection)
""",
        "",
        PRUNE + "test_two_nodes_do_not_prune_at_the_same_time[sqlite]",
    ),
    Mutation(
        "a lease is renewed by a holder who has lost it",
        "stores/sql/statements.py",
        "WHERE leases.holder = excluded.holder OR leases.until <= database_now()",
        "WHERE leases.holder = excluded.holder OR leases.until > 0",
        PRUNE
        + "test_node_that_was_killed_loses_its_lease_and_does_nothing_when_it_goes_on[sqlite]",
    ),
    Mutation(
        "an expired item is pruned while the hash still counts it",
        "stores/sql/prune.py",
        """    account_for_expiries(connection, lagging, now)
""",
        "",
        PRUNE + "test_item_that_has_expired_unnoticed_leaves_no_trace_in_the_hash[sqlite]",
    ),
    Mutation(
        "a prune takes a live item",
        "stores/sql/statements.py",
        """        "messages.dismissed_at IS NULL AND messages.category IS NOT NULL"
        " AND messages.expires_at <= :floor""",
        """        "messages.dismissed_at IS NULL AND messages.category IS NOT NULL"
        " AND messages.expires_at > :floor""",
        PRUNE + "test_what_is_past_goes_and_the_rest_stays[sqlite-a live item]",
    ),
    Mutation(
        "a user whose bucket moves is pruned",
        "stores/sql/prune.py",
        "return [uid for uid in uids if uid not in closed]",
        "return uids",
        PRUNE + "test_user_whose_bucket_is_elsewhere_or_moves_is_left_out[sqlite]",
    ),
    Mutation(
        "an id is forgotten with its contents",
        "stores/sql/prune.py",
        "kept = [message for message in messages if message.ctime > cutoff.ids]",
        "kept = [message for message in messages if message.ctime > cutoff.floor]",
        PRUNE + "test_message_that_is_sent_again_is_a_duplicate_or_a_conflict[sqlite]",
    ),
    Mutation(
        "pruning does not pause for others",
        "node/pruning.py",
        "await asyncio.sleep(min(pause, LONGEST_PAUSE_SECONDS))",
        "await asyncio.sleep(0)",
        "tests/node/test_pruning.py::test_steps_take_less_than_a_tenth_of_the_time",
    ),
    # Shards
    Mutation(
        "a message that a shard rejects because it moved is not sent to the new holder",
        "shards/state_machine.py",
        "await self._store_once(list(misplaced))",
        "await asyncio.sleep(0)",
        SHARDED + "test_node_with_old_map_finds_user_whose_bucket_moved",
    ),
    Mutation(
        "a shard stores messages for a bucket that it released",
        "stores/sql/transactions.py",
        "bucket in by_bucket}",
        "bucket in ()}",
        SHARDED + "test_write_to_closed_bucket_waits_until_its_time_is_over",
    ),
    Mutation(
        "a shard answers reads of users in a bucket that it released",
        "stores/sql/transactions.py",
        """        raise wrong_shard
""",
        """        del wrong_shard
""",
        SHARDED + "test_node_with_old_map_finds_user_whose_bucket_moved",
    ),
    Mutation(
        "a bucket is released after its close has expired",
        "stores/sql/statements.py",
        "buckets.closed_until = input.until AND buckets.closed_until > database_now()",
        "buckets.closed_until = input.until",
        SHARDED + "test_release_of_bucket_that_has_reopened_raises_not_closed",
    ),
    Mutation(
        "a bucket that another rebalancer closed is released",
        "stores/sql/statements.py",
        "buckets.closed_until = input.until AND buckets.closed_until > database_now()",
        "buckets.closed_until > database_now()",
        SHARDED + "test_release_of_bucket_that_has_reopened_raises_not_closed",
    ),
    Mutation(
        "a group of buckets is released only in part",
        "shards/shard_map.py",
        "_require_all(buckets, released)",
        "_require_all([], released)",
        SHARDED + "test_release_moves_all_buckets_or_none",
    ),
    Mutation(
        "a bucket is closed without waiting for the writers in flight",
        "stores/sql/transactions.py",
        """        connection.execute(statements.WAIT_FOR_WRITERS)
""",
        """        pass
""",
        REBALANCE + "test_close_waits_for_transactions_that_are_writing",
    ),
    Mutation(
        "an older placement of a bucket overwrites a newer one",
        "stores/sql/statements.py",
        """        WHERE excluded.version > buckets.version
""",
        "",
        REBALANCE + "test_older_placement_that_waited_for_newer_one_is_ignored",
    ),
    Mutation(
        "old messages at the target are not checked for conflicts",
        "shards/rebalance.py",
        """        await self._require_no_conflicts(group)
""",
        "",
        REBALANCE + "test_target_with_messages_that_the_holder_lacks_is_rejected",
    ),
    Mutation(
        "messages stored before the bucket closed are not copied",
        "shards/rebalance.py",
        """                if not await self._copy(group):
                    raise NotClosed("the last messages were not copied in time")
""",
        "                pass\n",
        REBALANCE + "test_no_message_is_lost_while_buckets_move_under_writers",
    ),
    Mutation(
        "a restored shard does not receive the newer placements",
        "shards/shard_map.py",
        """    merge_placements(connection, known)
    return connection""",
        """    return connection""",
        SHARDED + "test_shard_restored_while_down_gets_newer_placements_when_it_is_up_again",
    ),
    Mutation(
        "a bucket is released although its copy may have been pruned",
        "stores/sql/statements.py",
        "SET version = buckets.version + 1, closed_until = 0",
        "SET version = buckets.version + 1",
        REBALANCE + "test_prune_does_not_delete_bucket_that_is_being_moved_to_the_shard",
    ),
    Mutation(
        "what another rebalancer may have deleted is released",
        "shards/shard_map.py",
        "if connection.execute_rows(statements.PLACEMENTS_OF, keys) != sorted(claim):",
        "if not connection.execute_rows(statements.PLACEMENTS_OF, keys):",
        REBALANCE
        + "test_prune_does_not_delete_bucket_that_is_being_moved_to_the_shard"
        + "[SQLite-claim_before_close]",
    ),
    # What is forgotten, and who is erased, on shards
    Mutation(
        "old copies of an erased user stay on other shards",
        "shards/erasures.py",
        "        await _remove(machine, pending)\n",
        "",
        SHARDS_ERASE + "test_old_copies_on_other_shards_go_before_the_answer[SQLite]",
    ),
    Mutation(
        "old copies are not removed when the shard that knows of the erase is back",
        "shards/state_machine.py",
        "        await self._remove_copies(shard.machine, other.name)\n",
        "",
        SHARDS_ERASE
        + "test_old_copy_goes_when_the_shard_that_knows_of_the_erase_is_back_last[SQLite]",
    ),
    Mutation(
        "a user is erased where the bucket has been",
        "stores/sql/erase.py",
        "for error in () if any_bucket else closed_users(connection, [uid]).values():",
        "for error in ():",
        SHARDS_ERASE + "test_shard_that_does_not_hold_the_user_erases_nothing[SQLite-released]",
    ),
    Mutation(
        "what was read before an erase is copied after it",
        "shards/bucket_copy.py",
        "if {uid: user.epoch for uid, user in users.items()} != epochs:",
        "if users.keys() != epochs.keys():",
        SHARDS_ERASE + "test_erase_at_any_step_of_a_move[SQLite-is_killed]",
    ),
    Mutation(
        "a move loses the epoch",
        "shards/bucket_copy.py",
        "NewCopy(uid, bucket_of(uid), e.epoch, e.erased_at)",
        "NewCopy(uid, bucket_of(uid), 0, 0)",
        SHARDS_ERASE + "test_old_copy_from_before_an_erase_is_made_again_by_a_move[SQLite]",
    ),
    Mutation(
        "a move loses the floor",
        "shards/bucket_contents.py",
        "copy[:-1] == self[:-1]",
        "copy[:2] == self[:2]",
        FORGOTTEN + "test_floor_that_was_raised_since_moves_to_an_old_copy[SQLite]",
    ),
    Mutation(
        "a move loses the ids of forgotten messages",
        "shards/rebalance.py",
        "            await self._write(group, partial(bucket_copy.store_pruned, rows=pruned))\n",
        "            pass\n",
        FORGOTTEN + "test_ids_of_forgotten_messages_move[SQLite]",
    ),
    Mutation(
        "a copy loses a death whose dismissal is forgotten",
        "shards/bucket_copy.py",
        "for row in rows if row.died_at is not None]",
        "for row in rows if row.died_at is not None and not row.died_at]",
        FORGOTTEN + "test_death_whose_dismissal_is_forgotten_moves_with_its_item[SQLite]",
    ),
    Mutation(
        "a pruned holder is not compared with what an old copy has",
        "shards/rebalance.py",
        "contents.update(PrunedMessage(r.uid, r.msg_id, r.ctime, r.digest) for r in pruned)",
        "pass",
        FORGOTTEN + "test_old_copy_equals_a_holder_that_was_pruned[SQLite]",
    ),
    # What is left in the files of SQLite
    Mutation(
        "what SQLite leaves in the gaps of its pages stays",
        "stores/sql/sqlite_pages.py",
        "if any(content[gap.start : gap.stop]):",
        "if not any(content[gap.start : gap.stop]):",
        SQLITE_FILES + "test_no_body_of_an_erased_user_is_left_in_any_file[3]",
    ),
    Mutation(
        "what SQLite has in memory brings back what was overwritten",
        "stores/sql/sqlite.py",
        """    driver.execute("PRAGMA shrink_memory")
""",
        "",
        SQLITE_FILES + "test_no_body_of_an_erased_user_is_left_in_any_file[3]",
    ),
    Mutation(
        "an erase leaves bodies in the WAL",
        "stores/sql/state_machine.py",
        "        await self.database.scrub()\n        return EraseResult(erasure)",
        "        return EraseResult(erasure)",
        SQLITE_FILES + "test_no_body_of_an_erased_user_is_left_in_any_file[3]",
    ),
    # The cost of what one request holds
    Mutation(
        "each range of a batch is compared with each live item in SQL",
        "stores/sql/deaths.py",
        "few_patterns((Pattern(r.category, r.prefix) for r in ranges), MAX_PATTERNS)",
        "{Pattern(r.category, r.prefix) for r in ranges}",
        LINEAR + "test_cost_in_sqlite_grows_with_the_sum",
    ),
    Mutation(
        "each prefix of a batch is compared with each item",
        "core/range_deaths.py",
        "while to_come and to_come[-1].category <= category:\n"
        "                pattern = to_come.pop()\n"
        "                if pattern.matches(category):\n",
        "for pattern in to_come:\n"
        "                if pattern not in begun and pattern.matches(category):\n",
        LINEAR + "test_cost_in_python_grows_with_the_sum",
    ),
    Mutation(
        "a range that reaches an item later dismisses it first",
        "core/range_deaths.py",
        "_LeastFrom([range_.ctime for",
        "_LeastFrom([-range_.ctime for",
        RANGE_DEATHS + "test_item_dies_of_the_first_of_the_ranges_that_reach_it",
    ),
    Mutation(
        "what is published while the first sync is read is lost",
        "protocol/server_session.py",
        "            self.delivery = ReadingStore(self.cursor, LIVE)\n",
        "            pass\n",
        "tests/protocol/test_server_session.py::test_first_sync_follows_the_welcome_"
        "and_what_was_published_while_it_was_read_follows_it",
    ),
    Mutation(
        "an erase while the first sync is read is not heard",
        "protocol/server_session.py",
        "            self.erased(self._last_erase)\n",
        "",
        "tests/protocol/test_server_session.py::"
        "test_device_is_told_of_an_erase_while_its_first_sync_was_read",
    ),
    Mutation(
        "each read that waits for its turn waits for a store that does not answer",
        "server/service.py",
        "if turn.failures > failures:",
        "if False:",
        "tests/server/test_limits.py::"
        "test_reads_that_wait_for_one_that_the_store_does_not_answer_end_with_it",
    ),
    Mutation(
        "a page of a whole state has any size",
        "server/whole_state.py",
        "max_bytes=STATE_BYTES",
        "max_bytes=None",
        "tests/server/test_whole_state.py::"
        "test_answers_that_are_not_read_take_a_page_of_memory_each",
    ),
    Mutation(
        "a state that cannot be read to its end looks like a whole one",
        "server/streams.py",
        "log.error(LogEvent(self._event, reason=str(error)))",
        'await send({"type": "http.response.body", "body": b""})',
        "tests/server/test_whole_state.py::test_state_that_cannot_be_read_to_its_end_is_broken_off",
    ),
    Mutation(
        "a request that nobody forwards is one of the client before",
        "server/guarded_http.py",
        "move(connection, host or connection.peer)",
        "move(connection, host or connection.host)",
        ACCEPTOR + "test_bad_tokens_of_a_forwarded_address_are_its_own",
    ),
    Mutation(
        "a connection that ended keeps its head until garbage is collected",
        "server/guarded_http.py",
        "        self._deadline.close()\n",
        "        self._deadline.cancel()\n",
        MEMORY_OF_REQUESTS + "test_connection_that_ended_is_freed_without_a_garbage_collection",
    ),
    Mutation(
        "the words of a path may be encoded",
        "server/routes.py",
        "if not raw.endswith(self._words[-1]) or any(word not in raw for word in self._words):",
        "if False:",
        ADMIN + "test_words_of_a_path_are_not_encoded",
    ),
    # What is refused takes little
    Mutation(
        "a request that is refused keeps its body until garbage is collected",
        "server/http.py",
        "return refuse(error.as_value())",
        "return refuse(error)",
        MEMORY_OF_REQUESTS + "test_refused_request_is_freed_without_a_garbage_collection",
    ),
    Mutation(
        "a transaction that fails keeps what it was to store until garbage is collected",
        "job.py",
        "            del self  #",
        "            #",
        MEMORY_OF_REQUESTS + "test_refused_request_is_freed_without_a_garbage_collection",
    ),
    Mutation(
        "all reads of one user are done at once",
        "server/service.py",
        "async with turn.lock:",
        "if True:",
        LIMITS + "test_reads_of_one_user_take_turns",
    ),
    Mutation(
        "a body of unknown length takes nothing of the rate",
        "server/http.py",
        "take(len(chunk), size)",
        "take(0, 0)",
        LIMITS + "test_body_of_unknown_length_that_never_fits_is_refused_for_good",
    ),
    Mutation(
        "a request beyond a limit is refused at once",
        "server/http.py",
        "await asyncio.sleep(PAUSE_SECONDS)",
        "await asyncio.sleep(0)",
        LIMITS + "test_refusal_for_a_rate_or_a_token_comes_after_a_pause",
    ),
    Mutation(
        "a message to many users is stored for all before others have a turn",
        "node/node.py",
        "range(0, len(entries), AT_A_TIME)",
        "range(0, len(entries), AT_A_TIME := len(entries))",
        NODE + "test_many_messages_are_stored_and_delivered_in_parts",
    ),
    Mutation(
        "who injects into a node that fails waits for ever",
        "node/node.py",
        "        task.add_done_callback(partial(_set_failure, finished, work))\n",
        "        task.add_done_callback(lambda _: work.close())\n",
        NODE + "test_inject_that_has_not_begun_when_the_node_fails_raises_unavailable",
    ),
    # Whose turn it is
    Mutation(
        "the hashes of several users are checked in one transaction",
        "node/hash_checks.py",
        "check_hashes([uid])",
        "check_hashes(uids)",
        NODE + "test_each_sweep_checks_the_hashes_of_a_few_connected_users_in_turn",
    ),
    Mutation(
        "a commit takes all that a sender has queued",
        "stores/sql/commit_queue.py",
        "share = COMMIT_COST if self._is_alone() else _share_among(len(self._by_sender))",
        "share = COMMIT_COST",
        COMMIT_QUEUE + "test_commit_has_of_each_user_about_a_share_while_others_wait",
    ),
    Mutation(
        "a message with a key costs as much as one without",
        "stores/sql/commit_queue.py",
        "        cost += creation.key is not None\n",
        "",
        COMMIT_QUEUE + "test_message_with_a_key_costs_twice_as_much",
    ),
    Mutation(
        "ranges cost the same however many items a user has",
        "stores/sql/commit_queue.py",
        "        cost += items_of(message.uid) // ITEMS_OF_A_COST if dismissal.ranges else 0\n",
        "",
        COMMIT_QUEUE + "test_ranges_cost_what_the_items_are_against_which_they_are_held",
    ),
    Mutation(
        "a commit does not know how many items a user has",
        "stores/sql/state_machine.py",
        "CommitQueue(self._counted.items)",
        "CommitQueue()",
        "tests/conformance/test_sql.py::test_commit_ends_after_ranges_over_many_items",
    ),
    Mutation(
        "what a message costs beyond a share is forgotten",
        "stores/sql/commit_queue.py",
        "self._debts[sender] = cost - room",
        "pass",
        COMMIT_QUEUE + "test_who_had_more_than_a_share_waits_until_it_is_paid",
    ),
    Mutation(
        "who waits alone pays a debt with empty commits",
        "stores/sql/commit_queue.py",
        "if least < share:",
        "if True:",
        COMMIT_QUEUE + "test_who_waits_alone_in_debt_need_not_pay_it",
    ),
    Mutation(
        "the share of a sender is the same in a crowd",
        "stores/sql/commit_queue.py",
        "max(LEAST_SHARE_COST, min(SHARE_COST, ROUND_COST // max(senders, 1)))",
        "SHARE_COST",
        COMMIT_QUEUE + "test_commit_reaches_each_of_many_users_and_takes_a_round_of_them_at_most",
    ),
    Mutation(
        "heavy messages have their turns among the light ones",
        "stores/sql/commit_queue.py",
        "self._serve(light, rooms, COMMIT_COST, heaviest=WHOLE_COST)",
        "self._serve([*rooms], rooms, COMMIT_COST)",
        COMMIT_QUEUE + "test_light_message_waits_for_no_heavy_ones_of_others",
    ),
    Mutation(
        "a heavy message behind a light one has its turn with it",
        "stores/sql/commit_queue.py",
        "self._serve(light, rooms, COMMIT_COST, heaviest=WHOLE_COST)",
        "self._serve(light, rooms, COMMIT_COST)",
        COMMIT_QUEUE + "test_heavy_message_behind_a_light_one_has_no_earlier_turn",
    ),
    Mutation(
        "heavy messages wait until there is room besides the light ones",
        "stores/sql/commit_queue.py",
        "max(left, 1)",
        "left",
        COMMIT_QUEUE + "test_each_commit_has_a_heavy_message_however_many_light_ones_wait",
    ),
    Mutation(
        "a few messages that were sent together are committed in turns",
        "stores/sql/commit_queue.py",
        "share if count > WHOLE_COST else max(share, spent + WHOLE_COST)",
        "share",
        COMMIT_QUEUE + "test_few_messages_that_were_sent_together_are_committed_together",
    ),
    Mutation(
        "messages that were sent together are committed together, whatever they cost",
        "stores/sql/commit_queue.py",
        "max(share, spent + WHOLE_COST)",
        "COMMIT_COST",
        COMMIT_QUEUE + "test_few_messages_that_cost_more_are_committed_in_turns",
    ),
    Mutation(
        "who sends a few messages at a time has more than a share",
        "stores/sql/commit_queue.py",
        "self._debts[sender] = cost - room",
        "self._debts[sender] = 0",
        COMMIT_QUEUE + "test_messages_sent_a_few_at_a_time_have_no_more_than_others",
    ),
    Mutation(
        "limits: what a batch has added does not count until it is settled",
        "stores/sql/allowance.py",
        "        self.most = self.then\n",
        "",
        ALLOWANCE + "test_item_above_the_limit_is_rejected_alone[sqlite]",
    ),
    Mutation(
        "limits: a message that fits after all does not count",
        "stores/sql/allowance.py",
        "        account.expect(_more(message, size, account.at))\n        return error\n",
        "        return error\n",
        ALLOWANCE + "test_what_is_dismissed_in_a_batch_makes_place_in_it[sqlite]",
    ),
    Mutation(
        "the event loop's lag is not observed",
        "server/event_loop_lag.py",
        "observe(max(0.0, loop.time() - due))",
        "observe(0.0)",
        "tests/server/test_event_loop_lag.py::test_lag_is_how_late_the_loop_was",
    ),
    Mutation(
        "long work that is no function fails, although it has committed",
        "stores/sql/timed_work.py",
        'getattr(work, "__qualname__", type(work).__qualname__)',
        "work.__qualname__",
        "tests/stores/test_timed_work.py"
        "::test_long_work_of_any_kind_is_logged_with_a_name_and_has_its_result[True-methodcaller]",
    ),
    Mutation(
        "what a long transaction worked counts as its commit",
        "stores/sql/timed_work.py",
        "            self._end = perf_counter()\n",
        "            pass\n",
        "tests/stores/test_timed_work.py::test_long_transaction_is_logged_with_its_parts",
    ),
    Mutation(
        "limits: the size of a message is counted in characters",
        "stores/sql/rows.py",
        "len(json) if json.isascii() else len(json.encode())",
        "len(json)",
        ALLOWANCE + "test_bytes_are_those_of_the_messages_of_live_items[sqlite]",
    ),
    Mutation(
        "a sender who has had a turn is first again",
        "stores/sql/commit_queue.py",
        "self._by_sender[sender] = waiting  # behind all others",
        "self._by_sender = {sender: waiting, **self._by_sender}",
        COMMIT_QUEUE + "test_every_user_has_a_turn_before_one_has_two",
    ),
    Mutation(
        "what one sender has queued keeps out another",
        "stores/sql/commit_queue.py",
        "(2 if waiting is None else 1)",
        "1",
        COMMIT_QUEUE + "test_what_one_sender_has_queued_does_not_keep_out_another",
    ),
    Mutation(
        "each of many users of one request has a turn of its own",
        "stores/sql/commit_queue.py",
        'return "sender", next((slot.author or "" for slot in slots), "")',
        'return "user", slots[0].message.msg_id',
        COMMIT_QUEUE + "test_messages_to_several_users_have_the_share_of_who_sends_them",
    ),
    Mutation(
        "a user whose messages take too long fails the others",
        "stores/sql/state_machine.py",
        "            if len(by_user) == 1:\n                return",
        "            if by_user:\n                return",
        TOO_LONG + "test_user_whose_messages_take_too_long_fails_alone[sqlite]",
    ),
    Mutation(
        "a transaction may take any time",
        "stores/sql/sqlite.py",
        "lambda: thread_time() > end",
        "lambda: False",
        TOO_LONG + "test_work_that_takes_too_long_stores_nothing",
    ),
    Mutation(
        "what follows messages that took too long is stored before them",
        "stores/sql/state_machine.py",
        "                _refuse_what_follows(piece)\n",
        "                pass\n",
        TOO_LONG + "test_nothing_is_stored_after_messages_that_took_too_long[sqlite-1]",
    ),
    Mutation(
        "on a server, a transaction of many statements may take any time",
        "stores/sql/postgresql/connection.py",
        "        self._end = monotonic() + self._seconds\n",
        "        self._end = inf\n",
        TOO_LONG + "test_statements_on_a_server_have_the_time_of_one_together",
    ),
    Mutation(
        "the thread of a database keeps its last call",
        "stores/sql/worker_thread.py",
        "            del call  # or its result is kept until the next one comes\n",
        "",
        WORKER_THREAD + "test_nothing_of_a_call_is_kept_until_the_next_one",
    ),
    Mutation(
        "the thread of a database keeps calls waiting after its end",
        "stores/sql/worker_thread.py",
        "if self._has_ended:",
        "if False:",
        WORKER_THREAD + "test_thread_that_has_ended_refuses_calls_instead_of_keeping_them_waiting",
    ),
    Mutation(
        "the thread of a database ends before it has called all",
        "stores/sql/worker_thread.py",
        "            self._thread.join()",
        "            pass",
        WORKER_THREAD + "test_calls_are_made_in_order_and_all_before_the_end",
    ),
    Mutation(
        "the thread of a database keeps the process running",
        "stores/sql/worker_thread.py",
        "daemon=True",
        "daemon=False",
        WORKER_THREAD + "test_thread_that_nobody_ends_does_not_keep_the_process_running",
    ),
    Mutation(
        "a thread fails because its event loop has ended",
        "job.py",
        "with suppress(RuntimeError):",
        "with suppress():",
        "tests/test_job.py::test_outcome_is_dropped_if_the_event_loop_has_ended",
    ),
    Mutation(
        "a commit waits for all reads that have come before it",
        "stores/sql/turns.py",
        "kinds = (self._reads, self._writes) if self._was_write else (self._writes, self._reads)",
        "kinds = (self._reads, self._writes)",
        "tests/stores/test_turns.py::test_writes_and_reads_take_turns",
    ),
    Mutation(
        "work is done that nobody waits for any more",
        "job.py",
        "if self.done.cancelled():",
        "if self.done is None:",
        "tests/stores/test_turns.py::test_who_is_cancelled_while_it_waits_loses_its_turn_alone",
    ),
    Mutation(
        "who is cancelled while a thread does its work gets the result all the same",
        "job.py",
        "    if not done.cancelled():",
        "    if True:",
        "tests/stores/test_turns.py::test_who_is_cancelled_in_its_turn_does_not_harm_the_others",
    ),
    Mutation(
        "a page reads all of a log that it does not send",
        "core/sync.py",
        "bytes_read += own_size",
        "bytes_read += 0",
        "tests/stores/test_cost.py::test_page_of_a_log_of_large_bodies_reads_a_part_of_it[sqlite]",
    ),
    Mutation(
        "a user who is named again is addressed again",
        "protocol/entries.py",
        "place = known.setdefault(entry.uid, place)",
        "known[entry.uid] = place",
        "tests/protocol/test_entries.py"
        "::test_each_user_is_addressed_once_however_often_it_is_named",
    ),
    Mutation(
        "few patterns do not match all that many match",
        "core/range_deaths.py",
        "return Pattern(first.category[:length], prefix=True)",
        "return Pattern(first.category, prefix=True)",
        RANGE_DEATHS + "test_few_patterns_match_whatever_many_match",
    ),
    Mutation(
        "a range walks all items of a replica",
        "core/item_index.py",
        "start: tuple[Any, ...] = (category,)",
        'start: tuple[Any, ...] = ("",)\n'
        "        for key in [key for run in self.by_category.runs for key in run]:\n"
        "            start = (category,)",
        CORE_COST + "test_cost_does_not_grow_with_what_is_live",
    ),
    Mutation(
        "a count leaves out the categories that are longer than the prefix",
        "core/state.py",
        "key=lambda entry: entry[0][: len(prefix)])",
        "key=_category)",
        MEMORY + "test_law_counts_are_those_of_the_state",
    ),
    Mutation(
        "a large snapshot is read at once",
        "stores/sql/reads.py",
        "read if size < most else first_items(read, left)",
        "read",
        SQL + "test_snapshot_of_large_items_is_read_in_parts_and_stays_as_it_was",
    ),
    Mutation(
        "an item that dies while its snapshot is read is missing in it",
        "stores/sql/statements.py",
        "    JOIN messages ON messages.uid = :uid AND messages.ctime = input.ctime\n"
        "        AND messages.category IS NOT NULL\n",
        "    JOIN messages ON messages.uid = :uid AND messages.ctime = input.ctime\n"
        "        AND messages.category IS NOT NULL AND messages.dismissed_at IS NULL\n",
        SQL + "test_snapshot_of_large_items_is_read_in_parts_and_stays_as_it_was",
    ),
    Mutation(
        "a snapshot ends with its first part",
        "protocol/frames.py",
        "more = number < len(chunks) or sync.rest is not None",
        "more = number < len(chunks)",
        SESSION_PAIR + "test_large_snapshot_is_read_in_parts_and_is_the_state_at_its_cursor",
    ),
    Mutation(
        "what is published while a large snapshot is sent is dropped",
        "protocol/server_session.py",
        "Paging(then=Live()) | Incomplete(then=Live()) | ReadingItems(then=Live()):",
        "Paging(then=Live()):",
        SESSION_PAIR + "test_large_snapshot_is_read_in_parts_and_is_the_state_at_its_cursor",
    ),
    Mutation(
        "a device compares all records to find those to save",
        "client/client.py",
        "changed_records(self._replica, replicas[-1], changed)",
        "changed_records(self._replica, replicas[-1])",
        CLIENT_COST + "test_cost_of_a_frame_does_not_grow_with_what_is_live",
    ),
    Mutation(
        "a device looks at all items to find what has changed",
        "client/client.py",
        "self._refresh_visible(replica.changed, messages)",
        "self._refresh_visible([*self._visible, *replica.changed], messages)",
        CLIENT_COST + "test_cost_of_a_frame_does_not_grow_with_what_is_live",
    ),
    Mutation(
        "each dismissed item is compared with each message to say why",
        "client/replica.py",
        "    replaced.update(item.msg_id for item, _ in range_deaths(ranges, dismissed))\n",
        "    replaced.update(i.msg_id for i in dismissed for r in ranges if r.covers(i))\n",
        CLIENT_COST + "test_reasons_of_dismissals_cost_the_sum_of_messages_and_items",
    ),
    Mutation(
        "a replica does not name what its outbox no longer changes",
        "client/replica.py",
        "chain(changed, self.outbox, self.overlaid, derived.overlaid)",
        "chain(changed, self.outbox, derived.overlaid)",
        REPLICA + "test_item_that_a_rejected_message_no_longer_dismisses_is_named_as_changed",
    ),
    # Many nodes over one database
    Mutation(
        "the users' rows are not locked",
        "stores/sql/transactions.py",
        "connection.execute_rows(statements.LOCK_USERS, keys)",
        "pass",
        POSTGRESQL + "test_reader_that_follows_the_cursor_misses_no_message",
    ),
    Mutation(
        "values read before the lock was granted are used",
        "stores/sql/transactions.py",
        """        connection.execute_rows(statements.LOCK_USERS, keys)
""",
        """        read = statements.LOCKED_USERS
        both = BulkStatement(f"{read.text} FOR UPDATE OF users", read.input, read.row)
        return {user.uid: user for user in connection.execute_rows(both, keys)}
""",
        POSTGRESQL + "test_transaction_that_waited_for_user_lock_sees_messages_stored_meanwhile",
    ),
    Mutation(
        "msg_ids are looked up before their users are locked",
        "stores/sql/transactions.py",
        """    users = _lock_users(connection, {slot.message.uid for slot in slots})
    closed = {} if any_bucket else closed_users(connection, {s.message.uid for s in slots})
    known, dead = _read_known(connection, slots)
""",
        """    known, dead = _read_known(connection, slots)
    users = _lock_users(connection, {slot.message.uid for slot in slots})
    closed = {} if any_bucket else closed_users(connection, {s.message.uid for s in slots})
""",
        POSTGRESQL + "test_id_look_up_waits_for_transaction_that_stores_the_id",
    ),
    Mutation(
        "a commit with unknown result counts as failed",
        "stores/sql/state_machine.py",
        "return reconcile(await self._store_or_find(slots, now), expected)",
        "return await self._store_or_find(slots, now)",
        POSTGRESQL + "test_unknown_commit_is_resolved_and_reported_as_stored",
    ),
    Mutation(
        "new users are inserted in arbitrary order",
        "stores/sql/statements.py",
        """    ORDER BY input.uid
    ON CONFLICT DO NOTHING""",
        "    ON CONFLICT DO NOTHING",
        POSTGRESQL + "test_users_are_taken_in_the_order_of_their_ids[inserted]",
    ),
    Mutation(
        "users are locked in arbitrary order",
        "stores/sql/statements.py",
        "    ORDER BY users.uid FOR UPDATE OF users",
        "    FOR UPDATE OF users",
        POSTGRESQL + "test_users_are_taken_in_the_order_of_their_ids[locked]",
    ),
    Mutation(
        "PostgreSQL plans without our planner settings",
        "stores/sql/postgresql/session.py",
        "**PLANNER_SETTINGS,",
        "",
        "tests/stores/test_cost.py::test_d15_cost_does_not_grow_with_history_on_postgresql",
    ),
    Mutation(
        "the settings of a session are not compared",
        "stores/sql/postgresql/session.py",
        "found.get(name) != value",
        "name not in found",
        "tests/stores/test_postgresql_sessions.py::test_setting_that_is_dropped_in_between_is_named",
    ),
    Mutation(
        "a role decides how long a transaction may wait for a lock",
        "stores/sql/postgresql/session.py",
        """    "lock_timeout": "0",
""",
        "",
        "tests/stores/test_postgresql_sessions.py::test_settings_are_ours_whatever_the_role_has",
    ),
    Mutation(
        "a standby that answers first is written to",
        "stores/sql/postgresql/url.py",
        'keys.setdefault("target_session_attrs", "read-write")',
        "pass",
        "tests/stores/test_postgresql_url.py::test_several_servers_are_asked_for_one_to_write_to",
    ),
    Mutation(
        "keys of a URL that are unknown are ignored",
        "stores/sql/postgresql/url.py",
        "if key not in READ_BY_DRIVER | READ_HERE:",
        "if not key:",
        "tests/stores/test_postgresql_url.py::test_key_that_cannot_be_used_is_named",
    ),
    Mutation(
        "the file of a store is read once, at the start",
        "config.py",
        "return path.absolute().as_uri()",
        "return secret",
        "tests/cli/test_setup.py::test_store_stays_a_file_that_is_read_again",
    ),
    Mutation(
        "a request whose connection is refused fails although others could serve it",
        "stores/sql/postgresql/pool.py",
        "return is_refused(error) and (self._users > 0 or self._pool.get_size() > 0)",
        "return False",
        "tests/stores/test_connection_limit.py"
        "::test_reads_wait_for_the_connections_that_the_server_accepts",
    ),
    Mutation(
        "readers keep the writer out at the server's limit",
        "stores/sql/postgresql/database.py",
        "if pool is self._writer and await self._make_room(error):",
        "if False:",
        "tests/stores/test_connection_limit.py"
        "::test_writer_gets_a_connection_although_readers_have_all",
    ),
    # What is admitted
    Mutation(
        "seconds taken for microseconds are admitted",
        "core/admission.py",
        "instant.time < EARLIEST_TIME",
        "instant.time < 0",
        ADMISSION + "test_seconds_and_milliseconds_taken_for_microseconds_are_refused",
    ),
    Mutation(
        "what a sender's message says is not checked for admission",
        "core/message.py",
        """        check_admission(message)
""",
        """        pass
""",
        ADMISSION + "test_dots_that_no_url_can_contain_are_no_ids",
    ),
    Mutation(
        "a string is taken as a list of ids",
        "core/arguments.py",
        "isinstance(values, str | bytes | bytearray | Mapping)",
        "isinstance(values, bytes | bytearray | Mapping)",
        ARGUMENTS + "test_wrong_type_of_each_public_parameter_is_refused_by_name",
    ),
    Mutation(
        "NaN in a body becomes null",
        "core/arguments.py",
        "case float() if -_INFINITY < value < _INFINITY:",
        "case float():",
        ARGUMENTS + "test_wrong_type_of_each_public_parameter_is_refused_by_name",
    ),
    Mutation(
        "a bool is taken as an integer",
        "core/admission.py",
        " and type(value) is not bool",
        "",
        ARGUMENTS + "test_message_made_of_wrong_parts_is_refused_by_name",
    ),
    Mutation(
        "a body is expanded whatever its size as JSON",
        "core/arguments.py",
        "self._bytes_left -= size",
        "self._bytes_left -= 0",
        ARGUMENTS + "test_body_that_repeats_a_text_is_refused_before_it_is_expanded",
    ),
    Mutation(
        "a producer checks messages only when their request is made",
        "client/calls.py",
        'list(map(partial(as_message, "messages"), given))',
        "list(given)",
        PRODUCER + "test_bad_argument_in_the_last_batch_is_found_before_the_first_is_sent",
    ),
    Mutation(
        "one record that cannot be read makes a device's store unusable",
        "client/client.py",
        "aside = set_aside(records)",
        "aside: dict[Key, bytes] = {}",
        STORE + "test_record_that_cannot_be_read_costs_only_itself",
    ),
    Mutation(
        "a producer waits as long as the host's jitter says",
        "client/outside.py",
        "if 0.0 <= drawn <= 1.0:",
        "if drawn == drawn:",
        PRODUCER + "test_absurd_jitter_of_the_host_does_no_harm",
    ),
    Mutation(
        "a client can be opened over itself",
        "client/client.py",
        "if self._was_opened:",
        "if self._was_opened and not self._open:",
        "tests/client/test_client.py::test_client_that_is_opened_twice_is_refused_and_goes_on",
    ),
    Mutation(
        "nothing says that a store does not answer",
        "client/client.py",
        "call_later(STORE_TIMEOUT_SECONDS, self._on_slow_save)",
        "call_later(STORE_TIMEOUT_SECONDS, bool)",
        OUTSIDE + "test_write_to_a_store_that_hangs_waits_and_the_status_says_so",
    ),
    Mutation(
        "what cannot be read back is written",
        "client/client.py",
        "read = parse_message(msgspec.json.encode(message))",
        "read = message",
        STORE + "test_message_that_could_not_be_read_back_is_refused",
    ),
    Mutation(
        "an unreadable record of a device gives its store to any user",
        "client/store.py",
        "_DeviceRecord(owner.device_id, owner.uid, owner.epoch, owner.erased, cursor=0)",
        "_DeviceRecord(owner.device_id, None, owner.epoch, owner.erased, cursor=0)",
        STORE + "test_unreadable_record_never_gives_a_store_to_another_user",
    ),
    Mutation(
        "a store whose owner is unknown is taken as new",
        "client/store.py",
        "if DEVICE_KEY in changes:",
        "if DEVICE_KEY in changes and OWNER_KEY in records:",
        STORE + "test_store_whose_owner_is_unknown_is_refused_and_keeps_its_outbox",
    ),
    Mutation(
        "a record that is set aside is dropped",
        "client/store.py",
        'changes |= {(kind, name): None, (_ASIDE, f"{kind}/{name}"): record}',
        "changes |= {(kind, name): None}",
        STORE + "test_record_that_cannot_be_read_costs_only_itself",
    ),
    Mutation(
        "a device's dismissal of a category takes what the device has not been told",
        "client/replica.py",
        "return self.write(naming_also(ended, self._seen_beyond_cursor(message, now)), now)",
        "return self.write(message, now)",
        REPLICA + "test_category_dismissal_ends_at_the_cursor_and_names_own_items_beyond_it",
    ),
    Mutation(
        "a device's dismissal of a category spares its own items beyond the cursor",
        "client/replica.py",
        "is_told = item.msg_id in self.facts.items",
        "is_told = item.msg_id not in self.facts.items",
        REPLICA + "test_category_dismissal_ends_at_the_cursor_and_names_own_items_beyond_it",
    ),
    Mutation(
        "the whole outbox is shown again when a part of it is acknowledged",
        "client/replica.py",
        "return updated._shown_again(ids)",
        "return updated.derived(ids)",
        CLIENT_COST + "test_cost_of_sending_the_outbox_is_proportional_to_it",
    ),
    Mutation(
        "an item that comes is shown without what the outbox says of it",
        "client/outbox.py",
        "ids = [*_second_of(self.naming, msg_id), *(",
        "ids = [*(",
        REPLICA + "test_item_that_an_unsent_message_dismisses_is_not_shown_when_it_comes",
    ),
    Mutation(
        "an unsent item keeps the ctime that it was first shown with",
        "client/replica.py",
        "latest_ctime=latest, old_stamps=True)",
        "latest_ctime=latest)",
        REPLICA + "test_unsent_items_follow_all_that_the_node_has_told",
    ),
    Mutation(
        "hiding an item that has not arrived is forgotten",
        "client/replica.py",
        "awaited=_without(awaited, surplus),",
        "awaited=self.awaited,",
        REPLICA + "test_item_that_is_hidden_before_it_arrives_is_never_shown",
    ),
    Mutation(
        "an erase leaves the outbox of a device",
        "client/replica.py",
        "erased=True,",
        "erased=True,\n            outbox=self.outbox,",
        CLIENT_ERASE + "test_law_wiped_replica_is_a_new_one_and_stays_wiped",
    ),
    Mutation(
        "an erase leaves the hidden ids of a device",
        "client/replica.py",
        "erased=True,",
        "erased=True,\n            hidden=self.hidden,",
        CLIENT_ERASE + "test_nothing_of_an_erased_user_is_left_on_a_device",
    ),
    Mutation(
        "an erase leaves what a device has set aside",
        "client/client.py",
        "return replaced_records(stored, replicas[-1])",
        "return changed_records(self._replica, replicas[-1])",
        CLIENT_ERASE + "test_nothing_of_an_erased_user_is_left_on_a_device",
    ),
    Mutation(
        "an erase leaves bytes in the file of a device",
        "client/client.py",
        "if self._replica.erased and not before.erased:\n            await self._scrub()",
        "",
        CLIENT_ERASE + "test_no_byte_of_an_erased_user_is_left_in_the_file",
    ),
    Mutation(
        "an erase is told no more after a restart",
        "client/store.py",
        "_OwnerRecord(replica.device_id, replica.uid, replica.epoch, replica.erased)",
        "_OwnerRecord(replica.device_id, replica.uid, replica.epoch)",
        CLIENT_ERASE + "test_erase_is_told_again_after_a_restart_and_waits_for_the_app",
    ),
    Mutation(
        "a write that an erase has taken counts as sent",
        "client/client.py",
        "if self._erasure is not None and self._erasure is not known:",
        "if known is self._erasure is not None:",
        CLIENT_ERASE + "test_what_waits_for_an_unsent_write_raises_erased",
    ),
    Mutation(
        "the lower epoch of a restored backup drops the outbox",
        "protocol/client_session.py",
        "if self.epoch is not None and told > known and self._is_owner(welcome.uid):",
        "if told < known:\n            return [Wipe(told)]\n        if told > known > 0:",
        CLIENT_ERASE + "test_restored_backup_from_before_an_erase_keeps_the_outbox",
    ),
    Mutation(
        "a device unlearns its epoch from a node without epochs",
        "protocol/client_session.py",
        "told = known if welcome.epoch is None else welcome.epoch",
        "told = welcome.epoch or 0",
        "tests/vectors/test_vectors.py::test_session_has_the_effects_of_the_vector",
    ),
    Mutation(
        "an old notice of an erase wipes the new life",
        "protocol/client_session.py",
        "if self.epoch is not None and epoch <= self.epoch:",
        "if self.epoch is not None and epoch < self.epoch - 1:",
        CLIENT_ERASE + "test_old_notice_of_an_erase_is_ignored",
    ),
    # The core
    Mutation(
        "the tombstone of an item that has not arrived is dropped",
        "core/facts.py",
        "facts = facts._with(tombstones=facts.tombstones.set(msg_id, at))",
        "facts = facts._with()",
        EXHAUSTIVE + "test_every_order_of_arrival_gives_the_same_facts",
    ),
    Mutation(
        "the end of a range is exclusive",
        "core/facts.py",
        "            time <= self.end\n",
        "            time < self.end\n",
        VECTORS + "test_visibility_vector",
    ),
    Mutation(
        "a range covers what is created after its dismissal",
        "core/facts.py",
        "min(stated.after(ctime), ctime)",
        "stated.after(ctime)",
        MEMORY + "test_range_that_ends_in_the_future_covers_nothing_created_after_it",
    ),
    Mutation(
        "the end of a key is exclusive",
        "core/facts.py",
        "item.ctime <= self.end\n            and item.key == self.key",
        "item.ctime < self.end\n            and item.key == self.key",
        VECTORS + "test_visibility_vector",
    ),
    Mutation(
        "a range reaches the item of its own message",
        "core/facts.py",
        "if msg_id == self.own or msg_id in self.skip_msg_ids:",
        "if msg_id in self.skip_msg_ids:",
        VECTORS + "test_visibility_vector",
    ),
    Mutation(
        "a key takes the place of an item of another scope",
        "core/item_index.py",
        '(item.key, item.device_id or "", item.ctime, item.msg_id)',
        '(item.key, "", item.ctime, item.msg_id)',
        VECTORS + "test_visibility_vector",
    ),
    Mutation(
        "a put that arrives late does not make the death earlier",
        "core/facts.py",
        "if key.ctime < self.latest_death:",
        "if key.ctime < 0:",
        EXHAUSTIVE + "test_every_order_of_arrival_gives_the_same_facts",
    ),
    Mutation(
        "an item is not there at the instant of its start",
        "core/visibility.py",
        "return starts_at is None or starts_at <= time",
        "return starts_at is None or starts_at < time",
        VECTORS + "test_visibility_vector",
    ),
    Mutation(
        "a hash is not of what has not begun",
        "core/facts.py",
        "if is_live(item, dead_at, device_id, when))",
        "if is_visible(item, dead_at, device_id, when))",
        LAWS + "test_hash_is_of_the_live_items_alone",
    ),
    Mutation(
        "a prefix is compared like a whole category",
        "core/facts.py",
        "return category.startswith(self.category) if self.prefix else category == self.category",
        "return category == self.category",
        VECTORS + "test_visibility_vector",
    ),
    Mutation(
        "an item is live at the instant of its expiry",
        "core/visibility.py",
        "expires_at <= time",
        "expires_at < time",
        VECTORS + "test_visibility_vector",
    ),
    Mutation(
        "an item is live at the instant of its dismissal",
        "core/visibility.py",
        "dismissed_at > known",
        "dismissed_at >= known",
        VECTORS + "test_visibility_vector",
    ),
    Mutation(
        "a dismissal that arrives late does not make the death earlier",
        "core/facts.py",
        "        if ctime < self.latest_death:",
        "        if ctime < 0:",
        EXHAUSTIVE + "test_every_order_of_arrival_gives_the_same_facts",
    ),
    Mutation(
        "a dismissal from one device is missing in the syncs of other devices",
        "core/sync.py",
        "    creation, dismissal = message.creation, message.dismissal or Dismissal()\n",
        "    if not seen_on(message.device_id, recipient.device_id):\n        return None\n"
        "    creation, dismissal = message.creation, message.dismissal or Dismissal()\n",
        MEMORY + "test_d09_dismissal_from_one_device_reaches_other_devices",
    ),
    Mutation(
        "a dismissal from one device is not broadcast to other devices",
        "core/message.py",
        "return self.reduced(None, self.dismissal)",
        "return None",
        SERVER_SESSION + "test_creation_for_another_device_is_left_out_but_its_dismissal_is_sent",
    ),
    Mutation(
        "the messages since omit the dismissal of the item at the cursor",
        "core/sync.py",
        "and fate.ctime <= recipient.known",
        "and fate.ctime < recipient.known",
        EXHAUSTIVE + "test_messages_since_bring_every_replica_from_every_start_to_the_present",
    ),
    Mutation(
        "the messages since an instant omit the dismissal of the item at that instant",
        "core/sync.py",
        """    @property
    def known(self) -> Time:
        return self.time
""",
        """    @property
    def known(self) -> Time:
        return self.time - 1
""",
        MEMORY + "test_all_devices",
    ),
    Mutation(
        "an id is sent whose item has not arrived",
        "core/sync.py",
        """        fate is not None
        and fate.ctime <= recipient.known
""",
        """        fate is None
        or fate.ctime <= recipient.known
""",
        VECTORS + "test_since_vector",
    ),
    Mutation(
        "a creation that is dead when it is stored is sent to connected devices",
        "core/sync.py",
        "message.ctime if dead else None",
        "None",
        MEMORY + "test_creation_that_is_dead_when_it_is_stored_is_never_sent",
    ),
    Mutation(
        "an item is left out of syncs as soon as it expires",
        "core/sync.py",
        "Now(now - EXPIRY_GRACE)",
        "Now(now)",
        MEMORY + "test_expired_item_is_sent_for_a_minute_more",
    ),
    Mutation(
        "a snapshot has what expired long ago, in SQL",
        "stores/sql/reads.py",
        "since = now - EXPIRY_GRACE",
        "since = 0",
        SQL + "test_expired_item_is_sent_for_a_minute_more",
    ),
    Mutation(
        "the cursor of a page is the user's clock",
        "core/sync.py",
        "return Page(tuple(messages), cursor, more=True)",
        "return Page(tuple(messages), clock, more=True)",
        MEMORY + "test_page_ends_at_its_limits_and_the_next_one_begins_there",
    ),
    Mutation(
        "a count builds the state",
        "stores/sql/reads.py",
        "return Counts.of(_read_categories(connection, uid, device_id, now), prefixes, now)",
        "return Counts.of("
        "((i.category, 1) for i in"
        " read_state_page(connection, uid, StateQuery(device_id), now).items), prefixes, now)",
        LINEAR + "test_count_takes_no_step_of_python_for_an_item",
    ),
    Mutation(
        "a state at a stated time is continued after the user's clock",
        "stores/sql/reads.py",
        "min(at, user.clock),",
        "user.clock,",
        SQL + "test_state_of_the_past_is_continued_after_its_time",
    ),
    Mutation(
        "a poller with a cursor of a lost store is answered as if it missed nothing",
        "core/sync.py",
        "if start.cursor > user.clock:",
        "if False:",
        MEMORY + "test_cursor_ahead_of_the_users_clock_cannot_be_continued",
    ),
    Mutation(
        "a duplicate whose item is dead is reported as visible",
        "stores/sql/transactions.py",
        "deaths._replace(dead=deaths.dead | dead | log.pruned.keys())",
        "deaths",
        SQL + "test_outcome_says_whether_the_item_is_dead_or_expired_now",
    ),
    Mutation(
        "items that had expired count as dismissed",
        "stores/sql/deaths.py",
        "if item.ctime < item.dismissed_at < item.expires_at",
        "if item.ctime < item.dismissed_at",
        SQL + "test_outcome_says_how_many_items_a_dismissal_has_killed",
    ),
    Mutation(
        "an envelope does not say that an item is dead",
        "consumers/publisher.py",
        "if outcome.dead],",
        "if False],",
        "tests/consumers/test_publisher.py"
        "::test_decoded_envelope_contains_what_was_encoded[dead-creation]",
    ),
    Mutation(
        "an envelope does not name the predecessor of an item that devices are not sent",
        "consumers/publisher.py",
        "replaced=dict(_predecessors(stored)),",
        "replaced={},",
        FLEET + "test_item_that_is_dead_when_it_is_stored_ends_its_predecessor_on_every_node",
    ),
    Mutation(
        "the death of a predecessor is not sent",
        "core/sync.py",
        "        ids += tuple(_replaced(message, recipient, store, ids))\n",
        "",
        VECTORS + "test_since_vector",
    ),
    Mutation(
        "the death of a predecessor is sent as the dismissal of its key",
        "core/sync.py",
        "        ids += tuple(_replaced(message, recipient, store, ids))\n",
        """        if [*_replaced(message, recipient, store, ids)]:
            from gregor.core.message import KeyDismissal

            key = KeyDismissal(message.key or "")
            return message.reduced(None, Dismissal(ids, dismissal.ranges, (key,)))
""",
        VECTORS + "test_since_vector",
    ),
    Mutation(
        "a predecessor takes the place of an id that does not go",
        "core/sync.py",
        "if ids != dismissal.msg_ids or",
        "if len(ids) != len(dismissal.msg_ids) or",
        VECTORS + "test_since_vector",
    ),
    Mutation(
        "a snapshot leaves out what has not begun",
        "core/sync.py",
        "items = (item for item in facts.items.values() if is_sent(item, None, device_id, now))",
        """items = (
        item
        for item in facts.items.values()
        if is_sent(item, None, device_id, now) and item.time <= now
    )""",
        VECTORS + "test_since_vector",
    ),
    Mutation(
        "an item that has not begun is reported as visible",
        "protocol/frames.py",
        "not (ended or outcome.scheduled)",
        "not ended",
        "tests/protocol/test_frames.py::test_result_says_what_came_of_a_message",
    ),
    Mutation(
        "each sweep checks the hashes of the same users",
        "node/hash_checks.py",
        "        if not self._due:\n",
        "        self._due.clear()\n        if not self._due:\n",
        NODE + "test_each_sweep_checks_the_hashes_of_a_few_connected_users_in_turn",
    ),
    Mutation(
        "hashes are checked while the store does not answer",
        "node/gap_repair.py",
        "            if not self.waiting_for_store:\n                self._hash_checks",
        "            if True:\n                self._hash_checks",
        NODE + "test_no_hash_is_checked_while_the_store_does_not_answer",
    ),
    Mutation(
        "a message for another device counts as a duplicate",
        "core/message.py",
        "return canonical((self.device_id, creation,",
        "return canonical((creation,",
        MEMORY + "test_known_msg_id_with_other_contents_is_rejected_and_changes_nothing",
    ),
    # The state machine on SQL
    Mutation(
        "the end of a range is exclusive, in SQL",
        "stores/sql/statements.py",
        "AND +messages.ctime <= input.end_time\n        AND (",
        "AND +messages.ctime < input.end_time\n        AND (",
        SQL + "test_all_devices",
    ),
    Mutation(
        "messages since a time exclude that time",
        "stores/sql/statements.py",
        "AND ctime >= :start\n",
        "AND ctime > :start\n",
        SQL + "test_d26_update_with_several_dismissals_is_synced_completely",
    ),
    Mutation(
        "an item that was dismissed before it arrived is live if nothing else is, in SQL",
        "stores/sql/deaths.py",
        "    if batch.late or batch.with_tombstones:\n",
        "    if batch.late:\n",
        SQL + "test_d01_dismissal_that_arrives_before_its_creation_is_applied",
    ),
    Mutation(
        "an item that arrives behind a dismissal is live, in SQL",
        "stores/sql/deaths.py",
        "    if batch.late or batch.with_tombstones:\n",
        "    if batch.with_tombstones:\n",
        SQL + "test_d02_range_that_arrives_before_a_covered_creation_is_applied",
    ),
    Mutation(
        "a dismissal that arrives late does not make the death earlier, in SQL",
        "stores/sql/deaths.py",
        "late_uids = {message.uid for message in batch.late if message.dismissal is not None}",
        "late_uids = set()",
        SQL + "test_d06_earliest_dismissal_sets_the_death_when_it_arrives_last",
    ),
    Mutation(
        "the ctime is the wall clock alone",
        "stores/sql/transactions.py",
        "message.stamp_new(time.next_ctime(now), time.clock)",
        "message.stamp_new(now, time.clock)",
        SQL + "test_ctime_increases_strictly_when_the_clock_runs_backwards",
    ),
    Mutation(
        "a duplicate is returned as sent, not as stored",
        "stores/sql/transactions.py",
        "return Duplicate(earlier)",
        "return Duplicate(message)",
        SQL + "test_message_sent_twice_is_stored_once",
    ),
    Mutation(
        "an expiry at time 0 counts as no expiry",
        "stores/sql/transactions.py",
        "if expires_at is None:",
        "if not expires_at:",
        SQL + "test_expiry_at_time_zero_is_applied",
    ),
    Mutation(
        "a message is acknowledged without a commit",
        "stores/sql/sqlite.py",
        'driver.execute("COMMIT")',
        'driver.execute("ROLLBACK")',
        FILE + "test_stored_messages_survive_a_restart",
    ),
    Mutation(
        "a commit returns before it is on disk",
        "stores/sql/sqlite.py",
        '"synchronous = FULL"',
        '"synchronous = NORMAL"',
        "tests/stores/test_store_url.py::test_durability_settings_are_set_on_the_connection",
    ),
    # The conversation
    Mutation(
        "a publication that overlaps the position is accepted",
        "protocol/server_session.py",
        "if publication.prev != self.position:",
        "if publication.prev > self.position:",
        SESSION_PAIR + "test_gap_repair_that_starts_before_the_position_does_not_revive_dead_items",
    ),
    Mutation(
        "publications that arrive during a read are not compared with the sync",
        "protocol/server_session.py",
        """        for publication in self._queue.take_publications():
            self.publish(publication)
""",
        "",
        SERVER_SESSION + "test_publications_during_a_catch_up_are_sent_after_the_sync",
    ),
    Mutation(
        "a queue that overflows is dropped without a resync",
        "protocol/server_session.py",
        """        self._queue.drop_out_of_band()
        self._sync_from(self.cursor)
""",
        "        self._queue.drop_out_of_band()\n        self._queue.take_publications()\n",
        SESSION_PAIR + "test_slow_consumer_is_reset_and_misses_no_message",
    ),
    Mutation(
        "a sync in progress is given up when another one is needed",
        "protocol/delivery_state.py",
        """        case Paging((page, *_) as unsent, _, rest), SyncNeeded(cursor):
            is_taken = page.mode == "snapshot" or page.prev == cursor
            then = _following(cursor, unsent[-1].cursor) if is_taken else Lagging(cursor)
            return Paging(unsent, then, rest)
""",
        """        case Paging(), SyncNeeded(cursor):
            return Lagging(cursor)
""",
        SERVER_SESSION + "test_verify_during_a_sync_is_answered_after_its_last_page",
    ),
    Mutation(
        "a device that falls behind during its first sync gets a snapshot twice",
        "protocol/delivery_state.py",
        "SyncNeeded(sync.cursor if then.cursor == start else then.cursor)",
        "SyncNeeded(then.cursor)",
        SERVER_SESSION
        + "test_new_device_whose_queue_is_full_during_its_first_sync_gets_one_snapshot",
    ),
    Mutation(
        "a device that needs a sync during a snapshot gets a snapshot twice",
        "protocol/delivery_state.py",
        "Lagging(max(cursor, end) if cursor else 0)",
        "Lagging(cursor)",
        DELIVERY_STATE + "test_sync_that_is_needed_during_a_sync_starts_where_the_device_is_then",
    ),
    Mutation(
        "a device within changes is taken to be at their end",
        "protocol/delivery_state.py",
        'page.mode == "snapshot" or page.prev == cursor',
        "True",
        DELIVERY_STATE + "test_sync_that_is_needed_during_a_sync_starts_where_the_device_is_then",
    ),
    Mutation(
        "a conversation that is closed while it authenticates opens again",
        "protocol/handshake.py",
        "    Phase.CLOSED: {},",
        '    Phase.CLOSED: {"authenticated": Phase.OPEN},',
        SERVER_SESSION + "test_conversation_closed_during_authentication_stays_closed",
    ),
    Mutation(
        "a page of changes has the cursor of the whole sync",
        "protocol/frames.py",
        "cursor = chunk[-1].ctime if more else sync.cursor",
        "cursor = sync.cursor",
        SESSION_PAIR + "test_reconnect_between_two_pages_continues_after_the_first",
    ),
    Mutation(
        "a duplicate frame is applied again and moves the cursor back",
        "protocol/client_session.py",
        "        if cursor <= self.cursor:\n            return []",
        "        if cursor < 0:\n            return []",
        CLIENT_SESSION + "test_frame_up_to_the_cursor_is_not_applied_again",
    ),
    Mutation(
        "a sync that ends before an ignored frame is taken for complete",
        "protocol/sync_state.py",
        "return UpToDate() if highest <= page.cursor else Syncing(highest=highest)",
        "return UpToDate()",
        CLIENT_SESSION + "test_sync_that_ends_before_an_ignored_frame_is_requested_again",
    ),
    Mutation(
        "a frame that overtakes the welcome is forgotten",
        "protocol/sync_state.py",
        "            return after(Syncing(highest=highest), event)",
        "            return after(Syncing(), event)",
        CLIENT_SESSION + "test_frame_that_overtakes_the_welcome_is_not_forgotten",
    ),
    Mutation(
        "a conversation whose socket is ready overtakes its writer",
        "node/conversation.py",
        """        if self._writer is not None:
            return  # it asks the session again before it ends
""",
        "",
        "tests/node/test_conversation.py::test_nothing_is_written_directly_while_a_write_is_pending",
    ),
    Mutation(
        "small out-of-band messages to a slow consumer are not limited",
        "protocol/outbound_queue.py",
        "len(self._out_of_band) >= QUEUE_MESSAGES or ",
        "",
        "tests/protocol/test_outbound_queue.py"
        "::test_out_of_band_messages_are_limited_however_small",
    ),
    # The node
    Mutation(
        "a feed's position is that of its first device, not the lowest",
        "consumers/broadcaster.py",
        "(feed.position is None or position < feed.position)",
        "feed.position is None",
        BROADCASTER + "test_position_of_a_feed_is_the_lowest_one_of_its_devices",
    ),
    # The pub/sub
    Mutation(
        "subscriptions are not restored after a reconnect of the pub/sub",
        "pubsub/remote.py",
        "self._next_batch = _SubscriptionBatch(self._wanted_channels)",
        "self._next_batch = _SubscriptionBatch(self._heartbeat_channels)",
        PUBSUB_FAULTS + "test_all_subscriptions_are_restored_after_a_server_restart",
    ),
    Mutation(
        "missing heartbeats of the pub/sub are ignored",
        "pubsub/remote.py",
        "await self._check_heartbeat(2 * self._heartbeat_seconds)",
        "pass",
        PUBSUB_FAULTS + "test_blackholed_connection_is_detected",
    ),
    Mutation(
        "a reconnect of the pub/sub does not report an interruption",
        "pubsub/remote.py",
        """            self._incoming.put(Interrupted())
""",
        "",
        PUBSUB_FAULTS + "test_each_of_several_lost_connections_is_reestablished_and_reported",
    ),
    Mutation(
        "a channel counts as subscribed while it is being unsubscribed",
        "pubsub/remote.py",
        "        self._confirmed_channels.difference_update(old)\n",
        "",
        PUBSUB_REDIS + "test_last_of_overlapping_calls_wins",
    ),
    Mutation(
        "subscribe does not wait for the confirmation, on Redis",
        "pubsub/redis.py",
        "        await self._confirmed.wait()\n",
        "",
        PUBSUB_FAULTS + "test_pending_subscribe_returns_when_the_connection_breaks",
    ),
    Mutation(
        "subscribe does not wait for the confirmation, on NATS",
        "pubsub/nats.py",
        """= subscription
        await self._flush()
""",
        "= subscription\n",
        PUBSUB_FAULTS + "test_pending_subscribe_returns_when_the_connection_breaks",
    ),
    Mutation(
        "a server of the pub/sub that is frozen delays the others",
        "pubsub/first_open.py",
        "timeout=STAGGER_SECONDS if waiting else None",
        "timeout=None",
        SEVERAL_SERVERS + "test_frozen_and_dead_sentinels_do_not_matter",
    ),
    Mutation(
        "a replica that a Sentinel takes for the master is used",
        "pubsub/redis_sentinel.py",
        'if role != "master":',
        'if role == "unknown":',
        SEVERAL_SERVERS + "test_replica_that_a_sentinel_takes_for_the_master_is_not_used",
    ),
    Mutation(
        "passwords in URLs of the pub/sub are not decoded",
        "pubsub/server_url.py",
        "password=unquote(password)",
        "password=password",
        "tests/pubsub/test_nats.py::test_credentials_in_the_url_are_percent_decoded",
    ),
    Mutation(
        "only the first reason of an outage of the pub/sub is logged",
        "pubsub/remote.py",
        "if reason not in self._logged_reasons:",
        "if not self._logged_reasons:",
        PUBSUB_FAULTS + "test_each_new_reason_of_an_outage_is_logged_and_counted_without_secrets",
    ),
    Mutation(
        "the sweep stays slow while the pub/sub is split",
        "node/gap_repair.py",
        "seconds = min(seconds, SUSPICION_SWEEP_SECONDS)",
        "pass",
        SPLIT + "test_message_is_delivered_within_a_fast_sweep_while_a_peer_is_silent",
    ),
    Mutation(
        "what the sweep finds is no sign of a split pub/sub",
        "node/gap_repair.py",
        "            self._peers.notice_loss()\n",
        "            pass\n",
        SPLIT + "test_split_that_exists_from_the_start_is_noticed_by_what_the_sweep_finds",
    ),
    Mutation(
        "a node that shuts down counts as silent",
        "consumers/peers.py",
        "if probe.leaving:",
        "if not probe.node:",
        SPLIT + "test_node_that_shuts_down_is_not_missed",
    ),
    # The client
    Mutation(
        "an acknowledged message leaves the outbox before the cursor reaches it",
        "client/outbox.py",
        "_second_until(self.acknowledged, cursor)",
        "[msg_id for _, msg_id in self.acknowledged]",
        REPLICA + "test_acknowledged_message_is_shown_with_its_ctime_until_cursor_reaches_it",
    ),
    Mutation(
        "tombstones from the node dismiss unsent messages",
        "client/replica.py",
        "shown=derived.shown.without_tombstones()",
        "shown=derived.shown",
        REPLICA + "test_dismissal_that_is_acknowledged_does_not_dismiss_unsent_message",
    ),
    Mutation(
        "only the echoed message is marked as echoed, not those before it",
        "client/outbox.py",
        "[self.by_id[id_] for id_ in _second_until(self.unechoed, last)]",
        "[self.by_id[id_] for number, id_ in self.unechoed if number == last]",
        REPLICA + "test_message_written_before_an_echoed_one_is_not_shown_from_outbox",
    ),
    Mutation(
        "an unsent item that is dismissed with its category survives",
        "client/replica.py",
        "return naming_also(meant, self._meant_beyond_instants(message, meant, now))",
        "return meant",
        KEYS_AND_TIME + "test_everything_up_to_now_includes_what_is_not_yet_sent",
    ),
    Mutation(
        "what has begun since a device was told of it survives the dismissal of its category",
        "client/replica.py",
        "return not is_told or (compares_time(clause) and item.time > self.cursor)",
        "return not is_told",
        KEYS_AND_TIME + "test_category_dismissal_takes_what_has_begun_since_the_device_was_told",
    ),
    Mutation(
        "a dismissed key reaches what only another device shows",
        "client/client.py",
        "UNKNOWN_UID, *keys, end_time=end_time, device_id=self._device_id, msg_id=msg_id",
        "UNKNOWN_UID, *keys, end_time=end_time, msg_id=msg_id",
        KEYS_AND_TIME
        + "test_dismissed_key_leaves_what_this_device_has_not_seen_and_what_others_see",
    ),
    Mutation(
        "a device does not notice the instant of a start",
        "core/item_index.py",
        "while (key := keys.first_from(start)) is not None and key[0] <= until:",
        "while (key := keys.first_from(start)) is not None and key[0] < until:",
        KEYS_AND_TIME + "test_item_begins_on_devices_that_are_offline_at_that_moment",
    ),
    Mutation(
        "the hash of a replica has what has expired",
        "client/replica.py",
        "return self.facts.items.hash(as_of) == hash_",
        "return self.facts.items.hash(0) == hash_",
        REPLICA + "test_hash_of_a_replica_is_of_what_is_live_when_the_node_read_it",
    ),
    Mutation(
        "offsets count from when a device has a network again",
        "client/replica.py",
        "meant = with_instants(message, now)",
        "meant = message",
        "tests/client/test_client.py::test_offsets_count_from_when_a_message_is_written",
    ),
    Mutation(
        "a put that is dead when it is stored leaves its predecessor",
        "client/outbox.py",
        "if message.key is None:",
        "if message.creation is not None:",
        REPLICA + "test_acknowledged_put_that_is_dead_has_replaced_its_predecessor",
    ),
    Mutation(
        "an item stays hidden when the put that hides it is rejected",
        "client/replica.py",
        "ids = frozenset(chain(changed, entry_ids, named, keyed))",
        "ids = frozenset(chain(changed, entry_ids, named))",
        REPLICA + "test_item_is_shown_again_when_the_unsent_put_or_dismissal_is_rejected",
    ),
    Mutation(
        "an unsent item stays dismissed when the cursor passes the end of a range",
        "client/replica.py",
        "updated.outbox.has_ends_after(cursor)",
        "updated.outbox.has_ends_after(self.cursor)",
        REPLICA + "test_unsent_item_is_shown_again_when_the_cursor_passes_the_end_of_a_dismissal",
    ),
    Mutation(
        "one item of a snapshot keeps the whole frame in memory",
        "protocol/client_session.py",
        "raw_body=item.raw_body.copy()",
        "raw_body=item.raw_body",
        "tests/protocol/test_client_session.py::"
        "test_item_of_a_snapshot_does_not_keep_its_frame_in_memory",
    ),
    # The outside of a client, and its clocks
    Mutation(
        "what hangs outside of a client is waited for",
        "client/outside.py",
        "asyncio.timeout(seconds)",
        "asyncio.timeout(None)",
        OUTSIDE + "test_device_goes_on_after_what_hangs[token]",
    ),
    Mutation(
        "what was cancelled outside of a client cancels it",
        "client/outside.py",
        "if _is_being_cancelled():",
        "if True:",
        OUTSIDE + "test_device_goes_on_and_converges_after_any_failure_outside",
    ),
    Mutation(
        "an error of a kind that nobody expects ends a client",
        "client/connection.py",
        "except Exception as error:",
        "except (Disconnected, GregorError, OSError) as error:",
        OUTSIDE + "test_device_goes_on_and_converges_after_any_failure_outside",
    ),
    Mutation(
        "a function that may give another token is given up",
        "client/connection.py",
        "if is_token_refused and isinstance(self._token, str):",
        "if is_token_refused:",
        "tests/client/test_connection.py::test_only_a_static_token_that_is_refused_is_final",
    ),
    Mutation(
        "a conversation without a welcome may be silent",
        "client/connection.py",
        "if self.session.is_up_to_date and self._user_confirmed:",
        "if self.session.is_up_to_date:",
        OUTSIDE + "test_device_goes_on_and_converges_after_an_absurd_answer",
    ),
    Mutation(
        "each failed attempt is logged",
        "client/connection.py",
        "elif is_first:",
        "else:",
        OUTSIDE + "test_outage_is_reported_and_logged_once_however_long_it_is",
    ),
    Mutation(
        "a server may send a device away for a day",
        "backoff.py",
        "min(max(0.0, seconds), MAX_DELAY_SECONDS)",
        "max(0.0, seconds)",
        OUTSIDE + "test_delay_that_a_server_asks_for_counts_up_to_a_minute",
    ),
    Mutation(
        "a delay is read from digits of every script",
        "backoff.py",
        "text.isascii() and text.isdigit()",
        "text.isdigit()",
        "tests/test_backoff.py::test_retry_after_is_a_number_of_seconds",
    ),
    Mutation(
        "an operation that fails ends the task that owns the replica",
        "client/client.py",
        "except Exception as error:  # noqa: BLE001 (the caller of the change gets it)",
        "except GregorError as error:",
        OUTSIDE + "test_operation_that_fails_fails_alone",
    ),
    Mutation(
        "a client waits in an event loop that is not its own",
        "client/own_loop.py",
        "if self._loop is not None and not self.is_running_here:",
        "if self._loop is None:",
        "tests/client/test_own_loop.py"
        "::test_call_from_another_event_loop_raises_at_once_and_harms_nothing",
    ),
    Mutation(
        "a device judges expiries by its wall clock",
        "client/node_clock.py",
        "return self._node.now(self._read())",
        "return self.wall()",
        NODE_CLOCK
        + "test_clock_of_a_device_changes_only_what_is_visible_near_a_start_or_an_expiry",
    ),
    Mutation(
        "a suspend is not noticed",
        "client/node_clock.py",
        "self.unexplained + max(0, jump)",
        "self.unexplained",
        NODE_CLOCK + "test_suspend_without_a_network_ends_items_within_half_a_minute",
    ),
    Mutation(
        "the offset of the node's clock is forgotten",
        "client/store.py",
        "device.clock_offset,",
        "0,",
        NODE_CLOCK + "test_device_whose_clock_is_wrong_shows_an_item_exactly_while_it_lives",
    ),
    Mutation(
        "the clocks of an issuer and a server must be equal",
        "server/auth.py",
        "LEEWAY = 30 * SECOND",
        "LEEWAY = 0 * SECOND",
        AUTH + "test_clock_of_the_issuer_may_differ_by_half_a_minute",
    ),
    Mutation(
        "a token that is not valid yet ends a device",
        "server/auth.py",
        'raise NotYetValid("the',
        'raise Unauthenticated("the',
        AUTH + "test_token_that_is_not_valid_yet_is_to_be_retried_and_an_expired_one_replaced",
    ),
    Mutation(
        "a claim of another type is converted",
        "server/auth.py",
        "msgspec.convert(decoded, _Claims)",
        "msgspec.convert(decoded, _Claims, strict=False)",
        AUTH + "test_invalid_token_is_rejected_on_every_endpoint",
    ),
    # A fleet of nodes
    Mutation(
        "the sweep never queries the users' clocks",
        "node/gap_repair.py",
        "if not positions and not self.waiting_for_store:",
        "if not self.waiting_for_store:",
        FLEET + "test_lost_publication_is_delivered_within_one_sweep",
    ),
    Mutation(
        "a sweep takes up to 1.5 times its interval",
        "node/gap_repair.py",
        "(0.5 + self._jitter() / 2)",
        "(0.5 + self._jitter())",
        FLEET + "test_lost_publication_is_delivered_within_one_sweep",
    ),
    Mutation(
        "the sweep treats publications in flight as lost",
        "node/gap_repair.py",
        "if out_of_sync and not interrupted:",
        "if out_of_sync and interrupted:",
        FLEET + "test_sweep_does_not_repair_a_message_in_flight",
    ),
    Mutation(
        "gaps of users are repaired one after the other",
        "node/gap_repair.py",
        "for _ in range(GAP_REPAIR_WORKERS)",
        "for _ in range(1)",
        FLEET + "test_concurrent_gap_repairs_are_limited_after_an_interruption",
    ),
    Mutation(
        "a user whose gap repair failed is not retried",
        "node/gap_repair.py",
        "        self._unrepaired[uid] = None",
        "        self._unrepaired.pop(uid, None)",
        FLEET + "test_unavailable_part_of_the_store_delays_only_its_own_users",
    ),
    Mutation(
        "a user without devices stays in the gap repair forever",
        "node/gap_repair.py",
        "for uid in self._unrepaired if uid in out_of_sync",
        "for uid in self._unrepaired",
        FLEET + "test_node_stops_waiting_for_store_when_the_user_disconnects",
    ),
    Mutation(
        "an interruption of the pub/sub is ignored",
        "consumers/relay.py",
        "                    self._on_interrupted()",
        "                    pass",
        FLEET + "test_missed_message_is_delivered_at_once_after_an_interruption",
    ),
    Mutation(
        "the end of the pub/sub does not end the node",
        "consumers/relay.py",
        "raise RuntimeError(",
        "print(",
        FLEET + "test_node_fails_when_pubsub_ends_without_error",
    ),
    Mutation(
        "envelopes: a feed advances ahead of the clock without asking the store",
        "consumers/relay.py",
        "return message.ctime <= latest",
        "return True",
        FLEET + "test_message_ahead_of_the_clock_is_not_believed_and_silences_nobody",
    ),
    Mutation(
        "envelopes: what is ahead of the clock is dropped, and the store is not asked",
        "consumers/relay.py",
        """                self._read_from_store(uid, "a ctime is ahead of this node's clock")
""",
        "                pass\n",
        FLEET + "test_replayed_message_from_the_future_is_delivered_from_store",
    ),
    Mutation(
        "envelopes: the signature is not checked",
        "consumers/channels.py",
        "if not compare_digest(signature, self._signature(channel, signed)):",
        "if not compare_digest(signature, signature):",
        FLEET + "test_payload_that_no_node_of_the_deployment_has_signed_is_refused",
    ),
    Mutation(
        "envelopes: the signature does not cover the channel",
        "consumers/channels.py",
        'signing.update(len(name).to_bytes(4, "big") + name)',
        'signing.update(b"" and name)',
        FLEET + "test_payload_that_no_node_of_the_deployment_has_signed_is_refused",
    ),
    Mutation(
        "envelopes: the end of the channel's name may be the beginning of what is signed",
        "consumers/channels.py",
        'signing.update(len(name).to_bytes(4, "big") + name)',
        "signing.update(name)",
        CHANNELS + "test_law_what_was_signed_is_refused_when_it_is_split_differently",
    ),
    Mutation(
        "envelopes: the signature does not cover the time",
        "consumers/channels.py",
        "        signing.update(signed)",
        "        signing.update(signed[TIME_BYTES:])",
        FLEET + "test_payload_that_no_node_of_the_deployment_has_signed_is_refused",
    ),
    Mutation(
        "envelopes: an out-of-band message can be published again at any time",
        "consumers/relay.py",
        "            return fresh\n",
        "            return True\n",
        FLEET + "test_out_of_band_message_that_is_published_again_later_is_refused",
    ),
    Mutation(
        "envelopes: a probe can be published again at any time",
        "consumers/peers.py",
        "if not received.fresh:",
        "if False:",
        PEERS + "test_probe_that_is_published_again_later_says_nothing",
    ),
    Mutation(
        "envelopes: all deployments use the same channels",
        "consumers/channels.py",
        'self.nodes = f"gregor:{deployment.id}:nodes"',
        'self.nodes = "gregor:0:nodes"',
        FLEET + "test_two_deployments_on_one_pubsub_do_not_hear_each_other",
    ),
    Mutation(
        "envelopes: a node signs before the others hear what is signed",
        "node/adoption.py",
        """        await asyncio.sleep(OVERLAP_SECONDS)
        self._publisher.channels = signed
""",
        "        self._publisher.channels = signed\n",
        FLEET + "test_nodes_adopt_the_deployment_while_they_run_and_lose_nothing",
    ),
    Mutation(
        "envelopes: what is not signed is believed for ever",
        "node/adoption.py",
        "        await self._relay.stop_hearing(unsigned)",
        "        await asyncio.sleep(0)",
        FLEET + "test_what_is_not_signed_is_believed_only_until_all_nodes_sign",
    ),
    Mutation(
        "envelopes: a node signs although an older one runs",
        "stores/sql/deployment.py",
        "node.revision < REVISION for node",
        "node.revision < '' for node",
        "tests/stores/test_deployment.py::"
        "test_deployment_is_not_used_while_a_node_runs_that_does_not_know_it",
    ),
    Mutation(
        "envelopes: the key of a deployment is shown",
        "core/deployment.py",
        "field(repr=False)",
        "field(repr=True)",
        CHANNELS + "test_key_of_a_deployment_is_not_shown",
    ),
    Mutation(
        "envelopes: a shard of another deployment is served",
        "shards/shard_map.py",
        "        if found != deployment:\n            raise",
        "        if False:\n            raise",
        "tests/shards/test_deployment.py::"
        "test_shard_of_another_deployment_is_refused_unless_it_is_empty",
    ),
    Mutation(
        "envelopes: a shard that is added keeps a deployment of its own",
        "shards/shard_map.py",
        "        if found[name] != deployment:",
        "        if False:",
        "tests/shards/test_deployment.py::test_shards_of_a_map_are_one_deployment",
    ),
    Mutation(
        "a channel is unsubscribed although its user has reconnected",
        "consumers/relay.py",
        """        self._idle_since.pop(uid, None)
""",
        "",
        FLEET + "test_device_that_reconnects_before_unsubscribe_stays_subscribed",
    ),
    Mutation(
        "a channel is subscribed while it is being unsubscribed",
        "consumers/relay.py",
        """        async with self._lock(uid):
            for channels in self._heard:
                await self._pubsub.subscribe""",
        "        if uid:\n            for channels in self._heard:\n"
        "                await self._pubsub.subscribe",
        FLEET + "test_device_that_reconnects_during_unsubscribe_is_subscribed_again",
    ),
    Mutation(
        "a channel is unsubscribed without a linger time",
        "consumers/relay.py",
        "since > _now() - self._linger_seconds",
        "since > _now()",
        FLEET + "test_flapping_device_causes_no_unsubscribe",
    ),
    Mutation(
        "a feed accepts any later message and skips gaps",
        "consumers/broadcaster.py",
        "new[0].message.prev != position",
        "new[0].message.ctime <= position",
        FLEET + "test_message_whose_commit_reply_is_delayed_is_delivered_in_ctime_order",
    ),
    Mutation(
        "an envelope above the size limit is parsed",
        "consumers/channels.py",
        "if len(payload) > MAX_PAYLOAD_BYTES:",
        "if not payload:",
        CHANNELS + "test_payload_that_is_too_large_is_refused_unread",
    ),
    Mutation(
        "the delay before reconnecting may be much longer than the outage",
        "backoff.py",
        "min(self._backoff.max_seconds, longest)",
        "self._backoff.max_seconds",
        "tests/test_backoff.py::test_delay_is_at_most_the_maximum_and_twice_the_outage",
    ),
    Mutation(
        "a producer retries an out-of-band message that may have been delivered",
        "client/calls.py",
        "(self._call.idempotent or not_processed)",
        "True",
        "tests/client/test_producer.py"
        "::test_out_of_band_message_that_may_be_delivered_is_not_retried",
    ),
    Mutation(
        "a message with an unknown field ends the session",
        "protocol/later_versions.py",
        "class _LenientDismissal(Dismissal, frozen=True, forbid_unknown_fields=False)",
        "class _LenientDismissal(Dismissal, frozen=True)",
        "tests/protocol/test_later_versions.py::test_unknown_fields_are_ignored_at_every_depth",
    ),
    Mutation(
        "the clocks of users whose buckets have moved are left out",
        "shards/state_machine.py",
        "return {**clocks, **await self._ctimes_once(moved)} if moved else clocks",
        "return clocks",
        SHARDED + "test_each_read_method_finds_user_whose_bucket_moved[ctimes]",
    ),
    # The edges of HTTP, server-sent events and the producers
    Mutation(
        "a consume with a message that is not JSON is malformed",
        "protocol/frames.py",
        'if "messages" not in fields:',
        "if fields:",
        ENTRIES + "test_exactly_the_bad_messages_of_a_consume_are_rejected",
    ),
    Mutation(
        "commas and brackets in a string separate entries",
        "protocol/json_parts.py",
        r"""_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'""",
        """_STRING = rb'"'""",
        "tests/protocol/test_json_parts.py::test_elements_are_what_stands_between_the_commas",
    ),
    Mutation(
        "an error about a consume has no number",
        "protocol/server_session.py",
        'Error.of(error, consume_number(text or ""))',
        "Error.of(error)",
        SERVER_SESSION + "test_error_about_a_consume_carries_its_number",
    ),
    Mutation(
        "a forbidden uid forbids all",
        "protocol/entries.py",
        'return Rejected(None, Forbidden("this token belongs to another user", field=place))',
        'raise Forbidden("this token belongs to another user", field=place)',
        ENTRIES + "test_invalid_or_forbidden_uid_costs_itself",
    ),
    Mutation(
        "a duration of 400 digits overflows",
        "core/instant.py",
        "round(min(microseconds, MAX_TIME + 1))",
        "round(microseconds)",
        "tests/core/test_instant.py::test_absurd_times_and_offsets_are_refused",
    ),
    Mutation(
        "a single message in conflict is answered with 200",
        "server/http.py",
        "    if isinstance(outcome, Rejected):\n        raise outcome.error\n",
        "",
        HTTP + "test_repeated_message_is_duplicate_and_other_contents_are_conflict",
    ),
    Mutation(
        "of a parameter that is given twice, the last one counts",
        "server/http.py",
        "if name in names and name not in repeatable:",
        "if False:",
        HTTP + "test_parameter_that_is_repeated_or_not_utf8_or_unknown_is_rejected_and_named",
    ),
    Mutation(
        "bytes in a URL that are not UTF-8 are replaced",
        "server/http.py",
        '_check_utf8("uid", unquote_to_bytes(request.scope.get("raw_path") or b""))',
        "pass",
        HTTP + "test_invalid_uid_in_url_is_rejected",
    ),
    Mutation(
        "an event has the line breaks of a body",
        "server/sse.py",
        "json_line(send.text)",
        "send.text",
        SSE + "test_body_with_line_breaks_between_its_tokens_is_one_line",
    ),
    Mutation(
        "an id that is no cursor ends an event stream",
        "server/sse.py",
        "return int(last) if is_cursor(last) else 0",
        "return int(last)",
        SSE + "test_strange_or_stale_last_event_id_means_from_the_beginning",
    ),
    Mutation(
        "all browsers come back at once",
        "server/sse.py",
        "_reconnect_ms(send.frame) * (0.5 + jitter() / 2)",
        "_reconnect_ms(send.frame)",
        SSE + "test_stream_begins_with_welcome_and_a_random_time_to_come_back",
    ),
    Mutation(
        "a browser is refused while a server stops",
        "server/sse.py",
        "only_event(Error.of(error)) if error.action is Action.RETRY else problem(error)",
        "problem(error)",
        SSE + "test_stream_that_cannot_begin_now_is_an_event_that_says_when_to_come_back",
    ),
    Mutation(
        "HTTP/1.0 gets chunks",
        "server/http10.py",
        'if self.scope["http_version"] == "1.0"',
        'if self.scope["http_version"] == "0.9"',
        SSE + "test_http_1_0_gets_no_chunks",
    ),
    Mutation(
        "forked processes share their connections",
        "client/per_process.py",
        """        owned = self._owned
        if owned.pid != os.getpid():""",
        """        owned = self._owned
        if owned.pid == 0:""",
        PRODUCER + "test_forked_processes_get_their_own_answers",
    ),
    Mutation(
        "an answer to another request is returned",
        "client/calls.py",
        "    _require(all(map(_is_result_of, sent, answer.results)))\n",
        "",
        PRODUCER + "test_answer_to_another_request_is_retried",
    ),
    Mutation(
        "a producer waits forever in another event loop",
        "client/producer.py",
        "if self._loop is not loop:",
        "if loop is None:",
        PRODUCER + "test_producer_in_another_event_loop_raises_at_once",
    ),
    Mutation(
        "the host of a mounted server stops before the drain",
        "server/going_away.py",
        "    await drain()\n    signals.pass_on(number)\n",
        "    signals.pass_on(number)\n    await drain()\n",
        "tests/server/test_going_away.py::test_first_signal_drains_before_the_host_gets_it",
    ),
    Mutation(
        "a server that was told to stop does not serve for its lame-duck time",
        "server/service.py",
        "        await asyncio.sleep(seconds)\n",
        "        await asyncio.sleep(0)\n",
        LAME_DUCK + "test_lame_duck_is_unready_but_admits_and_stores_as_before",
    ),
    Mutation(
        "a host that stops waits for the lame-duck time",
        "server/app.py",
        "        if not self.service.readiness.stopping:\n            await",
        "        if True:\n            await",
        LAME_DUCK + "test_host_that_stops_during_the_lame_duck_time_does_not_wait_for_it",
    ),
    Mutation(
        "an event stream takes the last file descriptors",
        "server/http.py",
        "    service.open_connections.require_room_for_device()\n",
        "",
        DESCRIPTORS + "test_event_stream_is_refused_as_an_event_that_says_when_to_come_back",
    ),
    Mutation(
        "each refused connection is a line in the log",
        "server/refusals.py",
        "if now - self._logged_at >= LOG_INTERVAL_SECONDS:",
        "if now >= self._logged_at:",
        DESCRIPTORS + "test_refusals_are_logged_once_and_then_as_a_rate",
    ),
    Mutation(
        "workers without a writable folder end in a traceback",
        "server/workers.py",
        "        with suppress(OSError):\n            folder",
        "        with suppress(KeyError):\n            folder",
        "tests/server/test_workers.py::"
        "test_no_writable_folder_for_workers_is_one_sentence_that_names_tmpdir",
    ),
    Mutation(
        "a device that reads nothing outlasts the drain",
        "server/connections.py",
        '            tasks[task].end(TooSlow("the device did not read its goaway"))',
        "            pass",
        "tests/server/test_drain.py::test_device_that_reads_nothing_does_not_outlast_the_drain",
    ),
    Mutation(
        "idle connections are closed when clients still use them",
        "server/composition.py",
        "        keep_alive=settings.keep_alive_seconds,\n",
        "",
        "tests/server/test_acceptor.py::test_each_setting_is_a_limit",
    ),
    # Connections
    Mutation(
        "a head may be of any size",
        "server/guarded_http.py",
        "if self._other_bytes > HEAD_BYTES + self._body_bytes:",
        "if self._other_bytes > HEAD_BYTES * HEAD_BYTES:",
        GUARDED_HTTP + "test_head_beyond_the_limit_is_refused_and_ends_the_connection",
    ),
    Mutation(
        "each byte of a head gains time",
        "server/guarded_http.py",
        "if self._phase is RequestPhase.IDLE:\n            self._begin_head()",
        "if self._phase in (RequestPhase.IDLE, RequestPhase.HEAD):\n            self._begin_head()",
        GUARDED_HTTP + "test_byte_after_byte_gains_no_time",
    ),
    Mutation(
        "a slow line has no more time for a large body",
        "server/guarded_http.py",
        "allowed = self._body_seconds + self._body_bytes / BYTES_PER_SECOND",
        "allowed = self._body_seconds",
        GUARDED_HTTP + "test_slow_line_has_time_for_a_large_body",
    ),
    Mutation(
        "a client that reads no answer keeps its connection",
        "server/guarded_http.py",
        "        self._write_deadline.set(self._limits.write)\n",
        "",
        GUARDED_HTTP + "test_client_that_does_not_read_its_answer_is_disconnected",
    ),
    Mutation(
        "the thread for large requests never rests",
        "server/aside.py",
        "self._debt += seconds",
        "pass",
        "tests/server/test_aside.py::test_work_takes_at_most_half_of_the_time_but_for_a_burst",
    ),
    Mutation(
        "who sends a large request waits for all that others have sent before",
        "server/aside.py",
        "self._waiting[sender] = queued  # behind all others",
        "self._waiting[sender] = queued; self._waiting.move_to_end(sender, last=False)",
        "tests/server/test_aside.py::test_senders_take_turns",
    ),
    Mutation(
        "all of a body that is dropped is read in one turn of the event loop",
        "server/guarded_http.py",
        "            self.flow.rest(max(rest, DROP_PAUSE_SECONDS))\n",
        "            pass\n",
        GUARDED_HTTP + "test_a_body_that_is_dropped_is_read_with_pauses",
    ),
    Mutation(
        "a client that has reset its connection is an exception in the log",
        "server/half_close.py",
        "with suppress(OSError):",
        "with suppress(ZeroDivisionError):",
        "tests/server/test_half_close.py::test_connection_that_the_client_has_reset_can_be_ended",
    ),
    Mutation(
        "a WebSocket that says nothing makes no room",
        "server/socket.py",
        "        self._account.waits()\n",
        "",
        ACCEPTOR + "test_websockets_without_a_message_make_room_for_others",
    ),
    Mutation(
        "a body that does not come makes no room",
        "server/guarded_http.py",
        "if self._phase is RequestPhase.BODY or self.flow.write_paused:",
        "if self.flow.write_paused:",
        ACCEPTOR
        + "test_clients_that_do_not_go_on_make_room_after_a_while[a body that does not come]",
    ),
    Mutation(
        "an answer that is not taken makes no room",
        "server/guarded_http.py",
        "if self._phase is RequestPhase.BODY or self.flow.write_paused:",
        "if self._phase is RequestPhase.BODY:",
        ACCEPTOR + "test_clients_that_do_not_go_on_make_room_after_a_while"
        "[an answer that is not taken]",
    ),
    Mutation(
        "a request whose body comes is cut at once to make room",
        "server/open_connections.py",
        "return connection if self._clock() - since >= STALLED_SECONDS else None",
        "return connection",
        ACCEPTOR + "test_accepting_pauses_while_all_connections_are_busy_and_then_goes_on",
    ),
    Mutation(
        "all small chunks of a body are taken in one turn of the event loop",
        "server/guarded_http.py",
        "self._small_chunks > SMALL_CHUNKS",
        "False",
        GUARDED_HTTP + "test_small_chunks_that_are_not_taken_yet_have_a_deadline",
    ),
    Mutation(
        "what comes after many small chunks is lost",
        "server/guarded_http.py",
        "        if self._untaken and self._phase not in AFTER_THE_LAST:\n",
        "        if False:\n",
        GUARDED_HTTP + "test_body_of_many_small_chunks_is_taken_in_many_turns",
    ),
    Mutation(
        "a request that is answered before its body leaves its connection without a deadline",
        "server/guarded_http.py",
        "is here, it is the last one.\n            self.cycle.keep_alive = False\n",
        "is here, it is the last one.\n",
        GUARDED_HTTP
        + "test_request_that_is_answered_before_its_body_is_the_last_also_behind_another",
    ),
    Mutation(
        "a body that has not come is an error in the log when the server stops",
        "server/guarded_http.py",
        "            self._refuse(Unavailable(",
        "            print(Unavailable(",
        GUARDED_HTTP + "test_body_that_has_not_come_does_not_delay_the_stop_of_the_server",
    ),
    Mutation(
        "a client keeps its connection after its last answer",
        "server/guarded_http.py",
        "            self._droppable = DROPPED_BODY\n"
        "        self._enter(RequestPhase.END)\n"
        "        self._connections.become_ended(self._connection)\n",
        "            self._droppable = DROPPED_BODY\n        self._enter(RequestPhase.END)\n",
        ACCEPTOR + "test_clients_that_have_had_their_last_answer_make_room_at_once",
    ),
    Mutation(
        "an event stream takes a body without an end",
        "server/http.py",
        "    if has_body(request.headers):\n",
        "    if False:\n",
        "tests/server/test_sse.py::test_request_for_events_with_a_body_is_refused",
    ),
    Mutation(
        "a client that nobody knows may send a large message",
        "server/socket.py",
        "FrameReader(min(FIRST_MESSAGE, shared.max_size))",
        "FrameReader(shared.max_size)",
        SOCKET + "test_first_message_is_smaller_than_later_ones",
    ),
    Mutation(
        "a probe shows room on a full disk",
        "stores/sql/state_machine.py",
        "            connection.execute(statements.TAKE_LEASE, **lease, duration=0)\n",
        "",
        "tests/server/test_told_to_peers.py::"
        "test_full_disk_names_no_file_to_peers_and_is_not_ready_until_there_is_room",
    ),
    Mutation(
        "a write that fails shows in the readiness a moment later",
        "server/readiness.py",
        "known = self._node.state_machine.known_problems()",
        "known: list[str] = []",
        "tests/server/test_told_to_peers.py::"
        "test_full_disk_names_no_file_to_peers_and_is_not_ready_until_there_is_room",
    ),
    Mutation(
        "a body in small pieces is read piece by piece",
        "server/guarded_http.py",
        "UNFINISHED = frozenset({RequestPhase.HEAD, RequestPhase.BODY})",
        "UNFINISHED = frozenset({RequestPhase.HEAD})",
        GUARDED_HTTP + "test_head_and_body_in_small_pieces_are_read_with_rests",
    ),
    Mutation(
        "the pieces of all requests of a connection are counted together",
        "server/guarded_http.py",
        "        self._pace.complete()\n",
        "",
        GUARDED_HTTP + "test_requests_whose_bodies_follow_their_heads_do_not_rest",
    ),
    Mutation(
        "a connection that rests is read when the app asks for more",
        "server/read_pace.py",
        "        if self._resting is None:\n            super().resume_reading()",
        "        if True:\n            super().resume_reading()",
        "tests/server/test_read_pace.py::"
        "test_flow_that_rests_is_not_read_before_the_end_whatever_the_app_wants",
    ),
    Mutation(
        "a message in small pieces is read piece by piece",
        "server/socket.py",
        "reads = self._writable is None and not waits and self._resting is None",
        "reads = self._writable is None and not waits",
        SOCKET + "test_peer_that_sends_small_pieces_of_a_message_is_read_with_rests",
    ),
    Mutation(
        "what a WebSocket drops is read without pauses",
        "server/socket.py",
        "                reads = self._resting is None\n",
        "                reads = True\n",
        SOCKET + "test_what_is_dropped_is_read_with_pauses",
    ),
    Mutation(
        "an answer before the body is lost",
        "server/guarded_http.py",
        "            self._droppable = DROPPED_BODY\n",
        "            self._droppable = 0\n",
        GUARDED_HTTP + "test_answer_before_the_body_reaches_a_client_that_still_sends_it",
    ),
    Mutation(
        "a trailer becomes a header",
        "server/guarded_http.py",
        "        if self._phase is not RequestPhase.BODY:  # a trailer",
        "        if True:  # a trailer",
        GUARDED_HTTP + "test_trailer_is_no_header",
    ),
    Mutation(
        "a body that says to be too large is read",
        "server/http.py",
        "        _check_size(announced)\n",
        "        pass\n",
        GUARDED_HTTP + "test_body_that_says_to_be_too_large_is_refused_at_once",
    ),
    Mutation(
        "silent connections keep everybody out",
        "server/acceptor.py",
        "if not self._connections.has_room and not self._connections.shed():",
        "if not self._connections.has_room:",
        ACCEPTOR + "test_silent_connections_make_room_for_others",
    ),
    Mutation(
        "a connection is cancelled while it becomes HTTP",
        "server/acceptor.py",
        "await (_connect_whole(connection, connecting) if tls is None else connecting)",
        "await connecting",
        ACCEPTOR + "test_connection_that_comes_as_the_server_stops_does_not_hold_it_up",
    ),
    Mutation(
        "a connection that is aborted while it becomes HTTP goes on",
        "server/acceptor.py",
        "    if is_aborted:\n        transport.abort()\n",
        "",
        ACCEPTOR + "test_connection_that_comes_as_the_server_stops_does_not_hold_it_up",
    ),
    Mutation(
        "a connection that is cancelled before it becomes HTTP still counts",
        "server/acceptor.py",
        "is_http = not task.cancelled() and task.result()",
        "is_http = task.cancelled() or task.result()",
        ACCEPTOR + "test_connection_that_comes_as_the_server_stops_does_not_hold_it_up",
    ),
    Mutation(
        "a paused listener is not watched again",
        "server/acceptor.py",
        "        self._resuming = self._loop.call_later(PAUSE_SECONDS, self.start)\n",
        "",
        ACCEPTOR + "test_accepting_pauses_while_all_connections_are_busy_and_then_goes_on",
    ),
    Mutation(
        "idle connections go before those that never sent a request",
        "server/open_connections.py",
        "waiting := self._ended or self._silent or self._idle",
        "waiting := self._ended or self._idle or self._silent",
        ACCEPTOR + "test_idle_connections_make_room_after_those_that_never_sent_a_request",
    ),
    Mutation(
        "a WebSocket that has ended still counts",
        "server/guarded_http.py",
        "        self._connections.discard(self._connection)\n\n\nclass GuardedHTTP",
        "        pass\n\n\nclass GuardedHTTP",
        ACCEPTOR + "test_websocket_is_counted_until_it_ends",
    ),
    Mutation(
        "any client may say whom it forwards",
        "server/guarded_http.py",
        "if connection.peer in self._limits.trusted:",
        "if connection.peer:",
        ACCEPTOR + "test_forwarded_address_of_a_stranger_is_not_believed",
    ),
    Mutation(
        "the first forwarded address is believed",
        "server/client_address.py",
        "for text in reversed([*_x_forwarded_for(headers)] or [*_forwarded(headers)]):",
        "for text in [*_x_forwarded_for(headers)] or [*_forwarded(headers)]:",
        "tests/server/test_client_address.py::"
        "test_whatever_a_client_writes_its_address_is_what_the_proxy_saw",
    ),
    Mutation(
        "anybody may send a PROXY header",
        "server/acceptor.py",
        "if connection.peer not in self._limits.trusted:",
        "if not connection.peer:",
        ACCEPTOR + "test_proxy_header_of_a_stranger_is_refused",
    ),
    Mutation(
        "bytes after a PROXY header are taken with it",
        "server/acceptor.py",
        "sock.recv(header.size - len(data))",
        "sock.recv(MAX_V2)",
        ACCEPTOR + "test_one_address_has_so_many_connections_and_others_have_theirs",
    ),
    Mutation(
        "errors of an address are never refused",
        "server/peer_errors.py",
        "spent.now(self._clock()) < self._burst:",
        "spent.now(self._clock()) < self._burst * 100:",
        PEER_ERRORS + "test_law_no_address_makes_more_errors_than_its_bucket_allows",
    ),
    Mutation(
        "all users behind a proxy are refused together",
        "server/client_address.py",
        "if address is None or address.is_loopback or host in trusted:",
        "if address is None:",
        PEER_ERRORS + "test_addresses_that_stand_for_many_users_are_never_refused",
    ),
    Mutation(
        "bad tokens of devices leave no trace",
        "server/service.py",
        "            self.peer_errors.count(PeerError.AUTHENTICATION, CLIENT_HOST.get())\n",
        "",
        ACCEPTOR + "test_bad_token_of_a_device_is_counted",
    ),
    Mutation(
        "a new certificate is not read",
        "server/tls.py",
        "if self._stamp_now() != self._stamp:",
        "if not self._stamp:",
        "tests/server/test_tls.py::test_new_certificate_holds_for_new_connections",
    ),
    Mutation(
        "a peer writes lines of the log",
        "cli/log_format.py",
        "printable(record.getMessage()), None",
        "record.getMessage(), None",
        "tests/test_logging.py::"
        "test_what_a_peer_sends_neither_begins_a_line_nor_controls_the_terminal",
    ),
    Mutation(
        "text that only looks like JSON is sent as text",
        "cli/typed_body.py",
        "if _LIKE_JSON.match(typed) or isinstance(error, UnicodeError):",
        "if isinstance(error, UnicodeError):",
        "tests/cli/test_messages.py::test_body_that_only_looks_like_json_is_refused",
    ),
    Mutation(
        "of an option that is given twice, the last value counts",
        "cli/values_once.py",
        "if takes_one and given.count(option) > 1:",
        "if takes_one and not given:",
        "tests/cli/test_messages.py::test_wrong_usage_exits_with_2",
    ),
    # The authenticator
    Mutation(
        "an authenticator may take any time",
        "server/service.py",
        "asyncio.timeout(limit if seconds is None else min(limit, seconds))",
        "asyncio.timeout(None)",
        AUTHENTICATOR + "test_authenticator_that_hangs_is_unavailable",
    ),
    Mutation(
        "the time for the hello does not limit the authenticator",
        "server/service.py",
        "identity = await self.identify(token, seconds)",
        "identity = await self.identify(token)",
        AUTHENTICATOR + "test_wait_for_the_authenticator_counts_towards_the_hello_timeout",
    ),
    Mutation(
        "the log shows the token on which an authenticator failed",
        "server/service.py",
        "exc_info=failure",
        "exc_info=error",
        AUTHENTICATOR
        + "test_bug_of_the_authenticator_ends_one_connection_and_is_logged_without_the_token",
    ),
    Mutation(
        "an authenticator may give any uid",
        "server/service.py",
        ".identify(token)).validated()",
        ".identify(token))",
        AUTHENTICATOR + "test_identity_with_an_invalid_uid_is_refused",
    ),
    Mutation(
        "a server without authentication answers other machines",
        "server/app.py",
        "is_open = isinstance(authenticator, OpenAuthenticator)",
        "is_open = False",
        AUTH + "test_mounted_app_with_open_auth_answers_on_loopback_only",
    ),
    Mutation(
        "a device of schema 1 forgets which of its messages were echoed",
        "client/store_migrations.py",
        "_OutboxEntry(old.number, old.written, message, old.echoed)",
        "_OutboxEntry(old.number, old.written, message, False)",
        "tests/client/test_store.py::test_file_of_schema_1_keeps_replica_outbox_and_rejected_writes",
    ),
    Mutation(
        "a device answers a time before its last sync",
        "client/replica.py",
        "self._with(known_since=self.cursor)._without_expired(as_of)",
        "self._without_expired(as_of)",
        "tests/vectors/test_vectors.py::test_client_shows_keeps_reports_and_sends_what_the_vector_says",
    ),
    Mutation(
        "a device answers a time at which an item was visible that it has forgotten",
        "client/replica.py",
        "known_since=cursor if facts.dismissed else self.known_since",
        "known_since=self.known_since",
        REPLICA + "test_dismissals_leave_nothing_while_connected",
    ),
    Mutation(
        "a device keeps the tombstones of what it is told",
        "client/replica.py",
        "facts=Facts.of_live(self.facts.items.without_all(ids)),",
        "facts=structs.replace(self.facts, items=self.facts.items.without_all(ids)),",
        REPLICA + "test_dismissals_leave_nothing_while_connected",
    ),
    Mutation(
        "a device keeps expired items while it is connected",
        "client/replica.py",
        "forgotten, ids = applied._without_expired(cursor)",
        "forgotten, ids = applied, list[MsgID]()",
        REPLICA + "test_expired_items_are_forgotten_a_minute_later_by_what_a_node_told",
    ),
    Mutation(
        "a device hides its own message before it is told of it and of its end",
        "client/replica.py",
        'return result.status == "stored" and result.visible is False',
        "return result.visible is False",
        REPLICA + "test_duplicate_that_is_not_visible_any_more_is_shown_until_the_device_is_told",
    ),
    Mutation(
        "a message for another device stays in the outbox until something else happens",
        "client/replica.py",
        "return entry.acknowledged_part(self.device_id) is not None",
        "return True",
        REPLICA + "test_acknowledged_message_for_another_device_leaves_the_outbox_at_once",
    ),
    Mutation(
        "a commit that has not waited for the synchronous standby is acknowledged",
        "stores/sql/postgresql/database.py",
        "            if warnings:  # it has",
        "            if not result:  # it has",
        "tests/stores/test_failover.py"
        "::test_commit_whose_wait_for_the_standby_was_cancelled_is_not_acknowledged",
    ),
    Mutation(
        "a transaction that the server rolled back at the commit is acknowledged",
        "stores/sql/postgresql/database.py",
        'if done != "COMMIT":',
        'if done == "":',
        "tests/stores/test_postgresql.py"
        "::test_work_that_ignores_a_failed_statement_is_not_reported_as_committed",
    ),
    Mutation(
        "a read is answered by a demoted primary",
        "stores/sql/postgresql/role.py",
        "REPEATABLE READ READ WRITE; SET TRANSACTION READ ONLY",
        "REPEATABLE READ READ ONLY",
        "tests/stores/test_failover.py"
        "::test_read_is_refused_on_a_connection_that_leads_to_a_standby",
    ),
    Mutation(
        "readers stay with the old primary after a promotion",
        "stores/sql/postgresql/database.py",
        "for pool in (self._writer, self._readers):\n            if pool is not None:\n"
        "                await pool.expire()",
        "for pool in (self._writer,):\n            if pool is not None:\n"
        "                await pool.expire()",
        "tests/stores/test_failover.py"
        "::test_promotion_changes_the_history_and_replaces_all_connections",
    ),
    Mutation(
        "devices keep what a failover has lost",
        "node/gap_repair.py",
        "if history != self._history:",
        "if history is None:",
        "tests/node/test_node.py::test_devices_sync_again_when_the_store_has_another_history",
    ),
    Mutation(
        "a device whose cursor is ahead of the store is sent a snapshot that it ignores",
        "protocol/server_session.py",
        "(self._has_synced and sync.cursor < self.cursor):",
        "(self._has_synced and sync.cursor < 0):",
        "tests/protocol/test_server_session.py"
        "::test_device_connects_again_if_the_store_has_lost_what_it_received",
    ),
    Mutation(
        "a store that refuses writes is not a problem",
        "stores/sql/state_machine.py",
        "problems += self.writes.problems()",
        "problems += []",
        "tests/stores/test_write_health.py"
        "::test_full_disk_under_postgresql_is_a_problem_until_there_is_room",
    ),
    Mutation(
        "each failed write has a line in the log",
        "stores/sql/write_health.py",
        "if seconds >= LOG_INTERVAL_SECONDS:",
        "if seconds >= 0:",
        "tests/stores/test_write_health.py"
        "::test_failures_are_logged_once_and_then_at_most_once_a_minute",
    ),
    Mutation(
        "the tables of a new file differ from those of the migrations",
        "stores/sql/tables.py",
        '"CREATE INDEX users_of_bucket ON users (bucket)",',
        '"CREATE INDEX users_of_bucket ON users (uid, bucket)",',
        "tests/stores/test_migrations.py::test_migrations_create_the_tables_of_a_new_file[sqlite]",
    ),
    Mutation(
        "a defect in a dependency is reported as a missing extra",
        "extras.py",
        "if error.name not in extra.modules:",
        "if error.name is None:",
        "tests/test_extras.py::test_other_import_error_is_raised_unchanged[another extra]",
    ),
    Mutation(
        "a message that a migration has added ids to is a conflict when it is sent again",
        "core/message.py",
        "self.dismissal and self.dismissal.as_sent()",
        "self.dismissal",
        "tests/stores/test_migrations.py"
        "::test_items_killed_by_a_range_beyond_its_dismissal_stay_dead_and_are_named_in_it[sqlite]",
    ),
    Mutation(
        "items that an old range has killed are alive again after the migration",
        "stores/sql/migrations/versions/0004_ends_of_ranges.py",
        "        connection.execute(sa.update(messages).where(this).values(message=naming))\n",
        "        del naming\n",
        "tests/stores/test_migrations.py"
        "::test_items_killed_by_a_range_beyond_its_dismissal_stay_dead_and_are_named_in_it[sqlite]",
    ),
    Mutation(
        "a shard that is opened without its name is migrated",
        "stores/sql/migrations/__init__.py",
        "shard = None if self.may_be_shard else _shard(connection, schema)",
        "shard = None",
        "tests/stores/test_migrations.py"
        "::test_shard_that_is_opened_without_its_name_is_not_migrated",
    ),
    Mutation(
        "a user without a bucket gets none",
        "stores/sql/migrations/versions/0006_users_have_buckets.py",
        "where(users.c.bucket < 0)",
        "where(users.c.bucket < -1)",
        "tests/stores/test_migrations.py"
        "::test_users_without_a_bucket_get_theirs_and_no_more_can_be_stored[sqlite]",
    ),
    Mutation(
        "the tables of a new file accept a user without a bucket",
        "stores/sql/tables.py",
        "CHECK (bucket >= 0)",
        "CHECK (bucket >= -1)",
        "tests/stores/test_migrations.py::test_new_file_stores_no_user_without_a_bucket",
    ),
    Mutation(
        "a node that has become too old goes on writing",
        "stores/sql/transactions.py",
        "for user in locked[:1]:",
        "for user in locked[:0]:",
        SCHEMA + "test_node_that_has_become_too_old_writes_nothing_and_says_why[sqlite]",
    ),
    Mutation(
        "the oldest writer is raised while batches of older code are under way",
        "stores/sql/migrations/__init__.py",
        """    wait_for_writers(connection)
""",
        "",
        SCHEMA + "test_switch_of_the_oldest_writer_waits_for_batches_under_way",
    ),
    Mutation(
        "a migration runs under nodes that cannot bear it",
        "stores/sql/migrations/__init__.py",
        "_require_no_node_before(OLDEST_WRITERS[NEWEST_REVISION], connection, schema)",
        "pass",
        SCHEMA + "test_migration_that_running_nodes_cannot_bear_is_refused_and_changes_nothing",
    ),
    Mutation(
        "messages in an envelope of a later version wait for the sweep",
        "consumers/relay.py",
        "        self._broadcaster.on_gap(uid)\n        times",
        "        times",
        FLEET
        + "test_messages_in_an_envelope_of_another_version_are_read_from_the_store_at_once"
        + "[with other fields]",
    ),
    Mutation(
        "segments are cut at the first dot of the category, not of what follows the prefix",
        "core/state.py",
        'segment, _, _ = category[len(prefix) :].partition(".")',
        'segment = category.partition(".")[0][len(prefix) :]',
        MEMORY + "test_counts_by_segment_cut_each_category_at_the_dot_after_the_prefix",
    ),
    Mutation(
        "several prefixes are counted by segment as if only the first were given",
        "server/http.py",
        'case "segment", (prefix,):',
        'case "segment", (prefix, *_):',
        HTTP + "test_count_by_anything_but_the_segments_of_one_prefix_is_refused",
    ),
    # Pages of a state, and keys
    Mutation(
        "a page token of another user is accepted",
        "server/page_token.py",
        "asked = msgspec.json.encode((self.uid, self.at, selection))",
        "asked = msgspec.json.encode((self.at, selection))",
        STATE_PAGES + "test_page_of_another_user_or_query_is_refused",
    ),
    Mutation(
        "a page token that is damaged is read as far as it can be",
        "server/page_token.py",
        "if self.token_of(start) == token:",
        "if start:",
        STATE_PAGES + "test_token_that_is_damaged_anywhere_is_refused",
    ),
    Mutation(
        "a later page of a state in memory is that of now",
        "stores/memory.py",
        "state = user.facts.state_at(query.device_id, start.as_of, start.known)",
        "state = user.facts.state(query.device_id, now)",
        STATE_PAGES + "test_state_that_changes_meanwhile_is_read_as_it_was",
    ),
    Mutation(
        "a later page of a state in SQL is that of now",
        "stores/sql/state_machine.py",
        "lambda c: read_next_state_page(c, uid, query, start))",
        "lambda c: read_state_page(c, uid, query, now, now))",
        STATE_PAGES + "test_state_that_changes_meanwhile_is_read_as_it_was",
    ),
    Mutation(
        "get prefers the item that all devices see to that of the device's own scope",
        "client/calls.py",
        "return by_scope.get(device_id) or by_scope.get(None)",
        "return by_scope.get(None) or by_scope.get(device_id)",
        PRODUCER + "test_get_prefers_the_scope_of_the_device",
    ),
    Mutation(
        "an item may be snoozed until its expiry",
        "client/snooze.py",
        "if item.expires_at is not None and until >= item.expires_at:",
        "if item.expires_at is not None and until > item.expires_at:",
        PRODUCER + "test_snooze_until_the_expiry_is_refused_and_just_before_is_not",
    ),
    # What became of an item, and why
    Mutation(
        "a death is explained by the author of the item that died",
        "core/item_history.py",
        "return ItemEvent(died_at, what, killer.cause, rule)",
        "return ItemEvent(died_at, what, Cause(killer.cause.msg_id, killer.cause.msg_id), rule)",
        ITEM_HISTORY + "test_law_the_named_rule_of_the_named_message_ends_the_item",
    ),
    Mutation(
        "a death is explained by the first range of its message, whether or not it covers the item",
        "core/item_history.py",
        "if range_.covers(item):",
        "if item.key is None:",
        ITEM_HISTORY + "test_each_rule",
    ),
    Mutation(
        "an item that has expired is said to have died of a later dismissal",
        "core/item_history.py",
        "if expires_at is not None and expires_at <= (now if died_at is None else died_at):",
        "if expires_at is not None and died_at is None and expires_at <= now:",
        ITEM_HISTORY + "test_a_story_with_a_start_and_an_expiry",
    ),
    Mutation(
        "a device is told the names of services",
        "server/http.py",
        "history if identity.role is Role.SERVICE else history.without_services()",
        "history",
        HISTORY_HTTP + "test_devices_ask_about_their_own_user_and_see_no_names_of_services",
    ),
    Mutation(
        "a message has the author of another message of its batch",
        "stores/sql/transactions.py",
        "json_of(stored), author)\n        if",
        "json_of(stored), [*(n.author for n in self._pending), author][0])\n        if",
        SQL + "test_each_message_of_a_batch_has_the_author_that_sent_it_first",
    ),
    # Erase: what devices and nodes hear
    Mutation(
        "erase: the epoch of a hello is not checked",
        "interfaces.py",
        "if epoch is not None and epoch < self.epoch:",
        "if False:",
        SERVER_SESSION + "test_first_answer_depends_on_the_epoch_and_then_on_the_token",
    ),
    Mutation(
        "erase: a device that has not said an epoch is taken for one from before",
        "interfaces.py",
        "if epoch is not None and epoch < self.epoch:",
        "if (epoch or 0) < self.epoch:",
        SERVER_SESSION + "test_first_answer_depends_on_the_epoch_and_then_on_the_token",
    ),
    Mutation(
        "erase: the time of a token is not compared",
        "interfaces.py",
        "issued_at is None or issued_at // SECOND <= self.erased_at // SECOND",
        "issued_at is None",
        NODE_ERASE + "test_token_from_up_to_the_second_of_the_erase_does_not_hold",
    ),
    Mutation(
        "erase: a token of the second of the erase still holds",
        "interfaces.py",
        "issued_at // SECOND <= self.erased_at // SECOND",
        "issued_at // SECOND < self.erased_at // SECOND",
        NODE_ERASE + "test_token_from_up_to_the_second_of_the_erase_does_not_hold",
    ),
    Mutation(
        "erase: the token is looked at before the epoch, so an old device is never told",
        "interfaces.py",
        "if epoch is not None and epoch < self.epoch:",
        "if epoch is not None and epoch < self.epoch and issued_at is not None:",
        SERVER_SESSION + "test_first_answer_depends_on_the_epoch_and_then_on_the_token",
    ),
    Mutation(
        "erase: other nodes are not told",
        "node/node.py",
        "await self._publisher.publish_erasure(uid)",
        "pass",
        NODE_ERASE + "test_devices_on_all_nodes_are_told_at_once_and_closed",
    ),
    Mutation(
        "erase: the notice of another node is believed without asking the store",
        "consumers/relay.py",
        "self._broadcaster.on_gap(uid)\n            case _:",
        "self._broadcaster.erase(uid, 2**53 - 1)\n            case _:",
        NODE_ERASE + "test_notice_of_an_erase_that_has_not_happened_ends_no_device",
    ),
    Mutation(
        "erase: a sync does not compare the epochs",
        "protocol/server_session.py",
        "if sync.epoch > self.epoch:",
        "if False:",
        SERVER_SESSION + "test_erase_that_was_not_heard_of_is_found_by_the_next_sync",
    ),
    Mutation(
        "erase: a consume does not carry the epoch of its connection",
        "node/conversation.py",
        "await self._host.inject(caller, entries, session.epoch)",
        "await self._host.inject(caller, entries)",
        NODE_ERASE + "test_consume_that_an_erase_overtakes_is_answered_by_it_and_stores_nothing",
    ),
    Mutation(
        "erase: a device may erase its user",
        "server/auth.py",
        "if self.role is not Role.SERVICE:",
        "if False:",
        HTTP_ERASE + "test_device_may_not_erase_its_user",
    ),
    Mutation(
        "erase: the address of a resource of a user is taken for a user",
        "server/routes.py",
        'if not _raw_path(scope).rpartition(b"/")[0].endswith(b"/v1/users"):',
        "if False:",
        HTTP_ERASE + "test_address_that_is_no_user_erases_nobody",
    ),
    Mutation(
        "erase: a made token does not say when it was made",
        "server/auth.py",
        '"iat": issued_at // SECOND,',
        "",
        AUTH + "test_made_token_says_when_it_was_made_and_has_an_id_of_its_own",
    ),
    Mutation(
        "erase: a device that says no epoch may write with the token that an erase has ended",
        "server/service.py",
        "return erasure.epoch if known is None else known",
        "return known",
        HTTP_ERASE + "test_write_with_a_token_that_an_erase_ends_meanwhile_is_not_stored",
    ),
    Mutation(
        "export: the deaths are left out whose dismissals are forgotten",
        "stores/sql/exports.py",
        "(_tombstones, _deaths, _messages, _pruned)",
        "(_tombstones, _messages, _pruned)",
        EXPORTS + "test_death_whose_dismissal_is_forgotten_is_exported",
    ),
    Mutation(
        "export: pages from before and after an erase are put together",
        "node/exporting.py",
        "while page.user.continues(first.user):",
        "while True:",
        EXPORTS + "test_erase_between_two_pages_leaves_nothing_of_the_user_in_the_export",
    ),
    Mutation(
        "import: a message is stamped as a new one",
        "stores/sql/transactions.py",
        "return message.stamp(message.ctime, max(message.prev, clock))",
        "return message.stamp_new(time.next_ctime(now), time.clock)",
        EXPORTS + "test_authors_and_digests_are_kept",
    ),
    Mutation(
        "import: a user is complete before all lines are in",
        "stores/sql/imports.py",
        "if part.ends and part.user.ctime",
        "if part.user.ctime",
        EXPORTS + "test_broken_line_is_named_and_loses_nothing_else",
    ),
    Mutation(
        "import: cursors of the other store go on after a merge",
        "stores/sql/imports.py",
        "if has_others and mark <= user.ctime:",
        "if False:",
        EXPORTS + "test_device_of_either_store_gets_a_snapshot_after_a_merge",
    ),
    Mutation(
        "origins: a page of another port is of the server's own origin",
        "server/origins.py",
        'return address == own != ""',
        'return address.partition(":")[0] == own.partition(":")[0]',
        ORIGINS + "test_page_may_use_the_server_that_it_comes_from",
    ),
    Mutation(
        "origins: a `*` stands for anything before a name",
        "server/origins.py",
        'r"(?:[a-z0-9_-]+\\.)+"',
        'r".*"',
        ORIGINS + "test_page_may_use_a_server_that_allows_its_origin",
    ),
    Mutation(
        "origins: a page can give a name of its own to a machine without authentication",
        "server/origins.py",
        "self._only_local or not _is_own(",
        "not _is_own(",
        ORIGINS + "test_page_of_this_machine_may_use_a_server_without_authentication",
    ),
    Mutation(
        "origins: pages of all origins connect devices",
        "server/entrance.py",
        "(*guards, self._no_room)",
        "(self._no_room,)",
        WEB_PAGES + "test_only_a_page_of_an_allowed_origin_may_connect_a_device",
    ),
    Mutation(
        "origins: a page may not send the header from which it resumes",
        "server/web_pages.py",
        '"Last-Event-ID", ',
        "",
        WEB_PAGES + "test_preflight_of_each_request_of_a_client",
    ),
    Mutation(
        "errors may be kept by browsers and proxies",
        "server/web_pages.py",
        'if event["type"] in ("http.response.start", "websocket.http.response.start"):',
        'if event.get("status", 500) < 400:',
        WEB_PAGES + "test_no_answer_is_kept_or_guessed_at",
    ),
    Mutation(
        "a device that writes over HTTP is not named as the author",
        "server/http.py",
        "identity.caller._replace(device_id=device_id)",
        "identity.caller",
        WEB_PAGES + "test_device_can_do_over_http_what_it_does_over_a_websocket",
    ),
    Mutation(
        "sockets: pongs wait in memory for a peer that reads nothing",
        "server/socket.py",
        "        if self._writable is None:\n            pongs =",
        "        if True:\n            pongs =",
        SOCKET
        + "test_peer_that_pings_and_reads_nothing_gets_one_pong_when_it_reads_and_is_not_read",
    ),
    Mutation(
        "sockets: a peer is read while it takes nothing",
        "server/socket.py",
        "reads = self._writable is None and not waits",
        "reads = not waits",
        SOCKET
        + "test_peer_that_pings_and_reads_nothing_gets_one_pong_when_it_reads_and_is_not_read",
    ),
    Mutation(
        "sockets: a peer is read while its messages wait",
        "server/socket.py",
        "reads = self._writable is None and not waits",
        "reads = self._writable is None",
        SOCKET + "test_peer_is_not_read_while_two_messages_wait_for_the_app",
    ),
    Mutation(
        "sockets: each ping of a flood gets a pong",
        "server/socket.py",
        "pings[-PONGS_PER_TURN:]",
        "pings",
        SOCKET + "test_flood_of_pings_gets_a_few_pongs_a_turn_and_is_not_read_meanwhile",
    ),
    Mutation(
        "sockets: all frames that are there are taken in one turn",
        "server/socket.py",
        "for _ in range(FRAMES_PER_TURN):",
        "for _ in range(1_000_000):",
        SOCKET + "test_flood_of_tiny_frames_delays_another_device_by_a_turn_at_most[pongs]",
    ),
    Mutation(
        "sockets: the app gets all messages that are there in one turn",
        "server/socket.py",
        "            self._take_more_soon()\n        return event",
        "            self._take()\n        return event",
        SOCKET + "test_flood_of_tiny_frames_delays_another_device_by_a_turn_at_most[texts]",
    ),
    Mutation(
        "sockets: the app goes on while frames are still taken",
        "server/socket.py",
        "        self._event = event\n",
        "        self._event = event\n        self._wake_app()\n",
        SOCKET + "test_app_has_one_message_a_turn_of_those_that_one_read_brings",
    ),
    Mutation(
        "sockets: the app is told of the end before all is put away",
        "server/socket.py",
        "self._loop.call_soon(self._wake_app)",
        "self._wake_app()",
        SOCKET + "test_app_is_told_of_the_end_when_all_is_put_away",
    ),
    Mutation(
        "futures: who waits for a thread waits a turn longer",
        "prompt_future.py",
        "elif asyncio.current_task(self.get_loop()) is None:",
        "elif False:",
        PROMPT_FUTURE + "test_who_awaits_goes_on_before_the_event_loop_has_set_its_result",
    ),
    Mutation(
        "futures: a task continues another one",
        "prompt_future.py",
        "elif asyncio.current_task(self.get_loop()) is None:",
        "elif True:",
        PROMPT_FUTURE + "test_callbacks_are_called_once_and_those_that_were_removed_are_not",
    ),
    Mutation(
        "futures: what a continued task has done waits for the next turn",
        "prompt_future.py",
        "if _turn.due is not None:",
        "if False:",
        PROMPT_FUTURE + "test_who_awaits_what_a_continued_task_has_done_goes_on_in_the_same_turn",
    ),
    Mutation(
        "futures: a task that is cancelled goes on before who cancels it",
        "prompt_future.py",
        "        _call_in_next_turn(self.get_loop(), self._take_calls())\n",
        "        self._call_back()\n",
        PROMPT_FUTURE + "test_time_out_is_one_for_who_awaits_too",
    ),
    Mutation(
        "sockets: a peer that does not answer a close stays",
        "server/socket.py",
        "        self._abort_in(CLOSE_SECONDS)\n",
        "",
        SOCKET + "test_peer_that_does_not_answer_a_close_is_disconnected",
    ),
    Mutation(
        "sockets: a dead peer stays",
        "server/socket.py",
        "if self._silent and self._is_reading:",
        "if False:",
        SOCKET + "test_peer_that_answers_pings_stays_and_one_that_does_not_is_closed",
    ),
    Mutation(
        "sockets: a peer that could not be read is taken for dead",
        "server/socket.py",
        "if self._silent and self._is_reading:",
        "if self._silent:",
        SOCKET + "test_peer_whose_pong_could_not_be_read_is_not_dead",
    ),
    Mutation(
        "frames: the size of a message has no limit",
        "server/websocket_frames.py",
        "len(self._message) + size > self.max_size",
        "False",
        WEBSOCKET_FRAMES
        + "test_violation_has_the_close_code_of_its_kind_before_its_payload_has_come"
        "[a message above the limit]",
    ),
    Mutation(
        "frames: only single frames have a limit",
        "server/websocket_frames.py",
        "len(self._message) + size > self.max_size",
        "size > self.max_size",
        WEBSOCKET_FRAMES
        + "test_violation_has_the_close_code_of_its_kind_before_its_payload_has_come"
        "[fragments above the limit]",
    ),
    Mutation(
        "frames: a message is not decoded as a whole",
        "server/websocket_frames.py",
        "return payload.decode()",
        'return payload.decode(errors="replace")',
        WEBSOCKET_FRAMES
        + "test_violation_has_the_close_code_of_its_kind_before_its_payload_has_come"
        "[a text that is not UTF-8]",
    ),
    Mutation(
        "frames: a frame needs no mask",
        "server/websocket_frames.py",
        "if not second & MASKED:",
        "if False:",
        WEBSOCKET_FRAMES
        + "test_violation_has_the_close_code_of_its_kind_before_its_payload_has_come[no mask]",
    ),
    Mutation(
        "frames: a message may begin inside another one",
        "server/websocket_frames.py",
        "(opcode == CONTINUATION) == (self._opcode == CONTINUATION)",
        "opcode == self._opcode == CONTINUATION",
        WEBSOCKET_FRAMES
        + "test_violation_has_the_close_code_of_its_kind_before_its_payload_has_come"
        "[a message inside another one]",
    ),
    Mutation(
        "a conversation wakes no writer for what came while one was busy",
        "node/conversation.py",
        "            self._writer = None\n\n",
        "\n",
        CONVERSATION + "test_device_that_says_hello_is_welcomed_and_synced",
    ),
    Mutation(
        "an ack is written by itself",
        "node/conversation.py",
        "if not self._is_storing:",
        "if True:",
        CONVERSATION + "test_device_gets_what_it_sends_and_the_ack_in_one_write",
    ),
    Mutation(
        "a device that waits for an ack gets nothing else meanwhile",
        "node/conversation.py",
        "            self._soon = self._loop.call_soon(self.wake)\n",
        "            pass\n",
        CONVERSATION + "test_device_that_waits_for_an_ack_gets_what_others_send_meanwhile",
    ),
    Mutation(
        "any number of large frames are written together",
        "node/conversation.py",
        "while size < WRITTEN_TOGETHER and isinstance(",
        "while isinstance(",
        CONVERSATION + "test_frames_are_written_together_until_they_are_large",
    ),
    Mutation(
        "a conversation that has ended is woken once more",
        "node/conversation.py",
        "(self._hello_timer, self._expiry, self._soon)",
        "(self._hello_timer, self._expiry)",
        CONVERSATION + "test_nothing_is_left_to_be_written_when_a_conversation_has_ended",
    ),
    Mutation(
        "a conversation goes on after a defect of its writer",
        "node/conversation.py",
        "            self._failure = failure\n            self.task.cancel()",
        "            self._failure = failure",
        CONVERSATION + "test_defect_of_the_writer_is_one_of_the_conversation",
    ),
    Mutation(
        "a conversation keeps the timer of its hello",
        "node/conversation.py",
        "            self._hello_timer.cancel()\n            self._hello_timer = None",
        "            self._hello_timer = None",
        CONVERSATION + "test_idle_conversation_has_one_task_and_no_timer",
    ),
    Mutation(
        "a commit that stores nothing shows that writes succeed",
        "stores/sql/state_machine.py",
        "if any(isinstance(outcome, Stored) for outcome in outcomes):",
        "if True:",
        "tests/stores/test_write_health.py::test_full_sqlite_file_is_a_problem_until_there_is_room",
    ),
    Mutation(
        "open access: a page may give this machine a name of its own",
        "server/loopback.py",
        "self._hosts.require(headers)\n        self._origins",
        "self._origins",
        LOOPBACK + "test_only_this_machine_is_answered",
    ),
    Mutation(
        "a page may give this machine a name of its own, and read the metrics",
        "server/loopback.py",
        "if server is not None and server.is_loopback and",
        "if False and",
        ADMIN + "test_loopback_admin_address_answers_to_names_of_this_machine",
    ),
    Mutation(
        "open access: a name that begins like an allowed one is answered",
        "server/hosts.py",
        "_HOST.fullmatch(host)",
        "_HOST.match(host)",
        "tests/server/test_hosts.py::test_server_answers_to_names_of_this_machine",
    ),
    Mutation(
        "open access: what a proxy forwards is answered",
        "server/loopback.py",
        "if _is_forwarded(headers):",
        "if False:",
        LOOPBACK + "test_only_this_machine_is_answered",
    ),
    Mutation(
        "open access: an image of another site may ask",
        "server/origins.py",
        'headers.get("sec-fetch-site") == "cross-site"',
        "False",
        LOOPBACK + "test_only_this_machine_is_answered",
    ),
    Mutation(
        "the public app has metrics",
        "server/routes.py",
        'Route("/readyz", public(http.get_ready), methods=["GET"])',
        'Route("/metrics", public(http.get_metrics), methods=["GET"])',
        ADMIN + "test_public_app_says_no_more_than_whether_it_is_alive_and_ready",
    ),
    Mutation(
        "a server with tokens has its metrics at the address of devices",
        "config.py",
        "return self.auth is Auth.OPEN and self.admin_address is None",
        "return self.admin_address is None",
        ADMIN + "test_metrics_are_where_the_settings_say",
    ),
    Mutation(
        "each question for the readiness is one to the store",
        "server/readiness.py",
        ">= FRESH_SECONDS",
        ">= 0",
        ADMIN + "test_crowd_that_asks_whether_a_server_is_ready_asks_the_store_once",
    ),
    Mutation(
        "peers are told what the store says",
        "errors.py",
        "super().__init__(message, detail=detail)",
        "super().__init__(detail)",
        "tests/server/test_told_to_peers.py"
        "::test_full_disk_names_no_file_to_peers_and_is_not_ready_until_there_is_room",
    ),
    Mutation(
        "any secret of 32 bytes starts a server",
        "server/jwt_secret.py",
        "if problem := _problem_of(secret):",
        "if (problem := _problem_of(secret)) and len(secret.encode()) < MIN_BYTES:",
        "tests/server/test_jwt_secret.py::test_secret_that_is_known_or_guessed_starts_no_server",
    ),
    Mutation(
        "the server does not look at its secret",
        "server/auth.py",
        "self._key = _key(validated_secret(secret))",
        "self._key = _key(secret)",
        "tests/server/test_jwt_secret.py::test_secret_that_is_known_or_guessed_starts_no_server",
    ),
    Mutation(
        "every account of the machine can read a new store",
        "stores/sql/private_file.py",
        "MODE = 0o600",
        "MODE = 0o644",
        "tests/stores/test_private_file.py::test_new_database_is_for_its_own_user",
    ),
    # Limits
    Mutation(
        "limits: a consume is taken after one that was refused",
        "protocol/consume_order.py",
        "if refused is not None and not _is_again(consume, refused):",
        "if False:",
        CONSUME_ORDER + "test_law_what_is_refused_and_sent_again_is_stored_in_the_order_of_writing",
    ),
    Mutation(
        "limits: a consume is taken after one that the store did not take",
        "protocol/server_session.py",
        "self._consumes.refused(n, error)",
        "pass",
        CONSUME_ORDER + "test_store_that_does_not_answer_is_waited_for_as_well",
    ),
    Mutation(
        "limits: a device of an earlier version is refused for ever",
        "protocol/consume_order.py",
        "return refused.first is not None and _first_id(consume) == refused.first",
        "return False",
        CONSUME_ORDER + "test_device_of_an_earlier_version_sends_the_same_with_the_next_number",
    ),
    Mutation(
        "limits: consumes wait for an out-of-band message that is not sent again",
        "protocol/consume_order.py",
        "if self._refused is None and not _is_out_of_band(consume):",
        "if self._refused is None:",
        CONSUME_ORDER + "test_nothing_waits_for_an_out_of_band_message_that_is_refused",
    ),
    Mutation(
        "limits: a device that reads no answers has any number of consumes in flight",
        "protocol/consume_order.py",
        "if self._most and len(self._unanswered) >= self._most:",
        "if False:",
        CONSUME_ORDER + "test_device_that_does_not_read_its_answers_has_few_consumes_in_flight",
    ),
    Mutation(
        "limits: the ids that ranges skip are not counted together",
        "protocol/counts.py",
        'sum(len(_list(range_, "skip_msg_ids")) for range_ in ranges)',
        "0",
        COUNTS + "test_one_part_too_many_rejects_this_message_alone[skip_msg_ids]",
    ),
    Mutation(
        "limits: a message is counted only when it is read",
        "protocol/entries.py",
        "        counts.check(json)\n        message",
        "        message",
        COUNTS + "test_one_part_too_many_rejects_this_message_alone[ranges]",
    ),
    Mutation(
        "limits: a bucket holds more than its burst",
        "core/rates.py",
        "return max(0, self._missing(key, at) + self._filling(tokens) - self._filling(self.burst))",
        "return max(0, self._missing(key, at) - self._filling(self.burst))",
        RATES + "test_law_in_no_period_is_more_taken_than_the_burst_and_what_flows_in",
    ),
    Mutation(
        "limits: full buckets are kept",
        "core/rates.py",
        "if full > at",
        "if full > 0",
        RATES + "test_full_buckets_are_forgotten",
    ),
    Mutation(
        "limits: what another process has stored does not count",
        "stores/sql/allowance.py",
        "if count.clock != user.ctime:",
        "if False:",
        ALLOWANCE + "test_what_another_process_has_stored_counts[sqlite]",
    ),
    Mutation(
        "the store is read for an event stream beyond the limit",
        "server/routes.py",
        "private(http.get_events, admit=http.admit_stream, refuse=refusal)",
        "private(http.get_events, refuse=refusal)",
        LIMITS + "test_nothing_is_read_for_an_event_stream_beyond_the_limit",
    ),
    Mutation(
        "limits: ids that another process has dismissed do not count",
        "stores/sql/allowance.py",
        "_held(row, row.written // MIN_ID_BYTES)",
        "_held(row, 0)",
        ALLOWANCE + "test_ids_that_another_process_has_dismissed_count[sqlite]",
    ),
    Mutation(
        "limits: a message that is known is rejected at the limit",
        "stores/sql/transactions.py",
        "case Rejected(error=InvalidMessage() | LimitExceeded()):",
        "case Rejected(error=InvalidMessage()):",
        ALLOWANCE + "test_message_that_is_sent_again_is_a_duplicate_at_the_limit[sqlite]",
    ),
    Mutation(
        "limits: a put in place of an item is rejected at the limit",
        "stores/sql/deaths.py",
        "        *(ItemKey(p.uid, p.msg_id) for p in predecessors),\n    }",
        "    }",
        ALLOWANCE + "test_put_that_takes_the_place_of_an_item_is_stored_at_the_limit[sqlite]",
    ),
    Mutation(
        "limits: a dismissal makes no place for what follows it",
        "stores/sql/transactions.py",
        "if not self.allowance.is_settled(message.uid):",
        "if False:",
        ALLOWANCE + "test_what_is_dismissed_in_a_batch_makes_place_in_it[sqlite]",
    ),
    Mutation(
        "limits: what a put replaces counts for what follows it",
        "stores/sql/allowance.py",
        "            if not has_expired(item.expires_at, account.at):\n",
        "            if item.dismissed_at == 0:\n",
        ALLOWANCE + "test_what_follows_a_refusal_in_its_batch_is_counted[sqlite]",
    ),
    Mutation(
        "limits: an item that arrives dead takes a place",
        "stores/sql/allowance.py",
        "if arrives or message.msg_id in named:",
        "if False:",
        ALLOWANCE + "test_item_that_arrives_dead_takes_no_place[sqlite]",
    ),
    Mutation(
        "limits: each id that is dismissed counts as a tombstone",
        "stores/sql/allowance.py",
        "tombstones = account.has.tombstones + deaths.tombstones.get(uid, 0)",
        "tombstones = account.most.tombstones",
        ALLOWANCE + "test_what_follows_a_refusal_in_its_batch_is_counted[sqlite]",
    ),
    Mutation(
        "limits: a tombstone counts when its item has arrived",
        "stores/sql/deaths.py",
        "    more.subtract(key.uid for key in arrived)\n",
        "",
        ALLOWANCE + "test_what_follows_a_refusal_in_its_batch_is_counted[sqlite]",
    ),
    Mutation(
        "limits: what has expired counts for ever",
        "stores/sql/allowance.py",
        "        if account.is_exact:\n",
        "        if True:\n",
        ALLOWANCE + "test_items_that_have_expired_do_not_count[sqlite]",
    ),
    Mutation(
        "limits: all that a user has is counted for each message that does not fit",
        "stores/sql/allowance.py",
        "account.at, account.is_exact = self._now, True",
        "account.at = self._now",
        ALLOWANCE + "test_all_is_counted_once_in_a_batch",
    ),
    Mutation(
        "a later part of a batch does not see the tombstones of an earlier one",
        "stores/sql/transactions.py",
        "        self._with_tombstones |= deaths.tombstones.keys()\n",
        "",
        ALLOWANCE + "test_item_is_dead_that_was_dismissed_before_a_message_that_is_refused[sqlite]",
    ),
    Mutation(
        "limits: of a batch beyond a rate, all is stored",
        "server/http.py",
        "read_entries(messages[:taken]",
        "read_entries(messages",
        LIMITS + "test_batch_beyond_the_rate_is_stored_up_to_a_message_and_not_after_it",
    ),
    Mutation(
        "limits: a verify costs nothing",
        "protocol/server_session.py",
        "error = self._rates.take_sync(self.uid)\n        if error is None:",
        "error = None\n        if error is None:",
        LIMITS + "test_sync_beyond_the_rate_ends_the_connection_with_when_to_come_back",
    ),
    Mutation(
        "limits: frames are read as fast as they come",
        "node/conversation.py",
        "await asyncio.sleep(wait)",
        "pass",
        LIMITS + "test_frames_beyond_the_rate_are_read_later_and_none_is_lost",
    ),
    Mutation(
        "limits: a user has any number of connections",
        "node/limiter.py",
        "if maximum and self._connected[name][uid] >= maximum:",
        "if False:",
        LIMITS + "test_connections_of_one_user_are_limited",
    ),
    Mutation(
        "limits: a device sends what it has to retry with a new number",
        "protocol/client_session.py",
        "self._last_consume = Answered(n - 1)",
        "pass",
        "tests/vectors/test_vectors.py",
    ),
    Mutation(
        "limits: a producer sends past a message that may be retried",
        "client/calls.py",
        "if message.uid in self._waiting:",
        "if False:",
        PRODUCER + "test_nothing_of_a_user_is_sent_past_a_message_that_may_be_retried",
    ),
    Mutation(
        "limits: a replay sends past a message that may be retried",
        "cli/ordered_sender.py",
        "if result.error is not None and result.should_retry:",
        "if False:",
        "tests/cli/test_replay.py::test_nothing_is_sent_past_a_message_that_may_be_retried",
    ),
    Mutation(
        "limits: a batch of a device that never fits is refused for a while, again and again",
        "node/limiter.py",
        "if messages > buckets.burst:",
        "if False:",
        LIMITS + "test_batch_of_more_than_ever_fit_is_refused_for_good_and_nothing_is_stored",
    ),
    Mutation(
        "limits: a producer does not split a batch that never fits",
        "client/calls.py",
        'self._most = _fewer(error, ("messages_per_second",), len(self._batch))',
        "raise error",
        PRODUCER
        + "test_more_messages_of_a_device_than_ever_fit_at_once_are_sent_in_several_requests",
    ),
    Mutation(
        "limits: the wait that is told for a body of unknown length is that of one piece",
        "node/limiter.py",
        "wait = buckets.wait(uid, buckets.burst, now)",
        "wait = buckets.wait(uid, size, now)",
        LIMITS + "test_body_of_unknown_length_is_taken_after_the_wait_that_is_told",
    ),
    Mutation(
        "limits: consumes in flight beyond the limit are not counted in the metric",
        "protocol/server_session.py",
        "return self._rates.exceeded(too_many)",
        "return too_many",
        LIMITS + "test_consumes_in_flight_beyond_the_limit_are_refused_and_counted",
    ),
    Mutation(
        "limits: a consume of a wrong size has another answer than the refused one before it",
        "protocol/server_session.py",
        "if (earlier := self._consumes.waiting(consume)) is not None:",
        "earlier = self._consumes.waiting(consume)\n"
        "        if earlier is not None and len(consume.messages) == 1:",
        CONSUME_ORDER + "test_later_consume_of_a_wrong_size_is_answered_as_the_refused_one",
    ),
    Mutation(
        "limits: the OpenAPI document states the default limits, whatever the server's are",
        "server/routes.py",
        "describe(service.limiter.limits)",
        "describe()",
        "tests/server/test_openapi.py::test_served_document_states_the_limits_of_the_server",
    ),
    Mutation(
        "limits: a node tells a limit that JavaScript cannot hold",
        "config.py",
        "LARGEST_COUNT = 2**53 - 1",
        "LARGEST_COUNT = 2**63 - 1",
        LIMITS + "test_limit_that_not_every_client_can_hold_is_refused",
    ),
]
