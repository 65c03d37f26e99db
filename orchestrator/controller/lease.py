"""Holds the lease of a run, so that only one controller at a time changes its record."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.ports import Ports
from state.ledger import Change, RunRecord
from state.stores.run_store import lease_lost

LEASE_S = 60.0  # another controller may take an expired lease, or at once that of a process that died on this machine


class Leases:
    """Acquires and renews leases, and changes records while it holds them."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def take(self, run: str) -> None:
        """Acquire the run's lease, or renew it below half of its time to live. Load the record afterwards: it may be stale."""
        now = self._ports.clock.now()
        lease = self._ports.runs.lease(run)
        if lease is None or lease.owner != self._ports.owner or (lease.until - now).total_seconds() < LEASE_S / 2:
            self._ports.runs.acquire(run, self._ports.owner, now, LEASE_S)

    def keep(self, run: str) -> None:
        """Renew the run's lease during a tick.

        A lost lease is not acquired again: another controller may have changed the record that this tick works with.

        Raises:
            LeaseLostError: another controller has taken the run since this tick began.
        """
        lease = self._ports.runs.lease(run)
        if lease is None or lease.owner != self._ports.owner:
            raise lease_lost(run)
        self.take(run)

    def release(self, run: str) -> None:
        """Release the run's lease."""
        self._ports.runs.release(run, self._ports.owner)

    def apply(self, record: RunRecord, changes: Sequence[Change]) -> RunRecord:
        """Apply changes and return the record with them; it does not show the user's newer requests."""
        self._ports.runs.apply(record.name, self._ports.owner, changes)
        return record.with_changes(changes)

    def changed(self, record: RunRecord, changes: Sequence[Change]) -> RunRecord:
        """Apply changes and return the record, loaded again with the user's newest requests."""
        if not changes:
            return record
        self.apply(record, changes)
        return self._ports.runs.load(record.name)
