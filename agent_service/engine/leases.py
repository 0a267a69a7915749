"""The claims of this process: kept by heartbeats, given up when the work ends or another process took the run."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from agent_service.domain.run import Claim, Owner
from agent_service.engine.store import RunStore

log = structlog.get_logger()


class Leases:
    """What `owner` holds. `stop` is told the claims that were taken away, to end the work on them."""

    def __init__(self, store: RunStore, owner: Owner, stop: Callable[[Claim], None]) -> None:
        self.owner = owner
        self._store = store
        self._stop = stop
        self._held: dict[tuple[str, str], set[Claim]] = {}

    def hold(self, claim: Claim) -> None:
        """The work on the run goes on, until `drop`."""
        self._held.setdefault((claim.tenant, claim.run_id), set()).add(claim)

    def drop(self, claim: Claim) -> None:
        """It has ended."""
        key = (claim.tenant, claim.run_id)
        held = self._held.get(key, set())
        held.discard(claim)
        if not held:
            self._held.pop(key, None)

    @property
    def held(self) -> tuple[Claim, ...]:
        """All of them."""
        return tuple(claim for held in self._held.values() for claim in held)

    async def renew(self) -> None:
        """The heartbeat."""
        held = self.held
        if held:
            for claim in await self._store.renew(held, self.owner.lease):
                self._end(claim)

    def check(self, tenant: str, run_id: str, epoch: int) -> None:
        """The run is seen to have this epoch: what is held with an earlier one was taken away."""
        for claim in tuple(self._held.get((tenant, run_id), ())):
            if claim.epoch < epoch:
                self._end(claim)

    def _end(self, claim: Claim) -> None:
        """Once only: a second cancellation would break into the first one's cleaning up."""
        held = self._held.get((claim.tenant, claim.run_id), set())
        if claim in held:
            held.remove(claim)
            log.info("run.taken_away", run_id=claim.run_id)
            self._stop(claim)
