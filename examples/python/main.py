"""Asks the agent service, with nothing but the code that grpcio-tools generates from proto/."""

# ruff: noqa: T201 - a program for people prints

from __future__ import annotations

import json
import os
from collections.abc import Iterable

import grpc
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import agent_service_pb2_grpc, events_pb2, run_service_pb2, run_service_pb2_grpc, runs_pb2, tools_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

CODES = {"Alice": "AZURE-7731", "Bob": "CORAL-1102", "Carol": "OLIVE-5920"}
TOOL = tools_pb2.ClientToolSchema(
    name="get_secret_code",
    description="Returns the secret code of a person.",
    parameters_json='{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}',
)


def get_secret_code(name: str) -> str:
    """The tool. It runs here, in the caller."""
    return CODES[name]


def execute(call: tools_pb2.PendingToolCall) -> tools_pb2.ToolReturn:
    return tools_pb2.ToolReturn(tool_call_id=call.tool_call_id, text=get_secret_code(**json.loads(call.arguments_json)))


def question(text: str) -> pb.StepRequest:
    forced = tools_pb2.ToolChoice(tool_name=TOOL.name)
    return pb.StepRequest(input_messages=[{"text": text}], client_tools=[TOOL], tool_choice=forced)


def recall(conversation_id: str) -> pb.StepRequest:
    return pb.StepRequest(
        conversation_id=conversation_id,
        input_messages=[{"text": "What was the secret code?"}],
        tool_choice=tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_NONE),
    )


def blocking(agent: agent_service_pb2_grpc.AgentServiceStub) -> None:
    """Ask, pause, execute, submit, answer, recall."""
    paused = agent.Step(question("What is the secret code of Alice?")).run
    assert paused.status == runs_pb2.RUN_STATUS_PAUSED
    assert paused.stop_reason == runs_pb2.STOP_REASON_REQUIRES_APPROVAL
    (call,) = paused.pending_tool_calls
    assert call.name == TOOL.name
    assert call.kind == tools_pb2.PENDING_KIND_CLIENT_EXECUTION

    submit = pb.SubmitToolReturnsRequest(run_id=paused.run_id, tool_returns=[execute(call)])
    answered = agent.SubmitToolReturns(submit)
    assert answered.run.status == runs_pb2.RUN_STATUS_COMPLETED
    print(answered.messages[-1].assistant.text)
    assert CODES["Alice"] in answered.messages[-1].assistant.text

    recalled = agent.Step(recall(paused.conversation_id))
    print(recalled.messages[-1].assistant.text)
    assert CODES["Alice"] in recalled.messages[-1].assistant.text


def follow(responses: Iterable[pb.StreamResponse | pb.StreamToolReturnsResponse]) -> list[events_pb2.RunEvent]:
    """All events of a stream; prints the text as it comes."""
    events = []
    for response in responses:
        events.append(response.event)
        print(response.event.text_delta.text, end="", flush=True)
    assert events[-1].WhichOneof("payload") == "run_stopped"
    return events


def text(events: list[events_pb2.RunEvent]) -> str:
    return "".join(event.text_delta.text for event in events)


def streaming(agent: agent_service_pb2_grpc.AgentServiceStub) -> None:
    """The same, token by token."""
    step = question("What is the secret code of Alice?")
    asked = follow(agent.Stream(pb.StreamRequest(step=step, stream_tokens=True)))
    accepted, stopped = asked[0].run_accepted, asked[-1].run_stopped
    assert stopped.status == runs_pb2.RUN_STATUS_PAUSED
    (call,) = stopped.remaining

    submit = pb.SubmitToolReturnsRequest(run_id=asked[0].run_id, tool_returns=[execute(call)])
    answered = follow(agent.StreamToolReturns(pb.StreamToolReturnsRequest(submit=submit, stream_tokens=True)))
    print()
    assert answered[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED
    assert CODES["Alice"] in text(answered)

    recalled = follow(agent.Stream(pb.StreamRequest(step=recall(accepted.conversation_id), stream_tokens=True)))
    print()
    assert CODES["Alice"] in text(recalled)


def three_calls(agent: agent_service_pb2_grpc.AgentServiceStub) -> None:
    """The return of one of three calls leaves two pending; their returns resume the run."""
    paused = agent.Step(question("What are the secret codes of Alice, Bob and Carol?")).run
    first, *others = paused.pending_tool_calls
    submit = pb.SubmitToolReturnsRequest(run_id=paused.run_id, tool_returns=[execute(first)])
    partial = agent.SubmitToolReturns(submit)
    assert partial.run.status == runs_pb2.RUN_STATUS_PAUSED
    assert list(partial.receipt.remaining) == others
    assert len(others) == 2

    submit = pb.SubmitToolReturnsRequest(run_id=paused.run_id, tool_returns=[execute(call) for call in others])
    answered = agent.SubmitToolReturns(submit)
    assert answered.run.status == runs_pb2.RUN_STATUS_COMPLETED
    print(answered.messages[-1].assistant.text)
    assert all(code in answered.messages[-1].assistant.text for code in CODES.values())


def refusal(agent: agent_service_pb2_grpc.AgentServiceStub, runs: run_service_pb2_grpc.RunServiceStub) -> None:
    """A return for a call that the model never made is refused; programs read why from the details."""
    paused = agent.Step(question("What is the secret code of Bob?")).run
    wrong = tools_pb2.ToolReturn(tool_call_id="call_x", text="?")
    try:
        agent.SubmitToolReturns(pb.SubmitToolReturnsRequest(run_id=paused.run_id, tool_returns=[wrong]))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        print(error.details())
        details = rpc_status.from_call(error).details
    else:
        raise AssertionError("the wrong id was accepted")
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert any(detail.Unpack(info) for detail in details)
    assert any(detail.Unpack(bad) for detail in details)
    assert info.reason == "ERROR_REASON_UNKNOWN_TOOL_CALL"
    assert [violation.field for violation in bad.field_violations] == ["tool_returns[0].tool_call_id"]

    cancelled = runs.CancelRun(run_service_pb2.CancelRunRequest(run_id=paused.run_id)).run
    assert cancelled.status == runs_pb2.RUN_STATUS_CANCELLED


with grpc.insecure_channel(os.environ.get("AGENT_SERVICE_TARGET", "localhost:50051")) as channel:
    service = agent_service_pb2_grpc.AgentServiceStub(channel)
    blocking(service)
    streaming(service)
    three_calls(service)
    refusal(service, run_service_pb2_grpc.RunServiceStub(channel))
print("interop ok: python")
