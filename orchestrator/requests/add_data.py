"""Add a data version to a run: the run reads it from a given step on; steps already trained do not change."""

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
from state.ledger import AddEvent, DataRecord, Event, RunRecord, SetHeader


def add_data(
    ports: Ports,
    run: str,
    *,
    corpus: Sequence[Path] = (),
    prepared: Path | None = None,
    from_step: int | None = None,
    say: Callable[[str], None],
) -> DataRecord:
    """Prepare a new data version, and record that the run reads only this version from a step on.

    Killed at any moment, the same command resumes; the run does not change before the version is recorded. A version that no step
    has read yet is replaced by a new one from the same step on, so a wrong folder can be corrected.

    Args:
        ports: The controller's ports.
        run: The run's name.
        corpus: All folders of the version's text; include the earlier ones to keep reading their text.
        prepared: A prepared data folder, instead of a corpus.
        from_step: The first step that reads the version, counted from 1; None: the one after the head.
        say: Receives messages.

    Returns:
        The version's record; its `first_step` is the number of steps trained before the version is read.

    Raises:
        UserError: the run cannot have this version from that step on, or a session of it may be alive.
        DataError: the text or the folder is invalid.
        LeaseHeldError: another controller drives the run.
    """
    if bool(corpus) == (prepared is not None):
        raise UserError(
            "--corpus cannot be combined with --data" if corpus else "the new data is missing",
            expected="either --corpus, once or more, or --data",
        )
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
        # The preparation may have taken hours, and a session may have been run by hand meanwhile: check again.
        record = _quiet_record(ports, controller, run)
        _first_step(record, source, first_step + 1)
        if data == record.header.data[-1]:
            say(f"run {run} already reads this data from step {first_step + 1} on")
            return data
        _record_it(ports, record, data)
    finally:
        controller.release(run)
    folder = ports.home.run(run).data_folder(data.folder)
    say(f"run {run} reads the {data.num_tokens:,} tokens in {folder} from step {first_step + 1} on")
    say(f"continue: gemma-orch start --name {run}")
    return data


def _quiet_record(ports: Ports, controller: Controller, run: str) -> RunRecord:
    """Take the run's lease, and return its reconciled record; refuse if a session may be alive."""
    remedy = f"gemma-orch stop {run}, then the same command again"
    try:
        record = controller.tick(run, until=lambda _record: True).record
    except LeaseHeldError as error:
        raise LeaseHeldError(error.what, remedy=remedy) from error
    alive = record.live_attempt or controller.run_by_hand(record)
    if alive is not None:
        raise UserError(
            f"a session of run {run} may be alive: {attempt_name(alive.session, alive.attempt)}",
            expected="no live session, which could read the old data beyond that step",
            remedy=remedy,
        )
    if not record.header.data:
        raise UserError(
            f"run {run} has no prepared data yet",
            remedy=f"prepare its first data: gemma-orch start --name {run}; or start a new run",
        )
    return record


def _unread(record: RunRecord) -> DataRecord | None:
    """Return the newest version if it was added to the run and no step has read it yet; else None."""
    newest = record.header.data[-1]
    return newest if len(record.header.data) > 1 and newest.first_step >= record.head_step else None


def _kept(record: RunRecord, first_step: int) -> tuple[DataRecord, ...]:
    """Return the versions that remain when a new one starts at this step: all but an unread one at the same step."""
    unread = _unread(record)
    return record.header.data[:-1] if unread is not None and unread.first_step == first_step else record.header.data


def _first_step(record: RunRecord, source: DataRecord, from_step: int | None) -> int:
    """Return the number of steps trained before the version is first read.

    Raises:
        UserError: the first step that reads it is already trained, is beyond the last step, or is not after the newest version's.
    """
    step = from_step if from_step is not None else record.head_step + 1
    unread = _unread(record)
    if from_step is None and unread is not None and _text_of(unread) == _text_of(source):
        step = unread.first_step + 1
    last = max(record.spec.total_steps, record.head_step + 1)  # a finished run may be extended after this command
    begins = record.header.data[-1].first_step + 1
    if step <= record.head_step:
        raise UserError(
            f"step {step} of run {record.name} is already trained: the head is at step {record.head_step}",
            expected=f"a step from {record.head_step + 1} on",
            remedy=f"add --from-step {record.head_step + 1}, or leave it out",
        )
    if step > last:
        raise UserError(
            f"step {step} is beyond the end of run {record.name} at step {record.spec.total_steps}",
            expected=f"a step up to {last}",
            remedy="name an earlier step, or first extend the run with a larger --total-steps",
        )
    if step < begins or (step == begins and unread is None):
        raise UserError(
            f"run {record.name} reads data version {len(record.header.data)} from step {begins} on",
            expected="a later step: each version starts after the one before",
            remedy=f"add --from-step {begins + 1} or more"
            + (f", or --from-step {begins} to replace that version" if unread is not None else ""),
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
            f"the new data has another tokenizer: {_pieces(data)}",
            expected=f"the run's tokenizer: {_pieces(first)}",
            remedy=f"prepare it with {ports.home.run(record.name).data_folder(first.folder) / TOKENIZER_NAME}",
        )
    return data


def _pieces(data: DataRecord) -> str:
    return f"{data.vocab_size} pieces, sha256 {(data.tokenizer_sha256 or 'unknown')[:12]}"


def _record_it(ports: Ports, record: RunRecord, data: DataRecord) -> None:
    """Write the version and a new fence token into the run's record.

    With the new token, a late commit by a lost attempt, which was trained on the old data, becomes a branch and never the head.
    """
    header = record.header.evolve(
        data=(*_kept(record, data.first_step), data), newest_fence=next_fence(record.header.newest_fence)
    )
    number = len(header.data)
    text = (
        f"data version {number} is read from step {data.first_step + 1} on: {data.num_tokens:,} tokens, sha256 {data.sha256[:12]}"
    )
    ports.runs.apply(record.name, ports.owner, [SetHeader(header), AddEvent(Event(at=ports.clock.now(), text=text))])
