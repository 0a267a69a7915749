-- PostgreSQL database dump
SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
-- Name: agent_service; Type: SCHEMA; Schema: -; Owner: -
CREATE SCHEMA agent_service;
-- Name: check_added_calls(); Type: FUNCTION; Schema: agent_service; Owner: -
CREATE FUNCTION agent_service.check_added_calls() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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
-- Name: check_added_events(); Type: FUNCTION; Schema: agent_service; Owner: -
CREATE FUNCTION agent_service.check_added_events() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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
-- Name: check_updated_runs(); Type: FUNCTION; Schema: agent_service; Owner: -
CREATE FUNCTION agent_service.check_updated_runs() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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
-- Name: refuse(); Type: FUNCTION; Schema: agent_service; Owner: -
CREATE FUNCTION agent_service.refuse() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
END $$;
SET default_tablespace = '';
SET default_table_access_method = heap;
-- Name: agents; Type: TABLE; Schema: agent_service; Owner: -
CREATE TABLE agent_service.agents (
    tenant text NOT NULL,
    agent_id text NOT NULL COLLATE pg_catalog."C",
    codec integer NOT NULL,
    body text NOT NULL
);
-- Name: calls; Type: TABLE; Schema: agent_service; Owner: -
CREATE TABLE agent_service.calls (
    tool_call_id text NOT NULL COLLATE pg_catalog."C",
    tenant text NOT NULL,
    run_key bigint NOT NULL,
    step integer NOT NULL,
    name text NOT NULL,
    executor text NOT NULL,
    pending_time bigint NOT NULL,
    state text NOT NULL,
    deadline bigint NOT NULL,
    claim_expire_time bigint NOT NULL,
    codec integer NOT NULL,
    body text NOT NULL,
    CONSTRAINT calls_state_check CHECK ((state = ANY (ARRAY['proposed'::text, 'pending'::text, 'approved'::text, 'started'::text, 'returned'::text, 'failed'::text, 'denied'::text, 'expired'::text, 'cancelled'::text])))
)
WITH (fillfactor='80');
-- Name: conversations; Type: TABLE; Schema: agent_service; Owner: -
CREATE TABLE agent_service.conversations (
    conversation_key bigint NOT NULL,
    tenant text NOT NULL,
    conversation_id text NOT NULL COLLATE pg_catalog."C",
    next_position bigint DEFAULT 1 NOT NULL,
    create_time bigint NOT NULL,
    labels jsonb DEFAULT '{}'::jsonb NOT NULL
)
WITH (fillfactor='80');
-- Name: conversations_conversation_key_seq; Type: SEQUENCE; Schema: agent_service; Owner: -
ALTER TABLE agent_service.conversations ALTER COLUMN conversation_key ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME agent_service.conversations_conversation_key_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
-- Name: events; Type: TABLE; Schema: agent_service; Owner: -
CREATE TABLE agent_service.events (
    run_key bigint NOT NULL,
    sequence bigint NOT NULL,
    step_id text NOT NULL,
    create_time bigint NOT NULL,
    kind text NOT NULL,
    "position" bigint,
    codec integer NOT NULL,
    body text,
    CONSTRAINT events_check CHECK ((("position" IS NULL) <> (body IS NULL)))
);
-- Name: messages; Type: TABLE; Schema: agent_service; Owner: -
CREATE TABLE agent_service.messages (
    conversation_key bigint NOT NULL,
    "position" bigint NOT NULL,
    message_id text NOT NULL,
    run_id text NOT NULL,
    step_id text NOT NULL,
    create_time bigint NOT NULL,
    kind text NOT NULL,
    codec integer NOT NULL,
    body text NOT NULL
);
-- Name: pins; Type: TABLE; Schema: agent_service; Owner: -
CREATE TABLE agent_service.pins (
    pin_key bigint NOT NULL,
    tenant text NOT NULL,
    sha256 text NOT NULL,
    codec integer NOT NULL,
    body text NOT NULL
);
-- Name: pins_pin_key_seq; Type: SEQUENCE; Schema: agent_service; Owner: -
ALTER TABLE agent_service.pins ALTER COLUMN pin_key ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME agent_service.pins_pin_key_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
-- Name: receipts; Type: TABLE; Schema: agent_service; Owner: -
CREATE TABLE agent_service.receipts (
    run_key bigint NOT NULL,
    request_id text NOT NULL,
    codec integer NOT NULL,
    body text NOT NULL
);
-- Name: runs; Type: TABLE; Schema: agent_service; Owner: -
CREATE TABLE agent_service.runs (
    run_key bigint NOT NULL,
    tenant text NOT NULL,
    run_id text NOT NULL COLLATE pg_catalog."C",
    conversation_key bigint NOT NULL,
    pin_key bigint NOT NULL,
    agent_id text NOT NULL,
    create_time bigint NOT NULL,
    labels jsonb NOT NULL,
    step integer NOT NULL,
    status text NOT NULL,
    epoch bigint NOT NULL,
    owner text NOT NULL,
    lease_expire_time bigint NOT NULL,
    pause_expire_time bigint NOT NULL,
    last_sequence bigint NOT NULL,
    codec integer NOT NULL,
    body text NOT NULL,
    CONSTRAINT runs_status_check CHECK ((status = ANY (ARRAY['queued'::text, 'running'::text, 'paused'::text, 'interrupted'::text, 'completed'::text, 'failed'::text, 'cancelled'::text, 'expired'::text])))
)
WITH (fillfactor='70');
-- Name: runs_run_key_seq; Type: SEQUENCE; Schema: agent_service; Owner: -
ALTER TABLE agent_service.runs ALTER COLUMN run_key ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME agent_service.runs_run_key_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
-- Name: schema_version; Type: TABLE; Schema: agent_service; Owner: -
CREATE TABLE agent_service.schema_version (
    version integer NOT NULL
);
-- Name: tombstones; Type: TABLE; Schema: agent_service; Owner: -
CREATE TABLE agent_service.tombstones (
    tenant text NOT NULL,
    run_id text NOT NULL,
    expire_time bigint NOT NULL
);
-- Data for Name: agents; Type: TABLE DATA; Schema: agent_service; Owner: -
-- Data for Name: calls; Type: TABLE DATA; Schema: agent_service; Owner: -
INSERT INTO agent_service.calls VALUES ('call_9e85fcaafdd061ffe5bdefe9', 'default', 2, 1, 'get_secret_code', 'client', 1795540600942660000, 'pending', 0, 0, 1, '{"tool_call_id":"call_9e85fcaafdd061ffe5bdefe9","provider_call_id":"call_1","step_id":"step_eba952aff596b42c8af1e337","step":1,"index":1,"name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","executor":"client","state":"pending","edited_arguments_json":"","answer_digest":"","answer_sequence":0,"settle_time":0,"pending_time":1795540600942660000,"attempts":0,"timeout":0,"on_timeout":"return_error","deadline":0,"worker_id":"","claim_token":"","claim_expire_time":0,"ends_run":false}');
INSERT INTO agent_service.calls VALUES ('call_c6cde708d24dd95cd6476c9a', 'default', 2, 1, 'get_secret_code', 'client', 1795540600942660000, 'returned', 0, 0, 1, '{"tool_call_id":"call_c6cde708d24dd95cd6476c9a","provider_call_id":"call_0","step_id":"step_eba952aff596b42c8af1e337","step":1,"index":0,"name":"get_secret_code","arguments_json":"{\"name\": \"Alice\"}","executor":"client","state":"returned","edited_arguments_json":"","answer_digest":"6390089d85d41fda29bc4ffc78518a28abe74b576e7d4a4014ea0c21aebb524f","answer_sequence":6,"settle_time":1795540600979701000,"pending_time":1795540600942660000,"attempts":0,"timeout":0,"on_timeout":"return_error","deadline":0,"worker_id":"","claim_token":"","claim_expire_time":0,"ends_run":false}');
-- Data for Name: conversations; Type: TABLE DATA; Schema: agent_service; Owner: -
INSERT INTO agent_service.conversations OVERRIDING SYSTEM VALUE VALUES (1, 'default', 'conv_b7591d1282f37f30874a72a0', 6, 1795540600855241000, '{}');
-- Data for Name: events; Type: TABLE DATA; Schema: agent_service; Owner: -
INSERT INTO agent_service.events VALUES (1, 1, '', 1795540600855241000, 'run_accepted', NULL, 1, '{"conversation_id":"conv_b7591d1282f37f30874a72a0","agent_id":"default","overridden_tools":[]}');
INSERT INTO agent_service.events VALUES (1, 2, '', 1795540600855241000, 'message_stored', 1, 1, NULL);
INSERT INTO agent_service.events VALUES (1, 3, '', 1795540600855241000, 'run_started', NULL, 1, '{"epoch":1,"cause":"start"}');
INSERT INTO agent_service.events VALUES (1, 4, 'step_3f760a93c5b3ea292fed3e9c', 1795540600882575000, 'message_stored', 2, 1, NULL);
INSERT INTO agent_service.events VALUES (1, 5, '', 1795540600882575000, 'run_stopped', NULL, 1, '{"status":"completed","stop_reason":"end_turn","final":true,"remaining":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"error":null}');
INSERT INTO agent_service.events VALUES (2, 1, '', 1795540600893896000, 'run_accepted', NULL, 1, '{"conversation_id":"conv_b7591d1282f37f30874a72a0","agent_id":"default","overridden_tools":[]}');
INSERT INTO agent_service.events VALUES (2, 2, '', 1795540600893896000, 'message_stored', 3, 1, NULL);
INSERT INTO agent_service.events VALUES (2, 3, '', 1795540600893896000, 'run_started', NULL, 1, '{"epoch":1,"cause":"start"}');
INSERT INTO agent_service.events VALUES (2, 4, 'step_eba952aff596b42c8af1e337', 1795540600942660000, 'message_stored', 4, 1, NULL);
INSERT INTO agent_service.events VALUES (2, 5, '', 1795540600942660000, 'run_stopped', NULL, 1, '{"status":"paused","stop_reason":"requires_approval","final":false,"remaining":[{"tool_call_id":"call_c6cde708d24dd95cd6476c9a","name":"get_secret_code","arguments_json":"{\"name\": \"Alice\"}","kind":"client_execution","index":0,"deadline":0},{"tool_call_id":"call_9e85fcaafdd061ffe5bdefe9","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1,"deadline":0}],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"error":null}');
INSERT INTO agent_service.events VALUES (2, 6, '', 1795540600979701000, 'tool_returns_accepted', NULL, 1, '{"request_id":"req_1","accepted":["call_c6cde708d24dd95cd6476c9a"],"already_settled":[],"remaining":[{"tool_call_id":"call_9e85fcaafdd061ffe5bdefe9","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1,"deadline":0}]}');
INSERT INTO agent_service.events VALUES (2, 7, 'step_eba952aff596b42c8af1e337', 1795540600979701000, 'message_stored', 5, 1, NULL);
INSERT INTO agent_service.events VALUES (2, 8, '', 1795540600979701000, 'run_stopped', NULL, 1, '{"status":"paused","stop_reason":"requires_approval","final":false,"remaining":[{"tool_call_id":"call_9e85fcaafdd061ffe5bdefe9","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1,"deadline":0}],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"error":null}');
-- Data for Name: messages; Type: TABLE DATA; Schema: agent_service; Owner: -
INSERT INTO agent_service.messages VALUES (1, 1, 'msg_e246d20261f6dcef4856d533', 'run_0409d4eec4517ab45af72bfd', '', 1795540600855241000, 'user', 1, '{"text":"Hello.","name":"","parts":[]}');
INSERT INTO agent_service.messages VALUES (1, 2, 'msg_f63b69143719b1cf0a3a5d3e', 'run_0409d4eec4517ab45af72bfd', 'step_3f760a93c5b3ea292fed3e9c', 1795540600882575000, 'assistant', 1, '{"text":"Hello, I am here."}');
INSERT INTO agent_service.messages VALUES (1, 3, 'msg_d7467454a9af04e541f30b05', 'run_paused', '', 1795540600893896000, 'user', 1, '{"text":"The codes of Alice and Bob?","name":"","parts":[]}');
INSERT INTO agent_service.messages VALUES (1, 4, 'msg_651ac2476e430d458c7d9a77', 'run_paused', 'step_eba952aff596b42c8af1e337', 1795540600942660000, 'tool_call', 1, '{"calls":[{"tool_call_id":"call_c6cde708d24dd95cd6476c9a","name":"get_secret_code","arguments_json":"{\"name\": \"Alice\"}"},{"tool_call_id":"call_9e85fcaafdd061ffe5bdefe9","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}"}]}');
INSERT INTO agent_service.messages VALUES (1, 5, 'msg_a8d7e4eebf808e4e2aa12d86', 'run_paused', 'step_eba952aff596b42c8af1e337', 1795540600979701000, 'tool_return', 1, '{"tool_call_id":"call_c6cde708d24dd95cd6476c9a","name":"get_secret_code","outcome":"returned","text":"ALPHA-7","stdout":"","stderr":"","truncated":false,"parts":[]}');
-- Data for Name: pins; Type: TABLE DATA; Schema: agent_service; Owner: -
INSERT INTO agent_service.pins OVERRIDING SYSTEM VALUE VALUES (1, 'default', 'b0c9ceed3555803ccaafaaf9f69101894623591187993d429318485628635b00', 1, '{"agent_id":"default","kind":"llm","model":"scripted-model","provider":"openai_chat","system_prompt":"You are a helpful assistant.","tools":[],"overridden_tools":[],"tool_choice":{"mode":"auto","tool_name":""},"parallel_tool_calls":null,"agent_revision":0,"message_tool":"send_message","message_argument":"message","response_format":null,"tool_rules":[]}');
INSERT INTO agent_service.pins OVERRIDING SYSTEM VALUE VALUES (2, 'default', '0b33403cdc83f1da57b8d77f37400388f50609fe861616bbdf539476cc92e4f4', 1, '{"agent_id":"default","kind":"llm","model":"scripted-model","provider":"openai_chat","system_prompt":"You are a helpful assistant.","tools":[{"name":"get_secret_code","description":"Returns the secret code of a person.","parameters_json":"{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"}},\"required\":[\"name\"]}","executor":"client","result_schema_json":"","requires_approval":false,"idempotent":false,"timeout":0,"on_timeout":"return_error","parallel_safe":false}],"overridden_tools":[],"tool_choice":{"mode":"auto","tool_name":""},"parallel_tool_calls":null,"agent_revision":0,"message_tool":"send_message","message_argument":"message","response_format":null,"tool_rules":[]}');
-- Data for Name: receipts; Type: TABLE DATA; Schema: agent_service; Owner: -
INSERT INTO agent_service.receipts VALUES (2, 'req_1', 1, '{"request_id":"req_1","digest":"d8cf04ae52ceed4a0a3ad0c93ae134d3da80e54097ee9800b7af321f0ebb2d70","sequence":6,"body":{"request_id":"req_1","accepted":["call_c6cde708d24dd95cd6476c9a"],"already_settled":[],"remaining":[{"tool_call_id":"call_9e85fcaafdd061ffe5bdefe9","name":"get_secret_code","arguments_json":"{\"name\": \"Bob\"}","kind":"client_execution","index":1,"deadline":0}]}}');
-- Data for Name: runs; Type: TABLE DATA; Schema: agent_service; Owner: -
INSERT INTO agent_service.runs OVERRIDING SYSTEM VALUE VALUES (1, 'default', 'run_0409d4eec4517ab45af72bfd', 1, 1, 'default', 1795540600855241000, '{}', 1, 'completed', 1, '', 0, 0, 5, 1, '{"run_id":"run_0409d4eec4517ab45af72bfd","conversation_id":"conv_b7591d1282f37f30874a72a0","agent_id":"default","model":"scripted-model","digest":"2ad394d63c342b55a8390aac3968f783cab6e3b6904c2fbf64f25bcb37df142d","status":"completed","max_steps":50,"create_time":1795540600855241000,"update_time":1795540600882575000,"stop_reason":"end_turn","error":null,"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"steps_taken":1,"model_attempts":1,"invalid_steps":0,"last_sequence":5,"epoch":1,"owner":"","lease_expire_time":0,"end_time":1795540600882575000,"first_token_time":1795540600880576156,"request_start_time":0,"labels":{},"overridden_tools":[],"agent_revision":0,"first_position":1,"run_timeout":0,"running_time":27334000,"running_since":0,"losses":0,"pause_ttl":604800000000000,"pause_expire_time":0,"queued_inputs":[],"conversation_time":1795540600855241000,"invalid_answers":0,"rule_state":{"counts":[],"last_tool":"","last_call_id":"","last_output":null},"server_tools_wait":false}');
INSERT INTO agent_service.runs OVERRIDING SYSTEM VALUE VALUES (2, 'default', 'run_paused', 1, 2, 'default', 1795540600893896000, '{}', 1, 'paused', 1, '', 0, 4000000000000000000, 8, 1, '{"run_id":"run_paused","conversation_id":"conv_b7591d1282f37f30874a72a0","agent_id":"default","model":"scripted-model","digest":"b6aa9b689fb79cb6a019d314ce77f7787a9d75f6f5ffdd1eaa42df55c69c4cce","status":"paused","max_steps":50,"create_time":1795540600893896000,"update_time":1795540600979701000,"stop_reason":"requires_approval","error":null,"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"cached_prompt_tokens":0,"reasoning_tokens":0},"steps_taken":1,"model_attempts":1,"invalid_steps":0,"last_sequence":8,"epoch":1,"owner":"","lease_expire_time":0,"end_time":0,"first_token_time":1795540600900712183,"request_start_time":0,"labels":{},"overridden_tools":[],"agent_revision":0,"first_position":3,"run_timeout":0,"running_time":48764000,"running_since":0,"losses":0,"pause_ttl":604800000000000,"pause_expire_time":4000000000000000000,"queued_inputs":[],"conversation_time":1795540600855241000,"invalid_answers":0,"rule_state":{"counts":[],"last_tool":"","last_call_id":"","last_output":null},"server_tools_wait":false}');
-- Data for Name: schema_version; Type: TABLE DATA; Schema: agent_service; Owner: -
INSERT INTO agent_service.schema_version VALUES (1);
-- Data for Name: tombstones; Type: TABLE DATA; Schema: agent_service; Owner: -
-- Name: conversations_conversation_key_seq; Type: SEQUENCE SET; Schema: agent_service; Owner: -
SELECT pg_catalog.setval('agent_service.conversations_conversation_key_seq', 1, true);
-- Name: pins_pin_key_seq; Type: SEQUENCE SET; Schema: agent_service; Owner: -
SELECT pg_catalog.setval('agent_service.pins_pin_key_seq', 2, true);
-- Name: runs_run_key_seq; Type: SEQUENCE SET; Schema: agent_service; Owner: -
SELECT pg_catalog.setval('agent_service.runs_run_key_seq', 2, true);
-- Name: agents agents_pkey; Type: CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.agents
    ADD CONSTRAINT agents_pkey PRIMARY KEY (tenant, agent_id);
