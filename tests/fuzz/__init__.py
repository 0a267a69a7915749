"""Malformed requests, hostile schemas and hostile model endpoints against a server process: `make fuzz`."""
