"""Agents and conversations as callers make, read, change and delete them."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from agentrpc.v1 import agent_registry_service_pb2 as pb
from agentrpc.v1 import agent_service_pb2, agents_pb2, runs_pb2, sort_order_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from agent_service.tools import server_tool
from tests.scripted_openai import calls, says, silent
from tests.service import SECRET, Client, Refusal, kinds, refusal, returned, scripted, step, submit

pytestmark = pytest.mark.anyio

TOOLS = ",".join(f"tests.test_registry:{name}" for name in ("add", "delete_file", "speak"))
CALL = calls(("get_secret_code", {"name": "Alice"}))
NOBODY = ("NOT_FOUND", "AGENT_NOT_FOUND")


async def add(a: int, b: int) -> str:
    """Adds two numbers."""
    return str(a + b)


@server_tool(requires_approval=True)
async def delete_file(path: str) -> str:
    """Deletes a file."""
    return f"deleted {path}"


async def speak(words: str) -> str:
    """Says something."""
    return "said"


async def update(client: Client, agent_id: str, *paths: str, **fields: Any) -> agents_pb2.Agent:
    """UpdateAgent of these fields."""
    return (await client.registry.UpdateAgent(update_request(agent_id, *paths, **fields))).agent


def update_request(agent_id: str, *paths: str, **fields: Any) -> pb.UpdateAgentRequest:
    """An UpdateAgentRequest."""
    agent = agents_pb2.Agent(agent_id=agent_id, **fields)
    return pb.UpdateAgentRequest(agent=agent, update_mask=FieldMask(paths=paths))


def create_request(agent_id: str, **fields: Any) -> pb.CreateAgentRequest:
    """A CreateAgentRequest."""
    return pb.CreateAgentRequest(agent=agents_pb2.Agent(agent_id=agent_id, **fields))


def why(refused: Refusal) -> tuple[str, str]:
    """Code and reason."""
    return refused.code, refused.reason


async def agent_pages(client: Client, size: int) -> list[list[str]]:
    """The ids of ListAgents, page by page."""
    pages, token = [], ""
    while True:
        page = await client.registry.ListAgents(pb.ListAgentsRequest(page_size=size, page_token=token))
        pages.append([agent.agent_id for agent in page.agents])
        token = page.next_page_token
        if not token:
            return pages


async def test_an_agent_is_read_as_it_was_made(store: str) -> None:
    """With what the server adds: etag, revision, times and the names of the message tool."""
    async with scripted([], store, tools=TOOLS) as (client, _):
        made = await client.create_agent(
            "sales", description="Sells.", instructions="Sell.", model="m-2", server_tools=["speak", "add"]
        )
        assert made == await client.get_agent("sales")
        assert (made.kind, made.model, list(made.server_tools)) == (
            agents_pb2.AGENT_KIND_LLM,
            "m-2",
            ["speak", "add"],
        )
        assert (made.message_tool, made.message_argument) == ("send_message", "message")
        assert (made.revision, made.configured, made.is_default) == (1, False, False)
        assert made.etag
        assert made.create_time == made.update_time
        assert made.create_time.seconds > 0


async def test_an_agent_without_an_id_gets_one(store: str) -> None:
    """A fresh one with each call."""
    async with scripted([], store) as (client, _):
        first, second = await client.create_agent(""), await client.create_agent("")
        assert first.agent_id.startswith("agent_")
        assert first.agent_id != second.agent_id


async def test_making_an_agent_is_repeatable(store: str) -> None:
    """The same id and content is the same agent, what the server sets aside; another content is refused."""
    async with scripted([], store) as (client, _):
        made = await client.create_agent("sales", instructions="Sell.")
        again = await client.create_agent(
            "sales", instructions="Sell.", message_tool="send_message", etag="x", revision=7, configured=True
        )
        assert again == made
        refused = await refusal(client.registry.CreateAgent(create_request("sales", instructions="Buy.")))
        assert why(refused) == ("ALREADY_EXISTS", "AGENT_ID_REUSED")
        assert refused.metadata == {"agent_id": "sales"}
        assert await client.get_agent("sales") == made


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"agent_id": "not an id"}, "agent.agent_id"),
        ({"server_tools": ["add", "nothing"]}, "agent.server_tools[1]"),
        ({"server_tools": ["add", "speak", "add"]}, "agent.server_tools[2]"),
        ({"kind": 9}, "agent.kind"),
        ({"kind": agents_pb2.AGENT_KIND_RESPONDER, "server_tools": ["add"]}, "agent.server_tools"),
        ({"model": "m" * 257}, "agent.model"),
        ({"instructions": "x" * 2_000_000}, "agent.instructions"),
    ],
)
async def test_an_agent_that_could_not_work_is_not_made(fields: dict[str, Any], named: str) -> None:
    """INVALID_ARGUMENT with the path, and nothing is kept."""
    async with scripted([], "memory", tools=TOOLS) as (client, _):
        request = pb.CreateAgentRequest(agent=agents_pb2.Agent(**{"agent_id": "sales", **fields}))
        refused = await refusal(client.registry.CreateAgent(request))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", (named,))
        assert await agent_pages(client, 0) == [["default", "responder"]]


async def test_a_mask_says_what_changes(store: str) -> None:
    """Only the fields it names, or all of them if it names none; each change has a new etag and revision."""
    async with scripted([], store, tools=TOOLS) as (client, _):
        made = await client.create_agent("sales", description="Sells.", instructions="Sell.", server_tools=["add"])
        one = await update(client, "sales", "instructions", "server_tools", instructions="Sell more.", model="ignored")
        assert (one.description, one.instructions, list(one.server_tools), one.model) == (
            "Sells.",
            "Sell more.",
            [],
            "",
        )
        assert (one.revision, one.etag != made.etag) == (2, True)
        assert one.create_time == made.create_time
        everything = await update(client, "sales", model="m-2", etag=one.etag)
        assert (everything.description, everything.instructions, everything.model) == ("", "", "m-2")
        assert everything.revision == 3
        assert await update(client, "sales", "model", model="m-2") == everything
        assert await client.get_agent("sales") == everything


@pytest.mark.parametrize("path", ["agent_id", "kind", "etag", "revision", "nothing", "agent.model", ""])
async def test_a_field_that_cannot_change_is_refused_in_a_mask(path: str) -> None:
    """INVALID_ARGUMENT that lists those that can."""
    async with scripted([], "memory") as (client, _):
        made = await client.create_agent("sales")
        refused = await refusal(client.registry.UpdateAgent(update_request("sales", "model", path, model="m-2")))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("update_mask",))
        assert "instructions" in refused.message
        assert await client.get_agent("sales") == made


async def test_a_change_that_could_not_work_is_refused(store: str) -> None:
    """Unknown or doubled tools, and tools for a responder, also if the request does not repeat its kind."""
    async with scripted([], store, tools=TOOLS) as (client, _):
        await client.create_agent("sales")
        await client.create_agent("talker", kind=agents_pb2.AGENT_KIND_RESPONDER)
        cases = [("sales", ["nothing"]), ("sales", ["add", "add"]), ("talker", ["add"])]
        for agent_id, names in cases:
            before = await client.get_agent(agent_id)
            request = update_request(agent_id, "server_tools", server_tools=names)
            refused = await refusal(client.registry.UpdateAgent(request))
            assert refused.code == "INVALID_ARGUMENT"
            assert refused.fields[0].startswith("agent.server_tools")
            assert await client.get_agent(agent_id) == before


async def test_a_change_or_deletion_of_another_state_is_refused(store: str) -> None:
    """ABORTED ETAG_MISMATCH with the present etag, with which it can be repeated."""
    async with scripted([], store) as (client, _):
        made = await client.create_agent("sales")
        changed = await update(client, "sales", "model", model="m-2", etag=made.etag)
        late = [
            client.registry.UpdateAgent(update_request("sales", "model", model="m-3", etag=made.etag)),
            client.registry.DeleteAgent(pb.DeleteAgentRequest(agent_id="sales", etag=made.etag)),
        ]
        for call in late:
            refused = await refusal(call)
            assert why(refused) == ("ABORTED", "ETAG_MISMATCH")
            assert refused.metadata == {"etag": changed.etag}
        assert await client.get_agent("sales") == changed
        await client.registry.DeleteAgent(pb.DeleteAgentRequest(agent_id="sales", etag=changed.etag))
        assert why(await refusal(client.registry.GetAgent(pb.GetAgentRequest(agent_id="sales")))) == NOBODY


async def test_of_racing_updates_with_one_etag_one_is_made(store: str) -> None:
    """The others are ABORTED, and the agent is the winner's."""
    async with scripted([], store) as (client, _):
        made = await client.create_agent("sales")
        racing = [update(client, "sales", "model", model=f"m-{n}", etag=made.etag) for n in range(10)]
        results = await asyncio.gather(*racing, return_exceptions=True)
        (won,) = [result for result in results if isinstance(result, agents_pb2.Agent)]
        lost = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
        assert {error.code() for error in lost} == {grpc.StatusCode.ABORTED}
        assert len(lost) == 9
        assert await client.get_agent("sales") == won
        assert won.revision == 2