-- Name: calls calls_pkey; Type: CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.calls
    ADD CONSTRAINT calls_pkey PRIMARY KEY (tool_call_id);
-- Name: conversations conversations_pkey; Type: CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.conversations
    ADD CONSTRAINT conversations_pkey PRIMARY KEY (conversation_key);
-- Name: conversations conversations_tenant_conversation_id_key; Type: CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.conversations
    ADD CONSTRAINT conversations_tenant_conversation_id_key UNIQUE (tenant, conversation_id);
-- Name: events events_pkey; Type: CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (run_key, sequence);
-- Name: messages messages_pkey; Type: CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.messages
    ADD CONSTRAINT messages_pkey PRIMARY KEY (conversation_key, "position");
-- Name: pins pins_pkey; Type: CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.pins
    ADD CONSTRAINT pins_pkey PRIMARY KEY (pin_key);
-- Name: pins pins_tenant_sha256_key; Type: CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.pins
    ADD CONSTRAINT pins_tenant_sha256_key UNIQUE (tenant, sha256);
-- Name: receipts receipts_pkey; Type: CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.receipts
    ADD CONSTRAINT receipts_pkey PRIMARY KEY (run_key, request_id);
-- Name: runs runs_pkey; Type: CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (run_key);
-- Name: runs runs_tenant_run_id_key; Type: CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.runs
    ADD CONSTRAINT runs_tenant_run_id_key UNIQUE (tenant, run_id);
