"""The tables of a store: their newest schema, as SQLite creates it.

A new file gets its tables from this text, because Alembic takes half a second to load. Other
databases are migrated. The migrations create the same tables; a test checks that they agree.
"""

OLDEST_WRITERS = {
    "0001": "0001",
    "0002": "0002",
    "0003": "0003",
    "0004": "0004",
    "0005": "0004",
    "0006": "0004",
    "0007": "0007",
    "0008": "0008",
    "0009": "0008",
}
"""Each revision of the schema, and the oldest code that may write to it: code is named by the
revision for which it was written. A migration that only adds (expand) keeps the oldest writer of
the one before, so that nodes can be rolled over it, and back. One that changes or removes what
older code uses (contract) names the oldest code that does not use it."""

NEWEST_REVISION = max(OLDEST_WRITERS)

CREATE_TABLES = (
    """
    CREATE TABLE users (
        uid TEXT NOT NULL,
        ctime BIGINT NOT NULL, -- the user's clock
        bucket INTEGER NOT NULL, -- see core/buckets.py
        hash TEXT, -- the sum of the live items that all devices see; NULL: not computed yet
        hashed_until BIGINT NOT NULL DEFAULT 0, -- items that expired up to then are not in the sums
        mark BIGINT NOT NULL DEFAULT 0, -- the clock after the last late replay
        floor BIGINT NOT NULL DEFAULT 0, -- what was past by then may be forgotten
        epoch BIGINT NOT NULL DEFAULT 0, -- the ctime of the last erase; 0: never
        erased_at BIGINT NOT NULL DEFAULT 0, -- tokens issued up to this second do not hold
        PRIMARY KEY (uid),
        CONSTRAINT users_have_buckets CHECK (bucket >= 0)
    )
    """,
    "CREATE INDEX users_of_bucket ON users (bucket)",
    # The sums of the live items that one device sees alone, of users whose hash is computed.
    """
    CREATE TABLE scope_hashes (
        uid TEXT NOT NULL,
        device_id TEXT NOT NULL,
        hash TEXT NOT NULL,
        PRIMARY KEY (uid, device_id)
    )
    """,
    """
    CREATE TABLE messages (
        uid TEXT NOT NULL,
        ctime BIGINT NOT NULL,
        prev BIGINT NOT NULL,
        msg_id TEXT NOT NULL,
        device_id TEXT,
        message TEXT NOT NULL, -- as it was sent
        -- Of creations only:
        category TEXT,
        expires_at BIGINT,
        dismissed_at BIGINT,
        key TEXT,
        starts_at BIGINT,
        author TEXT, -- who sent it; NULL: not known
        PRIMARY KEY (uid, ctime),
        UNIQUE (uid, msg_id)
    )
    """,
    # Live items only: the cost of a state and of a range dismissal is proportional to what is live,
    # however long the user's log is.
    """
    CREATE INDEX live_items ON messages (uid, expires_at, category, ctime)
    WHERE dismissed_at IS NULL AND category IS NOT NULL
    """,
    # The items that were live at a past time are live now, or have died since.
    "CREATE INDEX deaths ON messages (uid, dismissed_at) WHERE dismissed_at IS NOT NULL",
    # What can be pruned, besides the live items and the deaths, which are found above: dismissals,
    # which create no item, and items that were dismissed when they had expired.
    "CREATE INDEX dismissals ON messages (uid, ctime) WHERE category IS NULL",
    "CREATE INDEX late_deaths ON messages (uid, expires_at) WHERE dismissed_at > expires_at",
    # The item whose place a new one takes: of the same key and scope, with the next smaller ctime.
    """
    CREATE INDEX keyed_items ON messages (uid, key, coalesce(device_id, ''), ctime)
    WHERE key IS NOT NULL
    """,
    # What a key holds now, however often it was put: one item of each scope at most.
    """
    CREATE INDEX live_keys ON messages (uid, key, ctime)
    WHERE key IS NOT NULL AND dismissed_at IS NULL
    """,
    # The tombstones of items that have not arrived yet.
    """
    CREATE TABLE dismissed_ids (
        uid TEXT NOT NULL,
        msg_id TEXT NOT NULL,
        ctime BIGINT NOT NULL, -- of the dismissal
        PRIMARY KEY (uid, msg_id)
    )
    """,
    """
    CREATE TABLE dismissed_ranges (
        uid TEXT NOT NULL,
        ctime BIGINT NOT NULL, -- of the dismissal
        number INTEGER NOT NULL, -- of the range within the dismissal
        end_time BIGINT NOT NULL,
        category TEXT NOT NULL,
        prefix BOOLEAN NOT NULL,
        skip_msg_ids TEXT NOT NULL, -- a JSON array
        scheduled BOOLEAN NOT NULL DEFAULT false,
        PRIMARY KEY (uid, ctime, number)
    )
    """,
    # For a late replay, only the ranges whose end is at or after its ctime are read.
    "CREATE INDEX reaching_ranges ON dismissed_ranges (uid, end_time)",
    """
    CREATE TABLE dismissed_keys (
        uid TEXT NOT NULL,
        key TEXT NOT NULL,
        ctime BIGINT NOT NULL, -- of the dismissal
        end_time BIGINT NOT NULL,
        PRIMARY KEY (uid, key, ctime)
    )
    """,
    # The ids of messages whose contents are forgotten, so that they are not stored again. Clustered
    # by id, without another index: these rows are the most.
    """
    CREATE TABLE pruned (
        uid TEXT NOT NULL,
        msg_id TEXT NOT NULL,
        ctime BIGINT NOT NULL,
        digest TEXT NOT NULL, -- of the contents
        PRIMARY KEY (uid, msg_id)
    ) WITHOUT ROWID
    """,
    # Who does something that only one node may do at a time.
    """
    CREATE TABLE leases (
        name TEXT NOT NULL,
        holder TEXT NOT NULL,
        until BIGINT NOT NULL, -- by this database's clock
        PRIMARY KEY (name)
    )
    """,
    # Users of this shard who were erased, and the shards that may still have old copies of them.
    """
    CREATE TABLE pending_erasures (
        shard TEXT NOT NULL,
        uid TEXT NOT NULL,
        epoch BIGINT NOT NULL,
        erased_at BIGINT NOT NULL,
        PRIMARY KEY (shard, uid)
    )
    """,
    # The name of this shard; no row if the database is not one of several shards.
    "CREATE TABLE shard (name TEXT NOT NULL, PRIMARY KEY (name))",
    # The shard map as far as this database knows it; no rows if it holds all buckets. Of the
    # buckets that it released itself it always knows.
    """
    CREATE TABLE buckets (
        bucket INTEGER NOT NULL,
        shard TEXT NOT NULL,
        version BIGINT NOT NULL, -- the higher version takes precedence
        closed_until BIGINT NOT NULL, -- for writes, by this database's clock
        PRIMARY KEY (bucket)
    )
    """,
    # The oldest code that may write, by the revision it was written for. One row, which the code of
    # every later version must be able to read.
    "CREATE TABLE oldest_writer (revision TEXT NOT NULL, PRIMARY KEY (revision))",
    f"INSERT INTO oldest_writer (revision) VALUES ('{OLDEST_WRITERS[NEWEST_REVISION]}')",
    # The nodes that run on this database. A file belongs to one process, and has none.
    """
    CREATE TABLE nodes (
        name TEXT NOT NULL,
        revision TEXT NOT NULL, -- for which its code was written
        seen_at BIGINT NOT NULL, -- by this database's clock
        PRIMARY KEY (name)
    )
    """,
    # Which deployment this database belongs to. One row; none in a shard until all shards are told
    # the same.
    """
    CREATE TABLE deployment (
        number INTEGER NOT NULL,
        id TEXT NOT NULL, -- in the names of channels
        key TEXT NOT NULL, -- hexadecimal, secret: nodes sign with it what they publish
        PRIMARY KEY (number),
        CONSTRAINT one_deployment CHECK (number = 1)
    )
    """,
    # The schema's revision, as Alembic keeps it.
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, PRIMARY KEY (version_num))",
    f"INSERT INTO alembic_version (version_num) VALUES ('{NEWEST_REVISION}')",
)
