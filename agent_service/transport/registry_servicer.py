"""AgentRegistryService: reads what conversations hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from agentrpc.v1 import agent_registry_service_pb2 as pb
from agentrpc.v1 import agent_registry_service_pb2_grpc as pb_grpc
from agentrpc.v1 import messages_pb2

from agent_service.domain.message import Message
from agent_service.engine.commands import Caller
from agent_service.engine.limits import Limits
from agent_service.engine.runs import Runs
from agent_service.transport import translate
from agent_service.transport.requests import Reader

Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_PAGE = 100
_TOKEN = "after-"
_PAGE_TOKEN = re.compile(_TOKEN + "[0-9]{1,18}")


class AgentRegistryServicer(pb_grpc.AgentRegistryServiceServicer):
    """Adapts AgentRegistryService onto the use cases."""

    def __init__(self, runs: Runs, limits: Limits, caller: Caller) -> None:
        self._runs = runs
        self._limits = limits
        self._caller = caller

    async def ListMessages(self, request: pb.ListMessagesRequest, context: Context) -> pb.ListMessagesResponse:
        size, after = self._read(request)
        page = await self._runs.messages(self._caller.tenant, request.conversation_id, after, size)
        response = pb.ListMessagesResponse(messages=self._fitting(page))
        last = response.messages[-1].position if page else 0
        if page and await self._runs.messages(self._caller.tenant, request.conversation_id, last, 1):
            response.next_page_token = f"{_TOKEN}{last}"
        return response

    def _fitting(self, page: Sequence[Message]) -> Iterator[messages_pb2.Message]:
        """As many as one answer can hold; at least one."""
        room = self._limits.max_response_bytes
        for message in page:
            translated = translate.message(message)
            room -= translated.ByteSize()
            if room < 0 and message is not page[0]:
                return
            yield translated

    def _read(self, request: pb.ListMessagesRequest) -> tuple[int, int]:
        """Page size and the position after which the page begins."""
        reader = Reader(self._limits)
        most = self._limits.max_page_size
        reader.id("conversation_id", request.conversation_id)
        if not request.conversation_id:
            reader.problems.add("conversation_id", "is empty; name a conversation")
        if not 0 <= request.page_size <= most:
            reader.problems.add("page_size", f"{request.page_size} is not 1 to {most}, or 0 for {_DEFAULT_PAGE}")
        digits = request.page_token.removeprefix(_TOKEN)
        if request.page_token and not _PAGE_TOKEN.fullmatch(request.page_token):
            reader.problems.add("page_token", "is not one this server gave; send next_page_token of the answer before")
        reader.done()
        return request.page_size or _DEFAULT_PAGE, int(digits or 0)
