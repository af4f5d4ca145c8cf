-- Version 2: tokens that are refused before their end. One by its id, or all of a user's that were
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