async def test_agents_of_the_configuration_can_be_read_and_not_changed(store: str) -> None:
    """FAILED_PRECONDITION AGENT_READ_ONLY; their ids are taken; the default one is what an empty id means."""
    async with scripted([], store) as (client, _):
        default = await client.get_agent("")
        assert (default.agent_id, default.configured, default.is_default) == ("default", True, True)
        assert (default.etag, default.revision, default.HasField("create_time")) == ("", 0, False)
        responder = await client.get_agent("responder")
        assert (responder.kind, responder.is_default) == (agents_pb2.AGENT_KIND_RESPONDER, False)
        for call in (
            client.registry.UpdateAgent(update_request("default", "model", model="m-2")),
            client.registry.DeleteAgent(pb.DeleteAgentRequest(agent_id="responder")),
        ):
            assert why(await refusal(call)) == ("FAILED_PRECONDITION", "AGENT_READ_ONLY")
        refused = await refusal(client.registry.CreateAgent(create_request("default")))
        assert why(refused) == ("ALREADY_EXISTS", "AGENT_ID_REUSED")
        assert await client.get_agent("") == default


async def test_agents_are_listed_those_of_the_configuration_first(store: str) -> None:
    """Then the others by id, page by page, also when they come and go between two pages."""
    async with scripted([], store) as (client, _):
        for agent_id in ("c", "a", "b"):
            await client.create_agent(agent_id)
        assert await agent_pages(client, 0) == [["default", "responder", "a", "b", "c"]]
        assert await agent_pages(client, 1) == [["default"], ["responder"], ["a"], ["b"], ["c"]]
        assert await agent_pages(client, 3) == [["default", "responder", "a"], ["b", "c"]]
        first = await client.registry.ListAgents(pb.ListAgentsRequest(page_size=4))
        await client.registry.DeleteAgent(pb.DeleteAgentRequest(agent_id="b"))
        await client.create_agent("bb")
        rest = await client.registry.ListAgents(pb.ListAgentsRequest(page_token=first.next_page_token))
        assert [agent.agent_id for agent in rest.agents] == ["bb", "c"]


