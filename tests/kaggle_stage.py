"""A stage for the Kaggle backend: a home, an account in memory, and kernels that behave as told."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.backends.kaggle.session.backend import KaggleBackend, KaggleRun, open_kaggle_run
from orchestrator.backends.kaggle.session.inputs import DataSources
from orchestrator.ports import AttemptRef, Observation
from state.backend_settings import KaggleSettings
from state.clock import ManualClock
from state.kaggle.job import KaggleJob, StopFlag
from state.kaggle.names import VersionNote, attempt_dataset_slug, attempt_kernel_slug, checkpoint_file_names, control_slug
from state.kaggle.records import SessionStatus
from state.layout import MANIFEST_NAME, HomeLayout, RunLayout
from state.ledger import RunRecord
from state.manifest import Manifest
from state.report import Outcome
from state.spec import SessionData, SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import RUN, commit_checkpoint, report, run_record, run_spec, session_spec
from tests.fake_kaggle import FakeKaggle, FakeKernel, job_in, source_root

SLUG = attempt_kernel_slug(RUN, 1, 1)
"""The kernel of the first attempt."""
DATASET = attempt_dataset_slug(RUN, 1, 1)
LIMIT_S = 3600.0
SETTINGS = KaggleSettings(poll_every_s=60.0, settle_s=600.0, accelerator="cpu")


def kaggle_context(account: FakeKaggle, layout: RunLayout, settings: KaggleSettings = SETTINGS) -> KaggleContext:
    """The run of the tests on an account in memory, with the account's clock."""
    return KaggleContext(account, RUN, layout, account.clock, settings)  # type: ignore[arg-type]


class ReadySources(DataSources):
    """Data that is on the account."""

    def __init__(self) -> None:
        pass

    def of(self, data: SessionData) -> tuple[str, ...]:
        return ("data-p00", "data-p01")

    def unready(self, data: SessionData) -> str | None:
        return None


class Stage:
    """One run on one account."""

    def __init__(
        self,
        root: Path,
        settings: KaggleSettings = SETTINGS,
        *,
        clock: ManualClock | None = None,
        account: FakeKaggle | None = None,
        sources: DataSources | None = None,
        local: DirectoryCheckpointStore | None = None,
    ) -> None:
        self.root = root
        self.clock = clock or ManualClock()
        self.account = account or FakeKaggle(self.clock)
        self.settings = settings
        self.home = HomeLayout(root / "home")
        self.record: RunRecord = run_record(spec=run_spec(backend="kaggle"))
        self._sources = sources or ReadySources()
        self._local = local
        self._code = root / "code"
        if not self._code.exists():
            source_root(self._code)
        self.open()

    def open(self) -> None:
        """Begin anew, as a controller does after it was killed."""
        context = kaggle_context(self.account, self.home.run(RUN), self.settings)
        self.run: KaggleRun = open_kaggle_run(context, lambda: self.record, self._code, sources=self._sources, local=self._local)

    @property
    def backend(self) -> KaggleBackend:
        return self.run.backend

    @property
    def kernel(self) -> FakeKernel:
        """That of the first attempt."""
        return self.account.kernel_table[SLUG]

    @property
    def job(self) -> KaggleJob:
        """What its kernel was told."""
        return KaggleJob.from_json(job_in(self.kernel.push.source), "the job")

    def launch(self, spec: SessionSpec | None = None) -> str:
        """Make an attempt ready and push it."""
        spec = spec or session_spec()
        for _ in range(10):
            if self.backend.make_ready(spec) is None:
                return self.backend.launch(spec)
            self.clock.advance(self.settings.poll_every_s)
        raise AssertionError(self.backend.make_ready(spec))

    def running(self, status: SessionStatus = SessionStatus.RUNNING) -> Stage:
        """Launch an attempt, and let its session be in a state; nothing was seen of it yet."""
        self.launch()
        self.kernel.status = status
        return self

    def look(self, after_s: float | None = None, launched_at: datetime | None = None, *, has_handle: bool = True) -> Observation:
        """Observe the first attempt, a poll interval and its jitter later unless said otherwise."""
        self.clock.advance(self.settings.poll_every_s * 1.1 if after_s is None else after_s)
        return self.backend.observe(ref(launched_at, has_handle=has_handle))

    def deliver(self, step: int, *, last: bool = False, **values: Any) -> Manifest:
        """Let the first attempt deliver a checkpoint, with its report when it is the last one."""
        return upload_checkpoint(self.account, self.root / f"worker-{step}", step, with_report=last, **values)


