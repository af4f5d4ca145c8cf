-- Version 3: who and what was erased, so that it cannot come back.

-- What names are hidden with where they may only be recognised.
CREATE TABLE salts (
    name TEXT PRIMARY KEY,
    salt TEXT NOT NULL
) WITHOUT ROWID;

-- Documents that were deleted with their owner; nobody can make them again. `id` is hidden.
CREATE TABLE tombstones (
    id    TEXT PRIMARY KEY,
    at_ms INTEGER NOT NULL
) WITHOUT ROWID;

-- Erasures of users, asked for by whoever has the file open. `id` is the user's, hidden; `user_id`
-- is there until nothing else is. Tokens that were issued until then are refused for ever.
CREATE TABLE erasures (
    id           TEXT PRIMARY KEY,
    user_id      TEXT,
    issued_until INTEGER NOT NULL,
    done_at      INTEGER,
    report       TEXT NOT NULL,
    error        TEXT
) WITHOUT ROWID;
