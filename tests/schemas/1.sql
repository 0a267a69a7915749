PRAGMA application_id = 1634169456;
PRAGMA user_version = 1;
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
INSERT INTO "calls" VALUES('call_37c54bbb838739ee1e360375','default',2,1,1795511192396996429,'returned',0,1,'{"tool_call_id":"call_37c54bbb838739ee1e360375","provider_call_id":"call_0","step_id":"step_993ec1df674e5c02dfa71c04","step":1,"index":0,"name":"get_secret_code","arguments_json":"{\"name\": \"Alice\"}","executor":"client","state":"returned","edited_arguments_json":"","answer_digest":"6390089d85d41fda29bc4ffc78518a28abe74b576e7d4a4014ea0c21aebb524f","answer_sequence":6,"settle_time":1795511192402208613,"pending_time":1795511192396996429}');
INSERT INTO "calls" VALUES('call_5805c422d3d8016840725fce','default',2,1,1795511192396996429,'pending',0,1,'{"tool_call_id":"call_5805c422d3d8016840725fce","provider_call_id":"call_1","step_id":"step_993ec1df674e5c02dfa71c04","step":1,"index":1,"name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","executor":"client","state":"pending","edited_arguments_json":"","answer_digest":"","answer_sequence":0,"settle_time":0,"pending_time":1795511192396996429}');
CREATE TABLE conversations (
    conversation_key INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    next_position INTEGER NOT NULL DEFAULT 1,
    create_time INTEGER NOT NULL,
    labels TEXT NOT NULL DEFAULT '{}',
    UNIQUE (tenant, conversation_id)
) STRICT;
INSERT INTO "conversations" VALUES(1,'default','conv_b58b19c0a9ad8e57b02e5ee4',6,1795511192384631844,'{}');
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
INSERT INTO "events" VALUES(1,1,'',1795511192384631844,'run_accepted',NULL,1,'{"conversation_id":"conv_b58b19c0a9ad8e57b02e5ee4","agent_id":"default","overridden_tools":[]}');
INSERT INTO "events" VALUES(1,2,'',1795511192384631844,'message_stored',1,1,NULL);
INSERT INTO "events" VALUES(1,3,'',1795511192384631844,'run_started',NULL,1,'{"epoch":1,"cause":"start"}');
INSERT INTO "events" VALUES(1,4,'step_f9bd87f29517527dcca0299a',1795511192391590643,'message_stored',2,1,NULL);
INSERT INTO "events" VALUES(1,5,'',1795511192391590643,'run_stopped',NULL,1,'{"status":"completed","stop_reason":"end_turn","final":true,"remaining":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"error":null}');
INSERT INTO "events" VALUES(2,1,'',1795511192394498007,'run_accepted',NULL,1,'{"conversation_id":"conv_b58b19c0a9ad8e57b02e5ee4","agent_id":"default","overridden_tools":[]}');
INSERT INTO "events" VALUES(2,2,'',1795511192394498007,'message_stored',3,1,NULL);
INSERT INTO "events" VALUES(2,3,'',1795511192394498007,'run_started',NULL,1,'{"epoch":1,"cause":"start"}');
INSERT INTO "events" VALUES(2,4,'step_993ec1df674e5c02dfa71c04',1795511192396996429,'message_stored',4,1,NULL);
INSERT INTO "events" VALUES(2,5,'',1795511192396996429,'run_stopped',NULL,1,'{"status":"paused","stop_reason":"requires_approval","final":false,"remaining":[{"tool_call_id":"call_37c54bbb838739ee1e360375","name":"get_secret_code","arguments_json":"{\"name\": \"Alice\"}","kind":"client_execution","index":0},{"tool_call_id":"call_5805c422d3d8016840725fce","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1}],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"error":null}');
INSERT INTO "events" VALUES(2,6,'',1795511192402208613,'tool_returns_accepted',NULL,1,'{"request_id":"req_1","accepted":["call_37c54bbb838739ee1e360375"],"already_settled":[],"remaining":[{"tool_call_id":"call_5805c422d3d8016840725fce","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1}]}');
INSERT INTO "events" VALUES(2,7,'step_993ec1df674e5c02dfa71c04',1795511192402208613,'message_stored',5,1,NULL);
INSERT INTO "events" VALUES(2,8,'',1795511192402208613,'run_stopped',NULL,1,'{"status":"paused","stop_reason":"requires_approval","final":false,"remaining":[{"tool_call_id":"call_5805c422d3d8016840725fce","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1}],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"error":null}');
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
INSERT INTO "messages" VALUES(1,1,'msg_536bb17808d9053838845fe2','run_first','',1795511192384631844,'user',1,'{"text":"Hello.","name":""}');
INSERT INTO "messages" VALUES(1,2,'msg_deaa3ee150b80820538bcaae','run_first','step_f9bd87f29517527dcca0299a',1795511192391590643,'assistant',1,'{"text":"Hello, I am here."}');
INSERT INTO "messages" VALUES(1,3,'msg_233af98f8c13801b15bbc7cd','run_paused','',1795511192394498007,'user',1,'{"text":"The codes of Alice and Bob?","name":""}');
INSERT INTO "messages" VALUES(1,4,'msg_33771945cef73e1d824c56f7','run_paused','step_993ec1df674e5c02dfa71c04',1795511192396996429,'tool_call',1,'{"calls":[{"tool_call_id":"call_37c54bbb838739ee1e360375","name":"get_secret_code","arguments_json":"{\"name\": \"Alice\"}"},{"tool_call_id":"call_5805c422d3d8016840725fce","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}"}]}');
INSERT INTO "messages" VALUES(1,5,'msg_cf2663bd05064cf50baf79be','run_paused','step_993ec1df674e5c02dfa71c04',1795511192402208613,'tool_return',1,'{"tool_call_id":"call_37c54bbb838739ee1e360375","name":"get_secret_code","outcome":"returned","text":"ALPHA-7","stdout":"","stderr":"","truncated":false}');
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
INSERT INTO "receipts" VALUES(2,'req_1',1,'{"request_id":"req_1","digest":"9c27d3d94b29721819c5c1f12117727f0f285f3746bf3231ba85be3bc0e24963","sequence":6,"body":{"request_id":"req_1","accepted":["call_37c54bbb838739ee1e360375"],"already_settled":[],"remaining":[{"tool_call_id":"call_5805c422d3d8016840725fce","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1}]}}');
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
INSERT INTO "runs" VALUES(1,'default','run_first',1,1,'default','completed',1,'',0,0,5,1795511192384631844,1,'{"run_id":"run_first","conversation_id":"conv_b58b19c0a9ad8e57b02e5ee4","agent_id":"default","model":"scripted-model","digest":"ba32e9cbfff66c3bdd579e9024f46b603bd99a23fc3f69d8c8813c8d75e0ad2b","status":"completed","max_steps":50,"create_time":1795511192384631844,"update_time":1795511192391590643,"stop_reason":"end_turn","error":null,"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"steps_taken":1,"model_attempts":1,"invalid_steps":0,"last_sequence":5,"epoch":1,"owner":"","lease_expire_time":0,"end_time":1795511192391590643,"first_token_time":1795511192391394696,"request_start_time":0,"labels":{},"overridden_tools":[],"agent_revision":0,"first_position":1,"run_timeout":0,"running_time":6958799,"running_since":0}');
INSERT INTO "runs" VALUES(2,'default','run_paused',1,2,'default','paused',1,'',0,0,8,1795511192394498007,1,'{"run_id":"run_paused","conversation_id":"conv_b58b19c0a9ad8e57b02e5ee4","agent_id":"default","model":"scripted-model","digest":"95cd7833d8558f898958e33e5e0292b64f42fd23fbf3bde11f4dfe908591117a","status":"paused","max_steps":50,"create_time":1795511192394498007,"update_time":1795511192402208613,"stop_reason":"requires_approval","error":null,"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"steps_taken":1,"model_attempts":1,"invalid_steps":0,"last_sequence":8,"epoch":1,"owner":"","lease_expire_time":0,"end_time":0,"first_token_time":1795511192396652472,"request_start_time":0,"labels":{},"overridden_tools":[],"agent_revision":0,"first_position":3,"run_timeout":0,"running_time":2498422,"running_since":0}');
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
CREATE TRIGGER runs_terminal_is_final BEFORE UPDATE ON runs
WHEN OLD.status IN ('completed', 'failed', 'cancelled', 'expired') AND NEW.status <> OLD.status
BEGIN SELECT RAISE(ABORT, 'a terminal run never changes'); END;
CREATE TRIGGER messages_never_change BEFORE UPDATE ON messages
BEGIN SELECT RAISE(ABORT, 'a stored message never changes'); END;
CREATE TRIGGER events_never_change BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'a stored event never changes'); END;
CREATE INDEX calls_of_step ON calls (run_key, step);
CREATE INDEX calls_pending ON calls (tenant, pending_time, tool_call_id) WHERE state = 'pending';
CREATE TRIGGER calls_outcome_is_final BEFORE UPDATE ON calls
WHEN OLD.state IN ('returned', 'failed', 'denied', 'expired', 'cancelled')
BEGIN SELECT RAISE(ABORT, 'the outcome of a call never changes'); END;
COMMIT;