def ref(launched_at: datetime | None = None, *, has_handle: bool = True) -> AttemptRef:
    return AttemptRef(RUN, 1, 1, f"{SLUG}/v1" if has_handle else None, launched_at, LIMIT_S)


def upload_checkpoint(
    account: FakeKaggle,
    folder: Path,
    step: int,
    *,
    session: int = 1,
    with_report: bool = False,
    lose: str | None = None,
    status: str = "Ready",
) -> Manifest:
    """Make a version of an attempt's dataset that holds a checkpoint, as a worker does."""
    store = DirectoryCheckpointStore(folder)
    manifest = commit_checkpoint(store, step, session=session)
    content = checkpoint_files(store, manifest)
    if with_report:
        content = {"report.json": report(session, end_step=step, saved_step=step, head=manifest.id).to_json(), **content}
    if lose is not None:
        del content[f"{manifest.id}.{lose}"]
    account.add_version(attempt_dataset_slug(RUN, session, 1), str(note_of(store, manifest)), content, status)
    return manifest


def note_of(store: DirectoryCheckpointStore, manifest: Manifest) -> VersionNote:
    return VersionNote(
        session=manifest.session,
        attempt=manifest.attempt,
        fence=manifest.fence,
        step=manifest.step,
        checkpoint=manifest.id,
        manifest_sha256=store.manifest(manifest.id)[1],
    )


def checkpoint_files(store: DirectoryCheckpointStore, manifest: Manifest) -> dict[str, bytes]:
    """A checkpoint's files under the names that they have on the account."""
    names = checkpoint_file_names(manifest.id, (*(entry.name for entry in manifest.files), MANIFEST_NAME))
    return {flat: (store.folder(manifest.id) / name).read_bytes() for name, flat in names.items()}


class HastyClock(ManualClock):
    """A clock on which every look at it takes a while, for those who wait in real time."""

    def now(self) -> datetime:
        self.advance(20.0)
        return super().now()


_ACCOUNTS: dict[Path, FakeKaggle] = {}


def kaggle_backend(root: Path, mode: str) -> KaggleBackend:
    """The backend over one world, whose sessions finish, wait to be stopped, or vanish."""
    account = _ACCOUNTS.setdefault(root, FakeKaggle(HastyClock()))
    stage = Stage(root, clock=account.clock, account=account)
    account.on_push = lambda kernel: _behave(account, kernel, mode)
    return stage.backend


def _behave(account: FakeKaggle, kernel: FakeKernel, mode: str) -> None:
    spec = KaggleJob.from_json(job_in(kernel.push.source), "the job").spec
    kernel.log = "नमस्ते from a kernel\n"

    def end(outcome: Outcome | None) -> None:
        kernel.status = SessionStatus.COMPLETE
        if outcome is not None:
            said = report(spec.session, spec.attempt, fence=spec.fence, outcome=outcome, head=None, saved_step=None)
            kernel.outputs = {"report.json": said.to_json()}

    def look() -> None:
        versions = account.dataset_table.get(control_slug(spec.run))
        flag = StopFlag.from_json(versions[-1].files["stop.json"], "the flag") if versions else StopFlag()
        if kernel.status is SessionStatus.RUNNING and (flag.session, flag.attempt) == (spec.session, spec.attempt):
            end(Outcome.STOPPED)

    kernel.status = SessionStatus.RUNNING
    if mode == "wait":
        kernel.on_look = look
    else:
        end(Outcome.BUDGET if mode == "finish" else None)


def bodies(files: dict[str, bytes]) -> dict[str, Any]:
    """JSON files, read."""
    return {name: json.loads(content) for name, content in files.items()}


Make = Callable[..., Stage]
