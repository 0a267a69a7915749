// The few lines that make callbacks promises and status details typed.

import { type ClientReadableStream, credentials, type ServiceError } from "@grpc/grpc-js";
import {
  AgentServiceClient,
  type StepRequest,
  type StepResponse,
  type SubmitToolReturnsRequest,
  type SubmitToolReturnsResponse,
} from "./gen/agentrpc/v1/agent_service.js";
import type { RunAccepted, RunEvent, RunStopped } from "./gen/agentrpc/v1/events.js";
import { CancelRunRequest, type CancelRunResponse, RunServiceClient } from "./gen/agentrpc/v1/run_service.js";
import { BadRequest, ErrorInfo } from "./gen/google/rpc/error_details.js";
import { Status } from "./gen/google/rpc/status.js";

const target = process.env.AGENT_SERVICE_TARGET ?? "localhost:50051";
export const agent = new AgentServiceClient(target, credentials.createInsecure());
export const runs = new RunServiceClient(target, credentials.createInsecure());

function call<R>(start: (done: (error: ServiceError | null, response: R) => void) => void): Promise<R> {
  return new Promise((resolve, reject) => start((error, response) => (error ? reject(error) : resolve(response))));
}

export async function step(request: StepRequest) {
  const { run, messages } = await call<StepResponse>((done) => agent.step(request, done));
  return { run: run!, messages };
}

export async function submitToolReturns(request: SubmitToolReturnsRequest) {
  const answer = await call<SubmitToolReturnsResponse>((done) => agent.submitToolReturns(request, done));
  return { run: answer.run!, messages: answer.messages, receipt: answer.receipt! };
}

export async function cancelRun(runId: string) {
  const request = CancelRunRequest.create({ runId });
  return (await call<CancelRunResponse>((done) => runs.cancelRun(request, done))).run!;
}

/** What a stream tells up to its stop; prints the text as it comes. */
export async function follow(stream: ClientReadableStream<{ event: RunEvent | undefined }>) {
  const seen = { runId: "", text: "", accepted: undefined as RunAccepted | undefined };
  let stopped: RunStopped | undefined;
  for await (const response of stream) {
    const { runId, payload } = response.event as RunEvent;
    seen.runId = runId;
    switch (payload?.$case) {
      case "runAccepted":
        seen.accepted = payload.value;
        break;
      case "textDelta":
        seen.text += payload.value.text;
        process.stdout.write(payload.value.text);
        break;
      case "runStopped":
        stopped = payload.value;
        break;
    }
  }
  process.stdout.write("\n");
  if (!stopped) throw new Error("the stream was cut");
  return { ...seen, stopped };
}

/** Why a call was refused, for programs. */
export function refusal(error: ServiceError): { reason?: string; fields: string[] } {
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  const details = bytes ? Status.decode(bytes as Buffer).details : [];
  const find = (name: string) => details.find(({ typeUrl }) => typeUrl.endsWith(`/google.rpc.${name}`))?.value;
  const [info, bad] = [find("ErrorInfo"), find("BadRequest")];
  return {
    reason: info && ErrorInfo.decode(info).reason,
    fields: bad ? BadRequest.decode(bad).fieldViolations.map(({ field }) => field) : [],
  };
}
