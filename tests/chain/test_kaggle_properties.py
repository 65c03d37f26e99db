"""Whatever Kaggle loses, delays or lies about, and whenever the controller dies: one session at a time, to the last step."""

from __future__ import annotations

import contextlib
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.backends.kaggle.session.backend import KaggleRun, open_kaggle_run
from orchestrator.controller.decide import Finish, GiveUp, Wait
from orchestrator.controller.tick import Controller
from orchestrator.ports import Ports
from orchestrator.wiring import backend_kind
from state import files
from state.backend_settings import KaggleSettings
from state.clock import ManualClock
from state.errors import AmbiguousError, TemporaryError
from state.kaggle.errors import KaggleQuotaError
from state.kaggle.job import KaggleJob
from state.kaggle.names import attempt_dataset_slug, attempt_kernel_slug
from state.kaggle.records import DatasetInfo, KernelInfo, SessionStatus
from state.layout import HomeLayout
from state.ledger import CheckpointState, RunHeader, RunRecord, RunWishes, StopWish
from state.report import Outcome
from state.session import AttemptState, RunState
from state.spec import SessionLimits, SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from state.stores.run_store import SqliteRunStore
from tests.factories import DATA, OWNER, RUN, after, commit_checkpoint, report, run_spec
from tests.fake_kaggle import FakeKaggle, FakeKernel, FakeVersion, job_in, source_root
from tests.kaggle_stage import ReadySources, checkpoint_files, kaggle_context, note_of

SETTINGS = KaggleSettings(accelerator="cpu", upload_every_s=1200.0)
TOTAL_STEPS = 60
STEPS_A_SESSION = 20
LIMIT_S = 4000.0
_LONGEST_LAG_S = 500.0  # shorter than `settle_s`, which is what that is set for
_FOR_EVER_S = 100_000.0  # longer than any session may be queued and run
_MOST_TICKS = 4000
_RAM = Path("/dev/shm")


@dataclass
class Session:
    """How one pushed kernel goes."""

    spec: SessionSpec
    kernel: FakeKernel
    starts_s: float
    uploads: list[tuple[float, int]]
    ends_s: float
    cut_off: bool
    is_over: bool = False


@dataclass(frozen=True)
class Refusal:
    """A phase in which reads of a kernel and its dataset answer 403 or 404."""

    from_s: float
    until_s: float
    kernel_only: bool

    def meets(self, name: str, now_s: float) -> bool:
        """Whether it is the answer to a call."""
        return self.from_s <= now_s < self.until_s and not (self.kernel_only and name.startswith("dataset"))


