"""From protobuf to domain commands, field by field. All problems of a request are named at once, with their paths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import agents_pb2, messages_pb2, sort_order_pb2, tool_rules_pb2, tools_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from agent_service.domain.content import Parts
from agent_service.domain.errors import FieldViolation, Reason, invalid
from agent_service.domain.message import InputContent, MessageType, SystemContent, UserContent
from agent_service.domain.policy import ContextPolicy, problems
from agent_service.domain.rules import ToolRule
from agent_service.domain.run import ResponseFormat
from agent_service.domain.start import OnBusy
from agent_service.domain.submit import ApproveAnswer, CallAnswer, DenyAnswer, ReturnAnswer
from agent_service.domain.tool import Executor, OnTimeout, ToolChoice, ToolChoiceMode, ToolSchema
from agent_service.engine.commands import StartCommand, SubmitCommand, View, canonical, digest
from agent_service.engine.limits import Limits
from agent_service.engine.schemas import schema_problem
from agent_service.transport.parts import PartsReader
from agent_service.transport.policies import read_policy
from agent_service.transport.structs import struct_json
from agent_service.transport.tool_rules import read_rules

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_EMPTY_PARAMETERS = '{"type":"object","properties":{}}'
_MAX_LABEL_VALUE = 256
_LONGEST = 100 * 365 * 24 * 3600 * 10**9
"""What is longer counts as a hundred years: times are 64-bit nanoseconds."""
_SHOWN = 64
_STRUCT_TO_JSON = 8
"""A Struct on the wire is at most so many times as large as its JSON text."""
_MOST_VALUES = 256
"""Of repeated fields that say what is wanted."""


class Problems:
    """Collects field violations under a path prefix."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []
        self._reason = Reason.INVALID_FIELD

    def add(self, field: str, description: str, reason: Reason = Reason.INVALID_FIELD) -> None:
        """Notes one problem."""
        if not self._found:
            self._reason = reason
        self._found.append(FieldViolation(field, description))

    def check(self) -> None:
        """Raises if there are any."""
        if self._found:
            raise invalid(*self._found, reason=self._reason)


