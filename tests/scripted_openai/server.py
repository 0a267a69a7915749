"""The HTTP server of the scripted endpoint."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from anyio.from_thread import start_blocking_portal

from .conversations import Conversation, check_histories
from .framing import Framing
from .playback import Playback
from .refusals import RefusedError, error_body
from .replies import Reply
from .request import Rejection, Request
from .script import Replies, Script, ScriptError
from .strict import Rules, check_body, check_key
from .tallies import Happening, Tally

_LARGEST_BODY_BYTES = 256 * 1024 * 1024
_RULES = Rules()
_FRAMING = Framing()


class ScriptedOpenAI:
    """An OpenAI-compatible endpoint on 127.0.0.1 that answers from a script.

    ``async with`` runs it on the event loop of the test, ``with`` in a thread of its own. Both
    raise AssertionError on exit, if nothing else was raised, for each problem of the script
    (no reply left, a reply that does not fit the request), for each refused request unless
    `allow_rejected`, and for replies left over if `expect_all_used`.

    With `api_key` a request needs it as a bearer token. `rules` says what is accepted beyond
    the OpenAI API. `port` 0 takes a free one.
    """

    def __init__(
        self,
        script: Script,
        *,
        api_key: str | None = None,
        models: Collection[str] = ("scripted-model",),
        framing: Framing = _FRAMING,
        rules: Rules = _RULES,
        allow_rejected: bool = False,
        expect_all_used: bool = False,
        port: int = 0,
    ) -> None:
        self._replies = Replies(script)
        self._api_key = api_key
        self._models = models
        self._framing = framing
        self._rules = rules
        self._allow_rejected = allow_rejected
        self._expect_all_used = expect_all_used
        self._port = port
        self._runner: web.AppRunner | None = None
        self._thread = ExitStack()
        self._stopping = False
        self._playing: set[asyncio.Task[Any]] = set()
        self._requests: list[Request] = []
        self._arrived = Tally("requests")
        # Appended to on the server's loop, read by the test.
        self.rejected: list[Rejection] = []
        self.problems: list[str] = []
        # The client went away before its reply was complete.
        self.disconnected = Happening("disconnects")

    @property
    def base_url(self) -> str:
        """The URL for an OpenAI client, ending in ``/v1``."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def requests(self) -> tuple[Request, ...]:
        """The accepted requests so far, in the order of arrival."""
        return tuple(self._requests)

    @property
    def request_count(self) -> int:
        """How many requests were accepted."""
        return len(self._requests)

    @property
    def unused_replies(self) -> int:
        """How many replies of a list are left."""
        return self._replies.unused

    def add(self, *replies: Reply) -> None:
        """Puts more replies at the end of a script that is a list."""
        self._replies.add(replies)

    async def wait_for_requests(self, count: int, timeout: float | None = 10.0) -> None:  # noqa: ASYNC109 - every wait of a test has a bound
        """Returns once that many requests were accepted; TimeoutError after `timeout` seconds."""
        await self._arrived.reach(count, timeout)

    def wait_for_requests_sync(self, count: int, timeout: float | None = 10.0) -> None:
        """As `wait_for_requests`, blocking the thread."""
        self._arrived.reach_sync(count, timeout)

    def check_histories(
        self,
        *,
        conversation: Conversation | None = None,
        may_restart: Callable[[Request], bool] | None = None,
    ) -> list[list[Request]]:
        """The requests by conversation, as the function `check_histories` of this package."""
        return check_histories(self.requests, conversation=conversation, may_restart=may_restart)

    def verify(self) -> None:
        """What leaving the context does: AssertionError if the script and the requests differ."""
        found = list(self.problems)
        if not self._allow_rejected:
            found += [f"refused with {r.status}: {r.message}" for r in self.rejected]
        if self._expect_all_used and self.unused_replies:
            found.append(f"{self.unused_replies} replies were not used")
        if found:
            raise AssertionError("\n".join(found))

    async def start(self) -> None:
        """Listens; `base_url` is right from now on."""
        app = web.Application(client_max_size=_LARGEST_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_route("*", "/{path:.*}", self._not_found)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Closes every connection, also in the middle of a reply."""
        self._stopping = True
        for task in self._playing:
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        await self.stop()
        if kind is None:
            self.verify()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal("asyncio"))
            portal.call(self.start)
            stack.callback(portal.call, self.stop)
            self._thread = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._thread.close()
        if kind is None:
            self.verify()

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        raw = await http.read()
        try:
            request = self._accept(http, raw)
        except RefusedError as refusal:
            return self._refuse(http, raw, refusal)
        try:
            reply = self._replies.next(request)
        except ScriptError as error:
            return self._complain(str(error))
        finally:
            self._arrived.add()
        return await self._play(http, Playback(request, reply, self._framing))

    def _accept(self, http: web.Request, raw: bytes) -> Request:
        check_key(http.headers, self._api_key)
        if http.content_type != "application/json":
            raise RefusedError(f"Unsupported content type: '{http.content_type}'.")
        body = check_body(raw, self._rules)
        request = Request(len(self._requests) + 1, body, raw, http.headers.copy())
        self._requests.append(request)
        return request

    async def _play(self, http: web.Request, playback: Playback) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._playing.add(task)
        try:
            return await playback.play(http)
        except (asyncio.CancelledError, ConnectionError):
            if not playback.complete and not self._stopping:
                self.disconnected.add()
            raise
        finally:
            self._playing.discard(task)

    def _refuse(self, http: web.Request, raw: bytes, refusal: RefusedError) -> web.Response:
        self.rejected.append(
            Rejection(
                refusal.status,
                refusal.message,
                refusal.param,
                refusal.code,
                raw,
                http.headers.copy(),
            )
        )
        text = error_body(refusal.message, param=refusal.param, code=refusal.code)
        return _json(refusal.status, text)

    def _complain(self, problem: str) -> web.Response:
        self.problems.append(problem)
        text = error_body(problem, kind="script_error", code="script_error")
        return _json(500, text, {"x-should-retry": "false"})

    async def _list_models(self, http: web.Request) -> web.Response:
        try:
            check_key(http.headers, self._api_key)
        except RefusedError as refusal:
            return self._refuse(http, b"", refusal)
        found = [{"id": model, "object": "model", "owned_by": "script"} for model in self._models]
        return web.json_response({"object": "list", "data": found})

    async def _not_found(self, http: web.Request) -> web.Response:
        text = f"Invalid URL ({http.method} {http.path})"
        return self._refuse(http, await http.read(), RefusedError(text, status=404))


def _json(status: int, text: str, headers: dict[str, Any] | None = None) -> web.Response:
    return web.Response(status=status, text=text, content_type="application/json", headers=headers)
