"""The client: asks agents, and answers their calls."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from agentrpc.v1 import agent_registry_service_pb2, messages_pb2, run_service_pb2, runs_pb2

from agent_service.client.connection import Connection, Deadline, Retry, Tls
from agent_service.client.drive import Drive, Task
from agent_service.client.errors import RunFailedError, refused
from agent_service.client.events import Event
from agent_service.client.options import ConversationOptions, ResumeOptions, RunOptions, Text, resumed, started
from agent_service.client.result import RunResult

_FAILED = frozenset({"FAILED", "INTERRUPTED", "CANCELLED", "EXPIRED"})


class RunStream:
    """The events of a run as they come: `async for event in stream`, once.

    It ends at the stop at which nothing is left for this client to do, and `result` tells what came of the run; that a
    run fails is no exception here. Leave it early in an `async with` (or by `aclose`): tools that are executed are
    cancelled then, and the run goes on without this client, or ends, as `on_disconnect` says.
    """

    def __init__(self, connection: Connection, task: Task, timeout: float | None) -> None:
        self.run_id = task.run_id
        self._drive = Drive(connection, task, Deadline(timeout))
        self._events = self._drive.events()

    @property
    def result(self) -> RunResult:
        """What there is of the run so far."""
        return self._drive.result

    def __aiter__(self) -> AsyncIterator[Event]:
        """The events."""
        return self._events

    async def aclose(self) -> None:
        """Leaves the run."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leaves the run."""
        await self.aclose()


