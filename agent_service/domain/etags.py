"""Which state of a thing a caller has seen: told by when it was made, and by how often it was changed since."""

from __future__ import annotations

from agent_service.domain.errors import AgentServiceError, Reason


def etag_of(create_time: int, revision: int) -> str:
    """Tells a state from every other, also from those of an earlier thing of the same id."""
    return f"{create_time:x}.{revision}"


def expect_etag(etag: str, present: str, what: str) -> None:
    """Raises ETAG_MISMATCH unless the etag is empty or the present one; `what` names the thing."""
    if etag and etag != present:
        raise AgentServiceError(
            Reason.ETAG_MISMATCH,
            f"etag: {what} was changed meanwhile; read it again and repeat the change",
            metadata={"etag": present},
        )
