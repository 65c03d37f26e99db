"""The training data of a run: prepared before a session, restored when it is lost, refused when it differs."""

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
    """Prepares the data of runs, and finds it again."""

    def __init__(self, ports: Ports, leases: Leases) -> None:
        self._ports = ports
        self._leases = leases

    def prepared(self, record: RunRecord, decision: Launch) -> RunRecord | None:
        """Return the record of a run whose data is there, prepared now when it was not; None: decide anew.

        What only the user can mend ends the run, with the reason in its record; a rerun it only calls off.
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
        # That may have taken hours: what the user has asked for meanwhile counts.
        now = self._leases.changed(record, [SetData(known, record.spec)])
        return now if now.wishes == record.wishes else None

    def relocated(self, record: RunRecord) -> RunRecord:
        """Return the record with the place that the user names now for a folder made already, once the same data lies there."""
        if not _is_elsewhere(record):
            return record
        first, *later = record.header.data
        moved = first.evolve(folder=record.spec.data.prepared)
        if not self._ports.has_data(record.name, moved):
            return record
        return self._leases.changed(record, [SetHeader(record.header.evolve(data=(moved, *later)))])

    def _restore(self, record: RunRecord, number: int) -> None:
        """Make a lost data version again; the mixture stays what it was, whatever the spec says by now.

        Raises:
            DataError: its text gives other tokens now.
        """
        known = record.header.data[number - 1]
        spec = record.spec if number == 1 else spec_of_version(record, known, self._ports.home)
        data = self._ports.prepare(spec, lambda: self._leases.keep(record.name), version=number, first_step=known.first_step)
        if data.sha256 != known.sha256 and spec.data.prepared is not None:
            raise DataError(
                f"{spec.data.prepared} holds other data than run {record.name} is trained on: sha256 {data.sha256[:12]}",
                expected=known.sha256[:12],
                remedy="say with --data where that data lies now, or begin another run with --name",
            )
        if data.sha256 != known.sha256:
            raise DataError(
                f"the data of run {record.name} was lost, and its corpus has changed since: it gives other tokens now",
                expected=f"data with digest {known.sha256[:12]}, which is what the run is trained on",
                remedy="put the corpus back as it was, or begin another run with --name",
            )


def spec_of_version(record: RunRecord, data: DataRecord, home: HomeLayout) -> RunSpec:
    """Return the run's spec with the text of a data version that was added later, cut by the run's own tokenizer."""
    made_already = Path(data.folder).is_absolute()
    first = home.run(record.name).data_folder(record.header.data[0].folder)
    source = record.spec.data.evolve(
        corpus=data.corpus,
        prepared=data.folder if made_already else None,
        tokenizer=None if made_already else str(first / TOKENIZER_NAME),
    )
    return record.spec.evolve(data=source)


def _is_elsewhere(record: RunRecord) -> bool:
    """Return whether the user names another place for the run's first data than the record."""
    place = record.spec.data.prepared
    return bool(record.header.data) and place is not None and record.header.data[0].folder != place


def check_order(record: RunRecord) -> None:
    """Check that a run is read in the order that this gemma-orch reads in.

    Asked before anything is written: what the gemma-orch that began the run could not read any more would be lost to it.

    Raises:
        UserError: it is not.
    """
    if record.header.data and (order := record.header.data[0].order_version) != ORDER_VERSION:
        raise UserError(
            f"run {record.name} was begun by another gemma-orch, which reads data in order {order}",
            expected=f"order {ORDER_VERSION}, the only one that this gemma-orch reads in",
            remedy="go on with the gemma-orch that began it, or begin another run with --name",
        )
