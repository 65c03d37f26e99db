"""Run the worker's verbs (export, data show, session, prove) for the commands: gather their inputs, then start the child."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from orchestrator.config import Explicit, make_spec, read_config
from orchestrator.controller.attempt import plan_attempt
from orchestrator.controller.decide import Launch
from orchestrator.controller.training_data import check_order
from orchestrator.ports import Ports
from orchestrator.worker_process.command import hand_over, run_with_our_terminal, worker_command
from orchestrator.worker_process.prepare import WorkerPreparer
from state.architecture import resolve_architecture
from state.clock import SystemClock
from state.data_manifest import TOKENIZER_NAME
from state.errors import DataError, UserError, did_you_mean
from state.files import write_atomically
from state.layout import SPEC_NAME, HomeLayout
from state.ledger import RunHeader, RunRecord, RunWishes
from state.spec import SessionSpec

EXPORT_FORMATS: Sequence[str] = ("gemma-pytorch", "hf", "safetensors")


def export(ports: Ports, record: RunRecord, checkpoint_id: str, export_format: str, out: Path) -> int:
    """Export a checkpoint's weights, and return the worker's exit code.

    Raises:
        UserError: the format is unknown, the run has no data, or the training extra is missing.
        CorruptCheckpointError: the checkpoint fails verification.
    """
    if export_format not in EXPORT_FORMATS:
        raise UserError(
            f"--format is invalid: {export_format!r}",
            expected=f"one of {', '.join(EXPORT_FORMATS)}",
            remedy=did_you_mean(export_format, list(EXPORT_FORMATS)),
        )
    store = ports.checkpoints(record.name)
    store.verify(checkpoint_id)
    versions = record.header.data
    if not versions:
        raise UserError(f"run {record.name} has no data yet, so its vocabulary size is unknown")
    with tempfile.TemporaryDirectory(prefix="gemma-orch-export-") as folder:
        architecture = Path(folder) / "architecture.json"
        write_atomically(architecture, resolve_architecture(record.spec.model, versions[0].vocab_size).to_json())
        arguments = {
            "--checkpoint-dir": store.folder(checkpoint_id),
            "--architecture": architecture,
            "--tokenizer": ports.home.run(record.name).data_folder(versions[0].folder) / TOKENIZER_NAME,
            "--format": export_format,
            "--out": out.absolute(),
        }
        return hand_over("export", [str(part) for pair in arguments.items() for part in pair])


def show_data(ports: Ports, record: RunRecord, arguments: Sequence[str]) -> int:
    """Show which documents a step of a run reads, or the run's data, and return the worker's exit code.

    Raises:
        UserError: the run's data is not prepared, or has an order that this version does not support.
    """
    check_order(record)
    launch = Launch(session=1, attempt=1, start_checkpoint=None)
    _, session_spec = plan_attempt(record, launch, ports.home, ports.clock.now())
    with tempfile.TemporaryDirectory(prefix="gemma-orch-data-") as folder:
        path = Path(folder) / "session.json"
        write_atomically(path, session_spec.to_json())
        return pass_on("data", ["show", "--session", str(path), *arguments])


def run_session(path: Path, home: HomeLayout) -> int:
    """Run the session of a `session.json` by hand, and return the worker's exit code.

    Raises:
        UserError: the file is not a readable session spec, or the training extra is missing.
    """
    try:
        SessionSpec.from_json(path.read_bytes(), str(path))
    except (OSError, DataError) as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}" if isinstance(error, OSError) else error.what,
            expected=f"the session file of an attempt, {home.root / 'runs/RUN/sessions/s001a1' / SPEC_NAME}",
            remedy="gemma-orch status RUN lists the sessions of a run",
        ) from error
    return hand_over(str(path.absolute()), ())  # absolute, so that a file named `prepare` is not taken for the verb


def pass_on(verb: str, arguments: Sequence[str]) -> int:
    """Run a verb of the worker with the user's arguments, and return its exit code; the worker prints its own help and errors."""
    return run_with_our_terminal(worker_command(verb, arguments))


def prove(home: HomeLayout, steps: int, pieces: int, config: Path | None, *, num_cores: int, as_json: bool) -> int:
    """Train in one session and in several, in a temporary folder, and return the worker's exit code: 4 if the results differ.

    Raises:
        UserError: the config is invalid, there are more pieces than steps, or the training extra is missing.
    """
    if pieces > steps:
        raise UserError(f"--pieces is invalid: {pieces} for {steps} steps", expected="at least one step per piece")
    explicit: Explicit = read_config(config) if config is not None else {}
    spec = make_spec(
        "prove", {**explicit, "total_steps": steps}, previous=None, num_cores=num_cores, origin=str(config or "the defaults")
    )
    with tempfile.TemporaryDirectory(prefix="gemma-orch-prove-") as folder:
        work = HomeLayout(Path(folder))
        data = WorkerPreparer(work, lambda _text: None)(spec, lambda: None)
        now = SystemClock().now()
        record = RunRecord(RunHeader(name="prove", created_at=now, resumed_at=now, data=(data,)), RunWishes(spec=spec))
        _, session_spec = plan_attempt(record, Launch(session=1, attempt=1, start_checkpoint=None), work, now)
        session_spec = session_spec.evolve(cache_dir=str(home.cache))
        path = Path(folder) / "session.json"
        write_atomically(path, session_spec.to_json())
        arguments = [
            "--spec",
            str(path),
            "--steps",
            str(steps),
            "--pieces",
            str(pieces),
            "--work-dir",
            str(Path(folder) / "work"),
        ]
        return hand_over("prove", [*arguments, *(["--json"] if as_json else [])])
