"""How a refused call looks on the wire: one code, a message that suffices, details for programs, nothing leaked."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import grpc
import pytest
from agentrpc.v1 import agent_service_pb2, errors_pb2, messages_pb2, run_service_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from agent_service.domain.errors import AgentServiceError, FieldViolation, Reason, invalid
from agent_service.stores.errors import unavailable
from agent_service.transport.status import CODES, DOMAIN, to_status
from tests.scripted_openai import calls, says
from tests.service import SECRET, refusal, returned, scripted, step, submit
from tests.stored import edit

pytestmark = pytest.mark.anyio

HEADER_BYTES = 8192
"""What Java and Go clients take of headers by default."""
RUN_REASONS = frozenset(
    {
        Reason.LLM_UNAVAILABLE,
        Reason.LLM_REFUSED,
        Reason.LLM_INSUFFICIENT_CREDITS,
        Reason.LLM_INVALID_RESPONSE,
        Reason.INVALID_TOOL_CALLS,
        Reason.NO_ALLOWED_TOOLS,
        Reason.SYSTEM_PROMPT_TOO_LARGE,
        Reason.CONTEXT_TOO_LARGE,
        Reason.NO_TOOL_CALL,
        Reason.RUN_LOST_REPEATEDLY,
        Reason.RESPONSE_SCHEMA_VIOLATION,
        Reason.RUN_TIMED_OUT,
        Reason.CALL_TIMED_OUT,
    }
)
"""Reasons of failed runs, which no call is refused for."""


def details(status: status_pb2.Status) -> dict[str, Message]:
    """The details by the name of their type."""
    found: dict[str, Message] = {}
    for packed in status.details:
        kind = getattr(error_details_pb2, packed.type_url.rsplit(".", 1)[-1])
        detail = kind()
        assert packed.Unpack(detail)
        found[kind.__name__] = detail
    return found


def header_bytes(status: status_pb2.Status) -> int:
    """About how many bytes of headers an error takes."""
    message = quote(status.message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return len(message) + int(status.ByteSize()) * 4 // 3 + 200


def test_every_reason_of_a_refusal_has_a_code_and_a_name_in_the_contract() -> None:
    """And each name of the contract is a reason; those of failed runs have no code."""
    assert set(CODES) == set(Reason) - RUN_REASONS
    assert {f"ERROR_REASON_{reason}" for reason in Reason} == set(errors_pb2.ErrorReason.keys()) - {
        "ERROR_REASON_UNSPECIFIED"
    }


@pytest.mark.parametrize("reason", CODES)
def test_every_error_carries_its_reason(reason: Reason) -> None:
    """As ErrorInfo with our domain; and a failed precondition says what is in the way."""
    error = AgentServiceError(reason, "No.", metadata={"run_id": "run-1"}, retry_after=1.5)
    status = to_status(error)
    assert (status.code, status.message) == (CODES[reason].value[0], "No.")
    found = details(status)
    assert found["ErrorInfo"] == error_details_pb2.ErrorInfo(
        reason=f"ERROR_REASON_{reason}", domain=DOMAIN, metadata={"run_id": "run-1"}
    )
    retry = found["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo) and retry.retry_delay.ToMilliseconds() == 1500
    assert ("PreconditionFailure" in found) == (CODES[reason] is grpc.StatusCode.FAILED_PRECONDITION)


def test_a_store_that_is_away_says_when_to_come_back() -> None:
    """UNAVAILABLE with RetryInfo."""
    status = to_status(unavailable("locked", retry_after=2.0))
    assert status.code == grpc.StatusCode.UNAVAILABLE.value[0]
    retry = details(status)["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo) and retry.retry_delay.seconds == 2


@pytest.mark.parametrize("text", ["a", "é", "\U0001f600", "%", "\n", "\ud83d", "x" * 3000])
@pytest.mark.parametrize("count", [1, 16, 17, 200])
def test_an_error_stays_small_whatever_it_names(text: str, count: int) -> None:
    """Below 4 KiB, and below what clients take of headers, in any script; never without its ErrorInfo and at least
    one field."""
    violations = [FieldViolation(f"labels[{n}].{text * 20}", f"{text * 60} is not allowed") for n in range(count)]
    status = to_status(invalid(*violations))
    assert status.ByteSize() <= 4096
    assert header_bytes(status) < HEADER_BYTES
    found = details(status)
    info, request = found["ErrorInfo"], found["BadRequest"]
    assert isinstance(info, error_details_pb2.ErrorInfo) and isinstance(request, error_details_pb2.BadRequest)
    assert 1 <= len(request.field_violations) <= 16
    assert info.metadata.get("violations_total", "") == (str(count) if count > 16 else "")


async def test_two_hundred_bad_fields_make_one_readable_error(store: str) -> None:
    """Over the wire, with emoji in each: the message names the first, the metadata the total."""
    async with scripted([], store) as (client, _):
        request = agent_service_pb2.StepRequest(
            input_messages=[messages_pb2.InputMessage(text="x", name="\U0001f600" * 64) for _ in range(200)]
        )
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.agent.Step(request)
        status = rpc_status.from_call(raised.value)
        assert status is not None and status.ByteSize() <= 4096
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert status.message.startswith("input_messages[0].name: ")
        refused = await refusal(client.agent.Step(request))
        assert refused.metadata == {"violations_total": "200"}
        assert refused.fields[0] == "input_messages[0].name" and len(refused.fields) > 3


async def test_a_pause_with_many_calls_names_sixteen_and_the_total(store: str) -> None:
    """The names of all calls of a large batch would not fit."""
    tool = type(SECRET)(name="t" * 64)
    async with scripted([calls(*[("t" * 64, "{}")] * 100)], store) as (client, _):
        run = (await client.ask("All.", tool)).run
        refused = await refusal(client.ask("More.", conversation_id=run.conversation_id))
        assert refused.reason == "CONVERSATION_PAUSED"
        assert refused.metadata["pending_total"] == "100"
        assert "pending_15" in refused.metadata and "pending_16" not in refused.metadata


async def test_a_failed_precondition_names_its_subject(store: str) -> None:
    """The call or the run that is in the way."""
    async with scripted([calls(("get_secret_code", {"name": "A"}))], store) as (client, _):
        run = (await client.ask("Code?", SECRET)).run
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.ask("More.", conversation_id=run.conversation_id)
        status = rpc_status.from_call(raised.value)
        assert status is not None
        failure = details(status)["PreconditionFailure"]
        assert isinstance(failure, error_details_pb2.PreconditionFailure)
        (violation,) = failure.violations
        assert (violation.type, violation.subject) == ("CONVERSATION_PAUSED", run.run_id)


async def test_a_request_above_the_limit_is_refused_with_the_limit(store: str) -> None:
    """RESOURCE_EXHAUSTED on every service; a request at the limit is read."""
    async with scripted([says("Hello.")], store, limits={"max_request_bytes": 1000}) as (client, _):
        request = step("x", run_id="run-1")
        request.input_messages[0].text = "x" * (1000 - request.ByteSize() - 1)
        assert request.ByteSize() == 1000
        await client.agent.Step(request)
        request.input_messages[0].text += "x"
        long = "r" * 1000
        for call in (
            client.agent.Step(request),
            client.agent.Stream(agent_service_pb2.StreamRequest(step=request)),
            client.agent.SubmitToolReturns(submit("run-1", returned("call_1", long))),
            client.runs.GetRun(run_service_pb2.GetRunRequest(run_id=long)),
            client.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=long)),
        ):
            refused = await refusal(call)
            assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "TOO_LARGE")
            assert "at most 1000 are allowed" in refused.message


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x22\xff\x01", b"\x22\x03\x12\x01\xff"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(store: str, data: bytes) -> None:
    """Wrong wire format and wrong UTF-8; on unary and streaming calls."""
    async with scripted([], store) as (client, _):
        unary: Any = client.channel.unary_unary("/agentrpc.v1.AgentService/Step")
        stream: Any = client.channel.unary_stream("/agentrpc.v1.RunService/WatchRun")
        for call in (unary(data), stream(b"\x0a\x02\xff\xfe")):
            refused = await refusal(call)
            assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")


async def test_an_unforeseen_error_is_internal_with_an_id_and_leaks_nothing(shared_store: str) -> None:
    """Here a store in which rows were damaged by another program: the text stays in the server's log."""
    async with scripted([says("Hello.")], shared_store) as (client, _):
        run = (await client.ask("Hello?")).run
        await edit(shared_store, """UPDATE runs SET body = '{"secret-path": "damaged"'""")
        for call in (
            client.run(run.run_id),
            client.watch(run.run_id),
            client.ask("Hello?", conversation_id=run.conversation_id, run_id=run.run_id),
        ):
            refused = await refusal(call)
            assert (refused.code, refused.reason) == ("INTERNAL", "INTERNAL")
            words = refused.message.split()
            assert words[:2] == ["internal", "error"] and len(words[2].rstrip(";")) == 12
            assert "secret-path" not in refused.message and "JSON" not in refused.message
        other = await refusal(client.run(run.run_id))
        assert other.message != refused.message


async def test_a_cursor_ahead_of_the_log_is_out_of_range(store: str) -> None:
    """It tells a restored backup; the number that the log has is in the metadata."""
    async with scripted([says("Hello.")], store) as (client, _):
        run = (await client.ask("Hello?")).run
        refused = await refusal(client.watch(run.run_id, run.last_sequence + 1))
        assert (refused.code, refused.reason) == ("OUT_OF_RANGE", "CURSOR_AHEAD")
        assert refused.metadata == {"last_sequence": str(run.last_sequence)}
        assert await client.watch(run.run_id, run.last_sequence) == []
