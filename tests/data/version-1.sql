BEGIN TRANSACTION;
CREATE TABLE active_workouts (
    owner_id   TEXT PRIMARY KEY,
    workout_id TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO "active_workouts" VALUES('ana','leg-day');
CREATE TABLE answers (
    user_id TEXT NOT NULL,
    op_id   TEXT NOT NULL,
    answer  TEXT NOT NULL,
    at_ms   INTEGER NOT NULL,
    PRIMARY KEY (user_id, op_id)
) WITHOUT ROWID;
INSERT INTO "answers" VALUES('ana','7f0c2f4e-5c6f-4b57-9d0b-3a3b0c1e2d01','{"ok":true,"durability":"disk","workout":{"id":"leg-day","title":"Leg day","status":"planned","mode":"group","visibility":"private","owner_id":"ana","template_id":null,"template_version":null,"created_at":1795260710020,"started_at":null,"resumed_at":null,"ended_at":null,"active_ms":0,"exercises":[],"sets":[],"timers":{},"members":[{"user":{"id":"ana","name":"Ana"},"role":"owner","devices":[{"id":"phone","name":"Phone"}],"online":true}],"progress":{"ana":{"sets_done":0,"sets_planned":0,"volume_kg":0,"reps":0,"best":{},"records":[]}},"server_time":1795260710034,"version":1}}',1795260710034);
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
INSERT INTO "awards" VALUES('workout:leg-day','s1','e1rm','ana','name:squat',1.16666666666666671401e+02,NULL,1795260710057);
INSERT INTO "awards" VALUES('workout:leg-day','s1','volume','ana','name:squat',500.0,NULL,1795260710057);
INSERT INTO "awards" VALUES('workout:leg-day','s1','weight','ana','name:squat',100.0,NULL,1795260710057);
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
INSERT INTO "documents" VALUES('template:push','template','ana','Push',NULL,NULL,'private',NULL,NULL,NULL,1795260710069,NULL,NULL,0);
INSERT INTO "documents" VALUES('workout:leg-day','workout','ana','Leg day','active','group','private',1795260710020,1795260710050,NULL,1795260710034,NULL,NULL,0);
CREATE TABLE log (
    doc     TEXT NOT NULL REFERENCES documents,
    seq     INTEGER NOT NULL,
    yjs     BLOB NOT NULL,
    crc     INTEGER NOT NULL,
    entries TEXT NOT NULL,
    PRIMARY KEY (doc, seq)
) WITHOUT ROWID;
INSERT INTO "log" VALUES('template:push',1,X'0104968DCACAF3F5D807002801046D657461057469746C65017704507573682801046D657461086F776E65725F6964017703616E612801046D6574610A7669736962696C697479017707707269766174652801046D657461066C6F636B6564017900',2878628723,'[{"user_id":"ana","device_id":"phone","at_ms":1795260710069,"event":"template:create","op_id":null}]');
INSERT INTO "log" VALUES('template:push',2,X'010186E38181C1ECC703000401056E6F7465730E5761726D2075702066697273742E00',2128761070,'[{"user_id":"ana","device_id":"laptop","at_ms":1795260710078,"event":"sync-update","op_id":null}]');
INSERT INTO "log" VALUES('workout:leg-day',1,X'0107A0B590FDAEBDE50F002801046D657461057469746C650177074C6567206461792801046D657461086F776E65725F6964017703616E612801046D657461046D6F646501770567726F75702801046D6574610A7669736962696C697479017707707269766174652801046D65746106737461747573017707706C616E6E65642801046D6574610A637265617465645F6174017B427A1FDE07C840002801046D657461096163746976655F6D73017C0000000000',3156350474,'[{"user_id":"ana","device_id":"phone","at_ms":1795260710034,"event":"workout:create","op_id":"7f0c2f4e-5c6f-4b57-9d0b-3a3b0c1e2d01"}]');
INSERT INTO "log" VALUES('workout:leg-day',2,X'0105A0B590FDAEBDE50F07270109657865726369736573057371756174012800A0B590FDAEBDE50F07046E6F74650177002800A0B590FDAEBDE50F07067461726765740175002800A0B590FDAEBDE50F07046E616D6501770553717561742800A0B590FDAEBDE50F07056F72646572017702613000',1980825400,'[{"user_id":"ana","device_id":"phone","at_ms":1795260710044,"event":"workout:exercise:add","op_id":null}]');
INSERT INTO "log" VALUES('workout:leg-day',3,X'0103A0B590FDAEBDE50F0CA8A0B590FDAEBDE50F040177066163746976652801046D6574610A726573756D65645F6174017B427A1FDE07CA20002801046D6574610A737461727465645F6174017B427A1FDE07CA200001A0B590FDAEBDE50F010401',2636451741,'[{"user_id":"ana","device_id":"phone","at_ms":1795260710050,"event":"workout:start","op_id":null}]');
INSERT INTO "log" VALUES('workout:leg-day',4,X'0109A0B590FDAEBDE50F0F27010473657473027331012800A0B590FDAEBDE50F0F07757365725F6964017703616E612800A0B590FDAEBDE50F0F08657865726369736501770573717561742800A0B590FDAEBDE50F0F046B696E640177066E6F726D616C2800A0B590FDAEBDE50F0F097765696768745F6B67017C42C800002800A0B590FDAEBDE50F0F0472657073017C40A000002800A0B590FDAEBDE50F0F056F7264657201770261302800A0B590FDAEBDE50F0F0C636F6D706C657465645F6174017B427A1FDE07CA90002800A0B590FDAEBDE50F0F096465766963655F696401770570686F6E6500',2289359124,'[{"user_id":"ana","device_id":"phone","at_ms":1795260710057,"event":"workout:set:complete","op_id":null}]');
CREATE TABLE members (
    doc     TEXT NOT NULL REFERENCES documents,
    user_id TEXT NOT NULL,
    role    TEXT NOT NULL,
    name    TEXT NOT NULL,
    PRIMARY KEY (doc, user_id)
) WITHOUT ROWID;
INSERT INTO "members" VALUES('template:push','ana','owner','Ana');
INSERT INTO "members" VALUES('workout:leg-day','ana','owner','Ana');
INSERT INTO "members" VALUES('workout:leg-day','ben','coach','ben');
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
INSERT INTO "scores" VALUES('ana','name:squat','workout:leg-day','s1',500.0,100.0,1.16666666666666671401e+02,NULL,NULL);
CREATE INDEX members_by_user ON members (user_id);
CREATE INDEX answers_by_age ON answers (at_ms);
COMMIT;
PRAGMA user_version = 1;
