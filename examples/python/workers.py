"""A pool of workers that serves the tools of many runs: three processes, one of which is killed while it has a call."""

# ruff: noqa: T201 - a program for people prints

from __future__ import annotations

import json
import os
import subprocess
import sys

import grpc
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import (
    agent_service_pb2_grpc,
    inbox_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
    runs_pb2,
    tools_pb2,
)
from agentrpc.v1 import inbox_service_pb2 as inbox_pb
from google.protobuf.duration_pb2 import Duration

CODES = {"Alice": "AZURE-7731", "Bob": "CORAL-1102", "Carol": "OLIVE-5920"}
TOOL = tools_pb2.ClientToolSchema(
    name="get_secret_code",
    description="Returns the secret code of a person.",
    parameters_json='{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}',
)
POOL = {"pool": "python-workers"}
LEASE = Duration(seconds=1)
RUNS = 12


def connect() -> grpc.Channel:
    return grpc.insecure_channel(os.environ.get("AGENT_SERVICE_TARGET", "localhost:50051"))


def work(worker_id: str, fate: str) -> None:
    """Claims a call whenever one waits, executes it and submits its return. One that is to die takes a call with it."""
    with connect() as channel:
        inbox = inbox_service_pb2_grpc.InboxServiceStub(channel)
        agent = agent_service_pb2_grpc.AgentServiceStub(channel)
        wanted = inbox_pb.PendingToolCallFilter(tool_name=TOOL.name, labels=POOL)
        ask = inbox_pb.ClaimToolCallsRequest(filter=wanted, worker_id=worker_id, lease=LEASE)
        for change in inbox.WatchPendingToolCalls(inbox_pb.WatchPendingToolCallsRequest(filter=wanted)):
            if not change.HasField("added"):
                continue
            for claimed in inbox.ClaimToolCalls(ask).calls:
                if fate == "dies":
                    print("claimed", flush=True)
                    sys.stdin.read()  # until it is killed
                keep = inbox_pb.ExtendToolCallRequest(
                    run_id=claimed.call.run_id,
                    tool_call_id=claimed.call.call.tool_call_id,
                    claim_token=claimed.claim_token,
                    progress="looking it up",
                )
                if inbox.ExtendToolCall(keep).cancel_requested:
                    continue
                arguments = json.loads(claimed.call.call.arguments_json)
                answer = tools_pb2.ToolReturn(
                    tool_call_id=keep.tool_call_id, text=CODES[arguments["name"]], claim_token=claimed.claim_token
                )
                agent.SubmitToolReturns(
                    pb.SubmitToolReturnsRequest(run_id=keep.run_id, tool_returns=[answer], background=True)
                )


def start(worker_id: str, fate: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, worker_id, fate], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ask(agent: agent_service_pb2_grpc.AgentServiceStub, text: str) -> str:
    """Starts a run and does not wait for it."""
    forced = tools_pb2.ToolChoice(tool_name=TOOL.name)
    step = pb.StepRequest(
        input_messages=[{"text": text}], client_tools=[TOOL], tool_choice=forced, labels=POOL, background=True
    )
    return agent.Step(step).run.run_id


def main() -> None:
    """Every run is answered, although a worker dies with a call of one of them."""
    workers = [start("worker-1", "dies")]
    with connect() as channel:
        agent = agent_service_pb2_grpc.AgentServiceStub(channel)
        runs = run_service_pb2_grpc.RunServiceStub(channel)
        asked = [ask(agent, "What is the secret code of Alice?")]
        assert workers[0].stdout is not None
        assert workers[0].stdout.readline() == "claimed\n"
        workers[0].kill()
        workers += [start(f"worker-{number}", "lives") for number in (2, 3)]
        asked += [ask(agent, "What are the secret codes of Bob and Carol?") for _ in range(RUNS - 1)]
        for run_id in asked:
            *_, last = runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=run_id))
            assert last.event.run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED
    for worker in workers:
        worker.kill()
        worker.wait()
    print(f"{RUNS} runs answered by a pool of workers, one of which was killed")


if len(sys.argv) > 1:
    work(*sys.argv[1:])
else:
    main()
