"""The errors all stores raise alike."""

from __future__ import annotations

from agent_service.domain.errors import AgentServiceError, Reason

PAGE_BYTES = 1024 * 1024
"""About how many bytes of text a page of events or messages holds at most; one larger row is a page by itself."""


class SchemaError(Exception):
    """The store cannot be used by this program; the text says why and what to do."""


def run_not_found(run_id: str) -> AgentServiceError:
    """No run of this tenant has the id."""
    return AgentServiceError(Reason.RUN_NOT_FOUND, f"run_id: no run '{run_id}'")


def conversation_not_found(conversation_id: str) -> AgentServiceError:
    """No conversation of this tenant has the id."""
    return AgentServiceError(
        Reason.CONVERSATION_NOT_FOUND, f"conversation_id: no conversation '{conversation_id}'; it appears in Run"
    )


def agent_not_found(agent_id: str) -> AgentServiceError:
    """No agent of this tenant has the id."""
    return AgentServiceError(Reason.AGENT_NOT_FOUND, f"agent_id: no agent '{agent_id}'")


def memory_block_not_found(block_id: str) -> AgentServiceError:
    """No memory block of this tenant has the id."""
    return AgentServiceError(
        Reason.MEMORY_BLOCK_NOT_FOUND,
        f"memory_block_id: no memory block '{block_id}'; ListMemoryBlocks shows those there are",
    )


def run_id_deleted(run_id: str) -> AgentServiceError:
    """A deleted run had the id not long ago."""
    return AgentServiceError(
        Reason.RUN_ID_REUSED,
        f"run_id: '{run_id}' was the id of a run that was deleted; send a new run_id",
        metadata={"run_id": run_id},
    )


def unavailable(what: str, retry_after: float = 1.0) -> AgentServiceError:
    """The store cannot be reached, is locked or cannot write; `retry_after` in seconds."""
    return AgentServiceError(
        Reason.STORE_UNAVAILABLE, f"the store is unavailable: {what}; repeat with the same ids", retry_after=retry_after
    )
