-- Version 2. What memory agents have read of conversations.

-- It repeats what is in `body`, for lists.
ALTER TABLE runs ADD COLUMN parent_run_id text COLLATE "C" NOT NULL DEFAULT '';
CREATE INDEX runs_of_parent ON runs (tenant, parent_run_id, create_time, run_id) WHERE parent_run_id <> '';

-- Without a conversation it only says that the memory run about a deleted one is under way.
CREATE TABLE memory_work (
    tenant text NOT NULL,
    conversation_key bigint REFERENCES conversations,
    memory_agent_id text COLLATE "C" NOT NULL,
    finished bigint NOT NULL,
    through_position bigint NOT NULL,
    due_position bigint NOT NULL,
    parent_run_id text NOT NULL,
    run_id text COLLATE "C" NOT NULL,
    tries bigint NOT NULL,
    not_before bigint NOT NULL,
    UNIQUE (conversation_key, memory_agent_id)
);

-- At most one memory run of a memory agent is under way.
CREATE UNIQUE INDEX memory_work_under_way ON memory_work (tenant, memory_agent_id) WHERE run_id <> '';
CREATE UNIQUE INDEX memory_work_of_run ON memory_work (run_id, tenant) WHERE run_id <> '';
CREATE INDEX memory_work_due ON memory_work (tenant, memory_agent_id, not_before)
    WHERE run_id = '' AND due_position > through_position;

CREATE TRIGGER memory_work_goes_forwards BEFORE UPDATE ON memory_work FOR EACH ROW
WHEN (NEW.through_position < OLD.through_position OR NEW.due_position < OLD.due_position)
EXECUTE FUNCTION refuse('what memory agents have read never goes back');
-- Version 2. Memory blocks; `label` repeats what is in `body`, for a filter.

CREATE TABLE memory_blocks (
    tenant text NOT NULL,
    memory_block_id text COLLATE "C" NOT NULL,
    label text NOT NULL,
    codec integer NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (tenant, memory_block_id)
) WITH (fillfactor = 70);
