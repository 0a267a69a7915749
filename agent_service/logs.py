"""Logs: one structured line per event on stderr, readable on a terminal, JSON elsewhere."""

from __future__ import annotations

import logging
import os
import sys

import structlog
from structlog.typing import Processor

from agent_service.settings import LogFormat


def configure_logs(level: str, form: LogFormat) -> None:
    """Sets up structlog, and passes warnings of libraries through it. Each line carries the bound run_id and rpc.

    Call it before grpc is imported: the lines that gRPC's native code writes to stderr are no structured ones, and what
    they tell of failures comes as an exception, too.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    console = form is LogFormat.CONSOLE or (form is LogFormat.AUTO and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
