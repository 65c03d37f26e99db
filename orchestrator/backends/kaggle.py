"""Sessions as private script kernels of a Kaggle account.

Kaggle has no way to end a session from outside, lags in what it shows, and loses the answers to what it is asked. So an
attempt's kernel and dataset have the attempt's own name: whether it was pushed is found out by looking, and whatever a
session that was given up still does, it does to its own dataset.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.backends.base import AttemptRef, Observation, Quota, Sighting
from orchestrator.bundle import bundle
from orchestrator.kaggle.checkpoints import KaggleCheckpoints, kaggle_folder
from orchestrator.kaggle.control import LOOKS_A_POLL, Control, sending
from orchestrator.kaggle.looks import Looks
from orchestrator.kaggle.promotion import Promotion
from orchestrator.kaggle.seen import Look, Seen
from orchestrator.kaggle.sources import DataSources
from orchestrator.kaggle.storage import StoragePlan, storage_plan
from orchestrator.kaggle.verdict import judge
from state import effects, files
from state.checkpoint_store import DirectoryCheckpointStore
from state.clock import Clock
from state.errors import AmbiguousError, DataError, GemmaOrchError, NotLaunchedError, QuotaError, TemporaryError, UserError
from state.kaggle.errors import BusyError, InvalidSourcesError, KaggleQuotaError
from state.kaggle.job import KaggleJob
from state.kaggle.names import attempt_slug, check_run_fits, control_slug
from state.kaggle.records import AcceleratorQuota, KernelPush, OutputFile
from state.kaggle.settings import MACHINE_SHAPES, KaggleSettings
from state.layout import REPORT_NAME, SPEC_NAME, AttemptLayout, HomeLayout, attempt_name
from state.ledger import RunRecord
from state.report import Heartbeat, SessionReport
from state.spec import SessionSpec

if TYPE_CHECKING:
    from state.kaggle.api import KaggleApi

_FIRST_VERSION = 1
_LAG_POLLS = 3.0  # the look that finds it over, the one that confirms that, and jitter
_START_SHARE = 0.03  # of a session's limit, for the machine's start: 20 minutes of 11h30m
_LONGEST_SESSION_S = 12 * 3600
_BUSY_POLLS = 3.0  # poll intervals to wait when as many sessions run as the account may have: minutes
_LONGEST_TICK_S = 10.0  # the user's wishes are read at every tick, and the lease is prolonged
_TICKS_A_POLL = 10.0
_FOLLOW_S = 3.0
_FOLLOW_PAUSE_S = 5.0  # following a log opens a stream that replays everything: not more often than people read
_BYTES_PER_NUMBER = 12  # a weight and its two moments, in float32


@dataclass(frozen=True)
class _Refusal:
    """Kaggle has said no to a push, and for how long that is to be remembered."""

    reason: str
    until: datetime


def _timeout_s(limit_s: float) -> int:
    """Return the seconds after which Kaggle is to end a session of a limit, which the session itself counts from its start.

    Kaggle may count from when it began to get the machine ready, so it is given a little more, up to the most that it allows.
    """
    return max(math.ceil(limit_s), min(math.ceil(limit_s * (1.0 + _START_SHARE)), _LONGEST_SESSION_S))


class KaggleBackend:
    """Runs the attempts of one run as kernels.

    Args:
        api: The account; asked for when the first call is due, so that what does not need Kaggle never connects.
        run: The run's name.
        home: Where runs lie.
        clock: The time.
        settings: What the run says about Kaggle.
        checkpoints: The run's checkpoint store.
        looks: What was seen of its attempts, shared with the store.
        control: Its control dataset.
        sources: The datasets of its data.
        source_root: The folder with the packages that a kernel gets.
    """

    name = "kaggle"
    can_be_run_by_hand = False
    killing = (
        "Kaggle ends no session from outside: its kernel is deleted, with its log and output, once what it has uploaded is safe"
    )

    def __init__(
        self,
        api: Callable[[], KaggleApi],
        run: str,
        home: HomeLayout,
        clock: Clock,
        settings: KaggleSettings,
        *,
        checkpoints: KaggleCheckpoints,
        looks: Looks,
        control: Control,
        sources: DataSources,
        source_root: Path,
    ) -> None:
        self._api = api
        self._run = run
        self._layout = home.run(run)
        self._clock = clock
        self._settings = settings
        self._checkpoints = checkpoints
        self._looks = looks
        self._control = control
        self._source_root = source_root
        self._data = sources
        self._promotion = Promotion(api, run, self._layout, clock, settings, checkpoints)
        self._refusal: _Refusal | None = None
        self._quota: tuple[datetime, Quota] | None = None
        self._ready: set[str] = set()
        self._waiting: dict[str, tuple[datetime, str]] = {}
        self._followed: dict[str, tuple[float, str]] = {}

    @property
    def look_every_s(self) -> float:
        """Seconds between two ticks: most ask Kaggle nothing, and hear what the user wishes."""
        return min(self._settings.poll_every_s / _TICKS_A_POLL, _LONGEST_TICK_S)

    @property
    def lag_s(self) -> float:
        """Seconds by which what Kaggle says may be behind: until then a session that it has ended is only believed to be."""
        return self._settings.settle_s + _LAG_POLLS * self._settings.poll_every_s

    # Whether a session may be pushed.

    def quota(self, now: datetime) -> Quota:
        """Return whether a session would be taken now; CPU sessions have no quota.

        A session is taken while more than the settling time is left, however much shorter than its limit that is: how a
        session ends whose quota runs out is Kaggle's to decide, and what it has uploaded by then is kept. A quota that Kaggle
        does not tell of is left to Kaggle as well; one that cannot be asked for is waited for.
        """
        if (refusal := self._refused(now)) is not None:
            return Quota(available=False, reason=refusal.reason, until=refusal.until)
        if self._settings.accelerator == "cpu":
            return Quota(available=True)
        if self._quota is None or now >= self._quota[0] + timedelta(seconds=self._settings.poll_every_s):
            self._quota = (now, self._ask_quota(now))
        return self._quota[1]

    def _ask_quota(self, now: datetime) -> Quota:
        try:
            told = self._api().quota()
        except TemporaryError as error:
            soon = now + timedelta(seconds=self._settings.poll_every_s)
            return Quota(available=False, reason=f"the weekly GPU quota cannot be asked for: {error.what}", until=soon)
        return weekly_quota(told, self._settings)

    def _refused(self, now: datetime) -> _Refusal | None:
        if self._refusal is not None and now >= self._refusal.until:
            self._refusal = None
        return self._refusal

    def make_ready(self, spec: SessionSpec) -> str | None:
        """Bring about what a push needs: the data, the control dataset, the attempt's own dataset, and quota.

        Raises:
            UserError: the data is not on the account, or another run of this name is.
            TemporaryError: Kaggle cannot be asked, or did not take something.
        """
        check_run_fits(spec.run)
        now, name = self._clock.now(), attempt_name(spec.session, spec.attempt)
        if (refusal := self._refused(now)) is not None:
            return refusal.reason
        if name in self._waiting and now < self._waiting[name][0]:
            return self._waiting[name][1]
        again_at = now + timedelta(seconds=self._settings.poll_every_s / LOOKS_A_POLL)
        try:
            reason = self._unready(spec, now)
        except TemporaryError as error:
            self._waiting[name] = (again_at, error.what)
            raise
        if reason is not None:
            self._waiting[name] = (again_at, reason)
        return reason

    def _unready(self, spec: SessionSpec, now: datetime) -> str | None:
        for data in spec.data:
            if (reason := self._data.unready(data)) is not None:
                return reason
        # All of them are begun before the first is waited for: Kaggle processes them side by side.
        reasons = [
            self._unready_dataset(spec),
            self._control.make_ready(),
            self._promotion.unready(spec.start.id) if spec.start is not None else None,
        ]
        if waiting := [reason for reason in reasons if reason is not None]:
            return waiting[0]
        quota = self.quota(now)
        return None if quota.available else quota.reason

    def _unready_dataset(self, spec: SessionSpec) -> str | None:
        """Make the attempt's dataset, which holds its spec, unless it is there; return what that waits for."""
        from state.kaggle.datasets import LocalFile, ensure_dataset

        slug = attempt_slug(spec.run, spec.session, spec.attempt)
        if slug in self._ready:
            return None
        folder, content = self._attempt(spec.session, spec.attempt), spec.to_json()
        info = self._api().dataset(slug)
        if info is None:
            folder.root.mkdir(parents=True, exist_ok=True)
            if not folder.spec.exists() or folder.spec.read_bytes() != content:
                files.write_atomically(folder.spec, content)
            local = (LocalFile(path=folder.spec, name=SPEC_NAME, size_bytes=len(content)),)
            ensure_dataset(self._api(), slug, local, **sending(folder.root, self._clock, self._settings))
            return f"the dataset {slug} to be processed by Kaggle"
        if info.current_version is None or not self._api().dataset_is_ready(slug):
            return f"the dataset {slug} to be processed by Kaggle"
        if info.current_version == _FIRST_VERSION:
            self._check_it_is_of(slug, folder, content)
        self._ready.add(slug)
        return None

    def _check_it_is_of(self, slug: str, folder: AttemptLayout, content: bytes) -> None:
        """Check that a dataset of the attempt's name holds the attempt's spec: two homes may have runs of one name."""
        listed = self._api().dataset_files(slug, _FIRST_VERSION)
        if listed is None:
            raise TemporaryError(f"the files of {slug} are not shown yet")
        there = folder.root / "session-on-kaggle.json"
        if SPEC_NAME in listed:
            folder.root.mkdir(parents=True, exist_ok=True)
            files.remove_tree(there)
            self._api().download(slug, _FIRST_VERSION, SPEC_NAME, there)
        if SPEC_NAME not in listed or there.read_bytes() != content:
            raise UserError(
                f"the account has a dataset {slug} already, of another run named {self._run}",
                remedy=f"gemma-orch adopt {self._run} goes on with that run; or begin this one with another --name",
            )
        files.remove_tree(there)

    # Pushing.

    def launch(self, spec: SessionSpec) -> str:
        """Push an attempt's kernel, once, and return which kernel and version it is.

        Raises:
            AmbiguousError: it is there already, or whether it is cannot be told: look.
            NotLaunchedError: it certainly was not pushed, and may be later.
            UserError: Kaggle refuses it until the user changes something.
        """
        slug = attempt_slug(spec.run, spec.session, spec.attempt)
        try:
            if self._api().kernel(slug) is not None:
                raise AmbiguousError(f"the kernel {slug} is on the account already")
            push = self._push(spec, slug)
        except AmbiguousError:
            raise
        except TemporaryError as error:
            raise NotLaunchedError(f"{slug} is not pushed: {error.what}") from error
        self._looks.put(spec.session, spec.attempt, Seen())
        try:
            version = self._api().push_kernel(push)
        except AmbiguousError:
            raise
        except UserError as error:
            self._undo(slug, is_there=isinstance(error, InvalidSourcesError))
            raise
        except TemporaryError as error:
            raise self._not_now(error) from error
        effects.done("launch", slug)
        return f"{slug}/v{version}"

    def _push(self, spec: SessionSpec, slug: str) -> KernelPush:
        place = self._checkpoints.place(spec.start.id) if spec.start is not None else None
        if spec.start is not None and place is None:
            raise TemporaryError(f"{spec.start.id}, where {slug} is to start, is not on the account yet")
        settings, storage = self._settings, self._storage(spec)
        job = KaggleJob(
            spec=spec,
            owner=self._owner(),
            accelerator=settings.accelerator,
            start=place,
            dataset=slug,
            control=control_slug(spec.run),
            upload_every_s=max(settings.upload_every_s, spec.limit_s / storage.most_uploads),
            stop_poll_every_s=settings.stop_poll_every_s,
            settle_s=settings.settle_s,
            processing_limit_s=settings.processing_limit_s,
            most_versions=storage.most_versions,
            token_dataset=settings.token_dataset,
        )
        sources = [f"{self._owner()}/{source}" for data in spec.data for source in self._data.of(data)]
        sources += [f"{place.owner}/{place.slug}"] if place is not None and place.kind == "dataset" else []
        sources += [settings.token_dataset] if settings.token_dataset is not None else []
        return KernelPush(
            slug=slug,
            source=bundle(job, self._source_root),
            machine_shape=MACHINE_SHAPES[settings.accelerator],
            internet=settings.internet,
            timeout_s=_timeout_s(spec.limit_s),
            dataset_sources=tuple(dict.fromkeys(sources)),
            kernel_sources=(f"{place.owner}/{place.slug}",) if place is not None and place.kind == "output" else (),
        )

    def _storage(self, spec: SessionSpec) -> StoragePlan:
        if spec.start is not None:
            checkpoint_bytes = self._checkpoints.manifest(spec.start.id)[0].total_bytes
        else:
            checkpoint_bytes = _BYTES_PER_NUMBER * spec.architecture.num_parameters()
        return storage_plan(
            checkpoint_bytes=checkpoint_bytes,
            stored_bytes=self._checkpoints.stored_bytes,
            budget_bytes=int(self._settings.storage_quota_bytes * self._settings.storage_share),
            uploads=1 + math.ceil(spec.limit_s / self._settings.upload_every_s),
            kept_attempts=spec.retention.keep_session_starts,
            num_elsewhere=self._checkpoints.num_sound,
        )

    def _not_now(self, error: TemporaryError) -> NotLaunchedError:
        """Remember for how long Kaggle has said no, and return what the controller is told."""
        now = self._clock.now()
        if isinstance(error, QuotaError):
            until = error.until if isinstance(error, KaggleQuotaError) else None
            if until is None or until <= now:
                until = self._refresh_at(now)
            self._refusal = _Refusal(f"{error.what}; it is refreshed at {until:%Y-%m-%d %H:%M} UTC", until)
        else:
            polls = _BUSY_POLLS if isinstance(error, BusyError) else 1.0
            until = now + timedelta(seconds=polls * self._settings.poll_every_s)
            self._refusal = _Refusal(f"{error.what}; the next try is at {until:%H:%M:%S} UTC", until)
        return NotLaunchedError(self._refusal.reason)

    def _refresh_at(self, now: datetime) -> datetime:
        """Return when the weekly quota is refreshed; when Kaggle does not tell, soon: then it is asked again."""
        try:
            told = self._api().quota().refresh_at
        except GemmaOrchError:
            told = None
        return told if told is not None and told > now else now + timedelta(seconds=self._settings.settle_s)

    def _undo(self, slug: str, *, is_there: bool) -> None:
        """Delete the kernel of a push that was refused in part, where there is one: it runs without its inputs.

        Raises:
            AmbiguousError: it may still be there.
        """
        try:
            if is_there or self._api().kernel(slug) is not None:
                self._api().delete_kernel(slug)
        except GemmaOrchError as error:
            raise AmbiguousError(
                f"the kernel {slug} was pushed without its inputs and may still be there: {error.what}"
            ) from error

    # Watching.

    def observe(self, ref: AttemptRef) -> Observation:
        """Return what is known of an attempt, asking Kaggle at most once a poll interval while nothing happens."""
        seen = self._looks.seen(ref.session, ref.attempt)
        if seen.over is not None:
            return Observation(Sighting.ENDED, seen.over, seen.over_at)
        looks_before = seen.looks
        seen = self._looks.refresh(ref.session, ref.attempt, _version(ref))
        if seen.looks != looks_before:
            seen = self._take_in(ref, seen)
        report = self.report(ref)
        observation = judge(
            seen,
            launched_at=ref.launched_at,
            report=report,
            delivered=report is not None and self._is_delivered(report),
            salvaged=self._is_salvaged(ref, seen),
            settings=self._settings,
            now=self._clock.now(),
        )
        if observation.sighting is Sighting.ENDED:
            over_at = observation.ended_at or (report.ended_at if report is not None else self._clock.now())
            self._looks.change(ref.session, ref.attempt, over=observation.detail, over_at=over_at)
            return Observation(Sighting.ENDED, observation.detail, over_at)
        return observation

    def _take_in(self, ref: AttemptRef, seen: Seen) -> Seen:
        """Take in what a look has shown: new checkpoints, the report, what a session that is over left behind."""
        try:
            self._checkpoints.examine(ref.session, ref.attempt)
            if seen.report_at is None and self._find_report(ref):
                seen = self._looks.change(ref.session, ref.attempt, report_at=self._clock.now())
                if seen.ended is None:  # the report is its last act: it may be over
                    seen = self._looks.look(Look.STATUS, ref.session, ref.attempt, _version(ref))
            report = self.report(ref)
            missing = report is None or not self._is_delivered(report)
            if seen.ended is not None and missing and not seen.outputs_read:
                seen = self._read_outputs(ref)
        except GemmaOrchError:
            return seen  # what could not be had now is asked for again at the next look
        return seen

    def _is_delivered(self, report: SessionReport) -> bool:
        return report.head is None or self._checkpoints.is_known(report.head)

    def _is_salvaged(self, ref: AttemptRef, seen: Seen) -> bool:
        looked = seen.dataset_at is not None and seen.ended_at is not None and seen.dataset_at >= seen.ended_at
        return seen.outputs_read and looked and self._checkpoints.has_examined(ref.session, ref.attempt)

    def _find_report(self, ref: AttemptRef) -> bool:
        """Fetch the report from the attempt's dataset, where it is there; return whether it is here."""
        folder = self._attempt(ref.session, ref.attempt)
        if folder.report.exists():
            return True
        version = self._checkpoints.report_version(ref.session, ref.attempt)
        if version is None:
            return False
        slug = attempt_slug(ref.run, ref.session, ref.attempt)
        fetch: Callable[[Path], object] = lambda target: self._api().download(slug, version, REPORT_NAME, target)  # noqa: E731
        return self._keep_report(ref, fetch)

    def _keep_report(self, ref: AttemptRef, fetch: Callable[[Path], object]) -> bool:
        folder = self._attempt(ref.session, ref.attempt)
        folder.root.mkdir(parents=True, exist_ok=True)
        fetched = folder.root / ".report-on-kaggle.json"
        files.remove_tree(fetched)
        fetch(fetched)
        content = fetched.read_bytes()
        files.remove_tree(fetched)
        try:
            report = SessionReport.from_json(content, "the session's report")
        except DataError:
            return False
        if (report.run, report.session, report.attempt) != (ref.run, ref.session, ref.attempt):
            return False
        files.write_atomically(folder.report, content)
        return True

    def _read_outputs(self, ref: AttemptRef) -> Seen:
        """Look through what a session has left in its working folder: its log, its report, a checkpoint it could not upload."""
        slug, version = attempt_slug(ref.run, ref.session, ref.attempt), _version(ref)
        outputs = self._api().session_outputs(slug, version)
        if outputs is None:
            return self._looks.seen(ref.session, ref.attempt)
        listed, log = outputs
        self._keep_log(ref, log)
        report = next((file for file in listed if file.name == REPORT_NAME), None)
        if report is not None and not self._attempt(ref.session, ref.attempt).report.exists():
            self._keep_output_report(ref, report)
        self._checkpoints.take_outputs(ref.session, ref.attempt, version, listed)
        here = self._attempt(ref.session, ref.attempt).report.exists()
        known = self._looks.seen(ref.session, ref.attempt)
        found_at = known.report_at or (self._clock.now() if here else None)
        # A list without anything may be one that lags: it is asked for again when the second look says that it is over.
        return self._looks.change(ref.session, ref.attempt, outputs_read=bool(listed) or known.ended_again, report_at=found_at)

    def _keep_output_report(self, ref: AttemptRef, report: OutputFile) -> bool:
        return self._keep_report(ref, lambda target: self._api().download_output(report, target))

    def report(self, ref: AttemptRef) -> SessionReport | None:
        """Return the report of an attempt, once observing it has found one."""
        try:
            data = self._attempt(ref.session, ref.attempt).report.read_bytes()
        except FileNotFoundError:
            return None
        return SessionReport.from_json(data, "the session's report")

    def heartbeat(self, ref: AttemptRef) -> Heartbeat | None:
        """Return nothing: a running session's files cannot be read, and its log is for people."""
        return None

    # Ending.

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
        if seen.over is not None:
            return
        slug, api = attempt_slug(ref.run, ref.session, ref.attempt), self._api()
        kernel = api.kernel(slug)
        if kernel is None:
            return  # one look that does not show it is no proof that it is gone: observing it finds that out
        if seen.ended is not None and not seen.ended_again:  # nor is one word that it is over
            seen = self._looks.look(Look.STATUS, ref.session, ref.attempt, _version(ref))
            if seen.ended is not None and not seen.ended_again:
                raise TemporaryError(f"whether {slug} is over cannot be told now")
        if seen.ended is None:  # a kernel that is deleted may run on unseen: then it is to end soon
            with contextlib.suppress(TemporaryError):  # the wish is remembered, and goes out with the next session at the latest
                self._control.ask_to_stop(ref.session, ref.attempt)
        self._looks.take_dataset(ref.session, ref.attempt, api.dataset(slug))
        self._checkpoints.examine(ref.session, ref.attempt)
        self._find_report(ref)
        self._read_outputs(ref)
        how = "it was over already"
        if seen.ended is None:
            self._checkpoints.bring_home(ref.session, ref.attempt)
            api.delete_kernel(slug)
            effects.done("signal", "delete")
            how = "its kernel was deleted, after all that could be saved of it was"
        self._looks.change(ref.session, ref.attempt, over=how, over_at=self._clock.now())

    # Its log.

    def read_log(self, ref: AttemptRef, offset: int) -> tuple[str, int]:
        """Return what an attempt has printed from an offset on, in characters, and the offset after it.

        Raises:
            TemporaryError: Kaggle does not give it now.
        """
        text = self._log(ref)
        return text[offset:], max(offset, len(text))

    def _log(self, ref: AttemptRef) -> str:
        path = self._attempt(ref.session, ref.attempt).log
        if path.exists():
            return path.read_text(encoding="utf-8")
        slug, version = attempt_slug(ref.run, ref.session, ref.attempt), _version(ref)
        seen = self._looks.seen(ref.session, ref.attempt)
        now_s = self._clock.monotonic()
        if slug in self._followed and now_s < self._followed[slug][0] + _FOLLOW_PAUSE_S:
            return self._followed[slug][1]
        text = ""
        if seen.ended is not None or seen.over is not None:
            outputs = self._api().session_outputs(slug, version)
            text = outputs[1] if outputs is not None else ""
            if text:
                self._keep_log(ref, text)
        elif seen.alive_at is not None or self._api().kernel(slug) is not None:
            text = self._api().follow_log(slug, version, for_s=_FOLLOW_S)
        before = self._followed.get(slug, (0.0, ""))[1]
        self._followed[slug] = (self._clock.monotonic(), text if len(text) >= len(before) else before)
        return self._followed[slug][1]

    def _keep_log(self, ref: AttemptRef, text: str) -> None:
        folder = self._attempt(ref.session, ref.attempt)
        if text and self._looks.seen(ref.session, ref.attempt).ended is not None:
            folder.root.mkdir(parents=True, exist_ok=True)
            files.write_atomically(folder.log, text.encode())

    def _attempt(self, session: int, attempt: int) -> AttemptLayout:
        return self._layout.attempt(session, attempt)

    def _owner(self) -> str:
        return self._settings.owner or self._api().user


