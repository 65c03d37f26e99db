"""Data that comes later: a run reads another data version from a step on; what is trained already stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.controller.tick import Controller
from orchestrator.controller.training_data import spec_of_version
from orchestrator.ports import Ports
from state.data_manifest import TOKENIZER_NAME
from state.errors import LeaseHeldError, UserError
from state.fence import next_fence
from state.layout import attempt_name
from state.ledger import DataRecord, Event, RunRecord, SetHeader, Tell


def add_data(
    ports: Ports,
    run: str,
    *,
    corpus: Sequence[Path] = (),
    prepared: Path | None = None,
    from_step: int | None = None,
    say: Callable[[str], None],
) -> DataRecord:
    """Prepare a new data version, and record that the run reads it, and it alone, from a step on.

    Killed at any moment, the same command goes on. Until the version is recorded, the run is what it was. A version that no
    step has read yet gives way to another one from the same step on: a folder that was forgotten costs nothing.

    Args:
        ports: Where effects go.
        run: The run's name.
        corpus: The folders that the version's text comes from: all of it, with what was there before if that is to stay.
        prepared: A data folder that is made already, instead of a corpus.
        from_step: The first step that reads it, counted from 1; None: the one after the head.
        say: Told what happens.

    Returns:
        The version's record; its `first_step` counts the steps that are done by then.

    Raises:
        UserError: the run cannot have this version from that step on, or has a session that is not over.
        DataError: the text or the folder is not what it should be.
        LeaseHeldError: a controller is at work on the run.
    """
    if bool(corpus) == (prepared is not None):
        said = "is said twice" if corpus else "is not said"
        raise UserError(f"which data is meant {said}", expected="either --corpus, once or more, or --data")
    source = DataRecord(
        corpus=tuple(str(folder.expanduser().absolute()) for folder in corpus),
        folder=str(prepared.expanduser().absolute()) if prepared is not None else "data",
        sha256="",
        vocab_size=0,
        tokens={},
        mixture={},
    )
    controller = Controller(ports)
    try:
        record = _quiet_record(ports, controller, run)
        first_step = _first_step(record, source, from_step)
        data = _prepared(ports, controller, record, source, first_step)
        # That may have taken hours, and somebody may have run a session by hand meanwhile: look again.
        record = _quiet_record(ports, controller, run)
        _first_step(record, source, first_step + 1)
        if data == record.header.data[-1]:
            say(f"run {run} reads this data from step {first_step + 1} on already")
            return data
        _record_it(ports, record, data)
    finally:
        controller.release(run)
    folder = ports.home.run(run).data_folder(data.folder)
    say(f"run {run} reads the {data.num_tokens:,} tokens in {folder} from step {first_step + 1} on")
    say(f"gemma-orch start --name {run} goes on")
    return data


def _quiet_record(ports: Ports, controller: Controller, run: str) -> RunRecord:
    """Take the run's lease, and return its record, reconciled with the world, when no session can be alive."""
    remedy = f"gemma-orch stop {run}, then the same command again"
    try:
        record = controller.tick(run, until=lambda _record: True).record
    except LeaseHeldError as error:
        raise LeaseHeldError(error.what, remedy=remedy) from error
    alive = record.live_attempt or controller.run_by_hand(record)
    if alive is not None:
        raise UserError(
            f"a session of run {run} may be alive: {attempt_name(alive.session, alive.attempt)}",
            expected="no session that could read the old data beyond that step",
            remedy=remedy,
        )
    if not record.header.data:
        raise UserError(
            f"the first data of run {run} is not prepared yet", remedy=f"gemma-orch start --name {run} prepares it; or begin anew"
        )
    return record


def _unread(record: RunRecord) -> DataRecord | None:
    """Return the newest version when it was added and no step of the run has read it yet."""
    newest = record.header.data[-1]
    return newest if len(record.header.data) > 1 and newest.first_step >= record.head_step else None


def _kept(record: RunRecord, first_step: int) -> tuple[DataRecord, ...]:
    """Return the versions that stay when one begins at this step."""
    unread = _unread(record)
    return record.header.data[:-1] if unread is not None and unread.first_step == first_step else record.header.data


def _first_step(record: RunRecord, source: DataRecord, from_step: int | None) -> int:
    """Return how many steps are done when the version is first read.

    Raises:
        UserError: that step is trained, is beyond the run's last one, or belongs to a version that comes later.
    """
    step = from_step if from_step is not None else record.head_step + 1
    unread = _unread(record)
    if from_step is None and unread is not None and _text_of(unread) == _text_of(source):
        step = unread.first_step + 1
    last = max(record.spec.total_steps, record.head_step + 1)  # a run that has ended may be extended after this
    begins = record.header.data[-1].first_step + 1
    if step <= record.head_step:
        raise UserError(
            f"run {record.name} has trained step {step} already: its head is at step {record.head_step}",
            expected=f"a step from {record.head_step + 1} on",
            remedy=f"add --from-step {record.head_step + 1}, or leave it out",
        )
    if step > last:
        raise UserError(
            f"run {record.name} has no step {step}: it ends at step {record.spec.total_steps}",
            expected=f"a step up to {last}",
            remedy="name an earlier step, or extend the run first with a larger --total-steps",
        )
    if step < begins or (step == begins and unread is None):
        raise UserError(
            f"run {record.name} reads data version {len(record.header.data)} from step {begins} on",
            expected="a later step, for versions follow each other",
            remedy=f"add --from-step {begins + 1} or more"
            + (f", or --from-step {begins} to put it in that one's place" if unread is not None else ""),
        )
    return step - 1


def _text_of(data: DataRecord) -> tuple[str, ...]:
    return data.corpus or (data.folder,)


def _prepared(ports: Ports, controller: Controller, record: RunRecord, source: DataRecord, first_step: int) -> DataRecord:
    first, number = record.header.data[0], len(_kept(record, first_step)) + 1
    data = ports.prepare(
        spec_of_version(record, source, ports.home),
        lambda: controller.keep_lease(record.name),
        version=number,
        first_step=first_step,
    )
    if (data.vocab_size, data.tokenizer_sha256) != (first.vocab_size, first.tokenizer_sha256):
        raise UserError(
            f"this data was encoded with another tokenizer: {_pieces(data)}",
            expected=f"the run's own: {_pieces(first)}",
            remedy=f"prepare it with {ports.home.run(record.name).data_folder(first.folder) / TOKENIZER_NAME}",
        )
    return data


def _pieces(data: DataRecord) -> str:
    return f"{data.vocab_size} pieces, sha256 {(data.tokenizer_sha256 or 'not known')[:12]}"


def _record_it(ports: Ports, record: RunRecord, data: DataRecord) -> None:
    """Write the version into the run's record.

    It takes a fence token as well: a checkpoint that an attempt thought lost still commits, trained on the old data, becomes a
    branch and never the head.
    """
    header = record.header.evolve(
        data=(*_kept(record, data.first_step), data), newest_fence=next_fence(record.header.newest_fence)
    )
    number = len(header.data)
    text = (
        f"data version {number} is read from step {data.first_step + 1} on: {data.num_tokens:,} tokens, sha256 {data.sha256[:12]}"
    )
    ports.runs.apply(record.name, ports.owner, [SetHeader(header), Tell(Event(at=ports.clock.now(), text=text))])
