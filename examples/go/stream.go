package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"

	pb "example.com/interop/gen/agentrpc/v1"
)

// follow returns the first and the last event of a stream and its text, which it prints as it comes.
func follow[R interface{ GetEvent() *pb.RunEvent }](
	stream interface{ Recv() (R, error) },
) (first, last *pb.RunEvent, text string) {
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			fmt.Println()
			check(last.GetRunStopped() != nil, "the last event is a stop", last)
			return first, last, text
		}
		last = must(response, err).GetEvent()
		first = cmp.Or(first, last)
		if delta := last.GetTextDelta(); delta != nil {
			fmt.Print(delta.Text)
			text += delta.Text
		}
	}
}
