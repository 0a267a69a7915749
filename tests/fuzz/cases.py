"""One case: what its number and the seed make of it, sent to the server."""

from __future__ import annotations

import asyncio
from random import Random

from agentrpc.v1 import (
    agent_registry_service_pb2,
    agent_service_pb2,
    inbox_service_pb2,
    messages_pb2,
    run_service_pb2,
    tools_pb2,
)
from google.protobuf.message import Message

from tests.fuzz import json_schemas, values, wire
from tests.fuzz.caller import Caller
from tests.fuzz.messages import Maker
from tests.fuzz.methods import Method, methods
from tests.fuzz.oracle import Answer
from tests.fuzz.replies import REPLIES
from tests.fuzz.world import World

METHODS = {method.name: method for method in methods()}
_MOVES = ("submit", "submit", "submit", "watch", "cancel", "retry", "claim", "extend", "delete", "read", "again")


class Cases:
    """Makes and sends the cases of one seed."""

    def __init__(self, seed: int, caller: Caller, world: World) -> None:
        self._seed = seed
        self._caller = caller
        self._world = world

    async def play(self, number: int) -> None:
        """Case `number`: about one in eight is a conversation of several requests."""
        rng = Random(f"{self._seed}/{number}")
        if rng.random() < 0.12:
            await _Dialogue(f"fuzz-{self._seed}-{number}", number, rng, self._caller, self._world).play()
            return
        method = rng.choice(tuple(METHODS.values()))
        await self._send(number, method, self._bytes(method, rng))

    def _bytes(self, method: Method, rng: Random) -> bytes:
        maker = Maker(rng, self._world.words)
        message = maker.valid(method.request)
        draw = rng.random()
        if draw < 0.8:
            maker.bend(message, rng.choice((1, 1, 1, 2, 3)))
            return wire.encoded(message, rng)
        if draw < 0.95:
            other = maker.valid(method.request)
            return wire.mangled(wire.encoded(message, rng), wire.encoded(other, rng), rng)
        return wire.encoded(message, rng)

    async def _send(self, number: int, method: Method, data: bytes) -> None:
        answer, received = await self._caller.send(number, method, data, seconds=1.0 if method.streams else 3.0)
        if answer.code == "OK" and received:
            self._world.learn(received[0])


