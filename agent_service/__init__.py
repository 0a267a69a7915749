"""Runs LLM agents behind a typed gRPC contract; tools may live in the caller's process."""

__version__ = "0.1.0"
