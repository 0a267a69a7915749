package com.example.interop;

import com.agentrpc.v1.RunEvent;
import com.agentrpc.v1.RunStopped;
import java.util.Iterator;
import java.util.function.Function;

/** What a stream told up to its stop. */
record Streamed(String runId, String conversationId, String text, RunStopped stop) {
  /** Reads a stream to its end, and prints the text as it comes. */
  static <T> Streamed follow(Iterator<T> responses, Function<T, RunEvent> event) {
    var runId = "";
    var conversationId = "";
    var text = new StringBuilder();
    RunStopped stop = null;
    while (responses.hasNext()) {
      var next = event.apply(responses.next());
      runId = next.getRunId();
      switch (next.getPayloadCase()) {
        case RUN_ACCEPTED -> conversationId = next.getRunAccepted().getConversationId();
        case TEXT_DELTA -> {
          text.append(next.getTextDelta().getText());
          System.out.print(next.getTextDelta().getText());
        }
        case RUN_STOPPED -> stop = next.getRunStopped();
        default -> { }
      }
    }
    System.out.println();
    if (stop == null) {
      throw new IllegalStateException("the stream was cut");
    }
    return new Streamed(runId, conversationId, text.toString(), stop);
  }
}
