"""Turns the user's `start` into an active run: begins a new run, or continues or extends an existing one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """Drop options that were not given, and tables that are empty."""
    said: Explicit = {}
    for key, value in values.items():
        kept = without_none(value) if isinstance(value, dict) else value
        if kept is not None and kept != {}:
            said[key] = kept
    return said


@dataclass(frozen=True)
class Asked:
    """The spec that a command requests, compared once with the run; the later steps use this comparison."""

    spec: RunSpec
    seen: RunRecord | None
    """The run's record at the comparison; None if the run did not exist."""
    changes: tuple[SpecChange, ...] = ()

    @property
    def is_refused(self) -> bool:
        """Whether these changes are refused once the run's data is prepared; before that, every change is allowed."""
        return any(change.refusal is not None for change in self.changes)


def begin(ports: Ports, said: Explicit, config: Path | None, *, num_cores: int, say: Callable[[str], None]) -> str:
    """Create the run, or update its spec, and make it active; return its name.

    Raises:
        UserError: the spec is invalid, or requests a change that the run does not allow.
        LeaseHeldError: another controller holds the run, and cannot continue with the requested spec.
    """
    explicit = overlay(read_config(config), said) if config is not None else said
    origin = f"{config} or the options" if config is not None else "the options"
    while True:  # retry if another command changed the run after the comparison
        asked = _ask(ports, explicit, num_cores=num_cores, origin=origin)
        if _carry_out(ports, asked, say):
            return asked.spec.name


def _ask(ports: Ports, explicit: Explicit, *, num_cores: int, origin: str) -> Asked:
    """Load the run, if it exists, and compare it with the requested spec.

    Raises:
        UserError: the spec is invalid, or requests a change that the run does not allow.
    """
    name = run_name(explicit)
    known = ports.runs.load(name) if name in ports.runs.names() else None
    if known is not None:
        check_order(known)
    spec = make_spec(name, explicit, previous=known.spec if known is not None else None, num_cores=num_cores, origin=origin)
    ports.kind(spec.backend).check_run(name)
    if known is None:
        return Asked(spec, seen=None)
    asked = Asked(spec, known, compare_specs(known.spec, spec, reached_step=known.head_step))
    if known.header.data and asked.is_refused:
        listed = "\n".join(f"  {change}" for change in asked.changes)
        raise UserError(
            f"run {name} exists with another spec:\n{listed}",
            remedy=f"leave out the changes that are not allowed to continue {name}, or start another run with --name",
        )
    return asked


def _carry_out(ports: Ports, asked: Asked, say: Callable[[str], None]) -> bool:
    """Carry out the request; return False if another command has changed the run since the comparison.

    Raises:
        LeaseHeldError: another controller holds the run, and cannot continue with the requested spec.
    """
    spec, seen = asked.spec, asked.seen
    if seen is None and not _created(ports, spec, say):
        return False
    try:
        Controller(ports).activate(spec.name)
    except LeaseHeldError as error:
        _leave_to_its_controller(ports, asked, error)
    if seen is None or not asked.changes:
        return True
    if not ports.runs.set_spec(spec.name, spec, seen=seen):
        return False
    for change in asked.changes:
        say(f"run {spec.name} changes {change.field}: {change.old!r} -> {change.new!r}")
    if any(change.field == "total_steps" for change in asked.changes):
        say(read_too_often(seen, spec))
    return True


def _created(ports: Ports, spec: RunSpec, say: Callable[[str], None]) -> bool:
    """Create the run; return False if another command has created one of this name."""
    if spec.data.corpus and spec.data.tokenizer is None:
        say("--tokenizer is not given: the sample's tokenizer of 2048 pieces is used, which needs many tokens for your text")
    now = ports.clock.now()
    return ports.runs.create(RunHeader(name=spec.name, created_at=now, resumed_at=now), RunWishes(spec=spec))


def _leave_to_its_controller(ports: Ports, asked: Asked, error: LeaseHeldError) -> None:
    """Leave the run to the controller that holds it, and cancel a pending stop request.

    Raises:
        LeaseHeldError: the other controller prepares data that this command would replace, or will not continue the run: it adds
            data, or reruns a session.
    """
    run = asked.spec.name
    state = ports.runs.load(run).header.state
    if state is not RunState.ACTIVE:
        raise LeaseHeldError(
            f"{error.what}, and will leave it {state}", remedy="repeat the command when that controller has ended"
        )
    if asked.is_refused:
        raise LeaseHeldError(f"{error.what}, and prepares its data", remedy=f"gemma-orch stop {run}, then repeat the command")
    ports.runs.set_stop(run, None)


def read_too_often(record: RunRecord, spec: RunSpec) -> str:
    """Return a warning if the run now exceeds max_epochs for a language, else an empty text.

    UniMax shares are computed for a number of steps, and are kept when the run is extended.
    """
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
        f"the shares of the languages were computed for fewer steps and are kept: by step {spec.total_steps} the run reads "
        f"{listed}, more than max_epochs = {spec.data.max_epochs:g}; gemma-orch data add computes new shares"
    )
