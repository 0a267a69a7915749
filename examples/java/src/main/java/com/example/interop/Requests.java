package com.example.interop;

import com.agentrpc.v1.ClientToolSchema;
import com.agentrpc.v1.InputMessage;
import com.agentrpc.v1.PendingToolCall;
import com.agentrpc.v1.StepRequest;
import com.agentrpc.v1.SubmitToolReturnsRequest;
import com.agentrpc.v1.ToolChoice;
import com.agentrpc.v1.ToolChoiceMode;
import com.agentrpc.v1.ToolReturn;
import com.google.gson.Gson;
import java.util.List;
import java.util.Map;

/** What is asked, and the tool that lives here. */
final class Requests {
  private static final Map<String, String> CODES =
      Map.of("Alice", "AZURE-7731", "Bob", "CORAL-1102", "Carol", "OLIVE-5920");
  static final ClientToolSchema TOOL = ClientToolSchema.newBuilder()
      .setName("get_secret_code")
      .setDescription("Returns the secret code of a person.")
      .setParametersJson("""
          {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}""")
      .build();

  /** The tool. It runs here, in the caller. */
  static String getSecretCode(String name) {
    return CODES.get(name);
  }

  private record Arguments(String name) { }

  private static ToolReturn execute(PendingToolCall call) {
    var arguments = new Gson().fromJson(call.getArgumentsJson(), Arguments.class);
    return ToolReturn.newBuilder()
        .setToolCallId(call.getToolCallId())
        .setText(getSecretCode(arguments.name()))
        .build();
  }

  static StepRequest question(String text) {
    return StepRequest.newBuilder()
        .addInputMessages(InputMessage.newBuilder().setText(text))
        .addClientTools(TOOL)
        .setToolChoice(ToolChoice.newBuilder().setToolName(TOOL.getName()))
        .build();
  }

  static StepRequest recall(String conversationId) {
    return StepRequest.newBuilder()
        .setConversationId(conversationId)
        .addInputMessages(InputMessage.newBuilder().setText("What was the secret code?"))
        .setToolChoice(ToolChoice.newBuilder().setMode(ToolChoiceMode.TOOL_CHOICE_MODE_NONE))
        .build();
  }

  static SubmitToolReturnsRequest executed(String runId, List<PendingToolCall> calls) {
    return SubmitToolReturnsRequest.newBuilder()
        .setRunId(runId)
        .addAllToolReturns(calls.stream().map(Requests::execute).toList())
        .build();
  }

  private Requests() { }
}
