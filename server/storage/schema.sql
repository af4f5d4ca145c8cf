-- Embedded storage, version 1. Times are milliseconds since the epoch.

CREATE TABLE documents (
    doc          TEXT PRIMARY KEY,
    kind         TEXT NOT NULL,
    owner_id     TEXT NOT NULL,
    title        TEXT NOT NULL,
    status       TEXT,
    mode         TEXT,
    visibility   TEXT NOT NULL,
    created_at   INTEGER,
    started_at   INTEGER,
    ended_at     INTEGER,
    listed_at    INTEGER NOT NULL,            -- when it was made here: the order of lists
    snapshot     BLOB,
    snapshot_crc INTEGER,
    snapshot_seq INTEGER NOT NULL DEFAULT 0   -- the log's positions up to here are in the snapshot
) WITHOUT ROWID;

-- The truth: Yjs updates in the order in which they were acked. `entries` tells who made them:
-- [{user_id, device_id, at_ms, event, op_id}], several where updates were merged.
CREATE TABLE log (
    doc     TEXT NOT NULL REFERENCES documents,
    seq     INTEGER NOT NULL,
    yjs     BLOB NOT NULL,
    crc     INTEGER NOT NULL,
    entries TEXT NOT NULL,
    PRIMARY KEY (doc, seq)
) WITHOUT ROWID;

CREATE TABLE members (
    doc     TEXT NOT NULL REFERENCES documents,
    user_id TEXT NOT NULL,
    role    TEXT NOT NULL,
    name    TEXT NOT NULL,
    PRIMARY KEY (doc, user_id)
) WITHOUT ROWID;
CREATE INDEX members_by_user ON members (user_id);

-- What each operation was answered, so that the same one sent again changes nothing.
CREATE TABLE answers (
    user_id TEXT NOT NULL,
    op_id   TEXT NOT NULL,
    answer  TEXT NOT NULL,
    at_ms   INTEGER NOT NULL,
    PRIMARY KEY (user_id, op_id)
) WITHOUT ROWID;
CREATE INDEX answers_by_age ON answers (at_ms);

-- The record book: what every set is worth now, and the records that sets have won for good.
CREATE TABLE scores (
    user_id  TEXT NOT NULL,
    exercise TEXT NOT NULL,
    doc      TEXT NOT NULL,
    set_id   TEXT NOT NULL,
    volume   REAL,
    weight   REAL,
    e1rm     REAL,
    reps     REAL,
    seconds  REAL,
    PRIMARY KEY (user_id, exercise, doc, set_id)
) WITHOUT ROWID;

CREATE TABLE awards (
    doc      TEXT NOT NULL,
    set_id   TEXT NOT NULL,
    type     TEXT NOT NULL,
    user_id  TEXT NOT NULL,
    exercise TEXT NOT NULL,
    value    REAL NOT NULL,
    previous REAL,
    at_ms    INTEGER NOT NULL,
    PRIMARY KEY (doc, set_id, type)
) WITHOUT ROWID;

-- One active or paused workout for each owner.
CREATE TABLE active_workouts (
    owner_id   TEXT PRIMARY KEY,
    workout_id TEXT NOT NULL
) WITHOUT ROWID;
