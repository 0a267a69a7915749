package main

import (
	"log"
	"strings"

	pb "example.com/interop/gen/agentrpc/v1"
)

func check(held bool, what string, found any) {
	if !held {
		log.Fatalf("failed: %s; found: %v", what, found)
	}
}

// must returns the answer of a call that may not fail.
func must[T any](answer T, err error) T {
	if err != nil {
		log.Fatal("failed: ", err)
	}
	return answer
}

func checkAnswer(status pb.RunStatus, text string, names ...string) {
	check(status == pb.RunStatus_RUN_STATUS_COMPLETED, "the run completes", status)
	for _, name := range names {
		check(strings.Contains(text, secretCodes[name]), "the answer has the code of "+name, text)
	}
}