async def test_an_unknown_agent_is_named_with_what_to_do(store: str) -> None:
    """NOT_FOUND from every RPC that takes an agent's id."""
    async with scripted([], store) as (client, _):
        start = step("Hi", agent_id="nobody")
        for call in (
            client.registry.GetAgent(pb.GetAgentRequest(agent_id="nobody")),
            client.registry.UpdateAgent(update_request("nobody", "model", model="m-2")),
            client.registry.DeleteAgent(pb.DeleteAgentRequest(agent_id="nobody")),
            client.agent.Step(start),
            client.agent.Stream(agent_service_pb2.StreamRequest(step=start)),
            client.agent.BuildRequest(agent_service_pb2.BuildRequestRequest(step=start)),
        ):
            refused = await refusal(call)
            assert (why(refused), "'nobody'" in refused.message) == (NOBODY, True)


async def test_a_run_uses_its_agent(store: str) -> None:
    """The endpoint gets the agent's model, instructions and tools; the run says which revision it was started with."""
    async with scripted([calls(("add", {"a": 1, "b": 2})), says("3")], store, tools=TOOLS) as (client, upstream):
        await client.create_agent("sums", instructions="Add.", model="m-2", server_tools=["add"])
        await update(client, "sums", "description", description="Adds.")
        run = (await client.ask("1 + 2?", agent_id="sums")).run
        assert (run.agent_id, run.agent_revision, run.model) == ("sums", 2, "m-2")
        for request in upstream.requests:
            assert (request.model, request.system, request.tool_names) == ("m-2", "Add.", ["add"])
        assert (await client.get_agent("sums")).revision == 2


