-- Version 4. What memory agents have read of conversations.

-- It repeats what is in `body`, for lists.
ALTER TABLE runs ADD COLUMN parent_run_id TEXT NOT NULL DEFAULT '';
CREATE INDEX runs_of_parent ON runs (tenant, parent_run_id, create_time, run_id) WHERE parent_run_id <> '';

-- Without a conversation it only says that the memory run about a deleted one is under way.
CREATE TABLE memory_work (
    tenant TEXT NOT NULL,
    conversation_key INTEGER REFERENCES conversations,
    memory_agent_id TEXT NOT NULL,
    finished INTEGER NOT NULL,
    through_position INTEGER NOT NULL,
    due_position INTEGER NOT NULL,
    parent_run_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    tries INTEGER NOT NULL,
    not_before INTEGER NOT NULL,
    UNIQUE (conversation_key, memory_agent_id)
) STRICT;

-- At most one memory run of a memory agent is under way.
CREATE UNIQUE INDEX memory_work_under_way ON memory_work (tenant, memory_agent_id) WHERE run_id <> '';
CREATE UNIQUE INDEX memory_work_of_run ON memory_work (tenant, run_id) WHERE run_id <> '';
CREATE INDEX memory_work_due ON memory_work (tenant, memory_agent_id, not_before)
    WHERE run_id = '' AND due_position > through_position;

CREATE TRIGGER memory_work_goes_forwards BEFORE UPDATE OF through_position, due_position ON memory_work
WHEN NEW.through_position < OLD.through_position OR NEW.due_position < OLD.due_position
BEGIN SELECT RAISE(ABORT, 'what memory agents have read never goes back'); END;
-- Version 4. Memory blocks; `label` repeats what is in `body`, for a filter.

CREATE TABLE memory_blocks (
    tenant TEXT NOT NULL,
    memory_block_id TEXT NOT NULL,
    label TEXT NOT NULL,
    codec INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (tenant, memory_block_id)
) STRICT;
