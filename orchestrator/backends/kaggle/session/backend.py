"""The Kaggle backend: runs each attempt as a private script kernel of an account.

Kaggle cannot end a session from outside, its reads may be stale, and answers to its calls may be lost. So each attempt has a
kernel and a dataset with names of its own: a read tells whether a push arrived, and a session that was given up can only write
to its own dataset.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orchestrator.backends.kaggle.checkpoints.store import KaggleCheckpoints
from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.backends.kaggle.listing import dataset_is_listed
from orchestrator.backends.kaggle.poll import Looks
from orchestrator.backends.kaggle.session.control_dataset import Control
from orchestrator.backends.kaggle.session.inputs import DataSources, KernelInputs
from orchestrator.backends.kaggle.session.outputs import Salvage
from orchestrator.backends.kaggle.session.push import Pushing
from orchestrator.backends.kaggle.session.status import all_shown_at, judge
from orchestrator.backends.kaggle.sightings import Look
from orchestrator.ports import AttemptRef, AttemptStatus, Observation, Quota
from state import crash_points
from state.errors import TemporaryError
from state.kaggle.names import attempt_dataset_slug
from state.ledger import RunRecord
from state.report import Heartbeat, SessionReport
from state.spec import SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore

_LAG_POLLS = 3.0  # the poll that finds the end, the poll that confirms it, and jitter
_LONGEST_TICK_S = 10.0  # each tick reads the user's requests and renews the lease
_TICKS_A_POLL = 10.0


class KaggleBackend:
    """Runs the attempts of one run as kernels.

    Args:
        context: The run.
        checkpoints: The run's checkpoint store.
        looks: Polls the run's attempts; shared with the store.
        control: The run's control dataset.
        inputs: The code and data for its kernels.
    """

    name = "kaggle"
    can_be_run_by_hand = False
    kill_note = (
        "Kaggle cannot end a session from outside: its kernel is deleted, with its log and output, once its uploads are safe"
    )

    def __init__(
        self,
        context: KaggleContext,
        checkpoints: KaggleCheckpoints,
        looks: Looks,
        control: Control,
        inputs: KernelInputs,
    ) -> None:
        self._api = context.api
        self._clock = context.clock
        self._settings = context.settings
        self._checkpoints = checkpoints
        self._looks = looks
        self._control = control
        self._pushing = Pushing(context, checkpoints, looks, control, inputs)
        self._salvage = Salvage(context, checkpoints, looks)

    @property
    def poll_interval_s(self) -> float:
        """Seconds between two ticks; most ticks only read the user's requests and ask Kaggle nothing."""
        return min(self._settings.poll_every_s / _TICKS_A_POLL, _LONGEST_TICK_S)

    @property
    def lag_s(self) -> float:
        """Seconds by which Kaggle's status may be stale, with the polls that must confirm an end."""
        return self._settings.settle_s + _LAG_POLLS * self._settings.poll_every_s

    def quota(self, now: datetime) -> Quota:
        """Return whether Kaggle would accept a session now; CPU sessions have no quota."""
        return self._pushing.admission.quota(now)

    def make_ready(self, spec: SessionSpec) -> str | None:
        """Prepare a push (data, control dataset, the attempt's dataset, quota); return the reason to wait, if any.

        Raises:
            UserError: the data is not on the account, or the account has another run of this name.
            TemporaryError: Kaggle does not answer, or refuses a call now.
        """
        return self._pushing.make_ready(spec)

    def launch(self, spec: SessionSpec) -> str:
        """Push an attempt's kernel, once; return the handle: kernel and version.

        Raises:
            AmbiguousError: the kernel exists already, or may exist: the next poll tells.
            NotLaunchedError: the kernel certainly was not pushed; a later try may succeed.
            UserError: Kaggle refuses it until the user changes something.
        """
        return self._pushing.launch(spec)

    def observe(self, ref: AttemptRef) -> Observation:
        """Return the state of an attempt; asks Kaggle at most once a poll interval while nothing changes."""
        seen = self._looks.seen(ref.session, ref.attempt)
        if seen.over is not None:
            return Observation(AttemptStatus.ENDED, seen.over, seen.over_at)
        looks_before = seen.looks
        seen = self._looks.refresh(ref.session, ref.attempt, ref.handle)
        if seen.looks != looks_before:
            seen = self._salvage.take_in(ref, seen)
        report, now = self._salvage.report(ref), self._clock.now()
        shown_at = all_shown_at(seen, ref, report=report, settings=self._settings)
        if seen.looks != looks_before and shown_at is not None and now >= shown_at:
            seen = self._looks.change(ref.session, ref.attempt, looks_after_end=seen.looks_after_end + 1)
        observation = judge(
            seen,
            ref,
            report=report,
            delivered=report is not None and self._salvage.is_delivered(report),
            salvaged=self._salvage.is_salvaged(ref, seen, shown_at),
            settings=self._settings,
            now=now,
        )
        if observation.sighting is AttemptStatus.ENDED:
            over_at = observation.ended_at or (report.ended_at if report is not None else self._clock.now())
            self._looks.change(ref.session, ref.attempt, over=observation.detail, over_at=over_at)
            return Observation(AttemptStatus.ENDED, observation.detail, over_at)
        return observation

    def report(self, ref: AttemptRef) -> SessionReport | None:
        """Return the report of an attempt, once observing it has found one."""
        return self._salvage.report(ref)

    def heartbeat(self, ref: AttemptRef) -> Heartbeat | None:
        """Return None: Kaggle does not show a running session's files, and its log is not meant to be parsed."""
        return None

    def ask_to_stop(self, ref: AttemptRef) -> None:
        """Set the stop flag, which the worker polls; may be called again until the session has ended.

        Raises:
            TemporaryError: Kaggle does not answer, or refuses the upload now.
        """
        if self._looks.seen(ref.session, ref.attempt).ended is None:
            self._control.ask_to_stop(ref.session, ref.attempt)

    def kill(self, ref: AttemptRef) -> None:
        """Salvage what an attempt has delivered, then delete its kernel: Kaggle has no other way to end a session.

        Kaggle may let the session run on. What it uploads then goes into its own dataset, and becomes a branch.

        Raises:
            TemporaryError: something could not be salvaged or deleted now; nothing is lost, and a later call goes on.
        """
        seen = self._looks.seen(ref.session, ref.attempt)
        if seen.over is not None or seen.missing_since is not None:
            return  # a refused kernel can be neither salvaged nor counted as gone: `observe` finds out when it has ended
        api, kernel = self._api(), self._looks.kernel(ref.session, ref.attempt, ref.handle)
        if api.kernel(kernel.slug) is None:
            return
        if seen.ended is not None and not seen.ended_again:  # one report of the end may be wrong: ask again
            seen = self._looks.look(Look.STATUS, ref.session, ref.attempt, ref.handle)
            if seen.ended is not None and not seen.ended_again:
                raise TemporaryError(f"it is unknown whether the kernel {kernel.slug} has ended")
        if seen.ended is not None:
            return  # nothing to end; `observe` waits for what it left to appear
        # A deleted kernel may run on, so its session is asked to stop as well. If that upload fails, the flag is already stored
        # here, and is sent before the next session at the latest.
        with contextlib.suppress(TemporaryError):
            self._control.ask_to_stop(ref.session, ref.attempt)
        dataset = attempt_dataset_slug(ref.run, ref.session, ref.attempt)
        info = api.dataset(dataset)
        if info is None and dataset_is_listed(api, dataset):
            raise TemporaryError(
                f"Kaggle refuses to show the dataset {dataset} (403 or 404), which may hold checkpoints to salvage"
            )
        self._looks.take_dataset(ref.session, ref.attempt, info)
        self._checkpoints.discovery.examine(ref.session, ref.attempt)
        self._salvage.find_report(ref)
        self._salvage.read_outputs(ref)
        self._checkpoints.bring_home(ref.session, ref.attempt)
        api.delete_kernel(kernel.slug)
        crash_points.done("signal", "delete")
        how = "its kernel was deleted, after its checkpoints and report were salvaged"
        self._looks.change(ref.session, ref.attempt, over=how, over_at=self._clock.now())

    def read_log(self, ref: AttemptRef, offset: int) -> tuple[str, int]:
        """Return an attempt's log from an offset on, in characters, and the offset of its end.

        Raises:
            TemporaryError: Kaggle does not show the log now.
        """
        return self._salvage.read_log(ref, offset)


@dataclass(frozen=True)
class KaggleRun:
    """The backend and the checkpoint store of a run, which share the results of their polls."""

    backend: KaggleBackend
    checkpoints: KaggleCheckpoints


def open_kaggle_run(
    context: KaggleContext,
    record: Callable[[], RunRecord],
    source_root: Path,
    *,
    sources: DataSources | None = None,
    local: DirectoryCheckpointStore | None = None,
) -> KaggleRun:
    """Return the backend and the checkpoint store of a run.

    Args:
        context: The run.
        record: Reads the run's record from the ledger.
        source_root: The folder with the packages that a kernel gets.
        sources: The datasets of the run's data; None: those named by the data's digest.
        local: The checkpoints on this machine; None: those of the run's folder.
    """
    known_attempts = lambda: record().attempts  # noqa: E731
    looks = Looks(context, known_attempts)
    checkpoints = KaggleCheckpoints(context, local or DirectoryCheckpointStore(context.layout.checkpoints), looks, known_attempts)
    inputs = KernelInputs(source_root, sources or DataSources(context))
    return KaggleRun(KaggleBackend(context, checkpoints, looks, Control(context, record), inputs), checkpoints)
