"""Traces and metrics by OpenTelemetry, imported only where they are on."""
