"""From what a user types to a run that a controller can bring on: begin, extend, continue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config import Explicit, make_spec, overlay, read_config, run_name
from orchestrator.controller.tick import Controller
from orchestrator.controller.training_data import check_order
from orchestrator.ports import Ports
from state.errors import LeaseHeldError, UserError
from state.ledger import RunHeader, RunRecord, RunWishes
from state.mixture import epochs_by_language
from state.session import RunState
from state.spec import RunSpec, SpecChange, compare_specs

_CAP_TOLERANCE = 1.01  # a language is read in whole sequences


def without_none(values: dict[str, Any]) -> Explicit:
    """Return what was said: options that were left out are not there, nor are empty tables."""
    said: Explicit = {}
    for key, value in values.items():
        kept = without_none(value) if isinstance(value, dict) else value
        if kept is not None and kept != {}:
            said[key] = kept
    return said


def begin(ports: Ports, said: Explicit, config: Path | None, *, num_cores: int, say: Callable[[str], None]) -> str:
    """Make the run that is meant, or bring its spec up to date, and make it active; return its name.

    Raises:
        UserError: the spec is not valid, or asks for a change that the run cannot make.
    """
    explicit = overlay(read_config(config), said) if config is not None else said
    name = run_name(explicit)
    known = ports.runs.load(name) if name in ports.runs.names() else None
    if known is not None:
        check_order(known)
    origin = f"{config} or the options" if config is not None else "the options"
    spec = make_spec(name, explicit, previous=known.spec if known is not None else None, num_cores=num_cores, origin=origin)
    ports.kind(spec.backend).check_run(name)
    if known is None:
        now = ports.clock.now()
        if spec.data.corpus and spec.data.tokenizer is None:
            say("no --tokenizer is given: the sample's 2048 pieces are used, which cut your text into many small ones")
        ports.runs.create(RunHeader(name=name, created_at=now, resumed_at=now), RunWishes(spec=spec))
    else:
        _check_changes(known, compare_specs(known.spec, spec, reached_step=known.head_step))
    try:
        Controller(ports).activate(name)
    except LeaseHeldError as error:
        _leave_to_its_controller(ports, name, spec, error)
    _change(ports, name, spec, say)
    return name


def _check_changes(known: RunRecord, changes: Sequence[SpecChange]) -> None:
    """Check that a run can make these changes; before its data is prepared, it can make any.

    Raises:
        UserError: it cannot.
    """
    if known.header.data and any(change.refusal is not None for change in changes):
        listed = "\n".join(f"  {change}" for change in changes)
        raise UserError(
            f"run {known.name} exists, and this command asks for another one:\n{listed}",
            remedy=f"leave out what is not allowed to go on with {known.name}, or begin another run with --name",
        )


def _leave_to_its_controller(ports: Ports, run: str, spec: RunSpec, error: LeaseHeldError) -> None:
    """Let the controller that holds a run go on with it, a stop taken back.

    Raises:
        LeaseHeldError: it is preparing data that this command would replace, or does not bring the run on: it adds data to it,
            or runs a session of it again.
    """
    known = ports.runs.load(run)
    if known.header.state is not RunState.ACTIVE:
        raise LeaseHeldError(
            f"{error.what}, and will leave it {known.header.state}", remedy="when it is done, the same command again"
        )
    if not known.header.data and any(change.refusal for change in compare_specs(known.spec, spec)):
        raise LeaseHeldError(f"{error.what}, and prepares its data", remedy=f"gemma-orch stop {run}, then the same command again")
    ports.runs.set_stop(run, None)


def _change(ports: Ports, run: str, spec: RunSpec, say: Callable[[str], None]) -> None:
    record = ports.runs.load(run)
    changes = compare_specs(record.spec, spec)
    for change in changes:
        say(f"run {run} changes {change.field}: {change.old!r} -> {change.new!r}")
    if changes:
        ports.runs.set_spec(run, spec)
    if any(change.field == "total_steps" for change in changes):
        say(read_too_often(record, spec))


def read_too_often(record: RunRecord, spec: RunSpec) -> str:
    """Return what is to be said when UniMax's shares, made for fewer steps, are kept for more; nothing where caps hold."""
    if spec.data.mixing != "unimax" or not record.header.data:
        return ""
    newest = record.header.data[-1]
    budget_tokens = (spec.total_steps - newest.first_step) * spec.training.batch_size * spec.data.sequence_length
    epochs = epochs_by_language(newest.tokens, newest.mixture, budget_tokens=budget_tokens)
    over = {name: times for name, times in epochs.items() if times > spec.data.max_epochs * _CAP_TOLERANCE}
    if not over:
        return ""
    listed = ", ".join(f"{name} {times:.1f} times" for name, times in over.items())
    return (
        f"the shares stay what they were made for, fewer steps: by step {spec.total_steps} more than max_epochs = "
        f"{spec.data.max_epochs:g} times is read {listed}; other shares come with other data, gemma-orch data add"
    )