class AgentClient:
    """A connection to the service at `target`: `host:port`, or `unix:/path`. Use it in an `async with`.

    `token` is sent with each call as `authorization: Bearer`; a function is asked for it each time. `tls` is True for
    an encrypted connection, or a Tls; without, nothing is encrypted, not even the token: for a network that you trust.
    `retry` says how often and when calls are repeated. `options` are those of the gRPC channel, in addition.

    Calls that are cut are repeated with the ids that they had, so that nothing happens twice; see `run`. All methods
    raise RefusedError where the service refuses or cannot be reached, and DeadlineError when their `timeout`, in
    seconds, is over (None: without end).
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        token: str | Callable[[], str] | None = None,
        tls: Tls | bool | None = None,
        retry: Retry = Retry(),  # noqa: B008 - it is frozen
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self._connect = partial(Connection, target, token=token, tls=tls, retry=retry, options=options)
        self._connection: Connection | None = None

    async def __aenter__(self) -> Self:
        """Makes the channel; the first call connects."""
        self._connection = self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the channel."""
        connection, self._connection = self.connection, None
        await connection.channel.close()

    @property
    def connection(self) -> Connection:
        """The stubs of all services, for what has no method here:

        await client.call(client.connection.registry.GetAgent, GetAgentRequest(agent_id="default"))
        """
        if self._connection is None:
            raise RuntimeError("the client is not open; use it in an 'async with'")
        return self._connection

    async def run(self, text: Text, **options: Unpack[RunOptions]) -> RunResult:
        """Asks, executes what the agent calls, over any number of pauses, and returns the end of the run.

        `text` is what is said, or messages. Raises RunFailedError where the run ends otherwise than COMPLETED. A run
        that waits for what this client cannot answer (an approval without `on_approval`, a tool it does not have) is
        returned with status PAUSED and its `pending` calls; go on with `resume`.

        The calls of one pause are executed at the same time, and each return is sent when it is there (those that are
        there within 10 ms together): what is done is not lost with this process, and a slow tool does not make a fast
        one miss its deadline. A call is executed once, however often the connection is cut.
        """
        return await _ended(self.stream(text, tokens=False, **options))

    async def resume(self, run_id: str, **options: Unpack[ResumeOptions]) -> RunResult:
        """Goes on with a run that was started before, as by a process that is gone; as `run`."""
        return await _ended(self.stream_resumed(run_id, tokens=False, **options))

    def stream(self, text: Text, *, tokens: bool = True, **options: Unpack[RunOptions]) -> RunStream:
        """The same as events, token by token unless `tokens` is False. Raises ValueError for options that are wrong."""
        task = started(text, tokens=tokens, **options)
        return RunStream(self.connection, task, options.get("timeout"))

    def stream_resumed(self, run_id: str, *, tokens: bool = True, **options: Unpack[ResumeOptions]) -> RunStream:
        """All events of a run that was started before, from its first one on; its calls are answered. As `stream`."""
        task = resumed(run_id, tokens=tokens, **options)
        return RunStream(self.connection, task, options.get("timeout"))

    def conversation(self, conversation_id: str = "", **options: Unpack[ConversationOptions]) -> Conversation:
        """A conversation, new unless its id is given. `options` are what each of its runs takes, such as `tools`."""
        return Conversation(self, conversation_id, options)

    async def get_run(self, run_id: str, *, timeout: float | None = None) -> runs_pb2.Run:
        """A run as it is now."""
        request = run_service_pb2.GetRunRequest(run_id=run_id)
        response: run_service_pb2.GetRunResponse = await self._call(self.connection.runs.GetRun, request, timeout)
        return response.run

    async def cancel(self, run_id: str, *, timeout: float | None = None) -> runs_pb2.Run:
        """Ends a run for good; one that is over stays as it is."""
        request = run_service_pb2.CancelRunRequest(run_id=run_id)
        response: run_service_pb2.CancelRunResponse = await self._call(self.connection.runs.CancelRun, request, timeout)
        return response.run

    async def retry(self, run_id: str, *, timeout: float | None = None) -> runs_pb2.Run:
        """Goes on with an INTERRUPTED run; `resume` follows it."""
        request = run_service_pb2.RetryRunRequest(run_id=run_id, request_id=f"retry_{uuid.uuid4().hex}")
        response: run_service_pb2.RetryRunResponse = await self._call(self.connection.runs.RetryRun, request, timeout)
        return response.run

    async def messages(self, conversation_id: str, *, timeout: float | None = None) -> list[messages_pb2.Message]:
        """All messages of a conversation, in order."""
        deadline, found = Deadline(timeout), list[messages_pb2.Message]()
        request = agent_registry_service_pb2.ListMessagesRequest(conversation_id=conversation_id, page_size=1000)
        while True:
            page: agent_registry_service_pb2.ListMessagesResponse = await self.connection.call(
                self.connection.registry.ListMessages, request, deadline
            )
            found.extend(page.messages)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def call(self, method: Any, request: Any, *, timeout: float | None = None) -> Any:
        """Any unary call by its stub, once: whether it may be repeated depends on its ids."""
        deadline = Deadline(timeout)
        try:
            return await self.connection.open(method, request, deadline)
        except grpc.aio.AioRpcError as error:
            deadline.check()
            raise refused(error) from error

    async def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        return await self.connection.call(method, request, Deadline(timeout))


class Conversation:
    """Runs one after the other in one conversation."""

    def __init__(self, client: AgentClient, conversation_id: str, options: ConversationOptions) -> None:
        self._client = client
        self._conversation_id = conversation_id
        self._options: ConversationOptions = {**options, "tools": tuple(options.get("tools", ()))}
        self._last: RunStream | None = None

    @property
    def conversation_id(self) -> str:
        """Its id; empty until the first run of a new one has started."""
        if not self._conversation_id and self._last is not None:
            self._conversation_id = self._last.result.conversation_id
        return self._conversation_id

    async def run(self, text: Text, **options: Unpack[RunOptions]) -> RunResult:
        """As AgentClient.run."""
        return await _ended(self.stream(text, tokens=False, **options))

    def stream(self, text: Text, *, tokens: bool = True, **options: Unpack[RunOptions]) -> RunStream:
        """As AgentClient.stream."""
        chosen: RunOptions = {**self._options, **options, "conversation_id": self.conversation_id}
        self._last = self._client.stream(text, tokens=tokens, **chosen)
        return self._last


async def _ended(stream: RunStream) -> RunResult:
    """The result of a run that did not fail."""
    async with stream:
        async for _ in stream:
            pass
    if stream.result.status in _FAILED:
        raise RunFailedError(stream.result)
    return stream.result
