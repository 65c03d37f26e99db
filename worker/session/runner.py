"""Runs one session from its spec to its report: restore, train, save, report."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from state import files
from state.clock import Clock
from state.errors import CorruptCheckpointError, DataError, ExitCode, GemmaOrchError, UserError
from state.layout import AttemptLayout, checkpoint_id
from state.manifest import FileEntry, Manifest, state_sha256
from state.quantities import format_duration
from state.report import Outcome, Phase, SessionReport
from state.spec import ORDER_VERSION, SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from worker.checkpoint.own_checkpoints import OwnCheckpoints
from worker.checkpoint.saver import Saved, Saver, SaveRequest, WrittenState
from worker.engine import load_torch
from worker.failure import Failure, hung, understand
from worker.session.budget import Budget, first_save_estimate_s
from worker.session.canary import Canary
from worker.session.lock import held_alive
from worker.session.progress import Progress
from worker.session.telemetry import Telemetry, begins, goes_on_from, is_saved
from worker.session.watchdog import Watchdog

if TYPE_CHECKING:
    from torch import Tensor

    from worker.data.versions import VersionedBatches
    from worker.session.assembly import Training
    from worker.train.trainer import Trainer


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a closed terminal or a full disk loses the line; the session goes on
        sys.stderr.write(text + "\n")


@dataclass(frozen=True)
class Host:
    """What the process gives the session that it runs: the clock, the stop signal, callbacks."""

    clock: Clock
    started_s: float
    """When the process started, on the clock's monotonic axis."""
    lock_descriptor: int | None = None
    """The attempt's lock, already taken by the launching process; None when the worker was started by hand."""
    asked_to_stop: Callable[[], str | None] = lambda: None
    """Returns the name of the signal that asked the session to stop, or None."""
    committed: Callable[[str], None] = lambda checkpoint_id: None
    """Called with each committed checkpoint's id, on the saving thread, before older checkpoints are deleted."""
    delivery_reserve_s: Callable[[], float] = lambda: 0.0
    """Returns the seconds that the process needs after the session's end to upload the last checkpoint."""
    start_may_be_links: bool = False
    """Whether the start checkpoint's files may be symbolic links (to a mounted dataset, so that nothing is copied)."""
    free_bytes: Callable[[Path], int] = files.free_bytes
    say: Callable[[str], None] = _say
    exit_at_once: Callable[[int], None] = os._exit


@dataclass(frozen=True)
class Ending:
    """The outcome and the reason of a session that ends without an error."""

    outcome: Outcome
    reason: str


def run_session(spec_file: Path, host: Host) -> int:
    """Run the session of a spec file and return the exit code. The file's folder is the attempt's folder.

    A session that has already ended without an error is not run again. One that was killed resumes from the last
    checkpoint that it committed itself.
    """
    try:
        spec = read_spec(spec_file)
        layout = AttemptLayout(spec_file.absolute().parent)
        with held_alive(layout, host.lock_descriptor):
            session = Session(spec, layout, host)
            if (ended := session.already_ended()) is not None:
                host.say(f"nothing to do: {ended}")
                return ExitCode.DONE
            return session.run()
    except GemmaOrchError as error:
        host.say(str(error))
        return error.exit_code


def read_spec(spec_file: Path) -> SessionSpec:
    """Read a session's spec.

    Raises:
        UserError: the file cannot be read.
        DataError: it is not a valid spec.
    """
    try:
        text = spec_file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{spec_file} cannot be read: {error.strerror}",
            expected="the session.json of an attempt, or one of the verbs prepare, export, prove",
        ) from error
    return SessionSpec.from_json(text, str(spec_file))


