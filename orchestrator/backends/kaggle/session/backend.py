"""Sessions as private script kernels of a Kaggle account.

Kaggle has no way to end a session from outside, lags in what it shows, and loses the answers to what it is asked. So an
attempt's kernel and dataset have names of the attempt's own: whether it was pushed is found out by looking, and whatever a
session that was given up still does, it does to its own dataset.
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
from orchestrator.ports import AttemptRef, Observation, Quota, Sighting
from state import effects
from state.errors import TemporaryError
from state.kaggle.names import attempt_dataset_slug
from state.ledger import RunRecord
from state.report import Heartbeat, SessionReport
from state.spec import SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore

_LAG_POLLS = 3.0  # the look that finds it over, the one that confirms that, and jitter
_LONGEST_TICK_S = 10.0  # the user's wishes are read at every tick, and the lease is prolonged
_TICKS_A_POLL = 10.0


class KaggleBackend:
    """Runs the attempts of one run as kernels.

    Args:
        context: The run.
        checkpoints: The run's checkpoint store.
        looks: What was seen of its attempts, shared with the store.
        control: Its control dataset.
        inputs: What its kernels are given.
    """

    name = "kaggle"
    can_be_run_by_hand = False
    killing = (
        "Kaggle ends no session from outside: its kernel is deleted, with its log and output, once what it has uploaded is safe"
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
    def look_every_s(self) -> float:
        """Seconds between two ticks: most ask Kaggle nothing, and hear what the user wishes."""
        return min(self._settings.poll_every_s / _TICKS_A_POLL, _LONGEST_TICK_S)

    @property
    def lag_s(self) -> float:
        """Seconds by which what Kaggle says may be behind: until then a session that it has ended is only believed to be."""
        return self._settings.settle_s + _LAG_POLLS * self._settings.poll_every_s

    def quota(self, now: datetime) -> Quota:
        """Return whether a session would be taken now; CPU sessions have no quota."""
        return self._pushing.admission.quota(now)

    def make_ready(self, spec: SessionSpec) -> str | None:
        """Bring about what a push needs: the data, the control dataset, the attempt's own dataset, and quota.

        Raises:
            UserError: the data is not on the account, or another run of this name is.
            TemporaryError: Kaggle cannot be asked, or did not take something.
        """
        return self._pushing.make_ready(spec)

    def launch(self, spec: SessionSpec) -> str:
        """Push an attempt's kernel, once, and return which kernel and version it is.

        Raises:
            AmbiguousError: it is there already, or whether it is cannot be told: look.
            NotLaunchedError: it certainly was not pushed, and may be later.
            UserError: Kaggle refuses it until the user changes something.
        """
        return self._pushing.launch(spec)

    def observe(self, ref: AttemptRef) -> Observation:
        """Return what is known of an attempt, asking Kaggle at most once a poll interval while nothing happens."""
        seen = self._looks.seen(ref.session, ref.attempt)
        if seen.over is not None:
            return Observation(Sighting.ENDED, seen.over, seen.over_at)
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
        if observation.sighting is Sighting.ENDED:
            over_at = observation.ended_at or (report.ended_at if report is not None else self._clock.now())
            self._looks.change(ref.session, ref.attempt, over=observation.detail, over_at=over_at)
            return Observation(Sighting.ENDED, observation.detail, over_at)
        return observation

    def report(self, ref: AttemptRef) -> SessionReport | None:
        """Return the report of an attempt, once observing it has found one."""
        return self._salvage.report(ref)

    def heartbeat(self, ref: AttemptRef) -> Heartbeat | None:
        """Return nothing: a running session's files cannot be read, and its log is for people."""
        return None

    def ask_to_stop(self, ref: AttemptRef) -> None:
        """Set the flag that the worker looks for now and then; called until it has ended.

        Raises:
            TemporaryError: Kaggle did not take it.
        """
        if self._looks.seen(ref.session, ref.attempt).ended is None:
            self._control.ask_to_stop(ref.session, ref.attempt)

    def kill(self, ref: AttemptRef) -> None:
        """Save what can be saved, then delete the kernel, for there is no other way to end it.

        Kaggle may let the session run on unseen; what it still uploads goes into its own dataset, and becomes a branch.

        Raises:
            TemporaryError: something could not be saved or deleted now; nothing is lost, try again.
        """
        seen = self._looks.seen(ref.session, ref.attempt)
        if seen.over is not None or seen.missing_since is not None:
            return  # nothing can be saved of what Kaggle refuses to show, nor is it gone: observing finds out when it is over
        api, kernel = self._api(), self._looks.kernel(ref.session, ref.attempt, ref.handle)
        if api.kernel(kernel.slug) is None:
            return
        if seen.ended is not None and not seen.ended_again:  # nor is one word that it is over
            seen = self._looks.look(Look.STATUS, ref.session, ref.attempt, ref.handle)
            if seen.ended is not None and not seen.ended_again:
                raise TemporaryError(f"whether {kernel.slug} is over cannot be told now")
        if seen.ended is not None:
            return  # what it has left may still come to be shown: observing it waits for that
        with contextlib.suppress(TemporaryError):  # the wish is remembered, and goes out with the next session at the latest
            self._control.ask_to_stop(ref.session, ref.attempt)  # a kernel that is deleted may run on unseen
        dataset = attempt_dataset_slug(ref.run, ref.session, ref.attempt)
        info = api.dataset(dataset)
        if info is None and dataset_is_listed(api, dataset):
            raise TemporaryError(
                f"Kaggle refuses to show the dataset {dataset} (403 or 404), where something may be still to save"
            )
        self._looks.take_dataset(ref.session, ref.attempt, info)
        self._checkpoints.discovery.examine(ref.session, ref.attempt)
        self._salvage.find_report(ref)
        self._salvage.read_outputs(ref)
        self._checkpoints.bring_home(ref.session, ref.attempt)
        api.delete_kernel(kernel.slug)
        effects.done("signal", "delete")
        how = "its kernel was deleted, after all that could be saved of it was"
        self._looks.change(ref.session, ref.attempt, over=how, over_at=self._clock.now())

    def read_log(self, ref: AttemptRef, offset: int) -> tuple[str, int]:
        """Return what an attempt has printed from an offset on, in characters, and the offset after it.

        Raises:
            TemporaryError: Kaggle does not give it now.
        """
        return self._salvage.read_log(ref, offset)


@dataclass(frozen=True)
class KaggleRun:
    """What a run on Kaggle needs: its backend, and the store of its checkpoints, which share what they see."""

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
        record: What the ledger says of it now.
        source_root: The folder with the packages that a kernel gets.
        sources: The datasets of the run's data; None: those that are named after it.
        local: The checkpoints that are here; None: those of the run's folder.
    """
    known_attempts = lambda: record().attempts  # noqa: E731
    looks = Looks(context, known_attempts)
    checkpoints = KaggleCheckpoints(context, local or DirectoryCheckpointStore(context.layout.checkpoints), looks, known_attempts)
    inputs = KernelInputs(source_root, sources or DataSources(context))
    return KaggleRun(KaggleBackend(context, checkpoints, looks, Control(context, record), inputs), checkpoints)
