// Command interop asks the agent service, with nothing but the code that is generated from proto/.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "example.com/interop/gen/agentrpc/v1"
)

//go:generate buf generate

var secretCodes = map[string]string{"Alice": "AZURE-7731", "Bob": "CORAL-1102", "Carol": "OLIVE-5920"}

// getSecretCode is the tool. It runs here, in the caller.
func getSecretCode(name string) string { return secretCodes[name] }

func execute(call *pb.PendingToolCall) *pb.ToolReturn {
	var arguments struct{ Name string }
	if err := json.Unmarshal([]byte(call.ArgumentsJson), &arguments); err != nil {
		failed := pb.ToolReturnStatus_TOOL_RETURN_STATUS_ERROR
		return &pb.ToolReturn{ToolCallId: call.ToolCallId, Status: failed, Text: err.Error()}
	}
	return &pb.ToolReturn{ToolCallId: call.ToolCallId, Text: getSecretCode(arguments.Name)}
}

func question(text string) *pb.StepRequest {
	return &pb.StepRequest{
		InputMessages: []*pb.InputMessage{{Text: text}},
		ClientTools: []*pb.ClientToolSchema{{
			Name:           "get_secret_code",
			Description:    "Returns the secret code of a person.",
			ParametersJson: `{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}`,
		}},
		ToolChoice: &pb.ToolChoice{ToolName: "get_secret_code"},
	}
}

func recall(conversationID string) *pb.StepRequest {
	return &pb.StepRequest{
		ConversationId: conversationID,
		InputMessages:  []*pb.InputMessage{{Text: "What was the secret code?"}},
		ToolChoice:     &pb.ToolChoice{Mode: pb.ToolChoiceMode_TOOL_CHOICE_MODE_NONE},
	}
}

func submit(runID string, calls ...*pb.PendingToolCall) *pb.SubmitToolReturnsRequest {
	request := &pb.SubmitToolReturnsRequest{RunId: runID}
	for _, call := range calls {
		request.ToolReturns = append(request.ToolReturns, execute(call))
	}
	return request
}

func lastText(messages []*pb.Message) string {
	text := messages[len(messages)-1].GetAssistant().GetText()
	fmt.Println(text)
	return text
}

// blocking asks, pauses, executes, submits, gets the answer and recalls it.
func blocking(ctx context.Context, agent pb.AgentServiceClient) {
	paused := must(agent.Step(ctx, question("What is the secret code of Alice?"))).Run
	check(paused.Status == pb.RunStatus_RUN_STATUS_PAUSED, "the run pauses", paused)
	check(paused.GetStopReason() == pb.StopReason_STOP_REASON_REQUIRES_APPROVAL, "it waits for us", paused)
	check(len(paused.PendingToolCalls) == 1, "one call is pending", paused)
	call := paused.PendingToolCalls[0]
	check(call.Name == "get_secret_code", "it is our tool", call)
	check(call.Kind == pb.PendingKind_PENDING_KIND_CLIENT_EXECUTION, "we execute it", call)

	answered := must(agent.SubmitToolReturns(ctx, submit(paused.RunId, call)))
	checkAnswer(answered.Run.Status, lastText(answered.Messages), "Alice")
	recalled := must(agent.Step(ctx, recall(paused.ConversationId)))
	checkAnswer(recalled.Run.Status, lastText(recalled.Messages), "Alice")
}

// streaming does the same, token by token.
func streaming(ctx context.Context, agent pb.AgentServiceClient) {
	step := question("What is the secret code of Alice?")
	first, last, _ := follow(must(agent.Stream(ctx, &pb.StreamRequest{Step: step, StreamTokens: true})))
	paused := last.GetRunStopped()
	check(paused.Status == pb.RunStatus_RUN_STATUS_PAUSED, "the stream ends at the pause", paused)

	returns := &pb.StreamToolReturnsRequest{Submit: submit(last.RunId, paused.Remaining...), StreamTokens: true}
	_, last, text := follow(must(agent.StreamToolReturns(ctx, returns)))
	checkAnswer(last.GetRunStopped().Status, text, "Alice")

	step = recall(first.GetRunAccepted().GetConversationId())
	_, last, text = follow(must(agent.Stream(ctx, &pb.StreamRequest{Step: step, StreamTokens: true})))
	checkAnswer(last.GetRunStopped().Status, text, "Alice")
}

// threeCalls shows that the return of one of three calls leaves two pending, whose returns resume the run.
func threeCalls(ctx context.Context, agent pb.AgentServiceClient) {
	paused := must(agent.Step(ctx, question("What are the secret codes of Alice, Bob and Carol?"))).Run
	calls := paused.PendingToolCalls
	check(len(calls) == 3, "three calls are pending", paused)
	partial := must(agent.SubmitToolReturns(ctx, submit(paused.RunId, calls[0])))
	check(partial.Run.Status == pb.RunStatus_RUN_STATUS_PAUSED, "the run stays paused", partial)
	check(len(partial.Receipt.Remaining) == 2, "two calls remain", partial)

	answered := must(agent.SubmitToolReturns(ctx, submit(paused.RunId, calls[1:]...)))
	checkAnswer(answered.Run.Status, lastText(answered.Messages), "Alice", "Bob", "Carol")
}

// refusal shows that a return for a call that the model never made is refused, and how a program reads why.
func refusal(ctx context.Context, agent pb.AgentServiceClient, runs pb.RunServiceClient) {
	paused := must(agent.Step(ctx, question("What is the secret code of Bob?"))).Run
	wrong := &pb.PendingToolCall{ToolCallId: "call_x", ArgumentsJson: "{}"}
	_, err := agent.SubmitToolReturns(ctx, submit(paused.RunId, wrong))
	refused := status.Convert(err)
	fmt.Println(refused.Message())
	check(refused.Code() == codes.InvalidArgument, "the code is InvalidArgument", err)
	var reason, field string
	for _, detail := range refused.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = detail.Reason
		case *errdetails.BadRequest:
			field = detail.FieldViolations[0].Field
		}
	}
	check(reason == pb.ErrorReason_ERROR_REASON_UNKNOWN_TOOL_CALL.String(), "the reason is typed", reason)
	check(field == "tool_returns[0].tool_call_id", "the field is named", field)

	cancelled := must(runs.CancelRun(ctx, &pb.CancelRunRequest{RunId: paused.RunId})).Run
	check(cancelled.Status == pb.RunStatus_RUN_STATUS_CANCELLED, "the run is cancelled", cancelled)
}

func main() {
	target := cmp.Or(os.Getenv("AGENT_SERVICE_TARGET"), "localhost:50051")
	connection := must(grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	agent := pb.NewAgentServiceClient(connection)
	blocking(ctx, agent)
	streaming(ctx, agent)
	threeCalls(ctx, agent)
	refusal(ctx, agent, pb.NewRunServiceClient(connection))
	fmt.Println("interop ok: go")
}
