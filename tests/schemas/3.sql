PRAGMA application_id = 1634169456;
PRAGMA user_version = 3;
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
, claim_expire_time INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO "calls" VALUES('call_0b0f2e865ad01ee90261e095','default',2,1,1795536052058421362,'returned',0,1,'{"tool_call_id":"call_0b0f2e865ad01ee90261e095","provider_call_id":"call_0","step_id":"step_be5156c8a90b21f29c606c9c","step":1,"index":0,"name":"get_secret_code","arguments_json":"{\"name\": \"Alice\"}","executor":"client","state":"returned","edited_arguments_json":"","answer_digest":"6390089d85d41fda29bc4ffc78518a28abe74b576e7d4a4014ea0c21aebb524f","answer_sequence":6,"settle_time":1795536052065772783,"pending_time":1795536052058421362,"attempts":0,"timeout":0,"on_timeout":"return_error","deadline":0,"worker_id":"","claim_token":"","claim_expire_time":0,"ends_run":false}',0);
INSERT INTO "calls" VALUES('call_c516dcf0ca7acf034e6bde68','default',2,1,1795536052058421362,'pending',0,1,'{"tool_call_id":"call_c516dcf0ca7acf034e6bde68","provider_call_id":"call_1","step_id":"step_be5156c8a90b21f29c606c9c","step":1,"index":1,"name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","executor":"client","state":"pending","edited_arguments_json":"","answer_digest":"","answer_sequence":0,"settle_time":0,"pending_time":1795536052058421362,"attempts":0,"timeout":0,"on_timeout":"return_error","deadline":0,"worker_id":"","claim_token":"","claim_expire_time":0,"ends_run":false}',0);
CREATE TABLE conversations (
    conversation_key INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    next_position INTEGER NOT NULL DEFAULT 1,
    create_time INTEGER NOT NULL,
    labels TEXT NOT NULL DEFAULT '{}',
    UNIQUE (tenant, conversation_id)
) STRICT;
INSERT INTO "conversations" VALUES(1,'default','conv_2602cc8a74acb3dd428c5f19',6,1795536052037234196,'{}');
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
INSERT INTO "events" VALUES(1,1,'',1795536052037234196,'run_accepted',NULL,1,'{"conversation_id":"conv_2602cc8a74acb3dd428c5f19","agent_id":"default","overridden_tools":[]}');
INSERT INTO "events" VALUES(1,2,'',1795536052037234196,'message_stored',1,1,NULL);
INSERT INTO "events" VALUES(1,3,'',1795536052037234196,'run_started',NULL,1,'{"epoch":1,"cause":"start"}');
INSERT INTO "events" VALUES(1,4,'step_8d4edd6df46c627229e6829d',1795536052047961804,'message_stored',2,1,NULL);
INSERT INTO "events" VALUES(1,5,'',1795536052047961804,'run_stopped',NULL,1,'{"status":"completed","stop_reason":"end_turn","final":true,"remaining":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"error":null}');
INSERT INTO "events" VALUES(2,1,'',1795536052053413920,'run_accepted',NULL,1,'{"conversation_id":"conv_2602cc8a74acb3dd428c5f19","agent_id":"default","overridden_tools":[]}');
INSERT INTO "events" VALUES(2,2,'',1795536052053413920,'message_stored',3,1,NULL);
INSERT INTO "events" VALUES(2,3,'',1795536052053413920,'run_started',NULL,1,'{"epoch":1,"cause":"start"}');
INSERT INTO "events" VALUES(2,4,'step_be5156c8a90b21f29c606c9c',1795536052058421362,'message_stored',4,1,NULL);
INSERT INTO "events" VALUES(2,5,'',1795536052058421362,'run_stopped',NULL,1,'{"status":"paused","stop_reason":"requires_approval","final":false,"remaining":[{"tool_call_id":"call_0b0f2e865ad01ee90261e095","name":"get_secret_code","arguments_json":"{\"name\": \"Alice\"}","kind":"client_execution","index":0,"deadline":0},{"tool_call_id":"call_c516dcf0ca7acf034e6bde68","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1,"deadline":0}],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"error":null}');
INSERT INTO "events" VALUES(2,6,'',1795536052065772783,'tool_returns_accepted',NULL,1,'{"request_id":"req_1","accepted":["call_0b0f2e865ad01ee90261e095"],"already_settled":[],"remaining":[{"tool_call_id":"call_c516dcf0ca7acf034e6bde68","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1,"deadline":0}]}');
INSERT INTO "events" VALUES(2,7,'step_be5156c8a90b21f29c606c9c',1795536052065772783,'message_stored',5,1,NULL);
INSERT INTO "events" VALUES(2,8,'',1795536052065772783,'run_stopped',NULL,1,'{"status":"paused","stop_reason":"requires_approval","final":false,"remaining":[{"tool_call_id":"call_c516dcf0ca7acf034e6bde68","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1,"deadline":0}],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"error":null}');
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
INSERT INTO "messages" VALUES(1,1,'msg_e014973f600f4332c668e94d','run_first','',1795536052037234196,'user',1,'{"text":"Hello.","name":"","parts":[]}');
INSERT INTO "messages" VALUES(1,2,'msg_b423b874bc7719de20411173','run_first','step_8d4edd6df46c627229e6829d',1795536052047961804,'assistant',1,'{"text":"Hello, I am here."}');
INSERT INTO "messages" VALUES(1,3,'msg_74c8544e8a9aef24030d9354','run_paused','',1795536052053413920,'user',1,'{"text":"The codes of Alice and Bob?","name":"","parts":[]}');
INSERT INTO "messages" VALUES(1,4,'msg_01be3e4be1848379eac8b87a','run_paused','step_be5156c8a90b21f29c606c9c',1795536052058421362,'tool_call',1,'{"calls":[{"tool_call_id":"call_0b0f2e865ad01ee90261e095","name":"get_secret_code","arguments_json":"{\"name\": \"Alice\"}"},{"tool_call_id":"call_c516dcf0ca7acf034e6bde68","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}"}]}');
INSERT INTO "messages" VALUES(1,5,'msg_059ada67ff874f12834a1fff','run_paused','step_be5156c8a90b21f29c606c9c',1795536052065772783,'tool_return',1,'{"tool_call_id":"call_0b0f2e865ad01ee90261e095","name":"get_secret_code","outcome":"returned","text":"ALPHA-7","stdout":"","stderr":"","truncated":false,"parts":[]}');
CREATE TABLE pins (
    pin_key INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    codec INTEGER NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (tenant, sha256)
) STRICT;
INSERT INTO "pins" VALUES(1,'default','b0c9ceed3555803ccaafaaf9f69101894623591187993d429318485628635b00',1,'{"agent_id":"default","kind":"llm","model":"scripted-model","provider":"openai_chat","system_prompt":"You are a helpful assistant.","tools":[],"overridden_tools":[],"tool_choice":{"mode":"auto","tool_name":""},"parallel_tool_calls":null,"agent_revision":0,"message_tool":"send_message","message_argument":"message","response_format":null,"tool_rules":[]}');
INSERT INTO "pins" VALUES(2,'default','0b33403cdc83f1da57b8d77f37400388f50609fe861616bbdf539476cc92e4f4',1,'{"agent_id":"default","kind":"llm","model":"scripted-model","provider":"openai_chat","system_prompt":"You are a helpful assistant.","tools":[{"name":"get_secret_code","description":"Returns the secret code of a person.","parameters_json":"{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"}},\"required\":[\"name\"]}","executor":"client","result_schema_json":"","requires_approval":false,"idempotent":false,"timeout":0,"on_timeout":"return_error","parallel_safe":false}],"overridden_tools":[],"tool_choice":{"mode":"auto","tool_name":""},"parallel_tool_calls":null,"agent_revision":0,"message_tool":"send_message","message_argument":"message","response_format":null,"tool_rules":[]}');
CREATE TABLE receipts (
    run_key INTEGER NOT NULL REFERENCES runs,
    request_id TEXT NOT NULL,
    codec INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (run_key, request_id)
) STRICT, WITHOUT ROWID;
INSERT INTO "receipts" VALUES(2,'req_1',1,'{"request_id":"req_1","digest":"f631a67c8891c6c32b21e85cc05208a9a90ce63e55094af222e20544a37ff8a8","sequence":6,"body":{"request_id":"req_1","accepted":["call_0b0f2e865ad01ee90261e095"],"already_settled":[],"remaining":[{"tool_call_id":"call_c516dcf0ca7acf034e6bde68","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1,"deadline":0}]}}');
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
INSERT INTO "runs" VALUES(1,'default','run_first',1,1,'default','completed',1,'',0,0,5,1795536052037234196,1,'{"run_id":"run_first","conversation_id":"conv_2602cc8a74acb3dd428c5f19","agent_id":"default","model":"scripted-model","digest":"9a7ece68a68f9127162720230ae5801f714e039b944e3bbd1cf537f0532b9f6d","status":"completed","max_steps":50,"create_time":1795536052037234196,"update_time":1795536052047961804,"stop_reason":"end_turn","error":null,"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"steps_taken":1,"model_attempts":1,"invalid_steps":0,"last_sequence":5,"epoch":1,"owner":"","lease_expire_time":0,"end_time":1795536052047961804,"first_token_time":1795536052047543570,"request_start_time":0,"labels":{},"overridden_tools":[],"agent_revision":0,"first_position":1,"run_timeout":0,"running_time":10727608,"running_since":0,"losses":0,"pause_ttl":604800000000000,"pause_expire_time":0,"queued_inputs":[],"conversation_time":1795536052037234196,"invalid_answers":0,"rule_state":{"counts":[],"last_tool":"","last_call_id":"","last_output":null},"server_tools_wait":false}');
INSERT INTO "runs" VALUES(2,'default','run_paused',1,2,'default','paused',1,'',0,4000000000000000000,8,1795536052053413920,1,'{"run_id":"run_paused","conversation_id":"conv_2602cc8a74acb3dd428c5f19","agent_id":"default","model":"scripted-model","digest":"9b2333a6b6af08a085e9625075c77bc52f1f4446ae4aa5ab4a9ccbbfb926fe8a","status":"paused","max_steps":50,"create_time":1795536052053413920,"update_time":1795536052065772783,"stop_reason":"requires_approval","error":null,"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"steps_taken":1,"model_attempts":1,"invalid_steps":0,"last_sequence":8,"epoch":1,"owner":"","lease_expire_time":0,"end_time":0,"first_token_time":1795536052057641789,"request_start_time":0,"labels":{},"overridden_tools":[],"agent_revision":0,"first_position":3,"run_timeout":0,"running_time":5007442,"running_since":0,"losses":0,"pause_ttl":604800000000000,"pause_expire_time":4000000000000000000,"queued_inputs":[],"conversation_time":1795536052037234196,"invalid_answers":0,"rule_state":{"counts":[],"last_tool":"","last_call_id":"","last_output":null},"server_tools_wait":false}');
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
CREATE INDEX calls_due ON calls (deadline) WHERE state = 'pending' AND deadline > 0;
CREATE INDEX runs_expiring ON runs (pause_expire_time) WHERE pause_expire_time > 0;
CREATE INDEX runs_queued ON runs (conversation_key, run_key) WHERE status = 'queued';
CREATE INDEX events_ended ON events (create_time) WHERE kind = 'run_stopped' AND instr(body, '"final":true');
COMMIT;
