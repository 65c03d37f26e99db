"""Prepares a run's training data before a session, restores lost data, and refuses data that differs."""

from __future__ import annotations

from pathlib import Path

from orchestrator.controller.decide import Launch
from orchestrator.controller.lease import Leases
from orchestrator.controller.reconcile import Draft, call_off, settled
from orchestrator.ports import Ports
from state.data_manifest import TOKENIZER_NAME
from state.errors import DataError, UserError
from state.layout import HomeLayout
from state.ledger import DataRecord, RunRecord, SetData, SetHeader
from state.session import RunState
from state.spec import ORDER_VERSION, RunSpec


class TrainingData:
    """Prepares, restores and relocates the data of runs."""

    def __init__(self, ports: Ports, leases: Leases) -> None:
        self._ports = ports
        self._leases = leases

    def prepared(self, record: RunRecord, decision: Launch) -> RunRecord | None:
        """Prepare or restore the run's data if it is missing; return the record, None if the controller must decide again.

        An error that only the user can fix ends the run, with the reason in its record; for a rerun it only cancels the rerun.
        """
        known = record.header.data
        lost = [
            number
            for number, data in enumerate(known, start=1)
            if not self._ports.has_data(record.name, data) or (number == 1 and _is_elsewhere(record))
        ]
        if known and not lost:
            return record
        try:
            if not known:
                known = (self._ports.prepare(record.spec, lambda: self._leases.keep(record.name)),)
            for number in lost:
                self._restore(record, number)
        except (UserError, DataError) as error:
            if decision.branch is None:
                self._leases.changed(record, settled(record, RunState.FAILED, str(error), error.exit_code))
            else:
                draft = Draft(record, self._ports.clock.now())
                call_off(draft, decision.session, str(error))
                self._leases.apply(record, draft.changes)
            return None
        # Preparation may have taken hours: if the user has made a request since, decide again.
        now = self._leases.changed(record, [SetData(known, record.spec)])
        return now if now.wishes == record.wishes else None

    def relocated(self, record: RunRecord) -> RunRecord:
        """Record the new place of prepared data that the user has moved, if the same data is there."""
        if not _is_elsewhere(record):
            return record
        first, *later = record.header.data
        moved = first.evolve(folder=record.spec.data.prepared)
        if not self._ports.has_data(record.name, moved):
            return record
        return self._leases.changed(record, [SetHeader(record.header.evolve(data=(moved, *later)))])

    def _restore(self, record: RunRecord, number: int) -> None:
        """Prepare a lost data version again, with its recorded mixture even if the spec has another one now.

        Raises:
            DataError: the data differs from the recorded data.
        """
        known = record.header.data[number - 1]
        spec = record.spec if number == 1 else spec_of_version(record, known, self._ports.home)
        data = self._ports.prepare(spec, lambda: self._leases.keep(record.name), version=number, first_step=known.first_step)
        if data.sha256 != known.sha256 and spec.data.prepared is not None:
            raise DataError(
                f"the data in {spec.data.prepared} is not the data of run {record.name}: sha256 {data.sha256[:12]}",
                expected=known.sha256[:12],
                remedy="name the folder of the run's data with --data, or start another run with --name",
            )
        if data.sha256 != known.sha256:
            raise DataError(
                f"the data of run {record.name} cannot be restored: its corpus has changed, digest {data.sha256[:12]}",
                expected=f"data with digest {known.sha256[:12]}, on which the run is trained",
                remedy="restore the earlier corpus, or start another run with --name",
            )


def spec_of_version(record: RunRecord, data: DataRecord, home: HomeLayout) -> RunSpec:
    """Return the run's spec with the corpus of a later data version and the run's own tokenizer."""
    made_already = Path(data.folder).is_absolute()
    first = home.run(record.name).data_folder(record.header.data[0].folder)
    source = record.spec.data.evolve(
        corpus=data.corpus,
        prepared=data.folder if made_already else None,
        tokenizer=None if made_already else str(first / TOKENIZER_NAME),
    )
    return record.spec.evolve(data=source)


def _is_elsewhere(record: RunRecord) -> bool:
    """Return whether the spec names another place for the run's first data than the record."""
    place = record.spec.data.prepared
    return bool(record.header.data) and place is not None and record.header.data[0].folder != place


def check_order(record: RunRecord) -> None:
    """Check that this version supports the run's data order.

    Call it before anything is written: the version that began the run might not be able to read what this one writes.

    Raises:
        UserError: the run uses another data order.
    """
    if record.header.data and (order := record.header.data[0].order_version) != ORDER_VERSION:
        raise UserError(
            f"run {record.name} uses data order {order}, which this version does not support",
            expected=f"data order {ORDER_VERSION}",
            remedy="continue with the version that began the run, or start another run with --name",
        )
