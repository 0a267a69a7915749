"""The demo's client against a channel that is played by hand: what it sends, and what it tells of the answers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import grpc_testing
import pytest
from agentrpc.v1 import (
    agent_registry_service_pb2,
    agent_service_pb2,
    events_pb2,
    messages_pb2,
    run_service_pb2,
    runs_pb2,
    tools_pb2,
)
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.json_format import ParseDict

from agent_service.demo import TOOL, DemoClient

SERVICES = {
    service.name: service
    for module in (agent_service_pb2, run_service_pb2, agent_registry_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}


def method(service: str, name: str) -> MethodDescriptor:
    """The descriptor of an RPC."""
    found: MethodDescriptor = SERVICES[service].methods_by_name[name]
    return found


def events(*values: dict[str, Any]) -> list[events_pb2.RunEvent]:
    """Events of run_1 as JSON, numbered from 1."""
    return [
        ParseDict({"runId": "run_1", "sequence": number, **value}, events_pb2.RunEvent())
        for number, value in enumerate(values, 1)
    ]


class Server:
    """The other end of the channel."""

    def __init__(self) -> None:
        self.channel = grpc_testing.channel(list(SERVICES.values()), grpc_testing.strict_real_time())
        self.said: list[str] = []
        self._thread = ThreadPoolExecutor(1)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Future[Any]:
        """Calls a method of the demo's client, which waits for what this end sends."""
        return self._thread.submit(getattr(DemoClient(self.channel, self.said.append), name), *args, **kwargs)

    def stream(self, name: str, response: type[Any], *sent: events_pb2.RunEvent) -> Any:
        """Answers a stream of AgentService with these events; gives the request."""
        _, request, rpc = self.channel.take_unary_stream(method("AgentService", name))
        for event in sent:
            rpc.send_response(response(event=event))
        rpc.terminate((), grpc.StatusCode.OK, "")
        return request

    def answer(self, service: str, name: str, response: Any) -> Any:
        """Answers one call; gives the request."""
        _, request, rpc = self.channel.take_unary_unary(method(service, name))
        rpc.terminate(response, (), grpc.StatusCode.OK, "")
        return request

    def close(self) -> None:
        """Waits for the client."""
        self._thread.shutdown()


@pytest.fixture
def server() -> Iterator[Server]:
    """A channel that is played by hand."""
    server = Server()
    yield server
    server.close()


@pytest.mark.parametrize("forced", [True, False])
def test_it_asks_with_the_tool_of_this_process_and_looks_at_the_run(server: Server, forced: bool) -> None:
    """Stream with tokens, the schema in the request and the choice forced where asked for; then GetRun."""
    asked = server.call("ask", "Code of Alice?", force_tool=forced)
    call = {"toolCallId": "call_1", "name": "get_secret_code", "argumentsJson": '{"name": "Alice"}'}
    request = server.stream(
        "Stream",
        agent_service_pb2.StreamResponse,
        *events(
            {"runAccepted": {"conversationId": "conv_1"}},
            {"toolCallArgumentsDelta": {"messageId": "msg_1", "text": '{"name"'}},
            {"toolCallArgumentsDelta": {"messageId": "msg_1", "text": ': "Alice"}'}},
            {"messageStored": {"message": {"toolCall": {"toolCalls": [call]}}}},
            {"runStopped": {"status": "RUN_STATUS_PAUSED", "stopReason": "STOP_REASON_REQUIRES_APPROVAL"}},
        ),
    )
    run = runs_pb2.Run(run_id="run_1", status=runs_pb2.RUN_STATUS_PAUSED)
    looked = server.answer("RunService", "GetRun", run_service_pb2.GetRunResponse(run=run))
    assert asked.result(10) == run
    assert request.stream_tokens
    assert [message.text for message in request.step.input_messages] == ["Code of Alice?"]
    assert list(request.step.client_tools) == [TOOL]
    assert request.step.tool_choice.tool_name == (TOOL.name if forced else "")
    assert looked.run_id == "run_1"
    told = "\n".join(server.said)
    assert "Code of Alice?" in server.said[0]
    assert "<- 1 run_accepted" in server.said
    assert 'get_secret_code({"name": "Alice"})  (streamed in 2 pieces)' in told
    assert server.said[-1] == "<- 5 run_stopped  PAUSED, REQUIRES_APPROVAL"