class Session:
    """One session, run in this process."""

    def __init__(self, spec: SessionSpec, layout: AttemptLayout, host: Host) -> None:
        self._spec = spec
        self._layout = layout
        self._host = host
        self._clock = host.clock
        self._store = DirectoryCheckpointStore(Path(spec.checkpoints_dir), may_link=host.start_may_be_links)
        start_step = spec.start.step if spec.start else 0
        self._end_step = min(spec.total_steps, start_step + (spec.max_steps or spec.total_steps))
        self._progress = Progress(
            start_step=start_step,
            step=start_step,
            head=spec.start.id if spec.start else None,
            started_at=self._clock.now(),
        )
        self._budget = Budget(
            started_s=host.started_s,
            limit_s=spec.limit_s,
            checkpoint_every_s=spec.checkpoint_every_s,
            save_s=spec.save_estimate_s or 0.0,
            last_save_s=host.started_s,
        )
        self._telemetry = Telemetry(
            layout,
            self._clock,
            left_s=lambda: self._budget.left_s(self._clock.monotonic()),
            start_step=start_step,
            tokens_per_step=spec.training.batch_size * spec.sequence_length,
            say=host.say,
        )
        self._watchdog = Watchdog(self._clock, self._hung)
        self._saver: Saver | None = None
        self._batches: VersionedBatches | None = None
        self._own = OwnCheckpoints(spec, self._store, host.say)

    def already_ended(self) -> str | None:
        """Return how the session ended, if it ended without an error and its checkpoint, or a later one, still exists."""
        try:
            report = SessionReport.from_json(self._layout.report.read_bytes(), str(self._layout.report))
        except (OSError, DataError):
            return None
        if report.outcome not in (Outcome.COMPLETED, Outcome.BUDGET, Outcome.STOPPED) or report.head is None:
            return None
        if report.head in self._store.ids():
            return f"this session ended at step {report.end_step} ({report.reason}), checkpoint {report.head}"
        later = self._later_checkpoint(report.end_step)
        return later and f"the run has gone on to checkpoint {later}"

    def _later_checkpoint(self, step: int) -> str | None:
        """Return the newest checkpoint after `step` that a later attempt of this run committed on the same branch."""
        found: list[tuple[int, str]] = []
        for name in self._store.ids():
            with contextlib.suppress(CorruptCheckpointError):  # pruned meanwhile, or corrupt: it proves nothing
                manifest, _ = self._store.manifest(name)
                same = (manifest.run, manifest.branch) == (self._spec.run, self._spec.branch)
                if same and manifest.fence > self._spec.fence and manifest.step > step:
                    found.append((manifest.step, name))
        return max(found)[1] if found else None

    def run(self) -> int:
        """Run the session and write its report; return the exit code."""
        self._watchdog.watch()
        self._host.say(begins(self._spec, self._end_step))
        try:
            files.remove_tree(self._layout.report)  # left by an earlier process of this attempt that failed
            training, saver, canary = self._begin()
            with contextlib.closing(training.batches):
                ending = self._train(training, saver, canary)
                self._save_last(training, saver)
        except Exception as error:  # noqa: BLE001 - the worker's last resort: every error ends in a report
            return self._fail(error)
        self._report(ending.outcome, ending.reason)
        return ExitCode.DONE

    def _begin(self) -> tuple[Training, Saver, Canary | None]:
        """Assemble the training, restore and verify its state in one pass, and prepare the saver."""
        self._phase(Phase.STARTING)
        load_torch(self._host.say)  # not before the lock and the spec are known to be good
        from worker.device import computes_alike
        from worker.session.assembly import assemble

        Path(self._spec.checkpoints_dir).mkdir(parents=True, exist_ok=True)
        begun_s = self._clock.monotonic()
        self._progress.spend(startup=begun_s - self._host.started_s)
        self._phase(Phase.RESTORING)
        self._check_start()
        training = assemble(self._spec, self._restore, self._clock, self._host.say)
        self._batches, start = training.batches, training.start
        saver = self._saver = Saver(
            self._store,
            training.image,
            root=Path(self._spec.checkpoints_dir),
            clock=self._clock,
            after_commit=self._committed,
            free_bytes=self._host.free_bytes,
        )
        saver.check_room()
        now_s = self._clock.monotonic()
        self._progress.spend(restore=now_s - begun_s)
        save_s = self._spec.save_estimate_s or first_save_estimate_s(training.image.size_bytes)
        self._budget = replace(self._budget, save_s=save_s, last_save_s=now_s)
        self._host.say(goes_on_from(start, self._spec))
        alike = start is not None and computes_alike(start.environment, training.environment)
        return training, saver, self._canary(start, alike=alike)

    def _canary(self, start: Manifest | None, *, alike: bool) -> Canary | None:
        """Return the loss that the first step must show.

        None for a new run, and where a new data version begins at this step: the checkpoint's `next_loss` was computed
        with the data before it.
        """
        if start is None or any(version.first_step == start.step for version in self._spec.data):
            return None
        return Canary(start.id, start.next_loss, alike)

    def _check_start(self) -> None:
        """Refuse a checkpoint of another training.

        Called before the data is opened and the model is made: with another training, those fail too, and their messages
        would hide the cause.
        """
        from worker.session.assembly import check_trajectory

        start = self._own.find()
        if start is None and self._spec.start is not None:
            start = self._store.manifest_of(self._spec.start)
        if start is not None:
            check_trajectory(self._spec, start)

    def _restore(self, state: Mapping[str, Tensor]) -> Manifest | None:
        """Restore the state, verifying each byte as it is read. Return the checkpoint's manifest, or None for a new run.

        Restores the last good checkpoint of this attempt, if an earlier process of it was killed; else exactly the
        checkpoint that the spec names.
        """
        from worker.checkpoint.snapshot import restore_state
        from worker.session.assembly import check_trajectory

        def reader(folder: Path, manifest: Manifest) -> tuple[FileEntry, ...]:
            check_trajectory(self._spec, manifest)
            return restore_state(folder, manifest.file_names, state)

        own = self._own.read_newest_good(reader)
        if own is not None:
            self._progress.resume(own)
            self._telemetry.resumed(own.step)
            return own
        expected = self._spec.start
        return self._store.read(expected.id, reader, expected) if expected else None

    def _train(self, training: Training, saver: Saver, canary: Canary | None) -> Ending:
        """Train and take checkpoints until the session must end; return why it ends."""
        self._phase(Phase.TRAINING)
        while (ending := self._ending(training.trainer.step, saver)) is None:
            self._collected(saver.poll())
            self._save_if_due(training, saver)
            self._step(training.trainer, saver, canary)
            canary = None
        return ending

    def _ending(self, step: int, saver: Saver) -> Ending | None:
        """Return why the session must end at this step boundary, or None to go on."""
        trained = self._progress.steps_trained
        if step >= self._spec.total_steps:
            return Ending(Outcome.COMPLETED, f"the run's last step, {self._spec.total_steps}, is trained")
        if (signal := self._host.asked_to_stop()) is not None:
            return Ending(Outcome.STOPPED, f"{signal} asked for it")
        if self._layout.stop.exists():
            return Ending(Outcome.STOPPED, "you asked it to stop")
        if step >= self._end_step:
            return Ending(Outcome.BUDGET, f"all {self._spec.max_steps} steps of this session are trained")
        now_s = self._clock.monotonic()
        self._budget = self._budget.with_delivery(self._host.delivery_reserve_s())
        if not self._budget.may_train_another_step(now_s, saving=saver.step_in_flight is not None):
            if trained == 0:
                raise self._too_short(now_s)
            left = format_duration(max(0.0, self._budget.left_s(now_s)))
            return Ending(Outcome.BUDGET, f"{left} of {format_duration(self._spec.limit_s)} are left: time to save")
        return None

    def _step(self, trainer: Trainer, saver: Saver, canary: Canary | None) -> None:
        """Train one step."""
        begun_s = self._clock.monotonic()
        self._watchdog.step_begins(trainer.step + 1)
        loss = trainer.gradients()
        if canary is not None:
            canary.check(loss)
        saver.next_loss(loss)
        now_s = self._clock.monotonic()
        if self._progress.steps_trained == 0 and not self._budget.may_still_save(now_s):
            raise self._too_short(now_s)
        result = trainer.update()
        seconds = self._clock.monotonic() - begun_s
        self._budget = self._budget.after_step(seconds, trainer.forward_s)
        self._watchdog.step_done(seconds)
        self._progress.trained(result.step, result.loss, seconds)
        self._telemetry.step(result, seconds)

    def _save_last(self, training: Training, saver: Saver) -> None:
        """Save a checkpoint of the last step, unless it exists."""
        self._phase(Phase.SAVING)
        begun_s = self._clock.monotonic()
        trainer = training.trainer
        if saver.step_in_flight not in (None, trainer.step):
            self._collected(saver.finish())
        if self._progress.is_unsaved():
            if saver.step_in_flight is None:
                self._begin_save(training, saver, urgent=True)
            saver.next_loss(trainer.next_loss())  # while the file is being written
            self._collected(saver.finish(), behind=False)
        self._progress.spend(save=self._clock.monotonic() - begun_s)
        self._phase(Phase.ENDING)

    def _save_if_due(self, training: Training, saver: Saver) -> None:
        """Begin a checkpoint if one is due and none is in flight."""
        begun_s = self._clock.monotonic()
        if saver.step_in_flight is None and self._progress.is_unsaved() and self._budget.save_is_due(begun_s):
            self._begin_save(training, saver)
            self._progress.spend(save=self._clock.monotonic() - begun_s)

    def _begin_save(self, training: Training, saver: Saver, *, urgent: bool = False) -> None:
        """Begin a checkpoint of the state as it is now."""
        step = training.trainer.step
        name = checkpoint_id(step, self._spec.session, self._spec.attempt)
        self._budget = self._budget.after_save_began(self._clock.monotonic())
        saver.begin(SaveRequest(name, step, self._manifest_of(name, training)), urgent=urgent)

    def _manifest_of(self, name: str, training: Training) -> Callable[[WrittenState], Manifest]:
        """Return the function that makes the manifest of the current state after its file is written."""
        spec, parent, train_s = self._spec, self._progress.head, self._progress.train_s

        def manifest(written: WrittenState) -> Manifest:
            # Blocks of data are verified beside the training, so some may still be unverified here. A checkpoint exists only
            # through its manifest, so waiting here keeps every checkpoint free of tokens that were not verified.
            training.batches.settle()
            position = training.batches.data_position(written.step)
            return Manifest(
                id=name,
                run=spec.run,
                session=spec.session,
                attempt=spec.attempt,
                fence=spec.fence,
                branch=spec.branch,
                step=written.step,
                parent=parent,
                created_at=self._clock.now(),
                trajectory_sha256=spec.trajectory_sha256(written.step),
                order_version=ORDER_VERSION,
                data_sha256=spec.data_until(written.step)[-1].data_sha256,
                data_position=position,
                next_loss=written.next_loss,
                train_s=train_s,
                environment=training.environment,
                state_sha256=state_sha256(written.tensors, written.step, position),
                tensors=written.tensors,
                files=(written.file,),
            )

        return manifest

    def _collected(self, saved: Saved | None, *, behind: bool = True) -> None:
        """Record a checkpoint that has been committed, if there is one."""
        if saved is None:
            return
        self._progress.committed(saved, behind=behind)
        if self._spec.save_estimate_s is None:  # the first measurement; it may include waiting for the processor
            self._budget = self._budget.after_save(saved.seconds)
        self._telemetry.saved(saved.step)
        self._host.say(is_saved(saved))

    def _committed(self, request: SaveRequest) -> None:
        """Announce a committed checkpoint, then prune older ones; called on the saving thread."""
        self._host.committed(request.checkpoint_id)
        self._own.committed(request.checkpoint_id, request.step)

    def _fail(self, error: Exception) -> int:
        """Finish the checkpoint in flight if possible, report the error, and return the exit code."""
        failure = understand(self._cause(error))
        self._host.say(failure.reason if failure.expected else "".join(traceback.format_exception(error)))
        if self._saver is not None:
            try:
                self._collected(self._saver.rescue())
            except (OSError, GemmaOrchError) as another:
                self._host.say(f"the checkpoint in flight is lost too: {another}")
        self._report(Outcome.FAILED, failure.reason, failure)
        return failure.exit_code

    def _cause(self, error: Exception) -> Exception:
        """Return the data error behind an error, if corrupt tokens were trained on; else the error itself.

        Corrupt tokens can show up as something else first, such as a wrong canary or a diverged loss.
        """
        try:
            if self._batches is not None:
                self._batches.settle()
        except GemmaOrchError as cause:
            return cause
        return error

    def _hung(self, problem: str) -> None:
        """Report that the session hangs, and end the process at once: its other threads may be blocked forever."""
        self._host.say(problem)
        faulthandler.dump_traceback(sys.stderr)
        self._report(Outcome.HUNG, problem, hung(problem))
        self._host.exit_at_once(ExitCode.TEMPORARY)

    def _report(
        self,
        outcome: Outcome,
        reason: str,
        failure: Failure | None = None,
    ) -> None:
        """Write the session's report. Nothing happens after it."""
        self._watchdog.close()
        self._telemetry.close()
        spec, step = self._spec, self._progress.step
        report = self._progress.report(
            spec,
            outcome,
            reason,
            ended_at=self._clock.now(),
            whole_s=self._clock.monotonic() - self._host.started_s,
            failure=failure,
        )
        try:
            files.write_atomically(self._layout.report, report.to_json())
        except OSError as error:
            self._host.say(f"the report cannot be written: {error}")
        self._host.say(f"session {spec.session}, attempt {spec.attempt}: {outcome} at step {step}: {reason}")

    def _too_short(self, now_s: float) -> UserError:
        """Return the error for a session limit that leaves no time to train; it names a sufficient limit."""
        spec, budget = self._spec, self._budget
        return UserError(
            f"a session of {format_duration(spec.limit_s)} is too short: starting took "
            f"{format_duration(now_s - self._host.started_s)}, step and save need {format_duration(budget.needed_s())} more",
            expected=f"at least {format_duration(math.ceil(budget.sufficient_limit_s(now_s)))}",
            remedy="raise --session-limit",
        )

    def _phase(self, phase: Phase) -> None:
        """Tell the heartbeat and the watchdog which phase begins."""
        self._telemetry.phase(phase)
        self._watchdog.phase(phase.value)
