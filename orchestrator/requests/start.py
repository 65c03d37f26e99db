"""From what a user types to a run that a controller can bring on: begin, extend, continue."""

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
    """Return what was said: options that were left out are not there, nor are empty tables."""
    said: Explicit = {}
    for key, value in values.items():
        kept = without_none(value) if isinstance(value, dict) else value
        if kept is not None and kept != {}:
            said[key] = kept
    return said


@dataclass(frozen=True)
class Asked:
    """What a command asks of a run, compared with the run once: the rest of the story goes by this."""

    spec: RunSpec
    seen: RunRecord | None
    """The run when it was compared; None: it did not exist."""
    changes: tuple[SpecChange, ...] = ()

    @property
    def is_refused(self) -> bool:
        """Whether a run whose data is prepared cannot make these changes; before that, it can make any."""
        return any(change.refusal is not None for change in self.changes)


def begin(ports: Ports, said: Explicit, config: Path | None, *, num_cores: int, say: Callable[[str], None]) -> str:
    """Make the run that is meant, or bring its spec up to date, and make it active; return its name.

    Raises:
        UserError: the spec is not valid, or asks for a change that the run cannot make.
        LeaseHeldError: another controller is at work on it, and cannot go on with what this command asks for.
    """
    explicit = overlay(read_config(config), said) if config is not None else said
    origin = f"{config} or the options" if config is not None else "the options"
    while True:  # until no other command has come between the look and the act
        asked = _ask(ports, explicit, num_cores=num_cores, origin=origin)
        if _carry_out(ports, asked, say):
            return asked.spec.name


def _ask(ports: Ports, explicit: Explicit, *, num_cores: int, origin: str) -> Asked:
    """Look at the run, if it exists, and compare it with what is asked for.

    Raises:
        UserError: the spec is not valid, or asks for a change that the run cannot make.
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
            f"run {name} exists, and this command asks for another one:\n{listed}",
            remedy=f"leave out what is not allowed to go on with {name}, or begin another run with --name",
        )
    return asked


def _carry_out(ports: Ports, asked: Asked, say: Callable[[str], None]) -> bool:
    """Do what is asked for; return False when another command has changed the run since it was compared: then look again.

    Raises:
        LeaseHeldError: another controller is at work on the run, and cannot go on with what is asked for.
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
    """Add a run; return False when another command has taken its name meanwhile."""
    if spec.data.corpus and spec.data.tokenizer is None:
        say("no --tokenizer is given: the sample's 2048 pieces are used, which cut your text into many small ones")
    now = ports.clock.now()
    return ports.runs.create(RunHeader(name=spec.name, created_at=now, resumed_at=now), RunWishes(spec=spec))


def _leave_to_its_controller(ports: Ports, asked: Asked, error: LeaseHeldError) -> None:
    """Let the controller that holds a run go on with it, a stop taken back.

    Raises:
        LeaseHeldError: it is preparing data that this command would replace, or does not bring the run on: it adds data to it,
            or runs a session of it again.
    """
    run = asked.spec.name
    state = ports.runs.load(run).header.state
    if state is not RunState.ACTIVE:
        raise LeaseHeldError(f"{error.what}, and will leave it {state}", remedy="when it is done, the same command again")
    if asked.is_refused:
        raise LeaseHeldError(f"{error.what}, and prepares its data", remedy=f"gemma-orch stop {run}, then the same command again")
    ports.runs.set_stop(run, None)


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