async def test_an_agent_that_names_no_model_uses_the_server_s(store: str) -> None:
    """And an agent of the configuration has no revision."""
    async with scripted([says("Yes."), says("Yes.")], store) as (client, upstream):
        await client.create_agent("plain")
        run = (await client.ask("Hi", agent_id="plain")).run
        assert (run.model, upstream.requests[0].model, run.agent_revision) == ("scripted-model", "scripted-model", 1)
        assert (await client.ask("Hi")).run.agent_revision == 0


async def test_an_agent_speaks_through_its_own_message_tool(store: str) -> None:
    """Calls of it are shown as assistant messages, unless the caller wants to see the calls."""
    script = [calls(("speak", {"words": "Good day."})), says("Done.")] * 2
    async with scripted(script, store, tools=TOOLS) as (client, _):
        await client.create_agent("talker", server_tools=["speak"], message_tool="speak", message_argument="words")
        spoken = await client.ask("Hi", agent_id="talker")
        assert [m.assistant.text for m in spoken.messages[1:]] == ["Good day.", "Done."]
        plain = await client.ask("Hi", agent_id="talker", use_assistant_message=False)
        assert kinds(plain.messages) == ["user", "tool_call", "tool_return", "assistant"]


@pytest.mark.parametrize("change", ["update", "delete", "replace"])
async def test_a_paused_run_keeps_the_agent_it_was_started_with(store: str, change: str) -> None:
    """Whatever happens to the agent meanwhile: its next request has the model, instructions and tools of before."""
    both = calls(("get_secret_code", {"name": "Alice"}), ("delete_file", {"path": "/x"}))
    async with scripted([both, says("Done."), says("New.")], store, tools=TOOLS) as (client, upstream):
        await client.create_agent("keeper", instructions="Keep.", model="m-2", server_tools=["delete_file"])
        paused = await client.ask("Hi", SECRET, agent_id="keeper")
        run_id, conversation_id = paused.run.run_id, paused.run.conversation_id
        if change == "update":
            await update(client, "keeper", instructions="Other.", model="m-3", server_tools=["add"])
        else:
            await client.registry.DeleteAgent(pb.DeleteAgentRequest(agent_id="keeper"))
        if change == "replace":
            await client.create_agent("keeper", instructions="Other.", model="m-3", server_tools=["add"])

        secret, deletion = paused.run.pending_tool_calls
        request = submit(run_id, returned(secret, "A-1"))
        request.approvals.add(tool_call_id=deletion.tool_call_id).approve.SetInParent()
        resumed = (await client.agent.SubmitToolReturns(request)).run
        assert (resumed.status, resumed.agent_revision) == (runs_pb2.RUN_STATUS_COMPLETED, 1)
        first, second = upstream.requests
        assert (second.model, second.system, second.tool_names) == ("m-2", "Keep.", first.tool_names)
        assert second.new_returns == ["A-1", "deleted /x"]
        if change != "delete":
            await client.ask("Hi", agent_id="keeper", conversation_id=conversation_id)
            third = upstream.requests[2]
            assert (third.model, third.system, third.tool_names) == ("m-3", "Other.", ["add"])


