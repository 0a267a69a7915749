PRAGMA application_id = 1634169456;
PRAGMA user_version = 2;
BEGIN TRANSACTION;
CREATE TABLE agents (
    tenant TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    codec INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (tenant, agent_id)
) STRICT;
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
INSERT INTO "calls" VALUES('call_d90647c6feeb815c5d7c6806','default',2,1,1795515388679316751,'returned',0,1,'{"tool_call_id":"call_d90647c6feeb815c5d7c6806","provider_call_id":"call_0","step_id":"step_bfe11889cb920a2ea1ef0904","step":1,"index":0,"name":"get_secret_code","arguments_json":"{\"name\": \"Alice\"}","executor":"client","state":"returned","edited_arguments_json":"","answer_digest":"6390089d85d41fda29bc4ffc78518a28abe74b576e7d4a4014ea0c21aebb524f","answer_sequence":6,"settle_time":1795515388681308788,"pending_time":1795515388679316751,"attempts":0}');
INSERT INTO "calls" VALUES('call_63aff8f5edf6c3c8f9607806','default',2,1,1795515388679316751,'pending',0,1,'{"tool_call_id":"call_63aff8f5edf6c3c8f9607806","provider_call_id":"call_1","step_id":"step_bfe11889cb920a2ea1ef0904","step":1,"index":1,"name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","executor":"client","state":"pending","edited_arguments_json":"","answer_digest":"","answer_sequence":0,"settle_time":0,"pending_time":1795515388679316751,"attempts":0}');
CREATE TABLE conversations (
    conversation_key INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    next_position INTEGER NOT NULL DEFAULT 1,
    create_time INTEGER NOT NULL,
    labels TEXT NOT NULL DEFAULT '{}',
    UNIQUE (tenant, conversation_id)
) STRICT;
INSERT INTO "conversations" VALUES(1,'default','conv_f8f45c6085d7eb5e61ef63f7',6,1795515388664119998,'{}');
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
INSERT INTO "events" VALUES(1,1,'',1795515388664119998,'run_accepted',NULL,1,'{"conversation_id":"conv_f8f45c6085d7eb5e61ef63f7","agent_id":"default","overridden_tools":[]}');
INSERT INTO "events" VALUES(1,2,'',1795515388664119998,'message_stored',1,1,NULL);
INSERT INTO "events" VALUES(1,3,'',1795515388664119998,'run_started',NULL,1,'{"epoch":1,"cause":"start"}');
INSERT INTO "events" VALUES(1,4,'step_cc66fe61a5382dfa7dcbbc24',1795515388670794904,'message_stored',2,1,NULL);
INSERT INTO "events" VALUES(1,5,'',1795515388670794904,'run_stopped',NULL,1,'{"status":"completed","stop_reason":"end_turn","final":true,"remaining":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"error":null}');
INSERT INTO "events" VALUES(2,1,'',1795515388676797897,'run_accepted',NULL,1,'{"conversation_id":"conv_f8f45c6085d7eb5e61ef63f7","agent_id":"default","overridden_tools":[]}');
INSERT INTO "events" VALUES(2,2,'',1795515388676797897,'message_stored',3,1,NULL);
INSERT INTO "events" VALUES(2,3,'',1795515388676797897,'run_started',NULL,1,'{"epoch":1,"cause":"start"}');
INSERT INTO "events" VALUES(2,4,'step_bfe11889cb920a2ea1ef0904',1795515388679316751,'message_stored',4,1,NULL);
INSERT INTO "events" VALUES(2,5,'',1795515388679316751,'run_stopped',NULL,1,'{"status":"paused","stop_reason":"requires_approval","final":false,"remaining":[{"tool_call_id":"call_d90647c6feeb815c5d7c6806","name":"get_secret_code","arguments_json":"{\"name\": \"Alice\"}","kind":"client_execution","index":0},{"tool_call_id":"call_63aff8f5edf6c3c8f9607806","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1}],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"error":null}');
INSERT INTO "events" VALUES(2,6,'',1795515388681308788,'tool_returns_accepted',NULL,1,'{"request_id":"req_1","accepted":["call_d90647c6feeb815c5d7c6806"],"already_settled":[],"remaining":[{"tool_call_id":"call_63aff8f5edf6c3c8f9607806","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1}]}');
INSERT INTO "events" VALUES(2,7,'step_bfe11889cb920a2ea1ef0904',1795515388681308788,'message_stored',5,1,NULL);
INSERT INTO "events" VALUES(2,8,'',1795515388681308788,'run_stopped',NULL,1,'{"status":"paused","stop_reason":"requires_approval","final":false,"remaining":[{"tool_call_id":"call_63aff8f5edf6c3c8f9607806","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1}],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"error":null}');
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
INSERT INTO "messages" VALUES(1,1,'msg_5374cfcf3bdd07837d892823','run_first','',1795515388664119998,'user',1,'{"text":"Hello.","name":""}');
INSERT INTO "messages" VALUES(1,2,'msg_5d8a919f501a86a3f31ee6be','run_first','step_cc66fe61a5382dfa7dcbbc24',1795515388670794904,'assistant',1,'{"text":"Hello, I am here."}');
INSERT INTO "messages" VALUES(1,3,'msg_3425058b7a9880113f4b08bb','run_paused','',1795515388676797897,'user',1,'{"text":"The codes of Alice and Bob?","name":""}');
INSERT INTO "messages" VALUES(1,4,'msg_b5e4293aaff0d4a405dca52a','run_paused','step_bfe11889cb920a2ea1ef0904',1795515388679316751,'tool_call',1,'{"calls":[{"tool_call_id":"call_d90647c6feeb815c5d7c6806","name":"get_secret_code","arguments_json":"{\"name\": \"Alice\"}"},{"tool_call_id":"call_63aff8f5edf6c3c8f9607806","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}"}]}');
INSERT INTO "messages" VALUES(1,5,'msg_ea8d1aea6b849a1ec0943667','run_paused','step_bfe11889cb920a2ea1ef0904',1795515388681308788,'tool_return',1,'{"tool_call_id":"call_d90647c6feeb815c5d7c6806","name":"get_secret_code","outcome":"returned","text":"ALPHA-7","stdout":"","stderr":"","truncated":false}');
CREATE TABLE pins (
    pin_key INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    codec INTEGER NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (tenant, sha256)
) STRICT;
INSERT INTO "pins" VALUES(1,'default','805f7d5929e32d917a390a68e4de288c887eb022a3bc66648a46a9e62df09cd3',1,'{"agent_id":"default","kind":"llm","model":"scripted-model","provider":"openai_chat","system_prompt":"You are a helpful assistant.","tools":[],"overridden_tools":[],"tool_choice":{"mode":"auto","tool_name":""},"parallel_tool_calls":null,"agent_revision":0,"message_tool":"send_message","message_argument":"message"}');
INSERT INTO "pins" VALUES(2,'default','d52900d9a1f2ff8e1d8ee3d4a4bca57d36a33b066dd1eebd595dbb383d3c2690',1,'{"agent_id":"default","kind":"llm","model":"scripted-model","provider":"openai_chat","system_prompt":"You are a helpful assistant.","tools":[{"name":"get_secret_code","description":"Returns the secret code of a person.","parameters_json":"{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"}},\"required\":[\"name\"]}","executor":"client","result_schema_json":"","requires_approval":false,"idempotent":false}],"overridden_tools":[],"tool_choice":{"mode":"auto","tool_name":""},"parallel_tool_calls":null,"agent_revision":0,"message_tool":"send_message","message_argument":"message"}');
CREATE TABLE receipts (
    run_key INTEGER NOT NULL REFERENCES runs,
    request_id TEXT NOT NULL,
    codec INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (run_key, request_id)
) STRICT, WITHOUT ROWID;
INSERT INTO "receipts" VALUES(2,'req_1',1,'{"request_id":"req_1","digest":"6f97604e4d934b16ad088ca9fb9f5350341b892cb76716819d8da794eea6a7e8","sequence":6,"body":{"request_id":"req_1","accepted":["call_d90647c6feeb815c5d7c6806"],"already_settled":[],"remaining":[{"tool_call_id":"call_63aff8f5edf6c3c8f9607806","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1}]}}');
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
INSERT INTO "runs" VALUES(1,'default','run_first',1,1,'default','completed',1,'',0,0,5,1795515388664119998,1,'{"run_id":"run_first","conversation_id":"conv_f8f45c6085d7eb5e61ef63f7","agent_id":"default","model":"scripted-model","digest":"ba32e9cbfff66c3bdd579e9024f46b603bd99a23fc3f69d8c8813c8d75e0ad2b","status":"completed","max_steps":50,"create_time":1795515388664119998,"update_time":1795515388670794904,"stop_reason":"end_turn","error":null,"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"steps_taken":1,"model_attempts":1,"invalid_steps":0,"last_sequence":5,"epoch":1,"owner":"","lease_expire_time":0,"end_time":1795515388670794904,"first_token_time":1795515388670607148,"request_start_time":0,"labels":{},"overridden_tools":[],"agent_revision":0,"first_position":1,"run_timeout":0,"running_time":6674906,"running_since":0,"losses":0}');
INSERT INTO "runs" VALUES(2,'default','run_paused',1,2,'default','paused',1,'',0,0,8,1795515388676797897,1,'{"run_id":"run_paused","conversation_id":"conv_f8f45c6085d7eb5e61ef63f7","agent_id":"default","model":"scripted-model","digest":"bc5f94eb3bdaf85bf6a0163558de48b4825b55afbdc8aa18c743e6db21d34939","status":"paused","max_steps":50,"create_time":1795515388676797897,"update_time":1795515388681308788,"stop_reason":"requires_approval","error":null,"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"steps_taken":1,"model_attempts":1,"invalid_steps":0,"last_sequence":8,"epoch":1,"owner":"","lease_expire_time":0,"end_time":0,"first_token_time":1795515388678906814,"request_start_time":0,"labels":{},"overridden_tools":[],"agent_revision":0,"first_position":3,"run_timeout":0,"running_time":2518854,"running_since":0,"losses":0}');
CREATE TABLE tombstones (
    tenant TEXT NOT NULL,
    run_id TEXT NOT NULL,
    expire_time INTEGER NOT NULL,
    PRIMARY KEY (tenant, run_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX conversations_by_time ON conversations (tenant, create_time, conversation_id);
CREATE UNIQUE INDEX runs_busy ON runs (conversation_key) WHERE status IN ('running', 'paused');
CREATE INDEX runs_unsettled ON runs (conversation_key) WHERE status IN ('running', 'paused', 'interrupted');
CREATE INDEX runs_by_time ON runs (tenant, create_time, run_id);
CREATE INDEX runs_of_conversation ON runs (conversation_key);
CREATE INDEX runs_running ON runs (lease_expire_time) WHERE status = 'running';
CREATE TRIGGER messages_never_change BEFORE UPDATE ON messages
BEGIN SELECT RAISE(ABORT, 'a stored message never changes'); END;
CREATE TRIGGER events_never_change BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'a stored event never changes'); END;
CREATE INDEX calls_of_step ON calls (run_key, step);
CREATE INDEX calls_pending ON calls (tenant, pending_time, tool_call_id) WHERE state = 'pending';
CREATE TRIGGER calls_outcome_is_final BEFORE UPDATE ON calls
WHEN OLD.state IN ('returned', 'failed', 'denied', 'expired', 'cancelled')
BEGIN SELECT RAISE(ABORT, 'the outcome of a call never changes'); END;
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
CREATE TRIGGER messages_are_inserted_once BEFORE INSERT ON messages
WHEN EXISTS (SELECT 1 FROM messages WHERE conversation_key = NEW.conversation_key AND position = NEW.position)
BEGIN SELECT RAISE(ABORT, 'a stored message never changes'); END;
CREATE TRIGGER calls_stay_in_their_run BEFORE UPDATE OF tool_call_id, tenant, run_key ON calls
WHEN NEW.tool_call_id <> OLD.tool_call_id OR NEW.tenant <> OLD.tenant OR NEW.run_key <> OLD.run_key
BEGIN SELECT RAISE(ABORT, 'a call never moves to another run'); END;
CREATE TRIGGER calls_are_written_by_their_run BEFORE INSERT ON calls
WHEN EXISTS (
    SELECT 1 FROM calls WHERE tool_call_id = NEW.tool_call_id AND (
        run_key <> NEW.run_key OR state IN ('returned', 'failed', 'denied', 'expired', 'cancelled')))
BEGIN SELECT RAISE(ABORT, 'a stored call keeps its run and its outcome'); END;
CREATE TRIGGER calls_end_with_the_run BEFORE INSERT ON calls
WHEN (SELECT status FROM runs WHERE run_key = NEW.run_key) IN ('completed', 'failed', 'cancelled', 'expired')
BEGIN SELECT RAISE(ABORT, 'a terminal run has no further call'); END;
CREATE TRIGGER receipts_never_change BEFORE UPDATE ON receipts
BEGIN SELECT RAISE(ABORT, 'a receipt never changes'); END;
CREATE TRIGGER receipts_are_inserted_once BEFORE INSERT ON receipts
WHEN EXISTS (SELECT 1 FROM receipts WHERE run_key = NEW.run_key AND request_id = NEW.request_id)
BEGIN SELECT RAISE(ABORT, 'a receipt never changes'); END;
COMMIT;
