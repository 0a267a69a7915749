package com.example.interop;

import com.agentrpc.v1.AgentServiceGrpc;
import com.agentrpc.v1.AgentServiceGrpc.AgentServiceBlockingStub;
import com.agentrpc.v1.CancelRunRequest;
import com.agentrpc.v1.ErrorReason;
import com.agentrpc.v1.Message;
import com.agentrpc.v1.PendingKind;
import com.agentrpc.v1.RunServiceGrpc;
import com.agentrpc.v1.RunServiceGrpc.RunServiceBlockingStub;
import com.agentrpc.v1.RunStatus;
import com.agentrpc.v1.StepRequest;
import com.agentrpc.v1.StopReason;
import com.agentrpc.v1.StreamRequest;
import com.agentrpc.v1.StreamResponse;
import com.agentrpc.v1.StreamToolReturnsRequest;
import com.agentrpc.v1.StreamToolReturnsResponse;
import io.grpc.Channel;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.List;
import java.util.Objects;

/** Asks the agent service, with nothing but the code that is generated from proto/. */
public final class Interop {
  private final AgentServiceBlockingStub agent;
  private final RunServiceBlockingStub runs;

  private Interop(Channel channel) {
    agent = AgentServiceGrpc.newBlockingStub(channel);
    runs = RunServiceGrpc.newBlockingStub(channel);
  }

  private static void check(boolean held, Object found) {
    if (!held) {
      throw new AssertionError("found: " + found);
    }
  }

  private static void checkAnswer(RunStatus status, String text, String... names) {
    check(status == RunStatus.RUN_STATUS_COMPLETED, status);
    for (var name : names) {
      check(text.contains(Requests.getSecretCode(name)), text);
    }
  }

  private static String lastText(List<Message> messages) {
    var text = messages.get(messages.size() - 1).getAssistant().getText();
    System.out.println(text);
    return text;
  }

  /** Asks, pauses, executes, submits, gets the answer and recalls it. */
  private void blocking() {
    var paused = agent.step(Requests.question("What is the secret code of Alice?")).getRun();
    check(paused.getStatus() == RunStatus.RUN_STATUS_PAUSED, paused);
    check(paused.getStopReason() == StopReason.STOP_REASON_REQUIRES_APPROVAL, paused);
    check(paused.getPendingToolCallsCount() == 1, paused);
    var call = paused.getPendingToolCalls(0);
    check(call.getName().equals(Requests.TOOL.getName()), call);
    check(call.getKind() == PendingKind.PENDING_KIND_CLIENT_EXECUTION, call);

    var answered = agent.submitToolReturns(Requests.executed(paused.getRunId(), List.of(call)));
    checkAnswer(answered.getRun().getStatus(), lastText(answered.getMessagesList()), "Alice");
    var recalled = agent.step(Requests.recall(paused.getConversationId()));
    checkAnswer(recalled.getRun().getStatus(), lastText(recalled.getMessagesList()), "Alice");
  }

  private Streamed stream(StepRequest step) {
    var request = StreamRequest.newBuilder().setStep(step).setStreamTokens(true).build();
    return Streamed.follow(agent.stream(request), StreamResponse::getEvent);
  }

  /** The same, token by token. */
  private void streaming() {
    var paused = stream(Requests.question("What is the secret code of Alice?"));
    check(paused.stop().getStatus() == RunStatus.RUN_STATUS_PAUSED, paused);

    var returns = StreamToolReturnsRequest.newBuilder()
        .setSubmit(Requests.executed(paused.runId(), paused.stop().getRemainingList()))
        .setStreamTokens(true)
        .build();
    var answered = Streamed.follow(agent.streamToolReturns(returns), StreamToolReturnsResponse::getEvent);
    checkAnswer(answered.stop().getStatus(), answered.text(), "Alice");
    var recalled = stream(Requests.recall(paused.conversationId()));
    checkAnswer(recalled.stop().getStatus(), recalled.text(), "Alice");
  }

  /** The return of one of three calls leaves two pending, whose returns resume the run. */
  private void threeCalls() {
    var paused = agent.step(Requests.question("What are the secret codes of Alice, Bob and Carol?")).getRun();
    var calls = paused.getPendingToolCallsList();
    check(calls.size() == 3, paused);
    var partial = agent.submitToolReturns(Requests.executed(paused.getRunId(), calls.subList(0, 1)));
    check(partial.getRun().getStatus() == RunStatus.RUN_STATUS_PAUSED, partial);
    check(partial.getReceipt().getRemainingList().equals(calls.subList(1, 3)), partial);

    var answered = agent.submitToolReturns(Requests.executed(paused.getRunId(), calls.subList(1, 3)));
    checkAnswer(answered.getRun().getStatus(), lastText(answered.getMessagesList()), "Alice", "Bob", "Carol");
  }

  /** A return for a call that the model never made is refused; a program reads why from the details. */
  private void wrongId() {
    var paused = agent.step(Requests.question("What is the secret code of Bob?")).getRun();
    var wrong = Requests.executed(paused.getRunId(), paused.getPendingToolCallsList()).toBuilder();
    wrong.getToolReturnsBuilder(0).setToolCallId("call_x");
    try {
      check(false, agent.submitToolReturns(wrong.build()));
    } catch (StatusRuntimeException error) {
      System.out.println(error.getStatus().getDescription());
      check(error.getStatus().getCode() == Status.Code.INVALID_ARGUMENT, error);
      var refusal = Refusal.of(error);
      check(refusal.reason().equals(ErrorReason.ERROR_REASON_UNKNOWN_TOOL_CALL.name()), refusal);
      check(refusal.fields().equals(List.of("tool_returns[0].tool_call_id")), refusal);
    }
    var cancelled = runs.cancelRun(CancelRunRequest.newBuilder().setRunId(paused.getRunId()).build()).getRun();
    check(cancelled.getStatus() == RunStatus.RUN_STATUS_CANCELLED, cancelled);
  }

  /** Each check that fails throws. */
  public static void main(String[] args) {
    var target = Objects.requireNonNullElse(System.getenv("AGENT_SERVICE_TARGET"), "localhost:50051");
    var channel = Grpc.newChannelBuilder(target, InsecureChannelCredentials.create()).build();
    try {
      var interop = new Interop(channel);
      interop.blocking();
      interop.streaming();
      interop.threeCalls();
      interop.wrongId();
    } finally {
      channel.shutdownNow();
    }
    System.out.println("interop ok: java");
  }
}
