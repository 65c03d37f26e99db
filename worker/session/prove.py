"""Proves that cutting a training into sessions changes no bit: trains the same steps straight and in pieces, and compares.

Each piece is a real session in its own process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from state.clock import SystemClock
from state.document import Document
from state.errors import DataError, ExitCode, GemmaOrchError, TemporaryError, UserError
from state.layout import AttemptLayout, RunLayout
from state.manifest import Environment, Manifest, first_difference
from state.quantities import format_duration
from state.report import Outcome, SessionReport
from state.spec import SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from worker.session.runner import read_spec

_UNLIMITED_S = 7 * 24 * 3600.0
_PATIENCE_S = 60.0  # how long to wait for a session that is asked to stop: it saves first

Say = Callable[[str], None]


class Piece(Document):
    """One session of a proof."""

    first_step: int
    last_step: int
    state_sha256: str


class Certificate(Document):
    """The result of a proof: whether the final states are identical, and what they were made of."""

    schema_version: Literal[1] = 1
    identical: bool
    first_difference: str | None
    steps: int
    trajectory_sha256: str
    environment: Environment
    straight: Piece
    pieces: tuple[Piece, ...]

    def __str__(self) -> str:
        place = self.environment
        lines = [
            f"{self.steps} steps straight and in {len(self.pieces)} sessions",
            f"on {place.device}, {place.threads} threads, torch {place.torch}, Python {place.python}",
            f"code {place.code_sha256[:16]}, training {self.trajectory_sha256[:16]}",
            f"  straight    steps {self._span(self.straight)}",
            *(f"  session {number:3d} steps {self._span(piece)}" for number, piece in enumerate(self.pieces, 1)),
        ]
        if self.identical:
            lines.append(f"identical: sha256 {self.straight.state_sha256}")
        else:
            lines.append(f"different: the first difference is {self.first_difference}")
        return "\n".join(lines)

    @staticmethod
    def _span(piece: Piece) -> str:
        return f"{piece.first_step:6d} to {piece.last_step:6d}  sha256 {piece.state_sha256}"


def main(arguments: Sequence[str]) -> int:
    """Run `python -m worker prove`: print the certificate; the exit code says whether it holds.

    Raises:
        GemmaOrchError: a session could not be run.
    """
    parser = argparse.ArgumentParser("python -m worker prove", description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="a SessionSpec as JSON: model, training and data")
    parser.add_argument("--steps", type=int, required=True, help="steps to train")
    parser.add_argument("--pieces", type=int, required=True, help="sessions to train them in")
    parser.add_argument("--work-dir", type=Path, required=True, help="a folder for the sessions; it is left behind")
    parser.add_argument("--json", action="store_true", help="print the certificate as JSON")
    options = parser.parse_args(arguments)
    certificate = prove(
        read_spec(options.spec),
        options.steps,
        options.pieces,
        options.work_dir,
        say=lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201
    )
    sys.stdout.write(certificate.to_json().decode() if options.json else f"{certificate}\n")
    return ExitCode.DONE if certificate.identical else ExitCode.DATA


def prove(template: SessionSpec, steps: int, num_pieces: int, work_dir: Path, *, say: Say = lambda _: None) -> Certificate:
    """Train the template's first steps once straight and once in pieces, and compare the states.

    Args:
        template: The sessions' spec; where each one begins and ends is filled in here.
        steps: Number of steps to train.
        num_pieces: Number of sessions to cut them into.
        work_dir: Folder for the sessions; it is not removed.
        say: Called with one line after each session.

    Raises:
        UserError: there are fewer steps than pieces, or less than one piece.
        GemmaOrchError: a session failed.
    """
    if not 1 <= num_pieces <= steps:
        raise UserError(f"{steps} steps cannot be cut into {num_pieces} pieces", expected=f"1 to {steps} pieces")
    (straight,) = _chain(template, [steps], RunLayout(work_dir / "straight"), say)
    ends = [steps * number // num_pieces for number in range(1, num_pieces + 1)]
    pieces = _chain(template, ends, RunLayout(work_dir / "pieces"), say)
    difference = first_difference(straight, pieces[-1])
    return Certificate(
        identical=difference is None,
        first_difference=difference,
        steps=steps,
        trajectory_sha256=straight.trajectory_sha256,
        environment=straight.environment,
        straight=_piece(0, straight),
        pieces=tuple(_piece(first, manifest) for first, manifest in zip([0, *ends], pieces, strict=False)),
    )


def _piece(first_step: int, manifest: Manifest) -> Piece:
    return Piece(first_step=first_step, last_step=manifest.step, state_sha256=manifest.state_sha256)


def _chain(template: SessionSpec, ends: list[int], layout: RunLayout, say: Say) -> list[Manifest]:
    """Run a chain of sessions that end at the given steps; return the manifests of their last checkpoints."""
    store = DirectoryCheckpointStore(layout.checkpoints)
    clock = SystemClock()
    manifests: list[Manifest] = []
    begin = 0
    for number, end in enumerate(ends, 1):
        start = None
        if manifests:
            manifest, manifest_sha256 = store.manifest(manifests[-1].id)
            start = manifest.expected(manifest_sha256)
        spec = template.evolve(
            run="proof",
            session=number,
            attempt=1,
            fence=number,
            branch=None,
            checkpoints_dir=str(layout.checkpoints.absolute()),
            start=start,
            total_steps=max(template.total_steps, ends[-1]),
            max_steps=end - begin,
            limit_s=_UNLIMITED_S,
            checkpoint_every_s=_UNLIMITED_S,
        )
        begun_s = clock.monotonic()
        manifests.append(_run(spec, layout.attempt(number, 1), store))
        took = format_duration(clock.monotonic() - begun_s)
        name = f"{layout.root.name}, session {number} of {len(ends)}"
        say(f"{name}: steps {begin} to {end}, sha256 {manifests[-1].state_sha256[:12]}, {took}")
        begin = end
    return manifests


def _run(spec: SessionSpec, layout: AttemptLayout, store: DirectoryCheckpointStore) -> Manifest:
    layout.root.mkdir(parents=True, exist_ok=True)
    layout.spec.write_bytes(spec.to_json())
    # Pass -P on if this process has it: then a session imports nothing from the current folder.
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "worker", str(layout.spec)]
    with open(layout.log, "ab") as log:
        code = _run_to_its_end(subprocess.Popen(command, stdout=log, stderr=log))
    if code != ExitCode.DONE:
        said = layout.log.read_text(errors="replace").strip().splitlines()
        raise _failure(code)(f"session {spec.session} of the proof ended with exit code {code}: {said[-1] if said else ''}")
    report = SessionReport.from_json(layout.report.read_bytes(), str(layout.report))
    if report.head is None or report.outcome is Outcome.STOPPED:
        raise TemporaryError(f"session {spec.session} of the proof was stopped: {report.reason}", remedy="try again")
    manifest, _ = store.manifest(report.head)
    return manifest


def _run_to_its_end(session: subprocess.Popen[bytes]) -> int:
    """Wait for a session and return its exit code; an interrupt of this process ends the session too."""
    try:
        return session.wait()
    except KeyboardInterrupt:
        session.terminate()  # Ctrl-C in a terminal reaches the session too, kill -INT of this process does not
        try:
            session.wait(_PATIENCE_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            session.kill()
            session.wait()
        raise


def _failure(code: int) -> type[GemmaOrchError]:
    known: dict[int, type[GemmaOrchError]] = {ExitCode.USER: UserError, ExitCode.DATA: DataError}
    return known.get(code, TemporaryError)
