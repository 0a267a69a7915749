"""The gRPC server: adapts requests onto agents and runs."""
