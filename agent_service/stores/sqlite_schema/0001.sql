-- Version 1. Times are Unix nanoseconds. `codec` is the version of the JSON in `body`. Every row of a tenant is found
-- through its tenant: ids are unique per tenant, keys are internal.

CREATE TABLE conversations (
    conversation_key INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    next_position INTEGER NOT NULL DEFAULT 1,
    create_time INTEGER NOT NULL,
    labels TEXT NOT NULL DEFAULT '{}',
    UNIQUE (tenant, conversation_id)
) STRICT;

CREATE INDEX conversations_by_time ON conversations (tenant, create_time, conversation_id);

CREATE TABLE agents (
    tenant TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    codec INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (tenant, agent_id)
) STRICT;

CREATE TABLE pins (
    pin_key INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    codec INTEGER NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (tenant, sha256)
) STRICT;

CREATE TABLE runs (
    run_key INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    run_id TEXT NOT NULL,
    conversation_key INTEGER NOT NULL REFERENCES conversations,
    pin_key INTEGER NOT NULL REFERENCES pins,
    agent_id TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN (
        'queued', 'running', 'paused', 'interrupted', 'completed', 'failed', 'cancelled', 'expired')),
    epoch INTEGER NOT NULL,
    owner TEXT NOT NULL,
    lease_expire_time INTEGER NOT NULL,
    pause_expire_time INTEGER NOT NULL DEFAULT 0,
    last_sequence INTEGER NOT NULL,
    create_time INTEGER NOT NULL,
    codec INTEGER NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (tenant, run_id)
) STRICT;

-- At most one run of a conversation is running or paused.
CREATE UNIQUE INDEX runs_busy ON runs (conversation_key) WHERE status IN ('running', 'paused');
CREATE INDEX runs_unsettled ON runs (conversation_key) WHERE status IN ('running', 'paused', 'interrupted');
CREATE INDEX runs_by_time ON runs (tenant, create_time, run_id);
CREATE INDEX runs_of_conversation ON runs (conversation_key);
CREATE INDEX runs_running ON runs (lease_expire_time) WHERE status = 'running';

CREATE TRIGGER runs_terminal_is_final BEFORE UPDATE ON runs
WHEN OLD.status IN ('completed', 'failed', 'cancelled', 'expired') AND NEW.status <> OLD.status
BEGIN SELECT RAISE(ABORT, 'a terminal run never changes'); END;

-- The ids of deleted runs, refused until they expire.
CREATE TABLE tombstones (
    tenant TEXT NOT NULL,
    run_id TEXT NOT NULL,
    expire_time INTEGER NOT NULL,
    PRIMARY KEY (tenant, run_id)
) STRICT, WITHOUT ROWID;

-- A message outlives its run.
CREATE TABLE messages (
    conversation_key INTEGER NOT NULL REFERENCES conversations,
    position INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    step_id TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    kind TEXT NOT NULL,
    codec INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (conversation_key, position)
) STRICT;

CREATE TRIGGER messages_never_change BEFORE UPDATE ON messages
BEGIN SELECT RAISE(ABORT, 'a stored message never changes'); END;

-- An event about a message has its position, and no body of its own.
CREATE TABLE events (
    run_key INTEGER NOT NULL REFERENCES runs,
    sequence INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    kind TEXT NOT NULL,
    position INTEGER,
    codec INTEGER NOT NULL,
    body TEXT,
    PRIMARY KEY (run_key, sequence),
    CHECK ((position IS NULL) <> (body IS NULL))
) STRICT, WITHOUT ROWID;

CREATE TRIGGER events_never_change BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'a stored event never changes'); END;

CREATE TABLE calls (
    tool_call_id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    run_key INTEGER NOT NULL REFERENCES runs,
    step INTEGER NOT NULL,
    pending_time INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN (
        'proposed', 'pending', 'approved', 'started', 'returned', 'failed', 'denied', 'expired', 'cancelled')),
    deadline INTEGER NOT NULL DEFAULT 0,
    codec INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;

CREATE INDEX calls_of_step ON calls (run_key, step);
CREATE INDEX calls_pending ON calls (tenant, pending_time, tool_call_id) WHERE state = 'pending';

CREATE TRIGGER calls_outcome_is_final BEFORE UPDATE ON calls
WHEN OLD.state IN ('returned', 'failed', 'denied', 'expired', 'cancelled')
BEGIN SELECT RAISE(ABORT, 'the outcome of a call never changes'); END;

CREATE TABLE receipts (
    run_key INTEGER NOT NULL REFERENCES runs,
    request_id TEXT NOT NULL,
    codec INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (run_key, request_id)
) STRICT, WITHOUT ROWID;