def weekly_quota(told: AcceleratorQuota, settings: KaggleSettings) -> Quota:
    """Return whether the week's GPU seconds are enough for a session that is worth its start."""
    if told.gpu_allowed_s is None:
        return Quota(available=True, reason="Kaggle tells of no GPU quota")
    taken_s = (told.gpu_used_s or 0.0) + (told.gpu_reserved_s or 0.0)
    left_s = told.gpu_allowed_s - taken_s - settings.gpu_reserve_s
    if left_s > settings.settle_s:
        return Quota(available=True)
    reserve = f", {settings.gpu_reserve_s / 3600:.1f} h are kept for you" if settings.gpu_reserve_s else ""
    used = f"{taken_s / 3600:.1f} of {told.gpu_allowed_s / 3600:.1f} h are used or reserved{reserve}"
    return Quota(available=False, reason=f"the weekly GPU quota is used up: {used}", until=told.refresh_at)


def _version(ref: AttemptRef) -> int:
    """Return the version of an attempt's kernel; the first one when the answer to its push was lost."""
    match = re.search(r"(\d+)$", ref.handle or "")
    return int(match[1]) if match else _FIRST_VERSION


@dataclass(frozen=True)
class KaggleRun:
    """What a run on Kaggle needs: its backend, and the store of its checkpoints, which share what they see."""

    backend: KaggleBackend
    checkpoints: KaggleCheckpoints


