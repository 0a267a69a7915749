-- Version 1. Times are Unix nanoseconds. `codec` is the version of the JSON in `body`. Every row of a tenant is found
-- through its tenant: ids are unique per tenant, keys are internal. Ids sort by their bytes, whatever the database's
-- locale.

CREATE TABLE conversations (
    conversation_key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    conversation_id text COLLATE "C" NOT NULL,
    next_position bigint NOT NULL DEFAULT 1,
    create_time bigint NOT NULL,
    labels jsonb NOT NULL DEFAULT '{}',
    UNIQUE (tenant, conversation_id)
) WITH (fillfactor = 80);

CREATE INDEX conversations_by_time ON conversations (tenant, create_time, conversation_id);

CREATE TABLE agents (
    tenant text NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    codec integer NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (tenant, agent_id)
);

CREATE TABLE pins (
    pin_key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    sha256 text NOT NULL,
    codec integer NOT NULL,
    body text NOT NULL,
    UNIQUE (tenant, sha256)
);

-- `step` and `labels` repeat what is in `body`, for joins and filters. No index holds what a heartbeat or a step of a
-- run changes, so that these rewrite the row in its page and no index.
CREATE TABLE runs (
    run_key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    run_id text COLLATE "C" NOT NULL,
    conversation_key bigint NOT NULL REFERENCES conversations,
    pin_key bigint NOT NULL REFERENCES pins,
    agent_id text NOT NULL,
    create_time bigint NOT NULL,
    labels jsonb NOT NULL,
    step integer NOT NULL,
    status text NOT NULL CHECK (status IN (
        'queued', 'running', 'paused', 'interrupted', 'completed', 'failed', 'cancelled', 'expired')),
    epoch bigint NOT NULL,
    owner text NOT NULL,
    lease_expire_time bigint NOT NULL,
    pause_expire_time bigint NOT NULL,
    last_sequence bigint NOT NULL,
    codec integer NOT NULL,
    body text NOT NULL,
    UNIQUE (tenant, run_id)
) WITH (fillfactor = 70);

-- At most one run of a conversation is running or paused.
CREATE UNIQUE INDEX runs_busy ON runs (conversation_key) WHERE status IN ('running', 'paused');
CREATE INDEX runs_unsettled ON runs (conversation_key) WHERE status IN ('running', 'paused', 'interrupted');
CREATE INDEX runs_of_conversation ON runs (conversation_key);
CREATE INDEX runs_by_time ON runs (tenant, create_time, run_id);
CREATE INDEX runs_running ON runs (run_key) WHERE status = 'running';
CREATE INDEX runs_queued ON runs (conversation_key, run_key) WHERE status = 'queued';
CREATE INDEX runs_expiring ON runs (pause_expire_time) WHERE pause_expire_time > 0;

-- The ids of deleted runs, refused until they expire.
CREATE TABLE tombstones (
    tenant text NOT NULL,
    run_id text NOT NULL,
    expire_time bigint NOT NULL,
    PRIMARY KEY (tenant, run_id)
);

-- A message outlives its run.
CREATE TABLE messages (
    conversation_key bigint NOT NULL REFERENCES conversations,
    position bigint NOT NULL,
    message_id text NOT NULL,
    run_id text NOT NULL,
    step_id text NOT NULL,
    create_time bigint NOT NULL,
    kind text NOT NULL,
    codec integer NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (conversation_key, position)
);

-- An event about a message has its position, and no body of its own.
CREATE TABLE events (
    run_key bigint NOT NULL,
    sequence bigint NOT NULL,
    step_id text NOT NULL,
    create_time bigint NOT NULL,
    kind text NOT NULL,
    position bigint,
    codec integer NOT NULL,
    body text,
    PRIMARY KEY (run_key, sequence),
    CHECK ((position IS NULL) <> (body IS NULL))
);

-- The one final event of a run. Bodies are compact JSON, so the key cannot be part of a text: there its quotes would be
-- escaped.
CREATE UNIQUE INDEX events_final ON events (run_key) WHERE kind = 'run_stopped' AND strpos(body, '"final":true') > 0;
CREATE INDEX events_ended ON events (create_time) WHERE kind = 'run_stopped' AND strpos(body, '"final":true') > 0;

-- `name` and `executor` repeat what is in `body`, for filters.
CREATE TABLE calls (
    tool_call_id text COLLATE "C" PRIMARY KEY,
    tenant text NOT NULL,
    run_key bigint NOT NULL,
    step integer NOT NULL,
    name text NOT NULL,
    executor text NOT NULL,
    pending_time bigint NOT NULL,
    state text NOT NULL CHECK (state IN (
        'proposed', 'pending', 'approved', 'started', 'returned', 'failed', 'denied', 'expired', 'cancelled')),
    deadline bigint NOT NULL,
    claim_expire_time bigint NOT NULL,
    codec integer NOT NULL,
    body text NOT NULL
) WITH (fillfactor = 80);