async def test_a_conversation_whose_label_holds_a_nul_can_be_created_again(store: str) -> None:
    """A repeat is answered like the first call, also where a database cannot hold that character."""
    async with scripted([], store) as (client, _):
        request = pb.CreateConversationRequest(conversation_id="conv-1", labels={"team": "a\0b"})
        made = (await client.registry.CreateConversation(request)).conversation
        assert (await client.registry.CreateConversation(request)).conversation == made


async def test_a_conversation_is_made_with_an_id_and_labels(store: str) -> None:
    """A repeat with the same labels is answered with it; with others it is refused; without an id it is new."""
    async with scripted([], store) as (client, _):
        request = pb.CreateConversationRequest(conversation_id="conv-1", labels={"team": "a", "env": "x"})
        made = (await client.registry.CreateConversation(request)).conversation
        assert (made.conversation_id, dict(made.labels)) == ("conv-1", {"team": "a", "env": "x"})
        assert (made.message_count, made.active_run_id, made.HasField("create_time")) == (0, "", True)
        assert (await client.registry.CreateConversation(request)).conversation == made
        assert await client.get_conversation("conv-1") == made
        other = pb.CreateConversationRequest(conversation_id="conv-1", labels={"team": "b"})
        refused = await refusal(client.registry.CreateConversation(other))
        assert why(refused) == ("ALREADY_EXISTS", "CONVERSATION_ID_REUSED")
        issued = (await client.registry.CreateConversation(pb.CreateConversationRequest())).conversation
        assert issued.conversation_id.startswith("conv_")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"conversation_id": "not an id"}, "conversation_id"),
        ({"labels": {"": "x"}}, "labels"),
        ({"labels": {"team": "x" * 257}}, 'labels["team"]'),
        ({"labels": {str(number): "x" for number in range(33)}}, "labels"),
    ],
)
async def test_a_conversation_with_bad_fields_is_not_made(fields: dict[str, Any], named: str) -> None:
    """INVALID_ARGUMENT with the path."""
    async with scripted([], "memory") as (client, _):
        refused = await refusal(client.registry.CreateConversation(pb.CreateConversationRequest(**fields)))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", (named,))


async def test_runs_take_place_in_a_conversation_that_was_made_before(store: str) -> None:
    """It counts their messages and names the one that is active."""
    async with scripted([CALL, silent(), says("Done.")], store) as (client, upstream):
        await client.registry.CreateConversation(pb.CreateConversationRequest(conversation_id="conv-1"))
        paused = await client.ask("Hi", SECRET, conversation_id="conv-1", run_id="run-1")
        assert paused.run.conversation_id == "conv-1"
        found = await client.get_conversation("conv-1")
        assert (found.message_count, found.active_run_id) == (2, "run-1")
        call = paused.run.pending_tool_calls[0]
        await client.answer("run-1", returned(call, "A-1"), background=True)
        await upstream.wait_for_requests(2)
        found = await client.get_conversation("conv-1")
        assert (found.message_count, found.active_run_id) == (3, "run-1")
        await client.cancel("run-1")
        assert (await client.get_conversation("conv-1")).active_run_id == ""
        await client.ask("Again", conversation_id="conv-1")
        assert (await client.get_conversation("conv-1")).message_count == 5


