-- Records that the shared log could not take, oldest first.

CREATE TABLE records (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice
    doc    TEXT NOT NULL,
    origin TEXT NOT NULL,
    n      INTEGER NOT NULL,
    at_ms  INTEGER NOT NULL,                   -- when it was spooled
    record BLOB NOT NULL,
    crc    INTEGER NOT NULL                    -- CRC-32 of all that is above but the id
);
CREATE INDEX records_by_doc ON records (doc, id);

-- Records that are damaged. They stay where they are, for whoever can make sense of them.
CREATE TABLE quarantine (
    id    INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL
);