class CapriciousKaggle(FakeKaggle):
    """An account whose sessions go on with the clock, whose reads lag and fail, and whose writes lose their answers."""

    def __init__(self, root: Path, clock: ManualClock, chance: random.Random) -> None:
        super().__init__(clock)
        self.root = root
        self.chance = chance
        self.trouble = 0.25
        self.sessions: dict[str, Session] = {}
        self.shown_from: dict[str, float] = {}
        self.ready_from: dict[tuple[str, int], float] = {}
        self.lied: set[str] = set()
        self.refusing: dict[str, Refusal] = {}
        self.on_push = self._pushed

    # The world.

    def _pushed(self, kernel: FakeKernel) -> None:
        alive = [slug for slug, one in self.sessions.items() if not one.is_over]
        assert alive == [], f"{kernel.push.slug} is pushed while {alive} live"
        spec = KaggleJob.from_json(job_in(kernel.push.source), "the job").spec
        if spec.start is not None:
            dataset = self.dataset_table[attempt_dataset_slug(RUN, *_origin(spec.start.id))]
            assert any(f"{spec.start.id}.manifest.json" in version.files for version in dataset if version.status == "Ready")
        now_s = self.clock.monotonic()
        starts_s = now_s + self.chance.choice([5.0, 60.0, 3000.0])
        first = spec.start.step if spec.start else 0
        steps = sorted({min(first + step, TOTAL_STEPS) for step in (10, STEPS_A_SESSION)})
        uploads = [(starts_s + 1200.0 * number, step) for number, step in enumerate(steps, start=1)]
        cut_off = self.chance.random() < 0.3
        if cut_off:
            uploads = uploads[: self.chance.choice([0, 1, 1])]
        ends_s = starts_s + LIMIT_S if cut_off else uploads[-1][0] + 10.0
        self.sessions[kernel.push.slug] = Session(spec, kernel, starts_s, uploads, ends_s, cut_off)
        self.shown_from[kernel.push.slug] = now_s + self.chance.choice([0.0, 0.0, _LONGEST_LAG_S])
        refused_s = now_s + self.chance.choice([0.0, starts_s - now_s, starts_s - now_s + 300.0, ends_s - now_s - 100.0])
        lasts_s = self.chance.choice([0.0, 40.0, 700.0, 3000.0, 3000.0, _FOR_EVER_S])
        self.refusing[kernel.push.slug] = Refusal(refused_s, refused_s + lasts_s, kernel_only=lasts_s == _FOR_EVER_S)

    def go_on(self) -> None:
        """Let everything happen that is due."""
        now_s = self.clock.monotonic()
        for session in self.sessions.values():
            while session.uploads and session.uploads[0][0] <= now_s:
                at_s, step = session.uploads.pop(0)
                self._upload(session, step, at_s, is_last=not session.uploads and not session.cut_off)
            if now_s >= session.ends_s:
                session.is_over = True
                session.kernel.status = SessionStatus.CANCELLED if session.cut_off else SessionStatus.COMPLETE
            elif now_s >= session.starts_s:
                session.kernel.status = SessionStatus.RUNNING
        for (slug, number), ready_s in self.ready_from.items():
            if now_s >= ready_s and slug in self.dataset_table:
                version = self.dataset_table[slug][number - 1]
                version.status = "Ready" if version.status == "Blobs_Received" else version.status

    def _upload(self, session: Session, step: int, at_s: float, *, is_last: bool) -> None:
        spec = session.spec
        slug = attempt_dataset_slug(RUN, spec.session, spec.attempt)
        store = DirectoryCheckpointStore(self.root / "worker" / slug)
        parent = spec.start.id if spec.start is not None else None
        made = commit_checkpoint(
            store, step, session=spec.session, number=spec.attempt, fence=spec.fence, branch=spec.branch, parent=parent
        )
        content = checkpoint_files(store, made)
        if is_last:
            said = report(
                spec.session,
                spec.attempt,
                fence=spec.fence,
                start_step=spec.start.step if spec.start else 0,
                end_step=step,
                saved_step=step,
                head=made.id,
                outcome=Outcome.COMPLETED if step == TOTAL_STEPS else Outcome.BUDGET,
                ended_at=self.clock.now(),
            )
            content = {"report.json": said.to_json(), **content}
            session.kernel.outputs = {"report.json": said.to_json()}
        self.dataset_table[slug].append(FakeVersion(str(note_of(store, made)), content, "Blobs_Received"))
        number = len(self.dataset_table[slug])
        self.ready_from[slug, number] = at_s + self.chance.choice([20.0, 20.0, 2500.0])  # some take longer than reads lag

    # Its calls.

    def _called(self, name: str, slug: str = "") -> None:
        self.go_on()
        super()._called(name, slug)
        if self.chance.random() < self.trouble:
            writes = ("push_kernel", "create_dataset", "create_version")
            raise AmbiguousError(f"{name} lost") if name in writes else TemporaryError(f"{name} failed")

    def _done(self, name: str) -> None:
        super()._done(name)
        if self.chance.random() < self.trouble:
            raise AmbiguousError(f"the answer to {name} is lost")

    def _is_shown(self, slug: str) -> bool:
        return self.clock.monotonic() >= self.shown_from.get(slug, 0.0)

    def _is_refused(self, name: str, slug: str) -> bool:
        phase = self.refusing.get(slug)
        return super()._is_refused(name, slug) or (phase is not None and phase.meets(name, self.clock.monotonic()))

    def kernel(self, slug: str, *, owner: str | None = None) -> KernelInfo | None:
        found = super().kernel(slug, owner=owner)
        return found if self._is_shown(slug) else None

    def kernels(self, prefix: str) -> tuple[KernelInfo, ...]:
        found = tuple(kernel for kernel in super().kernels(prefix) if self._is_shown(kernel.slug))
        is_cut = self.chance.random() < self.trouble  # newest first: what is cut off is what nobody asks for
        return found[-1:] if is_cut and len(found) > 1 else found

    def session_status(self, slug: str, version: int) -> SessionStatus | None:
        status = super().session_status(slug, version)
        if status is SessionStatus.RUNNING and slug not in self.lied and self.chance.random() < self.trouble:
            self.lied.add(slug)
            return self.chance.choice([SessionStatus.COMPLETE, SessionStatus.ERROR, SessionStatus.CANCELLED, None])
        return status if self._is_shown(slug) else None

    def dataset(self, slug: str, *, owner: str | None = None) -> DatasetInfo | None:
        info = super().dataset(slug, owner=owner)
        if info is None or self.chance.random() >= self.trouble:
            return info
        current = info.current_version or 1
        may_lag = self.clock.monotonic() < self.ready_from.get((slug, current), 0.0) + _LONGEST_LAG_S
        return _older(info) if current > 1 and may_lag else None  # None: it is refused


def _older(info: DatasetInfo) -> DatasetInfo:
    """What was true a version ago."""
    current = (info.current_version or 1) - 1
    versions = tuple(version for version in info.versions if version.number <= current)
    return DatasetInfo(info.slug, current or None, info.total_bytes, info.is_private, versions)


def _origin(checkpoint_id: str) -> tuple[int, int]:
    session, _, attempt = checkpoint_id.rpartition("-")[2].removeprefix("s").partition("a")
    return int(session), int(attempt)


