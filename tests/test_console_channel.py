"""The commands of the terminal against a channel that is played by hand: what a real service seldom shows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import grpc_testing
import pytest
from agentrpc.v1 import events_pb2, inbox_service_pb2, run_service_pb2, runs_pb2, tools_pb2
from google.protobuf.message import Message

from agent_service.console import ENDED_OTHERWISE, Console

MODULES = (run_service_pb2, inbox_service_pb2)
SERVICES = [service for module in MODULES for service in module.DESCRIPTOR.services_by_name.values()]
METHODS = {method.name: method for service in SERVICES for method in service.methods}


class Played:
    """A console, and the other end of its channel."""

    def __init__(self) -> None:
        self.channel = grpc_testing.channel(SERVICES, grpc_testing.strict_real_time())
        self.lines: list[str] = []
        self.asked: list[str] = []
        self._thread = ThreadPoolExecutor(1)

    def do(self, command: Callable[[Console], int]) -> Future[int]:
        """Begins a command, which waits for what this end sends."""
        console = Console(self.channel, self.lines.append, self._answer, as_json=False)
        return self._thread.submit(command, console)

    def answer(self, name: str, response: Message) -> Any:
        """Answers one call; gives the request."""
        _, request, rpc = self.channel.take_unary_unary(METHODS[name])
        request = copy.deepcopy(request)  # its sender may go on to change it
        rpc.terminate(response, (), grpc.StatusCode.OK, "")
        return request

    def stream(self, name: str, *responses: Message, code: grpc.StatusCode = grpc.StatusCode.OK) -> None:
        """Answers one call with a stream that ends so."""
        _, _, rpc = self.channel.take_unary_stream(METHODS[name])
        for response in responses:
            rpc.send_response(response)
        rpc.terminate((), code, "gone")

    def close(self) -> None:
        """Waits for the command."""
        self._thread.shutdown()

    def _answer(self, prompt: str) -> str:
        self.asked.append(prompt)
        raise EOFError


@pytest.fixture
def played() -> Iterator[Played]:
    """A console on a channel that is played by hand."""
    played = Played()
    yield played
    played.close()


def event(**fields: Any) -> run_service_pb2.WatchRunResponse:
    """An event of a watched run."""
    return run_service_pb2.WatchRunResponse(event=events_pb2.RunEvent(run_id="run-1", **fields))


def test_an_event_of_a_newer_service_is_a_line_as_well(played: Played) -> None:
    """What the terminal does not know has its number, and does not end the watching."""
    watching = played.do(lambda console: console.watch("run-1", 0))
    newer = event(sequence=2)
    newer.event.MergeFromString(b"\xf2\x07\x00")  # field 126, which no contract has yet
    stopped = events_pb2.RunStopped(
        status=runs_pb2.RUN_STATUS_FAILED, stop_reason=runs_pb2.STOP_REASON_ERROR, final=True
    )
    played.stream("WatchRun", event(sequence=1, heartbeat={}), newer, event(sequence=3, run_stopped=stopped))
    assert watching.result() == ENDED_OTHERWISE
    assert [line.split() for line in played.lines] == [
        ["1", "heartbeat"],
        ["2", "?"],
        ["3", "run_stopped", "FAILED", "ERROR"],
    ]


def test_a_watched_run_whose_stream_is_cut_is_no_success(played: Played) -> None:
    """The status of the cut comes through."""
    watching = played.do(lambda console: console.watch("run-1", 0))
    played.stream("WatchRun", event(sequence=1, heartbeat={}), code=grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(grpc.RpcError) as cut:
        watching.result()
    assert isinstance(cut.value, grpc.Call) and cut.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_long_list_is_read_page_by_page_and_no_further_than_asked(played: Played) -> None:
    """The token of one page goes into the next request."""
    listing = played.do(lambda console: console.list_runs("", "", "", 150))
    page = [runs_pb2.Run(run_id=f"run-{number}") for number in range(100)]
    first = played.answer("ListRuns", run_service_pb2.ListRunsResponse(runs=page, next_page_token="next"))
    second = played.answer("ListRuns", run_service_pb2.ListRunsResponse(runs=page, next_page_token="more"))
    assert listing.result() == 0
    assert (first.page_token, first.page_size, second.page_token) == ("", 100, "next")
    assert len(played.lines) == 150


def test_a_call_that_another_worker_claimed_first_is_not_asked_for(played: Played) -> None:
    """It was announced to both of them; the claim decides."""
    answering = played.do(lambda console: console.inbox("", follow=True, answer=True))
    call = inbox_service_pb2.InboxToolCall(run_id="run-1", call=tools_pb2.PendingToolCall(tool_call_id="call_1"))
    _, _, changes = played.channel.take_unary_stream(METHODS["WatchPendingToolCalls"])
    changes.send_response(inbox_service_pb2.WatchPendingToolCallsResponse(added=call))
    claim = played.answer("ClaimToolCalls", inbox_service_pb2.ClaimToolCallsResponse())
    changes.terminate((), grpc.StatusCode.OK, "")
    assert answering.result() == 0
    assert claim.filter.kind == tools_pb2.PENDING_KIND_CLIENT_EXECUTION
    assert played.asked == []
