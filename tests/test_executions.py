"""The tasks that execute server tool calls: none of them outlives the work on its run."""

from __future__ import annotations

import asyncio

import pytest

from agent_service.domain.run import AgentKind, Pinned
from agent_service.domain.tool import Call, CallState, Executor, ToolSchema
from agent_service.engine.executions import Executions
from agent_service.engine.tools import ToolContext, ToolOutput

pytestmark = pytest.mark.anyio

TOOL = ToolSchema("tool", "", "{}", Executor.SERVER, parallel_safe=True)
PINNED = Pinned("default", AgentKind.LLM, "model-1", "openai", "", (TOOL,))
CONTEXT = ToolContext("default", "run_1", "conv_1", "call")


class Tools:
    """Server tools that end when they are told to, by the id of the call, and take their time to clean up."""

    def __init__(self) -> None:
        self.outcomes: dict[str, asyncio.Future[ToolOutput]] = {}
        self.cleaned: list[str] = []

    names = ("tool",)

    def schema(self, name: str) -> ToolSchema:
        return TOOL

    async def call(self, name: str, arguments_json: str, context: ToolContext) -> ToolOutput:
        self.outcomes[arguments_json] = asyncio.get_running_loop().create_future()
        try:
            return await self.outcomes[arguments_json]
        finally:
            await asyncio.sleep(0)
            self.cleaned.append(arguments_json)


def call(name: str) -> Call:
    """A call that may start."""
    return Call(name, "", "step", 1, 0, "tool", name, Executor.SERVER, CallState.PROPOSED)


def executions(tools: Tools, most: int = 9) -> Executions:
    """Executions by these tools."""
    return Executions(tools, PINNED, most)


async def test_results_come_in_the_order_in_which_calls_end() -> None:
    """Whichever began first."""
    tools = Tools()
    async with executions(tools) as executing:
        for name in "abc":
            executing.begin(call(name), CONTEXT)
        await asyncio.sleep(0)
        for name in "bca":
            tools.outcomes[name].set_result(ToolOutput(f"found {name}"))
        assert [(await executing.result()).text for _ in "abc"] == ["found b", "found c", "found a"]
        assert not executing.working


async def test_what_is_left_when_the_work_ends_is_cancelled_and_has_ended() -> None:
    """Whether the work ends with an error or is cancelled itself; no call cleans up after that."""
    for error in (ValueError, asyncio.CancelledError):
        tools = Tools()
        with pytest.raises(error):
            async with executions(tools) as executing:
                for name in "abc":
                    executing.begin(call(name), CONTEXT)
                await asyncio.sleep(0)
                tools.outcomes["b"].set_result(ToolOutput("found b"))
                await executing.result()
                raise error
        assert sorted(tools.cleaned) == ["a", "b", "c"]


async def test_an_error_that_no_tool_may_raise_ends_the_work() -> None:
    """It reaches whoever waits for results, and the other calls are cancelled."""
    tools = Tools()
    with pytest.raises(ZeroDivisionError):
        async with executions(tools) as executing:
            for name in "ab":
                executing.begin(call(name), CONTEXT)
            await asyncio.sleep(0)
            tools.outcomes["b"].set_exception(ZeroDivisionError())
            await executing.result()
    assert sorted(tools.cleaned) == ["a", "b"]


@pytest.mark.parametrize("most", [0, 1, 2])
async def test_at_least_one_call_is_admitted_and_never_more_than_the_bound(most: int) -> None:
    """A bound of less than one is one."""
    waiting = tuple(call(name) for name in "abc")
    async with executions(Tools(), most) as executing:
        admitted = executing.admitted(waiting)
        assert len(admitted) == max(most, 1)
        for each in admitted:
            executing.begin(each, CONTEXT)
        assert executing.admitted(waiting) == ()
