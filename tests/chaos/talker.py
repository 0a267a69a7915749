"""A client that has one conversation: it starts runs, follows them, answers their calls, and leaves nothing undone."""

from __future__ import annotations

import asyncio
import functools
from random import Random
from typing import Any

from agentrpc.v1 import agent_service_pb2, events_pb2, run_service_pb2, runs_pb2, tools_pb2
from agentrpc.v1.run_service_pb2 import WatchRunRequest

from tests.chaos.answers import answer_calls
from tests.chaos.journal import TERMINAL
from tests.chaos.line import Line, RefusedError
from tests.chaos.plans import Turn
from tests.service import Client, step

_LEAVE_SHARE, _WATCH_SHARE, _CANCEL_SECONDS, _LOOK_SECONDS = 0.3, 0.3, 0.4, 0.1
ASK = tools_pb2.ClientToolSchema(
    name="ask",
    description="Asks a person.",
    parameters_json='{"type":"object","properties":{"what":{"type":"string"}},"required":["what"]}',
)
"""The client tool."""
BRIEF = tools_pb2.ClientToolSchema()
"""The same for a caller who has little time."""
BRIEF.CopyFrom(ASK)
BRIEF.timeout.FromMilliseconds(300)


class Talker:
    """Has the turns of one conversation, one after the other."""

    def __init__(self, line: Line, rng: Random) -> None:
        self._line = line
        self._journal = line.journal
        self._rng = rng

    async def talk(self, turns: list[Turn]) -> None:
        """The whole conversation. Raises RefusedError for what the service had no right to refuse."""
        conversation_id = ""
        for turn, following in zip(turns, [*turns[1:], None], strict=True):
            if not turn.busy:
                await self._start(turn, conversation_id)
            if following is not None and following.busy:
                await self._press_on(turn, following)
            conversation_id = await self._turn(turn, conversation_id)

    async def _press_on(self, turn: Turn, following: Turn) -> None:
        """Starts the next turn while this one goes on."""
        self._journal.pressed.add(turn.run_id)
        self._journal.counts[f"starts that {following.busy}"] += 1
        run = await self._get(turn.run_id)
        await asyncio.sleep(self._rng.uniform(0, _CANCEL_SECONDS))
        # A run that still waits for its turn is not superseded: it would wait for the next one, and its client for it.
        while following.busy == "supersede" and run.status == runs_pb2.RUN_STATUS_QUEUED:
            await asyncio.sleep(_LOOK_SECONDS)
            run = await self._get(turn.run_id)
        await self._start(following, run.conversation_id)

    async def _turn(self, turn: Turn, conversation_id: str) -> str:
        watching = None
        if self._rng.random() < _WATCH_SHARE and turn.ending != "abandon":
            watching = asyncio.ensure_future(self._watch_all(turn.run_id))
        try:
            if turn.ending == "cancel_running":
                await asyncio.sleep(self._rng.uniform(0, _CANCEL_SECONDS))
                await self._cancel(turn.run_id)
            run = await self._settle(turn)
            if watching is not None and run.status in TERMINAL:
                await watching
        finally:
            if watching is not None:
                watching.cancel()
        if run.status in TERMINAL and self._rng.random() < _LEAVE_SHARE:
            await self._ask_again(turn, conversation_id)
        return run.conversation_id

    async def _settle(self, turn: Turn) -> runs_pb2.Run:
        """Does what a run waits for until it is over, or left as the plan says."""
        run_id, retries = turn.run_id, 0
        while True:
            run = await self._get(run_id)
            if run.status in TERMINAL:
                return run
            if run.status == runs_pb2.RUN_STATUS_PAUSED:
                if not run.pending_tool_calls:
                    self._journal.find("pauses_name_their_calls", f"{run_id} waits for nothing")
                    return run
                if turn.ending == "abandon":
                    self._journal.left.add(run_id)
                    return run
                if turn.ending == "cancel":
                    await self._cancel(run_id)
                calls = [c for c in run.pending_tool_calls if turn.ending != "expire" or c.name != ASK.name]
                if calls:
                    await answer_calls(self._line, self._rng, turn, calls)
                else:
                    self._journal.counts["calls left to expire"] += 1
                    await self._follow(turn)
            elif run.status == runs_pb2.RUN_STATUS_INTERRUPTED:
                retries += 1
                await self._retry(run_id, f"retry-{retries}")
            else:
                await self._follow(turn)

    async def _start(self, turn: Turn, conversation_id: str) -> None:
        request = _request(turn, conversation_id)
        match turn.start:
            case "step":
                await self._start_step(request)
            case "background":
                request.background = True
                await self._start_step(request)
            case "twice":
                await asyncio.gather(self._start_step(request), self._start_stream(request, tokens=False))
            case _:
                await self._start_stream(request, tokens=turn.start == "tokens")

    async def _start_step(self, request: agent_service_pb2.StepRequest) -> None:
        def call(client: Client) -> Any:
            return client.agent.Step(request, wait_for_ready=True)

        answer = await self._line.ask(call, lambda: self._journal.start_stored(request.run_id))
        self._journal.run(answer.run)
        if not request.background:
            self._journal.window(request.run_id, "", answer.messages)

    async def _start_stream(self, request: agent_service_pb2.StepRequest, *, tokens: bool) -> None:
        """Repeats until the start is acknowledged; what follows a cut is heard by watching."""
        asked = agent_service_pb2.StreamRequest(step=request, stream_tokens=tokens)

        def call(client: Client) -> Any:
            return client.agent.Stream(asked, wait_for_ready=True)

        stored = functools.partial(self._journal.start_stored, request.run_id)
        while request.run_id not in self._journal.starts:
            await self._line.listen(call, leave_after=self._leave(), stored=stored)

    async def _follow(self, turn: Turn) -> None:
        """Watches a running run to its next stop. A stop seen is acted upon at once, before the stream has ended."""
        after = self._journal.cursor(turn.run_id)
        stops = run_service_pb2.STOP_AT_NEXT_STOP
        asked = WatchRunRequest(
            run_id=turn.run_id, after_sequence=after, stop_at=stops, stream_tokens=turn.start == "tokens"
        )
        heard = await self._line.listen(functools.partial(_watch, asked), leave_after=self._leave())
        await self._act_at_once(turn, heard.stop)

    async def _act_at_once(self, turn: Turn, stop: events_pb2.RunStopped | None) -> None:
        if stop is not None and stop.remaining and turn.ending in ("finish", "cancel_running"):
            await answer_calls(self._line, self._rng, turn, list(stop.remaining))

    async def _watch_all(self, run_id: str) -> None:
        """A second watcher, from the first event to the last, attached again after each cut."""
        after = 0
        while True:
            asked = WatchRunRequest(run_id=run_id, after_sequence=after, stream_tokens=True)
            rpc = functools.partial(_watch, asked)
            heard = await self._line.listen(rpc, leave_after=self._leave(), whole=True)
            if heard.ended:
                return
            after = max([after, *(event.sequence for event in heard.events)])

    async def _ask_again(self, turn: Turn, conversation_id: str) -> None:
        """The start once more, after the end: the same window, the same run."""
        await self._start_step(_request(turn, conversation_id))
        self._journal.counts["starts repeated at the end"] += 1

    async def _get(self, run_id: str) -> runs_pb2.Run:
        asked = run_service_pb2.GetRunRequest(run_id=run_id)
        run: runs_pb2.Run = (await self._line.ask(lambda client: client.runs.GetRun(asked, wait_for_ready=True))).run
        self._journal.run(run)
        return run

    async def _cancel(self, run_id: str) -> None:
        """Twice, as after a lost answer: both show the same end."""
        asked = run_service_pb2.CancelRunRequest(run_id=run_id)
        for _ in range(2):
            answer = await self._line.ask(lambda client: client.runs.CancelRun(asked, wait_for_ready=True))
            self._journal.run(answer.run)
        self._journal.counts["cancels"] += 1

    async def _retry(self, run_id: str, request_id: str) -> None:
        """An interrupted run goes on, unless the next one of its conversation has settled it meanwhile."""
        self._journal.counts["retries"] += 1
        asked = run_service_pb2.RetryRunRequest(run_id=run_id, request_id=request_id)
        try:
            answer = await self._line.ask(lambda client: client.runs.RetryRun(asked, wait_for_ready=True))
        except RefusedError as error:
            if run_id not in self._journal.pressed or error.refusal.reason != "RUN_NOT_INTERRUPTED":
                raise
        else:
            self._journal.run(answer.run)

    def _leave(self) -> int:
        """After how many events a stream is left; mostly never."""
        return self._rng.randint(1, 8) if self._rng.random() < _LEAVE_SHARE else 0


def _request(turn: Turn, conversation_id: str) -> agent_service_pb2.StepRequest:
    on_busy: Any = agent_service_pb2.OnBusy.Value(f"ON_BUSY_{turn.busy.upper() or 'REJECT'}")
    tool = BRIEF if turn.ending == "expire" else ASK
    where = {"agent_id": turn.agent_id, "conversation_id": conversation_id}
    return step(turn.text, tool, run_id=turn.run_id, on_busy=on_busy, **where)


def _watch(asked: WatchRunRequest, client: Client) -> Any:
    return client.runs.WatchRun(asked, wait_for_ready=True)