-- Name: tombstones tombstones_pkey; Type: CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.tombstones
    ADD CONSTRAINT tombstones_pkey PRIMARY KEY (tenant, run_id);
-- Name: calls_due; Type: INDEX; Schema: agent_service; Owner: -
CREATE INDEX calls_due ON agent_service.calls USING btree (deadline) WHERE ((state = 'pending'::text) AND (deadline > 0));
-- Name: calls_of_step; Type: INDEX; Schema: agent_service; Owner: -
CREATE INDEX calls_of_step ON agent_service.calls USING btree (run_key, step);
-- Name: calls_pending; Type: INDEX; Schema: agent_service; Owner: -
CREATE INDEX calls_pending ON agent_service.calls USING btree (tenant, pending_time, tool_call_id) WHERE (state = 'pending'::text);
-- Name: conversations_by_time; Type: INDEX; Schema: agent_service; Owner: -
CREATE INDEX conversations_by_time ON agent_service.conversations USING btree (tenant, create_time, conversation_id);
-- Name: events_ended; Type: INDEX; Schema: agent_service; Owner: -
CREATE INDEX events_ended ON agent_service.events USING btree (create_time) WHERE ((kind = 'run_stopped'::text) AND (strpos(body, '"final":true'::text) > 0));
-- Name: events_final; Type: INDEX; Schema: agent_service; Owner: -
CREATE UNIQUE INDEX events_final ON agent_service.events USING btree (run_key) WHERE ((kind = 'run_stopped'::text) AND (strpos(body, '"final":true'::text) > 0));
-- Name: runs_busy; Type: INDEX; Schema: agent_service; Owner: -
CREATE UNIQUE INDEX runs_busy ON agent_service.runs USING btree (conversation_key) WHERE (status = ANY (ARRAY['running'::text, 'paused'::text]));
-- Name: runs_by_time; Type: INDEX; Schema: agent_service; Owner: -
CREATE INDEX runs_by_time ON agent_service.runs USING btree (tenant, create_time, run_id);
-- Name: runs_expiring; Type: INDEX; Schema: agent_service; Owner: -
CREATE INDEX runs_expiring ON agent_service.runs USING btree (pause_expire_time) WHERE (pause_expire_time > 0);
-- Name: runs_of_conversation; Type: INDEX; Schema: agent_service; Owner: -
CREATE INDEX runs_of_conversation ON agent_service.runs USING btree (conversation_key);
-- Name: runs_queued; Type: INDEX; Schema: agent_service; Owner: -
CREATE INDEX runs_queued ON agent_service.runs USING btree (conversation_key, run_key) WHERE (status = 'queued'::text);
-- Name: runs_running; Type: INDEX; Schema: agent_service; Owner: -
CREATE INDEX runs_running ON agent_service.runs USING btree (run_key) WHERE (status = 'running'::text);
-- Name: runs_unsettled; Type: INDEX; Schema: agent_service; Owner: -
CREATE INDEX runs_unsettled ON agent_service.runs USING btree (conversation_key) WHERE (status = ANY (ARRAY['running'::text, 'paused'::text, 'interrupted'::text]));
-- Name: calls calls_added; Type: TRIGGER; Schema: agent_service; Owner: -
CREATE TRIGGER calls_added AFTER INSERT ON agent_service.calls REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION agent_service.check_added_calls();
-- Name: calls calls_outcome_is_final; Type: TRIGGER; Schema: agent_service; Owner: -
CREATE TRIGGER calls_outcome_is_final BEFORE UPDATE ON agent_service.calls FOR EACH ROW WHEN ((old.state = ANY (ARRAY['returned'::text, 'failed'::text, 'denied'::text, 'expired'::text, 'cancelled'::text]))) EXECUTE FUNCTION agent_service.refuse('the outcome of a call never changes');
-- Name: calls calls_stay_in_their_run; Type: TRIGGER; Schema: agent_service; Owner: -
CREATE TRIGGER calls_stay_in_their_run BEFORE UPDATE ON agent_service.calls FOR EACH ROW WHEN (((new.tool_call_id <> old.tool_call_id) OR (new.tenant <> old.tenant) OR (new.run_key <> old.run_key))) EXECUTE FUNCTION agent_service.refuse('a call never moves to another run');
-- Name: events events_added; Type: TRIGGER; Schema: agent_service; Owner: -
CREATE TRIGGER events_added AFTER INSERT ON agent_service.events REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION agent_service.check_added_events();
-- Name: events events_never_change; Type: TRIGGER; Schema: agent_service; Owner: -
CREATE TRIGGER events_never_change BEFORE UPDATE ON agent_service.events FOR EACH ROW EXECUTE FUNCTION agent_service.refuse('a stored event never changes');
-- Name: messages messages_never_change; Type: TRIGGER; Schema: agent_service; Owner: -
CREATE TRIGGER messages_never_change BEFORE UPDATE ON agent_service.messages FOR EACH ROW EXECUTE FUNCTION agent_service.refuse('a stored message never changes');
-- Name: receipts receipts_never_change; Type: TRIGGER; Schema: agent_service; Owner: -
CREATE TRIGGER receipts_never_change BEFORE UPDATE ON agent_service.receipts FOR EACH ROW EXECUTE FUNCTION agent_service.refuse('a receipt never changes');
-- Name: runs runs_count_upwards; Type: TRIGGER; Schema: agent_service; Owner: -
CREATE TRIGGER runs_count_upwards BEFORE UPDATE ON agent_service.runs FOR EACH ROW WHEN (((new.epoch < old.epoch) OR (new.last_sequence < old.last_sequence))) EXECUTE FUNCTION agent_service.refuse('epoch and last_sequence of a run never go down');
-- Name: runs runs_terminal_is_final; Type: TRIGGER; Schema: agent_service; Owner: -
CREATE TRIGGER runs_terminal_is_final BEFORE UPDATE ON agent_service.runs FOR EACH ROW WHEN ((old.status = ANY (ARRAY['completed'::text, 'failed'::text, 'cancelled'::text, 'expired'::text]))) EXECUTE FUNCTION agent_service.refuse('a terminal run never changes');
-- Name: runs runs_updated; Type: TRIGGER; Schema: agent_service; Owner: -
CREATE TRIGGER runs_updated AFTER UPDATE ON agent_service.runs REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION agent_service.check_updated_runs();
-- Name: messages messages_conversation_key_fkey; Type: FK CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.messages
    ADD CONSTRAINT messages_conversation_key_fkey FOREIGN KEY (conversation_key) REFERENCES agent_service.conversations(conversation_key);
-- Name: receipts receipts_run_key_fkey; Type: FK CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.receipts
    ADD CONSTRAINT receipts_run_key_fkey FOREIGN KEY (run_key) REFERENCES agent_service.runs(run_key);
-- Name: runs runs_conversation_key_fkey; Type: FK CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.runs
    ADD CONSTRAINT runs_conversation_key_fkey FOREIGN KEY (conversation_key) REFERENCES agent_service.conversations(conversation_key);
-- Name: runs runs_pin_key_fkey; Type: FK CONSTRAINT; Schema: agent_service; Owner: -
ALTER TABLE ONLY agent_service.runs
    ADD CONSTRAINT runs_pin_key_fkey FOREIGN KEY (pin_key) REFERENCES agent_service.pins(pin_key);
-- PostgreSQL database dump complete