class Reader:
    """Reads one request; `prefix` is the path of the message inside it, such as "step."."""

    def __init__(self, limits: Limits, prefix: str = "") -> None:
        self.problems = Problems()
        self._limits = limits
        self._prefix = prefix
        self._parts = PartsReader(limits, self._add)

    def start(self, request: pb.StepRequest) -> StartCommand:
        """A start. Raises INVALID_FIELD or INVALID_TOOL_SCHEMA with every problem found."""
        command = StartCommand(
            inputs=self._inputs(request.input_messages),
            run_id=self.id("run_id", request.run_id),
            conversation_id=self.id("conversation_id", request.conversation_id),
            client_tools=self._client_tools(request.client_tools),
            max_steps=self._max_steps(request),
            tool_choice=self._tool_choice(request.tool_choice),
            parallel_tool_calls=request.parallel_tool_calls if request.HasField("parallel_tool_calls") else None,
            model=request.model,
            system_prompt=request.system_prompt,
            labels=self.labels(request.labels),
            request_start_time=self._start_time(request.request_start_timestamp_ns),
            run_timeout=self.span("run_timeout", request.run_timeout, request.HasField("run_timeout")),
            pause_ttl=self.span("pause_ttl", request.pause_ttl, request.HasField("pause_ttl")),
            on_busy=self._on_busy(request.on_busy),
            response_format=self._response_format(request),
            tool_rules=self.tool_rules(request.tool_rules),
            server_tools_wait=request.server_tools_wait,
            path=self._prefix,
        )
        self.id("agent_id", request.agent_id)
        self.bounded("system_prompt", request.system_prompt, self._limits.max_input_bytes)
        self.bounded("model", request.model, 256)
        return command

    def submit(self, request: pb.SubmitToolReturnsRequest) -> SubmitCommand:
        """A submit."""
        run_id = self.required_id("run_id", request.run_id, "the run that waits")
        count, most = len(request.tool_returns) + len(request.approvals), self._limits.max_answers
        if count > most:
            self._add("tool_returns", f"{count} answers with approvals; at most {most} are allowed")
            return SubmitCommand(run_id, (), "")
        answers = (
            *(self._tool_return(f"tool_returns[{i}]", value) for i, value in enumerate(request.tool_returns)),
            *(self._approval(f"approvals[{i}]", value) for i, value in enumerate(request.approvals)),
        )
        self._parts.check_total("tool_returns")
        if not answers:
            self._add("tool_returns", "is empty, and so is approvals; answer at least one pending call")
        return SubmitCommand(run_id, answers, self.id("request_id", request.request_id))

    def view(self, request: Any) -> View:
        """The view fields that StepRequest and WatchRunRequest share."""
        types = set()
        if self.too_many("include_return_message_types", len(request.include_return_message_types)):
            return View()
        for index, number in enumerate(request.include_return_message_types):
            kind = self._message_type(f"include_return_message_types[{index}]", number)
            if kind is not None:
                types.add(kind)
        use = request.use_assistant_message if request.HasField("use_assistant_message") else True
        return View(frozenset(types) if types else None, use)

    def id(self, field: str, value: str) -> str:
        """An id chosen by the caller, or empty."""
        if value and not _ID.fullmatch(value):
            self._add(field, f"{value[:_SHOWN]!r} is not 1 to 64 of A-Z a-z 0-9 . _ : -")
        return value

    def seconds(self, field: str, value: Duration, present: bool) -> float | None:
        """A wait; None when unset."""
        if not present:
            return None
        nanoseconds = value.seconds * 1_000_000_000 + value.nanos
        if nanoseconds < 0:
            self._add(field, f"{nanoseconds / 1e9} s is negative; send 0 or more, or leave it unset")
        return max(nanoseconds / 1e9, 0)

    def disconnect(self, number: int) -> bool:
        """Whether a dropped call cancels the run."""
        if number not in pb.OnDisconnect.values():
            self._add("on_disconnect", f"{number} is not a value of OnDisconnect")
        return number == pb.ON_DISCONNECT_CANCEL

    def refuse_in_stream(self, request: Any, instead: str) -> None:
        """Fields that mean nothing in a stream."""
        if request.background:
            self._add("background", f"true in a stream; use {instead}, then RunService.WatchRun")
        if request.HasField("max_wait"):
            self._add("max_wait", "set in a stream; use a deadline of the call")

    def required_id(self, field: str, value: str, kind: str) -> str:
        """An id that must be there."""
        if not value:
            self._add(field, f"is empty; name {kind}")
        return self.id(field, value)

    def order(self, number: int, *, descending: bool) -> bool:
        """Whether newest first is asked for; `descending` is the default."""
        if number not in sort_order_pb2.SortOrder.values():
            self._add("order", f"{number} is not a value of SortOrder")
        return (
            descending
            if number == sort_order_pb2.SORT_ORDER_UNSPECIFIED
            else number == sort_order_pb2.SORT_ORDER_DESCENDING
        )

    def time(self, field: str, value: Timestamp, present: bool) -> int:
        """Unix nanoseconds; 0 when unset."""
        if not present:
            return 0
        nanoseconds: int = value.seconds * 10**9 + value.nanos
        if not 0 < nanoseconds < 2**63:
            self._add(field, "is not a time after 1970")
            return 0
        return nanoseconds

    def done(self) -> None:
        """Raises what was found."""
        self.problems.check()

    def _add(self, field: str, description: str, reason: Reason = Reason.INVALID_FIELD) -> None:
        self.problems.add(self._prefix + field, description, reason)

    def context_policy(self, field: str, policy: agents_pb2.ContextPolicy) -> ContextPolicy:
        """How conversations are compacted."""
        read = read_policy(policy)
        if read is None:
            self._add(f"{field}.strategy", f"{policy.strategy} is not a value of CompactionStrategy")
            return ContextPolicy()
        for name, problem in problems(read, self._limits.max_summary_prompt_bytes):
            self._add(f"{field}.{name}", problem)
        return read

    def bounded(self, field: str, text: str, most: int) -> None:
        """A text of at most so many bytes."""
        size = len(text.encode())
        if size > most:
            self._add(field, f"{size} bytes; at most {most} are allowed")

    def too_many(self, field: str, count: int, most: int = _MOST_VALUES) -> bool:
        """Whether a field is repeated too often; says so. To look at each would hold up everybody else."""
        if count > most:
            self._add(field, f"{count} values; at most {most} are allowed")
        return count > most

    def _inputs(self, messages: Sequence[messages_pb2.InputMessage]) -> tuple[InputContent, ...]:
        if not messages:
            self._add("input_messages", "is empty; send at least one message")
        if self.too_many("input_messages", len(messages), self._limits.max_input_messages):
            return ()
        inputs = tuple(self._input(f"input_messages[{i}]", message) for i, message in enumerate(messages))
        size = sum(len(content.text.encode()) for content in inputs)
        if size > self._limits.max_input_bytes:
            self._add("input_messages", f"{size} bytes of text; at most {self._limits.max_input_bytes} are allowed")
        self._parts.check_total("input_messages")
        return inputs

    def _input(self, path: str, message: messages_pb2.InputMessage) -> InputContent:
        content = self._parts.read(path, message.text, message.parts, required=True)
        self._parts.check_size(path, content)
        if message.name and not _TOOL_NAME.fullmatch(message.name):
            self._add(f"{path}.name", f"{message.name[:_SHOWN]!r} is not 1 to 64 letters, digits, '_' or '-'")
        if message.role not in messages_pb2.Role.values():
            self._add(f"{path}.role", f"{message.role} is not a value of Role")
        if message.role == messages_pb2.ROLE_SYSTEM:
            self._parts.refuse_images(path, content.parts)
            return SystemContent(content.text)
        return UserContent(content.text, message.name, content.parts)

    def _max_steps(self, request: pb.StepRequest) -> int:
        if not request.HasField("max_steps"):
            return self._limits.default_max_steps
        if request.max_steps < 1:
            default = self._limits.default_max_steps
            self._add("max_steps", f"{request.max_steps} is below 1; send 1 or more, or leave it unset for {default}")
        return request.max_steps

    def span(self, field: str, value: Duration, present: bool) -> int:
        """Nanoseconds of a span that means something; 0 when unset."""
        if not present:
            return 0
        span: int = value.seconds * 10**9 + value.nanos
        if span < 10**6:
            self._add(field, f"{span / 1e9:g} s is below 1 ms; send more, or leave it unset")
        return min(span, _LONGEST)

    def tool_rules(self, rules: Sequence[tool_rules_pb2.ToolRule]) -> tuple[ToolRule, ...]:
        """Rules about tools."""
        return read_rules(lambda place, text: self._add(f"tool_rules{place}", text), rules, self._limits)

    def _on_busy(self, number: int) -> OnBusy:
        if number not in pb.OnBusy.values():
            self._add("on_busy", f"{number} is not a value of OnBusy")
            return OnBusy.REJECT
        return OnBusy(pb.OnBusy.Name(number).removeprefix("ON_BUSY_").lower()) if number else OnBusy.REJECT  # type: ignore[arg-type]  # checked just above

    def _start_time(self, value: int) -> int:
        if value < 0:
            self._add("request_start_timestamp_ns", f"{value} is negative; send Unix time in nanoseconds, or 0")
        return value

    def _tool_choice(self, choice: tools_pb2.ToolChoice) -> ToolChoice:
        names = {
            tools_pb2.TOOL_CHOICE_MODE_UNSPECIFIED: ToolChoiceMode.AUTO,
            tools_pb2.TOOL_CHOICE_MODE_AUTO: ToolChoiceMode.AUTO,
            tools_pb2.TOOL_CHOICE_MODE_REQUIRED: ToolChoiceMode.REQUIRED,
            tools_pb2.TOOL_CHOICE_MODE_NONE: ToolChoiceMode.NONE,
        }
        mode = names.get(choice.mode)
        if mode is None:
            self._add("tool_choice.mode", f"{choice.mode} is not a value of ToolChoiceMode")
        if choice.mode and choice.tool_name:
            self._add("tool_choice.tool_name", "set together with mode; send one of them")
        return ToolChoice(mode or ToolChoiceMode.AUTO, choice.tool_name)

    def labels(self, labels: Any) -> dict[str, str]:
        if len(labels) > self._limits.max_labels:
            self._add("labels", f"{len(labels)} labels; at most {self._limits.max_labels} are allowed")
            return {}
        for key, value in labels.items():
            if not _ID.fullmatch(key):
                self._add("labels", f"key {key[:_SHOWN]!r} is not 1 to 64 of A-Z a-z 0-9 . _ : -")
            if len(value) > _MAX_LABEL_VALUE:
                self._add(f'labels["{key[:_SHOWN]}"]', f"{len(value)} characters; at most {_MAX_LABEL_VALUE}")
        return dict(labels)

    def _message_type(self, field: str, number: int) -> MessageType | None:
        if number not in messages_pb2.MessageType.values() or number == messages_pb2.MESSAGE_TYPE_UNSPECIFIED:
            self._add(field, f"{number} is not a message type")
            return None
        name = messages_pb2.MessageType.Name(number)  # type: ignore[arg-type]  # checked just above
        return MessageType(name.removeprefix("MESSAGE_TYPE_").lower())

    def _client_tools(self, tools: Sequence[tools_pb2.ClientToolSchema]) -> tuple[ToolSchema, ...]:
        if len(tools) > self._limits.max_client_tools:
            most = self._limits.max_client_tools
            self._add("client_tools", f"{len(tools)} tools; at most {most} are allowed")
            return ()
        first: dict[str, int] = {}
        for index, tool in enumerate(tools):
            if tool.name in first:
                self._add(
                    f"client_tools[{index}].name", f"'{tool.name}' is the name of client_tools[{first[tool.name]}]"
                )
            first.setdefault(tool.name, index)
        return tuple(self._client_tool(f"client_tools[{i}]", tool) for i, tool in enumerate(tools))

    def _client_tool(self, path: str, tool: tools_pb2.ClientToolSchema) -> ToolSchema:
        if not _TOOL_NAME.fullmatch(tool.name):
            self._add(f"{path}.name", f"{tool.name[:_SHOWN]!r} is not 1 to 64 letters, digits, '_' or '-'")
        self.bounded(f"{path}.description", tool.description, self._limits.max_tool_schema_bytes)
        return ToolSchema(
            name=tool.name,
            description=tool.description,
            parameters_json=self._parameters(path, tool),
            executor=Executor.CLIENT,
            result_schema_json=self._schema(f"{path}.result_schema_json", tool.result_schema_json, any_type=True),
            timeout=self.span(f"{path}.timeout", tool.timeout, tool.HasField("timeout")),
            on_timeout=self._on_timeout(path, tool),
        )

    def _on_timeout(self, path: str, tool: tools_pb2.ClientToolSchema) -> OnTimeout:
        if tool.on_timeout not in tools_pb2.OnTimeout.values():
            self._add(f"{path}.on_timeout", f"{tool.on_timeout} is not a value of OnTimeout")
            return OnTimeout.RETURN_ERROR
        if tool.on_timeout and not tool.HasField("timeout"):
            self._add(f"{path}.on_timeout", "set without timeout; set both or none")
        if not tool.on_timeout:
            return OnTimeout.RETURN_ERROR
        return OnTimeout(tools_pb2.OnTimeout.Name(tool.on_timeout).removeprefix("ON_TIMEOUT_").lower())

    def _parameters(self, path: str, tool: tools_pb2.ClientToolSchema) -> str:
        if tool.HasField("parameters"):
            if tool.parameters_json:
                self._add(f"{path}.parameters_json", "set together with parameters; send one of them")
            return self._schema(f"{path}.parameters", self._json(tool.parameters)) or _EMPTY_PARAMETERS
        return self._schema(f"{path}.parameters_json", tool.parameters_json) or _EMPTY_PARAMETERS

    def _response_format(self, request: pb.StepRequest) -> ResponseFormat | None:
        if not request.HasField("response_format"):
            return None
        path, wanted = "response_format", request.response_format
        if wanted.name and not _TOOL_NAME.fullmatch(wanted.name):
            self._add(f"{path}.name", f"{wanted.name[:_SHOWN]!r} is not 1 to 64 letters, digits, '_' or '-'")
        self.bounded(f"{path}.description", wanted.description, self._limits.max_tool_schema_bytes)
        if wanted.HasField("schema") == bool(wanted.schema_json):
            problem = (
                "set together with schema; send one of them" if wanted.schema_json else "is empty, and so is schema"
            )
            self._add(f"{path}.schema_json", problem)
        field = "schema" if wanted.HasField("schema") else "schema_json"
        text = self._json(wanted.schema) if wanted.HasField("schema") else wanted.schema_json
        self._schema(f"{path}.{field}", text, reason=Reason.INVALID_RESPONSE_SCHEMA)
        return ResponseFormat(wanted.name or "answer", text, wanted.description, wanted.strict)

    def _json(self, struct: Struct) -> str:
        """As JSON; of one that is far too large only its size, since to translate it would hold up everybody else."""
        size = struct.ByteSize()
        return " " * size if size > _STRUCT_TO_JSON * self._limits.max_tool_schema_bytes else struct_json(struct)

    def _schema(
        self, field: str, text: str, *, any_type: bool = False, reason: Reason = Reason.INVALID_TOOL_SCHEMA
    ) -> str:
        if text:
            problem = schema_problem(
                text,
                max_bytes=self._limits.max_tool_schema_bytes,
                max_depth=self._limits.max_tool_schema_depth,
                object_only=not any_type,
            )
            if problem:
                self._add(field, problem, reason)
        return text

    def _tool_return(self, path: str, value: tools_pb2.ToolReturn) -> CallAnswer:
        if value.status not in tools_pb2.ToolReturnStatus.values():
            self._add(f"{path}.status", f"{value.status} is not a value of ToolReturnStatus")
        content = self._parts.read(path, value.text, value.parts, required=False)
        for name, text in (("text", content.text), ("stdout", value.stdout), ("stderr", value.stderr)):
            self.bounded(f"{path}.{name}", text, self._limits.max_tool_return_bytes)
        self._check_total(path, content.text, value.stdout, value.stderr)
        self._parts.check_size(path, content, value.stdout, value.stderr)
        failed = value.status == tools_pb2.TOOL_RETURN_STATUS_ERROR
        answer = ReturnAnswer(content.text, failed, value.stdout, value.stderr, content.parts)
        key = digest(["return", content.text, failed, value.stdout, value.stderr, *_told(content.parts)])
        call_id = self._call_id(path, value.tool_call_id)
        return CallAnswer(call_id, self._prefix + path, answer, key, claim_token=value.claim_token)

    def _check_total(self, path: str, *texts: str) -> None:
        size, most = sum(len(text.encode()) for text in texts), self._limits.max_tool_return_total_bytes
        if size > most:
            self._add(path, f"{size} bytes of text, stdout and stderr together; at most {most} are allowed")

    def _approval(self, path: str, value: tools_pb2.ApprovalDecision) -> CallAnswer:
        tool_call_id = self._call_id(path, value.tool_call_id)
        match value.WhichOneof("decision"):
            case "approve":
                edited, note = value.approve.edited_arguments_json, value.approve.note
                self.bounded(f"{path}.approve.edited_arguments_json", edited, self._limits.max_tool_arguments_bytes)
                self.bounded(f"{path}.approve.note", note, self._limits.max_tool_return_bytes)
                approve = ApproveAnswer(edited, note)
                key = digest(["approve", edited, note])
                return CallAnswer(tool_call_id, self._prefix + path, approve, key, claim_token=value.claim_token)
            case "deny":
                self.bounded(f"{path}.deny.reason", value.deny.reason, self._limits.max_tool_return_bytes)
                deny = DenyAnswer(value.deny.reason)
                key = digest(["deny", value.deny.reason])
                return CallAnswer(tool_call_id, self._prefix + path, deny, key, claim_token=value.claim_token)
            case _:
                self._add(f"{path}.decision", "is not set; send approve or deny")
                return CallAnswer(tool_call_id, self._prefix + path, DenyAnswer(), "")

    def _call_id(self, path: str, value: str) -> str:
        if not value:
            self._add(f"{path}.tool_call_id", "is empty; name a pending call")
        return value


def masked(paths: Sequence[str], changeable: tuple[str, ...]) -> tuple[str, ...]:
    """The fields that an update changes; all if none is named. Raises INVALID_FIELD."""
    if len(paths) > _MOST_VALUES:
        raise invalid(FieldViolation("update_mask", f"{len(paths)} paths; at most {_MOST_VALUES} are allowed"))
    unknown = [path for path in paths if path not in changeable]
    if unknown:
        listed = ", ".join(changeable)
        raise invalid(FieldViolation("update_mask", f"'{unknown[0][:64]}' cannot be changed; these can: {listed}"))
    return tuple(paths) or changeable


def _told(parts: Parts) -> list[object]:
    """What a digest tells of the parts: nothing where there are none, as it was before there were any."""
    return [canonical(parts)] if parts else []
