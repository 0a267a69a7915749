-- Version 2. The database itself refuses what must never happen to a run, whoever writes.
-- A move is written in this order: calls, messages, events, the receipt, and last the row of the run.
-- Each table also refuses INSERT OR REPLACE of what is final, which no trigger on UPDATE sees.

-- Runs

DROP TRIGGER runs_terminal_is_final;

CREATE TRIGGER runs_terminal_is_final BEFORE UPDATE ON runs
WHEN OLD.status IN ('completed', 'failed', 'cancelled', 'expired')
BEGIN SELECT RAISE(ABORT, 'a terminal run never changes'); END;

CREATE TRIGGER runs_are_inserted_once BEFORE INSERT ON runs
WHEN EXISTS (SELECT 1 FROM runs WHERE run_key = NEW.run_key)
    OR EXISTS (SELECT 1 FROM runs WHERE tenant = NEW.tenant AND run_id = NEW.run_id)
BEGIN SELECT RAISE(ABORT, 'a run is inserted once'); END;

CREATE TRIGGER runs_count_upwards BEFORE UPDATE OF epoch, last_sequence ON runs
WHEN NEW.epoch < OLD.epoch OR NEW.last_sequence < OLD.last_sequence
BEGIN SELECT RAISE(ABORT, 'epoch and last_sequence of a run never go down'); END;

CREATE TRIGGER runs_last_sequence_is_that_of_the_last_event BEFORE UPDATE OF last_sequence ON runs
WHEN NEW.last_sequence >= OLD.last_sequence
    AND NEW.last_sequence <> (SELECT coalesce(max(sequence), 0) FROM events WHERE run_key = NEW.run_key)
BEGIN SELECT RAISE(ABORT, 'last_sequence is the number of the last event of the run'); END;

CREATE TRIGGER runs_end_with_every_call_settled BEFORE UPDATE OF status ON runs
WHEN NEW.status IN ('completed', 'failed', 'cancelled', 'expired') AND EXISTS (
    SELECT 1 FROM calls WHERE run_key = NEW.run_key AND state IN ('proposed', 'pending', 'approved', 'started'))
BEGIN SELECT RAISE(ABORT, 'a run cannot end while a call of it has no outcome'); END;

-- Events

-- Bodies are compact JSON, so the key cannot be part of a text: there its quotes would be escaped.
-- Older SQLite lets no index use the functions of JSON.
CREATE UNIQUE INDEX events_final ON events (run_key) WHERE kind = 'run_stopped' AND instr(body, '"final":true');

CREATE TRIGGER runs_end_with_their_final_event BEFORE UPDATE OF status ON runs
WHEN NEW.status IN ('completed', 'failed', 'cancelled', 'expired') AND NOT EXISTS (
    SELECT 1 FROM events WHERE run_key = NEW.run_key AND kind = 'run_stopped' AND instr(body, '"final":true'))
BEGIN SELECT RAISE(ABORT, 'a run ends with its final event'); END;

CREATE TRIGGER events_have_the_next_number BEFORE INSERT ON events
WHEN NEW.sequence <> 1 + (SELECT coalesce(max(sequence), 0) FROM events WHERE run_key = NEW.run_key)
BEGIN SELECT RAISE(ABORT, 'an event has the next number of its run'); END;

CREATE TRIGGER events_end_with_the_run BEFORE INSERT ON events
WHEN (SELECT status FROM runs WHERE run_key = NEW.run_key) IN ('completed', 'failed', 'cancelled', 'expired')
BEGIN SELECT RAISE(ABORT, 'a terminal run has no further event'); END;

-- Messages

CREATE TRIGGER messages_are_inserted_once BEFORE INSERT ON messages
WHEN EXISTS (SELECT 1 FROM messages WHERE conversation_key = NEW.conversation_key AND position = NEW.position)
BEGIN SELECT RAISE(ABORT, 'a stored message never changes'); END;

-- Calls

CREATE TRIGGER calls_stay_in_their_run BEFORE UPDATE OF tool_call_id, tenant, run_key ON calls
WHEN NEW.tool_call_id <> OLD.tool_call_id OR NEW.tenant <> OLD.tenant OR NEW.run_key <> OLD.run_key
BEGIN SELECT RAISE(ABORT, 'a call never moves to another run'); END;

-- It is asked before ON CONFLICT is, too.
CREATE TRIGGER calls_are_written_by_their_run BEFORE INSERT ON calls
WHEN EXISTS (
    SELECT 1 FROM calls WHERE tool_call_id = NEW.tool_call_id AND (
        run_key <> NEW.run_key OR state IN ('returned', 'failed', 'denied', 'expired', 'cancelled')))
BEGIN SELECT RAISE(ABORT, 'a stored call keeps its run and its outcome'); END;

CREATE TRIGGER calls_end_with_the_run BEFORE INSERT ON calls
WHEN (SELECT status FROM runs WHERE run_key = NEW.run_key) IN ('completed', 'failed', 'cancelled', 'expired')
BEGIN SELECT RAISE(ABORT, 'a terminal run has no further call'); END;

-- Receipts

CREATE TRIGGER receipts_never_change BEFORE UPDATE ON receipts
BEGIN SELECT RAISE(ABORT, 'a receipt never changes'); END;

CREATE TRIGGER receipts_are_inserted_once BEFORE INSERT ON receipts
WHEN EXISTS (SELECT 1 FROM receipts WHERE run_key = NEW.run_key AND request_id = NEW.request_id)
BEGIN SELECT RAISE(ABORT, 'a receipt never changes'); END;
