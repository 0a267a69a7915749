-- Version 3. What is due by the clock is found without looking at all.

CREATE INDEX calls_due ON calls (deadline) WHERE state = 'pending' AND deadline > 0;
CREATE INDEX runs_expiring ON runs (pause_expire_time) WHERE pause_expire_time > 0;
CREATE INDEX runs_queued ON runs (conversation_key, run_key) WHERE status = 'queued';

-- Until when a worker has a call.
ALTER TABLE calls ADD COLUMN claim_expire_time INTEGER NOT NULL DEFAULT 0;

-- When runs ended whose events are still kept.
CREATE INDEX events_ended ON events (create_time) WHERE kind = 'run_stopped' AND instr(body, '"final":true');
