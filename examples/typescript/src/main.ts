// Asks the agent service, with nothing but the code that ts-proto generates from proto/.

import assert from "node:assert/strict";
import { type ServiceError, status } from "@grpc/grpc-js";
import {
  StepRequest,
  StreamRequest,
  StreamToolReturnsRequest,
  SubmitToolReturnsRequest,
} from "./gen/agentrpc/v1/agent_service.js";
import { ErrorReason } from "./gen/agentrpc/v1/errors.js";
import type { Message } from "./gen/agentrpc/v1/messages.js";
import { RunStatus, StopReason } from "./gen/agentrpc/v1/runs.js";
import { PendingKind, type PendingToolCall, ToolChoiceMode } from "./gen/agentrpc/v1/tools.js";
import { agent, cancelRun, follow, refusal, runs, step, submitToolReturns } from "./service.js";

const CODES: Record<string, string> = { Alice: "AZURE-7731", Bob: "CORAL-1102", Carol: "OLIVE-5920" };
const TOOL = {
  name: "get_secret_code",
  description: "Returns the secret code of a person.",
  parameters: { type: "object", properties: { name: { type: "string" } }, required: ["name"] },
};

/** The tool. It runs here, in the caller. */
function getSecretCode({ name }: { name: string }): string {
  return CODES[name] ?? "unknown";
}

function question(text: string): StepRequest {
  const toolChoice = { toolName: TOOL.name };
  return StepRequest.fromPartial({ inputMessages: [{ text }], clientTools: [TOOL], toolChoice });
}

function recall(conversationId: string): StepRequest {
  const inputMessages = [{ text: "What was the secret code?" }];
  const toolChoice = { mode: ToolChoiceMode.TOOL_CHOICE_MODE_NONE };
  return StepRequest.fromPartial({ conversationId, inputMessages, toolChoice });
}

function executed(runId: string, ...calls: PendingToolCall[]): SubmitToolReturnsRequest {
  const toolReturns = calls.map(({ toolCallId, argumentsJson }) => ({
    toolCallId,
    text: getSecretCode(JSON.parse(argumentsJson)),
  }));
  return SubmitToolReturnsRequest.fromPartial({ runId, toolReturns });
}

function checkAnswer(status: RunStatus, text: string, ...names: string[]): void {
  assert.equal(status, RunStatus.RUN_STATUS_COMPLETED);
  for (const name of names) assert.ok(text.includes(CODES[name]!), text);
}

function lastText(messages: Message[]): string {
  const content = messages.at(-1)?.content;
  assert.equal(content?.$case, "assistant");
  console.log(content.value.text);
  return content.value.text;
}

/** Asks, pauses, executes, submits, gets the answer and recalls it. */
async function blocking(): Promise<void> {
  const { run: paused } = await step(question("What is the secret code of Alice?"));
  assert.equal(paused.status, RunStatus.RUN_STATUS_PAUSED);
  assert.equal(paused.stopReason, StopReason.STOP_REASON_REQUIRES_APPROVAL);
  assert.equal(paused.pendingToolCalls.length, 1);
  const [call] = paused.pendingToolCalls;
  assert.equal(call!.name, TOOL.name);
  assert.equal(call!.kind, PendingKind.PENDING_KIND_CLIENT_EXECUTION);

  const answered = await submitToolReturns(executed(paused.runId, call!));
  checkAnswer(answered.run.status, lastText(answered.messages), "Alice");
  const recalled = await step(recall(paused.conversationId));
  checkAnswer(recalled.run.status, lastText(recalled.messages), "Alice");
}

/** The same, token by token. */
async function streaming(): Promise<void> {
  const asked = StreamRequest.create({ step: question("What is the secret code of Alice?"), streamTokens: true });
  const { runId, accepted, stopped } = await follow(agent.stream(asked));
  assert.equal(stopped.status, RunStatus.RUN_STATUS_PAUSED);

  const submit = executed(runId, ...stopped.remaining);
  const returned = StreamToolReturnsRequest.create({ submit, streamTokens: true });
  const answered = await follow(agent.streamToolReturns(returned));
  checkAnswer(answered.stopped.status, answered.text, "Alice");

  const again = StreamRequest.create({ step: recall(accepted!.conversationId), streamTokens: true });
  const recalled = await follow(agent.stream(again));
  checkAnswer(recalled.stopped.status, recalled.text, "Alice");
}

/** The return of one of three calls leaves two pending, whose returns resume the run. */
async function threeCalls(): Promise<void> {
  const { run: paused } = await step(question("What are the secret codes of Alice, Bob and Carol?"));
  assert.equal(paused.pendingToolCalls.length, 3);
  const [first, ...others] = paused.pendingToolCalls;
  const partial = await submitToolReturns(executed(paused.runId, first!));
  assert.equal(partial.run.status, RunStatus.RUN_STATUS_PAUSED);
  assert.deepEqual(partial.receipt.remaining, others);

  const answered = await submitToolReturns(executed(paused.runId, ...others));
  checkAnswer(answered.run.status, lastText(answered.messages), "Alice", "Bob", "Carol");
}

/** A return for a call that the model never made is refused; a program reads why from the details. */
async function wrongId(): Promise<void> {
  const { run: paused } = await step(question("What is the secret code of Bob?"));
  const wrong = SubmitToolReturnsRequest.fromPartial({ runId: paused.runId, toolReturns: [{ toolCallId: "call_x" }] });
  await assert.rejects(submitToolReturns(wrong), (error: ServiceError) => {
    console.log(error.details);
    assert.equal(error.code, status.INVALID_ARGUMENT);
    const { reason, fields } = refusal(error);
    assert.equal(reason, ErrorReason[ErrorReason.ERROR_REASON_UNKNOWN_TOOL_CALL]);
    assert.deepEqual(fields, ["tool_returns[0].tool_call_id"]);
    return true;
  });
  assert.equal((await cancelRun(paused.runId)).status, RunStatus.RUN_STATUS_CANCELLED);
}

await blocking();
await streaming();
await threeCalls();
await wrongId();
agent.close();
runs.close();
console.log("interop ok: typescript");
