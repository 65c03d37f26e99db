"""The lease of a run: one controller at a time may change its record."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.ports import Ports
from state.ledger import Change, RunRecord
from state.stores.run_store import lease_lost

LEASE_S = 60.0  # a controller that is silent for this long may be replaced; a dead one on this machine at once


class Leases:
    """Takes and renews leases, and changes records under them."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def take(self, run: str) -> None:
        """Take the run's lease, or prolong it when half of it is gone; what was known of the run before is old now."""
        now = self._ports.clock.now()
        lease = self._ports.runs.lease(run)
        if lease is None or lease.owner != self._ports.owner or (lease.until - now).total_seconds() < LEASE_S / 2:
            self._ports.runs.acquire(run, self._ports.owner, now, LEASE_S)

    def keep(self, run: str) -> None:
        """Prolong the run's lease in the middle of a tick; one that was lost is not taken again, for our record is old.

        Raises:
            LeaseLostError: another controller has had the run since this tick began.
        """
        lease = self._ports.runs.lease(run)
        if lease is None or lease.owner != self._ports.owner:
            raise lease_lost(run)
        self.take(run)

    def release(self, run: str) -> None:
        """Let other controllers have the run."""
        self._ports.runs.release(run, self._ports.owner)

    def apply(self, record: RunRecord, changes: Sequence[Change]) -> RunRecord:
        """Apply changes, and return the record with them; what the user has wished for meanwhile is not in it."""
        self._ports.runs.apply(record.name, self._ports.owner, changes)
        return record.with_changes(changes)

    def changed(self, record: RunRecord, changes: Sequence[Change]) -> RunRecord:
        """Apply changes, and return the record as it is afterwards, with what the user has wished for meanwhile."""
        if not changes:
            return record
        self.apply(record, changes)
        return self._ports.runs.load(record.name)