def open_kaggle_run(
    api: Callable[[], KaggleApi],
    run: str,
    home: HomeLayout,
    clock: Clock,
    settings: KaggleSettings,
    *,
    record: Callable[[], RunRecord],
    source_root: Path,
    sources: DataSources | None = None,
    local: DirectoryCheckpointStore | None = None,
) -> KaggleRun:
    """Return the backend and the checkpoint store of a run.

    Args:
        api: The account; called when the first call is due, and must return the same one each time.
        run: The run's name.
        home: Where runs lie.
        clock: The time.
        settings: What the run says about Kaggle.
        record: What the ledger says of the run now.
        source_root: The folder with the packages that a kernel gets.
        sources: The datasets of the run's data; None: those that are named after it.
        local: The checkpoints that are here; None: those of the run's folder.
    """
    layout = home.run(run)
    folder = kaggle_folder(layout)
    looks = Looks(api, run, folder, clock, settings)
    checkpoints = KaggleCheckpoints(
        api,
        run,
        layout,
        clock,
        settings,
        local=local or DirectoryCheckpointStore(layout.checkpoints),
        looks=looks,
        known_attempts=lambda: record().attempts,
    )
    backend = KaggleBackend(
        api,
        run,
        home,
        clock,
        settings,
        checkpoints=checkpoints,
        looks=looks,
        control=Control(api, run, folder, clock, settings, record),
        sources=sources or DataSources(api, run, folder),
        source_root=source_root,
    )
    return KaggleRun(backend, checkpoints)