async def test_conversations_are_listed_by_labels_in_both_orders(store: str) -> None:
    """The newest first unless asked otherwise, page by page; those that began with a run are there, too."""
    async with scripted([says("Yes.")], store) as (client, _):
        for number, labels in enumerate([{"team": "a"}, {"team": "b"}, {"team": "a", "env": "x"}]):
            request = pb.CreateConversationRequest(conversation_id=f"conv-{number}", labels=labels)
            await client.registry.CreateConversation(request)
        began = (await client.ask("Hi")).run.conversation_id

        async def pages(**fields: Any) -> list[list[str]]:
            found, token = [], ""
            while True:
                request = pb.ListConversationsRequest(page_token=token, **fields)
                page = await client.registry.ListConversations(request)
                found.append([conversation.conversation_id for conversation in page.conversations])
                token = page.next_page_token
                if not token:
                    return found

        assert await pages() == [[began, "conv-2", "conv-1", "conv-0"]]
        assert await pages(page_size=3) == [[began, "conv-2", "conv-1"], ["conv-0"]]
        ascending = sort_order_pb2.SORT_ORDER_ASCENDING
        assert await pages(page_size=2, order=ascending) == [["conv-0", "conv-1"], ["conv-2", began]]
        assert await pages(labels={"team": "a"}) == [["conv-2", "conv-0"]]
        assert await pages(labels={"team": "a"}, page_size=1, order=ascending) == [["conv-0"], ["conv-2"]]
        assert await pages(labels={"team": "a", "env": "x"}) == [["conv-2"]]
        assert await pages(labels={"team": "c"}) == [[]]
        listed = await client.registry.ListConversations(pb.ListConversationsRequest(page_size=1))
        assert listed.conversations[0] == await client.get_conversation(began)


@pytest.mark.parametrize("paused", [False, True])
async def test_a_conversation_with_an_active_run_is_not_deleted(store: str, paused: bool) -> None:
    """FAILED_PRECONDITION RUN_ACTIVE names the run; once that is cancelled it can be deleted."""
    async with scripted([CALL if paused else silent()], store) as (client, upstream):
        run = (await client.agent.Step(step("Hi", SECRET, run_id="run-1", background=not paused))).run
        await upstream.wait_for_requests(1)
        request = pb.DeleteConversationRequest(conversation_id=run.conversation_id)
        refused = await refusal(client.registry.DeleteConversation(request))
        assert why(refused) == ("FAILED_PRECONDITION", "RUN_ACTIVE")
        assert refused.metadata == {"run_id": "run-1"}
        await client.cancel("run-1")
        await client.registry.DeleteConversation(request)


async def test_a_deleted_conversation_is_gone_with_its_messages_and_runs(store: str) -> None:
    """A repeat is NOT_FOUND; a new conversation of the same id knows nothing of the old one, nor does the model."""
    async with scripted([says("Noted: 42."), says("Which number?")], store) as (client, upstream):
        request = pb.CreateConversationRequest(conversation_id="conv-1")
        await client.registry.CreateConversation(request)
        await client.ask("Remember 42.", conversation_id="conv-1", run_id="run-1")
        deletion = pb.DeleteConversationRequest(conversation_id="conv-1")
        await client.registry.DeleteConversation(deletion)
        for call in (
            client.registry.DeleteConversation(deletion),
            client.registry.GetConversation(pb.GetConversationRequest(conversation_id="conv-1")),
            client.registry.ListMessages(pb.ListMessagesRequest(conversation_id="conv-1")),
            client.agent.Step(step("Hi", conversation_id="conv-1")),
        ):
            assert why(await refusal(call)) == ("NOT_FOUND", "CONVERSATION_NOT_FOUND")
        assert len((await client.list_runs()).runs) == 0
        await client.registry.CreateConversation(request)
        await client.ask("What was the number?", conversation_id="conv-1")
        assert "42" not in str(upstream.requests[-1].messages)
        assert (await client.get_conversation("conv-1")).message_count == 2