class Laptop:
    """The controller, which dies at any call and begins anew."""

    def __init__(self, root: Path, account: CapriciousKaggle) -> None:
        self.home = HomeLayout(root / "home")
        self.account = account
        self.code = source_root(root / "code")
        self.runs = SqliteRunStore(self.home.ledger)
        spec = run_spec(
            backend="kaggle",
            kaggle=SETTINGS,
            total_steps=TOTAL_STEPS,
            limits=SessionLimits(session_limit_s=LIMIT_S),
        )
        now = account.clock.now()
        header = RunHeader(name=RUN, created_at=now, resumed_at=now, data=(DATA,))
        self.runs.create(header, RunWishes(spec=spec))
        self.begin()

    def begin(self) -> None:
        context = kaggle_context(self.account, self.home.run(RUN), SETTINGS)
        self.kaggle: KaggleRun = open_kaggle_run(context, lambda: self.record, self.code, sources=ReadySources())
        self.controller = Controller(
            Ports(
                kind=backend_kind,
                runs=self.runs,
                home=self.home,
                clock=self.account.clock,
                owner=OWNER,
                backend=lambda _name, _run: self.kaggle.backend,
                checkpoints=lambda _run: self.kaggle.checkpoints,
                prepare=lambda _spec, _keep_lease, **_version: DATA,
            )
        )

    @property
    def record(self) -> RunRecord:
        return self.runs.load(RUN)

    def tick_until(self, kind: type[Wait | Finish | GiveUp], words: str) -> None:
        for _ in range(200):
            decision = self.controller.tick(RUN).decision
            if isinstance(decision, kind) and words in str(decision):
                return
            self.account.clock.advance(61.0)
        raise AssertionError(decision)

    def forget(self) -> None:
        """Lose all that was seen, which can be seen again."""
        files.remove_tree(self.home.run(RUN).root / "kaggle")


@pytest.mark.parametrize("seed", range(24))
def test_whatever_kaggle_does_one_session_lives_at_a_time_and_the_run_comes_to_its_end(seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=_RAM if _RAM.is_dir() else None) as folder:
        account = CapriciousKaggle(Path(folder), ManualClock(), chance)
        laptop = Laptop(Path(folder), account)
        decision: object = None
        for _ in range(_MOST_TICKS):
            with contextlib.suppress(TemporaryError):
                decision = laptop.controller.tick(RUN).decision
            record = laptop.record
            assert not [one.note for one in record.checkpoints.values() if one.state is CheckpointState.QUARANTINED]
            if isinstance(decision, GiveUp):  # the user says start again: bad luck may come three times in a row
                laptop.controller.activate(RUN)
            if isinstance(decision, Finish):
                break
            account.clock.advance(chance.choice([6.0, 6.0, 61.0, 61.0, 400.0, 8000.0]))
            if chance.random() < 0.05:
                laptop.begin()
            if chance.random() < 0.01:
                laptop.forget()
                laptop.begin()
        assert record.header.state is RunState.FINISHED, decision
        assert record.head_step == TOTAL_STEPS
        verified = [one for one in record.checkpoints.values() if one.state is CheckpointState.VERIFIED]
        assert len([one for one in verified if one.branch is None]) >= 2
        reported = [attempt for attempt in record.attempts if attempt.outcome in (Outcome.BUDGET, Outcome.COMPLETED)]
        assert all(attempt.saved_step == min(attempt.start_step + STEPS_A_SESSION, TOTAL_STEPS) for attempt in reported), (
            "work was done again"
        )
        laptop.runs.close()


def test_a_run_that_waits_for_the_weekly_quota_stops_when_it_is_asked_to_and_goes_on_after_the_refresh(tmp_path: Path) -> None:
    account = CapriciousKaggle(tmp_path, ManualClock(), random.Random(0))
    account.trouble = 0.0
    laptop = Laptop(tmp_path, account)
    account.failures["push_kernel"] = [KaggleQuotaError("Maximum weekly GPU quota reached.", until=after(50_000.0))]

    laptop.tick_until(Wait, "it is refreshed at 2026-01-01 13:53 UTC")
    assert laptop.record.attempts[0].state is AttemptState.PLANNED
    laptop.runs.set_stop(RUN, StopWish.CHECKPOINT)
    laptop.tick_until(Finish, "stopped on request")
    assert laptop.record.attempts[0].state is AttemptState.DROPPED
    laptop.controller.activate(RUN)
    laptop.tick_until(Wait, "it is refreshed at")
    assert account.count("push_kernel") == 1
    account.clock.advance(50_000.0)
    laptop.tick_until(Wait, "is running on kaggle")
    assert account.count("push_kernel") == 2
    laptop.runs.close()


def test_a_run_whose_kernel_finds_its_name_taken_stops_with_the_reason_and_goes_on_under_the_next_one(tmp_path: Path) -> None:
    account = CapriciousKaggle(tmp_path, ManualClock(), random.Random(0))
    account.trouble = 0.0
    account.add_version(attempt_kernel_slug(RUN, 1, 1), "the user's own", {"notes.txt": b"mine"})
    laptop = Laptop(tmp_path, account)
    laptop.tick_until(GiveUp, "is already in use by a dataset")
    assert laptop.record.attempts[0].state is AttemptState.LOST
    assert account.kernel_table == {}
    laptop.controller.activate(RUN)
    laptop.tick_until(Wait, "is running on kaggle")
    assert list(account.kernel_table) == [attempt_kernel_slug(RUN, 1, 2)]
    laptop.runs.close()