class _Dialogue:
    """A run with hostile tools on a hostile model, and what callers may do to it, in any order and at once."""

    def __init__(self, run_id: str, number: int, rng: Random, caller: Caller, world: World) -> None:
        self._run_id = run_id
        self._number = number
        self._rng = rng
        self._caller = caller
        self._world = world
        self._token = ""

    async def play(self) -> None:
        """Starts it, plays moves, some of them at the same time, and cancels it."""
        await self._send("Step", self._start())
        for _ in range(self._rng.randrange(1, 4)):
            moves = self._rng.choices(_MOVES, k=self._rng.randrange(1, 5))
            await asyncio.gather(*(self._move(move) for move in moves))
        await self._send("CancelRun", run_service_pb2.CancelRunRequest(run_id=self._run_id))

    def _start(self) -> agent_service_pb2.StepRequest:
        rng = self._rng
        kinds = " ".join(f"do: {kind}" for kind in rng.choices(tuple(REPLIES), k=rng.randrange(1, 4)))
        tools = [self._tool(name) for name in ("client_a", "client_b")[: rng.randrange(3)]]
        request = agent_service_pb2.StepRequest(
            run_id=self._run_id,
            input_messages=[messages_pb2.InputMessage(text=kinds)],
            client_tools=tools,
            background=rng.random() < 0.3,
            max_steps=rng.choice((1, 3, 8)),
            server_tools_wait=rng.random() < 0.3,
        )
        request.run_timeout.FromMilliseconds(2_500)
        request.max_wait.FromMilliseconds(rng.choice((0, 200, 1_500)))
        if rng.random() < 0.2:
            request.response_format.schema_json = json_schemas.text(rng)
        return request

    def _tool(self, name: str) -> tools_pb2.ClientToolSchema:
        rng = self._rng
        tool = tools_pb2.ClientToolSchema(name=name)
        if rng.random() < 0.7:
            tool.parameters_json = json_schemas.text(rng)
        if rng.random() < 0.5:
            tool.result_schema_json = json_schemas.text(rng)
        if rng.random() < 0.2:
            tool.timeout.FromMilliseconds(rng.choice((1, 500)))
            tool.on_timeout = rng.choice(tools_pb2.OnTimeout.values()[1:])
        return tool

    async def _move(self, move: str) -> None:
        run_id = self._run_id
        match move:
            case "submit":
                await self._submit()
            case "watch":
                after = self._rng.choice((0, 0, 3, 10**6))
                request = run_service_pb2.WatchRunRequest(run_id=run_id, after_sequence=after, stream_tokens=True)
                await self._send("WatchRun", request, 0.5)
            case "cancel":
                await self._send("CancelRun", run_service_pb2.CancelRunRequest(run_id=run_id))
            case "retry":
                await self._send("RetryRun", run_service_pb2.RetryRunRequest(run_id=run_id, request_id="again"))
            case "delete":
                await self._send("DeleteRun", run_service_pb2.DeleteRunRequest(run_id=run_id))
            case "claim":
                await self._claim()
            case "extend":
                await self._extend()
            case "read":
                await self._read()
            case _:
                await self._send("Step", self._start())

    async def _pending(self) -> list[tools_pb2.PendingToolCall]:
        _, received = await self._send("GetRun", run_service_pb2.GetRunRequest(run_id=self._run_id))
        found = received[0] if received else None
        return list(found.run.pending_tool_calls) if isinstance(found, run_service_pb2.GetRunResponse) else []

    async def _submit(self) -> None:
        rng, calls = self._rng, await self._pending()
        request = agent_service_pb2.SubmitToolReturnsRequest(run_id=self._run_id, background=rng.random() < 0.5)
        request.max_wait.FromMilliseconds(300)
        for call in calls or [tools_pb2.PendingToolCall(tool_call_id="call_none")]:
            if call.kind == tools_pb2.PENDING_KIND_APPROVAL and rng.random() < 0.9:
                decision = request.approvals.add(tool_call_id=call.tool_call_id)
                if rng.random() < 0.7:
                    decision.approve.edited_arguments_json = rng.choice(("", self._text(), json_schemas.hitting(rng)))
                else:
                    decision.deny.reason = self._text()
            else:
                request.tool_returns.add(
                    tool_call_id=call.tool_call_id,
                    text=rng.choice((self._text(), json_schemas.hitting(rng))),
                    stdout=self._text() if rng.random() < 0.2 else "",
                    status=rng.choice((0, 1, 2)),
                    claim_token=self._token if rng.random() < 0.5 else "",
                )
        if rng.random() < 0.1:
            stream = agent_service_pb2.StreamToolReturnsRequest(submit=request)
            stream.submit.ClearField("background")
            stream.submit.ClearField("max_wait")
            await self._send("StreamToolReturns", stream, 1.0)
        else:
            await self._send("SubmitToolReturns", request)

    def _text(self) -> str:
        return values.edge_text(self._rng)

    async def _claim(self) -> None:
        request = inbox_service_pb2.ClaimToolCallsRequest(worker_id="fuzz", max_calls=self._rng.choice((0, 1, 100)))
        request.lease.seconds = self._rng.choice((1, 5))
        _, received = await self._send("ClaimToolCalls", request)
        if received and isinstance(received[0], inbox_service_pb2.ClaimToolCallsResponse):
            self._token = next((call.claim_token for call in received[0].calls), "")

    async def _extend(self) -> None:
        call_id = next((call.tool_call_id for call in await self._pending()), "call_none")
        request = inbox_service_pb2.ExtendToolCallRequest(
            run_id=self._run_id, tool_call_id=call_id, claim_token=self._token or "none", progress=self._text()
        )
        await self._send("ExtendToolCall", request)

    async def _read(self) -> None:
        await self._send("ListMessages", agent_registry_service_pb2.ListMessagesRequest(run_id=self._run_id))

    async def _send(self, name: str, message: Message, seconds: float = 4.0) -> tuple[Answer, list[Message]]:
        data = wire.encoded(message, self._rng)
        return await self._caller.send(self._number, METHODS[name], data, seconds=seconds)