CREATE INDEX calls_of_step ON calls (run_key, step);
CREATE INDEX calls_pending ON calls (tenant, pending_time, tool_call_id) WHERE state = 'pending';
CREATE INDEX calls_due ON calls (deadline) WHERE state = 'pending' AND deadline > 0;

CREATE TABLE receipts (
    run_key bigint NOT NULL REFERENCES runs,
    request_id text NOT NULL,
    codec integer NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (run_key, request_id)
);

-- The database itself refuses what must never happen, whoever writes. What one row shows is asked row by row, which
-- costs no call of a function; the rest once for each statement, when all of it is written.

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE TRIGGER runs_terminal_is_final BEFORE UPDATE ON runs FOR EACH ROW
WHEN (OLD.status IN ('completed', 'failed', 'cancelled', 'expired'))
EXECUTE FUNCTION refuse('a terminal run never changes');

CREATE TRIGGER runs_count_upwards BEFORE UPDATE ON runs FOR EACH ROW
WHEN (NEW.epoch < OLD.epoch OR NEW.last_sequence < OLD.last_sequence)
EXECUTE FUNCTION refuse('epoch and last_sequence of a run never go down');

CREATE TRIGGER messages_never_change BEFORE UPDATE ON messages FOR EACH ROW
EXECUTE FUNCTION refuse('a stored message never changes');

CREATE TRIGGER events_never_change BEFORE UPDATE ON events FOR EACH ROW
EXECUTE FUNCTION refuse('a stored event never changes');

CREATE TRIGGER receipts_never_change BEFORE UPDATE ON receipts FOR EACH ROW
EXECUTE FUNCTION refuse('a receipt never changes');

CREATE TRIGGER calls_outcome_is_final BEFORE UPDATE ON calls FOR EACH ROW
WHEN (OLD.state IN ('returned', 'failed', 'denied', 'expired', 'cancelled'))
EXECUTE FUNCTION refuse('the outcome of a call never changes');

CREATE TRIGGER calls_stay_in_their_run BEFORE UPDATE ON calls FOR EACH ROW
WHEN (NEW.tool_call_id <> OLD.tool_call_id OR NEW.tenant <> OLD.tenant OR NEW.run_key <> OLD.run_key)
EXECUTE FUNCTION refuse('a call never moves to another run');

CREATE FUNCTION check_updated_runs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM after JOIN before USING (run_key)
        WHERE after.last_sequence <> before.last_sequence AND after.last_sequence <> (
            SELECT coalesce(max(sequence), 0) FROM agent_service.events WHERE events.run_key = after.run_key)
    ) THEN
        RAISE EXCEPTION USING MESSAGE = 'last_sequence is the number of the last event of the run',
            ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF EXISTS (
        SELECT FROM after
        WHERE status IN ('completed', 'failed', 'cancelled', 'expired') AND NOT EXISTS (
            SELECT FROM agent_service.events
            WHERE events.run_key = after.run_key AND kind = 'run_stopped' AND strpos(body, '"final":true') > 0)
    ) THEN
        RAISE EXCEPTION USING MESSAGE = 'a run ends with its final event',
            ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF EXISTS (
        SELECT FROM after JOIN agent_service.calls USING (run_key)
        WHERE after.status IN ('completed', 'failed', 'cancelled', 'expired')
            AND calls.state IN ('proposed', 'pending', 'approved', 'started')
    ) THEN
        RAISE EXCEPTION USING MESSAGE = 'a run cannot end while a call of it has no outcome',
            ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER runs_updated AFTER UPDATE ON runs REFERENCING OLD TABLE AS before NEW TABLE AS after
FOR EACH STATEMENT EXECUTE FUNCTION check_updated_runs();

-- A run that is over cannot take a higher last_sequence, so it cannot have a further event either.
CREATE FUNCTION check_added_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM (
            SELECT run_key, min(sequence) AS first, max(sequence) AS last, count(*) AS number
            FROM added GROUP BY run_key) AS span
        LEFT JOIN agent_service.runs USING (run_key)
        WHERE runs.last_sequence IS DISTINCT FROM span.last OR span.last - span.first + 1 <> span.number
            OR span.first > 1 AND NOT EXISTS (
                SELECT FROM agent_service.events WHERE events.run_key = span.run_key AND sequence = span.first - 1)
    ) THEN
        RAISE EXCEPTION USING MESSAGE = 'an event has the next number of its run',
            ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER events_added AFTER INSERT ON events REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION check_added_events();

CREATE FUNCTION check_added_calls() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM added LEFT JOIN agent_service.runs USING (run_key)
        WHERE runs.run_key IS NULL OR runs.status IN ('completed', 'failed', 'cancelled', 'expired')
            AND added.state IN ('proposed', 'pending', 'approved', 'started')
    ) THEN
        RAISE EXCEPTION USING MESSAGE = 'a terminal run has no further call',
            ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER calls_added AFTER INSERT ON calls REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION check_added_calls();
