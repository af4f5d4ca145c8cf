-- Version 2: who writes under which Yjs client ID, exercises that were, and revocations.

-- Whose Yjs client writes under which ID; an empty user is the server.
CREATE TABLE client_ids (
    doc       TEXT NOT NULL REFERENCES documents,
    client_id INTEGER NOT NULL,
    user_id   TEXT NOT NULL,
    PRIMARY KEY (doc, client_id)
) WITHOUT ROWID;

-- Exercises that are not in the plan any more, but which sets may still name.
CREATE TABLE removed_exercises (
    doc         TEXT NOT NULL REFERENCES documents,
    exercise_id TEXT NOT NULL,
    PRIMARY KEY (doc, exercise_id)
) WITHOUT ROWID;

-- Tokens that are refused before their end. One by its id, or all of a user's that were
-- issued up to `issued_until`; at `until` they have run out by themselves.

CREATE TABLE revocations (
    kind         TEXT NOT NULL,               -- 'user' or 'token'
    id           TEXT NOT NULL,               -- a user's, or a token's (its jti)
    issued_until INTEGER NOT NULL,
    until        INTEGER NOT NULL,
    revoked_by   TEXT NOT NULL,
    revoked_at   INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE INDEX revocations_by_end ON revocations (until);