def test_it_answers_the_call_and_follows_to_the_end(server: Server) -> None:
    """StreamToolReturns with the return; the events are told as they come."""
    answered = server.call("answer", "run_1", "call_1", '{"code": "A-1"}')
    request = server.stream(
        "StreamToolReturns",
        agent_service_pb2.StreamToolReturnsResponse,
        *events(
            {"toolReturnsAccepted": {"acceptedToolCallIds": ["call_1"]}},
            {"messageStored": {"message": {"toolReturn": {"text": '{"code": "A-1"}'}}}},
            {"runResumed": {}},
            {"textDelta": {"messageId": "msg_2", "text": "It is"}},
            {"messageStored": {"message": {"assistant": {"text": "It is A-1."}}}},
            {"runStopped": {"status": "RUN_STATUS_COMPLETED", "stopReason": "STOP_REASON_END_TURN", "final": True}},
        ),
    )
    answered.result(10)
    assert request.stream_tokens
    (sent,) = request.submit.tool_returns
    assert (request.submit.run_id, sent.tool_call_id, sent.text) == ("run_1", "call_1", '{"code": "A-1"}')
    assert sent.status in (tools_pb2.TOOL_RETURN_STATUS_UNSPECIFIED, tools_pb2.TOOL_RETURN_STATUS_SUCCESS)
    assert server.said[1:] == [
        "<- 1 tool_returns_accepted",
        '<- 2 tool_return  {"code": "A-1"}',
        "<- 3 run_resumed",
        '<- 5 assistant  "It is A-1."  (streamed in 1 pieces)',
        "<- 6 run_stopped  COMPLETED, END_TURN",
    ]


def test_it_tells_what_went_wrong_with_a_run(server: Server) -> None:
    """A stop with an error shows its message."""
    asked = server.call("ask", "Code?", force_tool=True)
    stopped = {
        "status": "RUN_STATUS_INTERRUPTED",
        "stopReason": "STOP_REASON_LLM_API_ERROR",
        "error": {"reason": "ERROR_REASON_LLM_UNAVAILABLE", "message": "the endpoint answered 503", "retryable": True},
    }
    server.stream("Stream", agent_service_pb2.StreamResponse, *events({"runAccepted": {}}, {"runStopped": stopped}))
    server.answer("RunService", "GetRun", run_service_pb2.GetRunResponse(run=runs_pb2.Run(run_id="run_1")))
    asked.result(10)
    assert server.said[-2:] == ["<- 2 run_stopped  INTERRUPTED, LLM_API_ERROR", "   the endpoint answered 503"]


def test_it_recalls_in_text_in_the_same_conversation(server: Server) -> None:
    """Step with tool choice NONE and no tools; the last message is told."""
    recalled = server.call("recall", "conv_1", "What was it?")
    response = agent_service_pb2.StepResponse(
        run=runs_pb2.Run(status=runs_pb2.RUN_STATUS_COMPLETED),
        messages=[messages_pb2.Message(assistant=messages_pb2.AssistantMessage(text=" It was A-1. "))],
    )
    request = server.answer("AgentService", "Step", response)
    assert recalled.result(10) == response
    assert request.conversation_id == "conv_1"
    assert request.tool_choice.mode == tools_pb2.TOOL_CHOICE_MODE_NONE
    assert list(request.client_tools) == []
    assert server.said[-1] == '<- COMPLETED  "It was A-1."'


def test_it_reads_the_conversation(server: Server) -> None:
    """ListMessages by the conversation's id."""
    read = server.call("history", "conv_1")
    message = messages_pb2.Message(user=messages_pb2.UserMessage(text="Hi"))
    response = agent_registry_service_pb2.ListMessagesResponse(messages=[message])
    request = server.answer("AgentRegistryService", "ListMessages", response)
    assert read.result(10) == [message]
    assert request.conversation_id == "conv_1"


def test_a_refused_call_is_an_error_of_the_client(server: Server) -> None:
    """A gRPC error is not told as an event, but raised."""
    asked = server.call("ask", "Code?", force_tool=True)
    _, _, rpc = server.channel.take_unary_stream(method("AgentService", "Stream"))
    rpc.terminate((), grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
    with pytest.raises(grpc.RpcError):
        asked.result(10)
    assert len(server.said) == 1
