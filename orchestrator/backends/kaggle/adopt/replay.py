"""Replays a run on an account into changes of the ledger; pure functions.

The attempts are replayed in the order of their fence tokens, each through `reconcile`, as the controller that launched them
did. The lineage is not guessed: each session's spec names the checkpoint that was the head at its launch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from orchestrator.controller.decide import stop_message
from orchestrator.controller.reconcile import Found, Observed, reconcile
from orchestrator.ports import AttemptStatus, Observation
from state.errors import CorruptCheckpointError, DataError, ExitCode, UserError
from state.kaggle.job import StopFlag
from state.layout import attempt_name, attempt_of, parse_attempt_name
from state.ledger import (
    AddEvent,
    AttemptRecord,
    Change,
    CheckpointRecord,
    CheckpointState,
    DataRecord,
    Event,
    PutAttempt,
    PutCheckpoint,
    RunHeader,
    RunRecord,
    RunWishes,
    SetHeader,
    StopWish,
)
from state.lineage import ancestors
from state.report import Outcome, SessionReport
from state.session import AttemptState, RunState
from state.spec import ExpectedCheckpoint, RunSpec, SessionSpec, compare_specs

BACKEND = "kaggle"
_GONE = (AttemptStatus.ENDED, AttemptStatus.MISSING)


@dataclass(frozen=True)
class SeenAttempt:
    """One attempt as the account shows it."""

    session: int
    attempt: int
    sighting: AttemptStatus
    """State of its kernel; MISSING: there is none."""
    detail: str = ""
    handle: str | None = None
    spec: SessionSpec | None = None
    """The session's spec; None: it is no longer on the account."""
    report: SessionReport | None = None
    found: tuple[Found, ...] = ()
    corrupt: tuple[CorruptCheckpointError, ...] = ()
    has_dataset: bool = True
    made_at: datetime | None = None
    """When its dataset was created."""
    pushed_at: datetime | None = None
    changed_at: datetime | None = None
    """When its dataset was last changed."""

    @property
    def key(self) -> tuple[int, int]:
        """Session and attempt."""
        return self.session, self.attempt

    @property
    def name(self) -> str:
        """The attempt's name within its run."""
        return attempt_name(self.session, self.attempt)

    @property
    def fence(self) -> int | None:
        """Its fence token; None when only its name is left, because all its checkpoints were pruned."""
        if self.spec is not None:
            return self.spec.fence
        return self.found[0].manifest.fence if self.found else None

    @property
    def is_surely_over(self) -> bool:
        """Whether its kernel has ended, and its report and the last checkpoint named there were found."""
        delivered = self.report is not None and self.report.head in (None, *(found.manifest.id for found in self.found))
        return self.sighting is AttemptStatus.ENDED and delivered

    @property
    def is_being_made(self) -> bool:
        """Whether another controller is preparing it: its dataset exists but cannot be read, and there is no kernel."""
        shows_nothing = self.fence is None and self.report is None and not self.corrupt
        return self.has_dataset and self.sighting is AttemptStatus.MISSING and shows_nothing

    @property
    def began_at(self) -> datetime | None:
        """When it was pushed, or else when its dataset was created; None: unknown."""
        return self.pushed_at or self.made_at


@dataclass(frozen=True)
class RunOnAccount:
    """A run as the account shows it."""

    spec: RunSpec
    data: tuple[DataRecord, ...]
    attempts: tuple[SeenAttempt, ...]
    stop: StopFlag = field(default_factory=StopFlag)
    stop_at: datetime | None = None
    """When the stop flag was last written."""

    def in_order(self) -> tuple[SeenAttempt, ...]:
        """Return the attempts by fence token; first those of which only the name is left, which are the oldest."""
        return tuple(sorted(self.attempts, key=lambda seen: (seen.fence or 0, seen.key)))


def first_record(account: RunOnAccount, now: datetime) -> RunRecord:
    """Return a record of the run without attempts, to replay them into."""
    # `resumed_at` is when the run began, so that adopting does not reset the count of failures: a scheduled job that adopts
    # each time would otherwise retry a failing run for ever.
    began_at = min((seen.began_at for seen in account.attempts if seen.began_at is not None), default=now)
    return RunRecord(
        RunHeader(name=account.spec.name, created_at=began_at, resumed_at=began_at, data=account.data),
        RunWishes(spec=account.spec, stop=wished_stop(account)),
    )


def what_is_new(record: RunRecord, account: RunOnAccount, now: datetime) -> tuple[Change, ...]:
    """Return the changes that add the account's unknown attempts to a record; none when it has them all.

    Args:
        record: The ledger's record: `first_record`, or one that lacks what other controllers did meanwhile.
        account: The run as the account shows it.
        now: The current moment.

    Raises:
        UserError: the account has another run of this name.
        DataError: two controllers launched different attempts under one fence token, or the account does not hold enough.
    """
    known = {(attempt.session, attempt.attempt) for attempt in record.attempts}
    if all(seen.key in known for seen in account.attempts):
        return ()
    check_same_run(record, account)
    _check_agreement(record, account)
    adoption = _Adoption(record, account, now)
    for seen in account.in_order():
        adoption.take_in(seen)
    adoption.finish()
    return tuple(adoption.changes)


def wished_stop(account: RunOnAccount) -> StopWish | None:
    """Return the request to stop, if the stop flag names an attempt that is still alive."""
    named = _stopped_by_user(account)
    return StopWish.CHECKPOINT if named is not None and named.sighting is not AttemptStatus.ENDED else None


def _stopped_by_user(account: RunOnAccount) -> SeenAttempt | None:
    """Return the newest attempt if the user has stopped it: the flag names it, and was set before its time limit."""
    line = [seen for seen in account.in_order() if seen.spec is not None and seen.spec.branch is None]
    if not line or line[-1].key != (account.stop.session, account.stop.attempt):
        return None
    seen = line[-1]
    if account.stop_at is None or seen.began_at is None or seen.spec is None:
        return seen
    return seen if account.stop_at <= seen.began_at + timedelta(seconds=seen.spec.limit_s) else None


def check_same_run(record: RunRecord, account: RunOnAccount) -> None:
    """Check that a run in this home and the account's run of the same name are the same.

    Raises:
        UserError: they differ in a setting that cannot change, or in their data.
    """
    differences = [str(change) for change in compare_specs(account.spec, record.spec) if change.refusal is not None]
    pairs = zip(record.header.data, account.data, strict=False)
    if any(here.sha256 != there.sha256 for here, there in pairs):
        differences.append("its data differs")
    if differences:
        raise UserError(
            f"this home has another run {record.name!r}, which differs from the account's: {'; '.join(differences[:3])}",
            remedy="adopt it into a new home: GEMMA_ORCH_HOME=NEW_FOLDER gemma-orch adopt ...",
        )


def _check_agreement(record: RunRecord, account: RunOnAccount) -> None:
    by_key = {(attempt.session, attempt.attempt): attempt for attempt in record.attempts}
    by_fence = {attempt.fence: attempt for attempt in record.attempts}
    for seen in account.attempts:
        if seen.fence is None:
            continue
        other = by_fence.get(seen.fence)
        known = by_key.get(seen.key)
        start = seen.spec.start.id if seen.spec is not None and seen.spec.start is not None else None
        differs = known is not None and seen.spec is not None and (known.fence, known.start_checkpoint) != (seen.fence, start)
        if differs or (other is not None and (other.session, other.attempt) != seen.key):
            here = known if differs and known is not None else other
            assert here is not None, "one of the two was found to differ"
            raise DataError(
                f"two controllers have continued run {record.name} independently: in this home, fence token {here.fence} is "
                f"{attempt_name(here.session, here.attempt)} from {here.start_checkpoint or 'the beginning'}; "
                f"on the account, fence token {seen.fence} is {seen.name} from {start or 'the beginning'}",
                expected="one controller at a time",
                remedy="adopt the run into a new home: GEMMA_ORCH_HOME=NEW_FOLDER gemma-orch adopt ...",
            )


class _Adoption:
    """Adds attempts to a record one by one, and collects the changes."""

    def __init__(self, record: RunRecord, account: RunOnAccount, now: datetime) -> None:
        self.changes: list[Change] = []
        self._record = record
        self._account = account
        self._now = now
        self._is_new_here = not record.attempts
        self._newest = account.in_order()[-1]
        self._pattern = next((seen.spec for seen in account.attempts if seen.spec is not None), None)
        self._corrupt = {error.checkpoint_id: error for seen in account.attempts for error in seen.corrupt}
        self._without_dataset = {seen.key for seen in account.attempts if not seen.has_dataset}
        self._nameless_fence = min([0, *(attempt.fence for attempt in record.attempts)])

    def take_in(self, seen: SeenAttempt) -> None:
        """Add an attempt with its checkpoints and its outcome, if it has ended."""
        if self._known(seen) is None:
            if seen.fence is None:
                self._add_name(seen)
                return
            self._add(seen)
        known = self._known(seen)
        if known is not None and known.state is AttemptState.PLANNED and seen.sighting is not AttemptStatus.MISSING:
            # Another controller has pushed an attempt that this home had only planned.
            known = known.evolve(state=AttemptState.LAUNCHING, handle=seen.handle)
            self._change(PutAttempt(known))
        if known is not None:
            self._follow(seen, known)

    def finish(self) -> None:
        """Finish the replay: make sure that the head is complete, set the run's state, and add an event."""
        record = self._record
        if len(self._account.data) > len(record.header.data):
            self._set_header(data=self._account.data)
        if record.head is not None and record.head.state is not CheckpointState.VERIFIED:
            self._fall_back(record.head)
        stopped = _stopped_by_user(self._account)
        active = self._record.header.state is RunState.ACTIVE
        if self._is_new_here and active and stopped is not None and self._record.live_attempt is None:
            self._set_header(state=RunState.STOPPED, message=stop_message(StopWish.CHECKPOINT, self._record.head_step))
        num_new = sum(isinstance(change, PutAttempt) and change.session_spec is not None for change in self.changes)
        self._tell(
            f"adopted from the account: {num_new} attempts, {len(self._record.checkpoints)} checkpoints, "
            f"head {self._record.header.head or 'none'}"
        )

    def _known(self, seen: SeenAttempt) -> AttemptRecord | None:
        return self._record.attempt(*seen.key)

    def _change(self, *changes: Change) -> None:
        self.changes.extend(changes)
        self._record = self._record.with_changes(changes)

    def _set_header(self, **values: object) -> None:
        self._change(SetHeader(self._record.header.evolve(**values)))

    def _tell(self, text: str) -> None:
        self._change(AddEvent(Event(at=self._now, text=text)))

    def _add_name(self, seen: SeenAttempt) -> None:
        """Add an attempt of which the account has only the name, with an unused fence token below all real ones."""
        self._nameless_fence -= 1
        began_at = seen.began_at or self._now
        alive = seen.sighting in (AttemptStatus.QUEUED, AttemptStatus.RUNNING, AttemptStatus.UNKNOWN)
        attempt = AttemptRecord(
            session=seen.session,
            attempt=seen.attempt,
            fence=self._nameless_fence,
            backend=BACKEND,
            state=AttemptState.RUNNING if alive else AttemptState.LOST,
            start_checkpoint=None,
            start_step=0,
            planned_at=began_at,
            launched_at=began_at if alive else None,
            running_at=began_at if alive else None,
            limit_s=self._account.spec.limits.session_limit_s,
            handle=seen.handle,
            outcome=None if alive else Outcome.LOST,
            reason=None if alive else "its dataset is gone: its checkpoints were pruned, and its report with them",
        )
        self._change(PutAttempt(attempt, self._spec_of(seen)))

    def _add(self, seen: SeenAttempt) -> None:
        spec = self._spec_of(seen)
        if spec.start is not None:
            self._know_start(spec.start)
        begun = seen.sighting is not AttemptStatus.MISSING or bool(seen.found) or seen.report is not None
        began_at = seen.began_at or self._now
        # If the newest one has no kernel, reads may be stale: as LAUNCHING, the controller polls it for as long as that may be.
        state = AttemptState.RUNNING if begun else AttemptState.LAUNCHING if seen is self._newest else AttemptState.DROPPED
        attempt = AttemptRecord(
            session=seen.session,
            attempt=seen.attempt,
            fence=spec.fence,
            backend=BACKEND,
            state=state,
            branch=spec.branch,
            adopt=spec.branch is not None and not self._came_later(seen.session),
            start_checkpoint=spec.start.id if spec.start is not None else None,
            start_step=spec.start.step if spec.start is not None else 0,
            planned_at=seen.made_at or began_at,
            # Without a kernel, the creation of its dataset is the earliest time of a push. The current time would make a
            # scheduled job, which adopts each time, wait for the settle time again and again.
            launched_at=began_at if begun or state is AttemptState.LAUNCHING else None,
            running_at=began_at if begun else None,
            asked_at=self._account.stop_at if seen.key == (self._account.stop.session, self._account.stop.attempt) else None,
            limit_s=spec.limit_s,
            handle=seen.handle,
        )
        self._change(PutAttempt(attempt, spec))
        values: dict[str, object] = {"newest_fence": max(spec.fence, self._record.header.newest_fence)}
        if spec.branch is None and seen.spec is not None:
            values["head"] = attempt.start_checkpoint  # an attempt starts from the head of its time
        self._set_header(**values)

    def _came_later(self, session: int) -> bool:
        """Return whether a later session had saved a checkpoint before this rerun: then its result stays a branch."""
        return any(known.session > session and known.branch is None and known.saved_step for known in self._record.attempts)

    def _spec_of(self, seen: SeenAttempt) -> SessionSpec:
        """Return an attempt's spec; if the account has lost it, one derived from another attempt's."""
        if seen.spec is not None:
            return seen.spec
        if self._pattern is None:
            raise DataError(
                f"the account has no session spec of run {self._record.name}",
                expected="session.json in the dataset of at least one attempt",
                remedy="continue it on the machine that began it, or begin another run",
            )
        values: dict[str, object] = {"session": seen.session, "attempt": seen.attempt, "start": None, "branch": None}
        manifest = seen.found[0].manifest if seen.found else None
        values["fence"] = manifest.fence if manifest is not None else 1
        if manifest is not None:
            values["branch"] = manifest.branch
        return self._pattern.evolve(**values)

    def _know_start(self, start: ExpectedCheckpoint) -> None:
        """Add the checkpoint that an attempt started from, if the record lacks it: it may be gone from the account."""
        if start.id in self._record.checkpoints:
            return
        owner = next((known for known in self._record.attempts if start.id.endswith(f"-{_name(known)}")), None)
        numbers = parse_attempt_name(attempt_of(start.id) or "") or (0, 0)
        state, note = self._state_of_missing(start, owner)
        checkpoint = CheckpointRecord(
            id=start.id,
            step=start.step,
            parent=self._parent_of_missing(start, owner) if owner is not None else None,
            session=numbers[0],
            attempt=numbers[1],
            fence=owner.fence if owner is not None else 0,
            branch=owner.branch if owner is not None else None,
            state=state,
            state_sha256=start.state_sha256,
            manifest_sha256=start.manifest_sha256,
            total_bytes=0,
            created_at=(owner.ended_at or owner.planned_at) if owner is not None else self._now,
            verified_at=None,
            train_s=0.0,
            note=note,
        )
        self._change(PutCheckpoint(checkpoint))
        if owner is not None and (owner.saved_step or 0) < start.step:
            self._change(PutAttempt(owner.evolve(saved_step=start.step, head=start.id)))

    def _parent_of_missing(self, start: ExpectedCheckpoint, owner: AttemptRecord) -> str | None:
        """Return the parent of a missing checkpoint: its attempt's checkpoint before it, or the attempt's start."""
        own = [
            known
            for known in self._record.checkpoints.values()
            if known.step < start.step and (known.session, known.attempt) == (owner.session, owner.attempt)
        ]
        return max(own, key=lambda known: known.step).id if own else owner.start_checkpoint

    def _state_of_missing(self, start: ExpectedCheckpoint, owner: AttemptRecord | None) -> tuple[CheckpointState, str | None]:
        """Return the state of a start checkpoint that is not on the account: pruned only if the account shows that."""
        # A checkpoint that counts as pruned is deleted if it is ever found again, so a doubtful one is quarantined instead.
        if start.id in self._corrupt:
            return CheckpointState.QUARANTINED, self._corrupt[start.id].what
        gone = owner is not None and (owner.session, owner.attempt) in self._without_dataset
        outlived = owner is not None and any(
            known.step > start.step and (known.session, known.attempt) == (owner.session, owner.attempt)
            for known in self._record.checkpoints.values()
        )
        if gone or outlived:
            return CheckpointState.PRUNED, None
        return CheckpointState.QUARANTINED, "it was not on the account when the run was adopted"

    def _follow(self, seen: SeenAttempt, known: AttemptRecord) -> None:
        doubtful = seen.sighting is AttemptStatus.MISSING or not seen.is_surely_over
        # One read of the newest attempt may be stale: the controller polls it and decides.
        sighting = AttemptStatus.UNKNOWN if doubtful and seen is self._newest and seen.sighting in _GONE else seen.sighting
        world = Observed(
            observation=Observation(sighting, seen.detail, ended_at=seen.changed_at),
            report=seen.report,
            found=tuple(found for found in seen.found if found.manifest.id not in self._record.checkpoints),
            corrupt=tuple(error for error in seen.corrupt if error.checkpoint_id not in self._record.checkpoints),
        )
        # With this attempt alone: `reconcile` must not apply the observation to an older one that is still alive.
        self._change(*reconcile(replace(self._record, attempts=(known,)), world, self._now))
        now_known = self._known(seen)
        if now_known is not None and now_known.state is AttemptState.PLANNED and seen is not self._newest:
            # Another controller went on without it: to launch it now would start a session beside theirs.
            self._change(PutAttempt(now_known.evolve(state=AttemptState.DROPPED)))

    def _fall_back(self, head: CheckpointRecord) -> None:
        whole = {known.id: known for known in self._record.checkpoints.values() if known.state is CheckpointState.VERIFIED}
        good = next((whole[known] for known in ancestors(head.id, self._record.parents) if known in whole), None)
        if good is None:  # the lineage has a gap where a dataset is gone; exact training is the same on both sides
            older = (known for known in whole.values() if known.branch is None and known.step < head.step)
            good = max(older, key=lambda known: known.step, default=None)
        what = f"the head {head.id} is not complete on the account"
        if good is not None:
            self._set_header(head=good.id)
            self._tell(f"{what}; the run falls back to {good.id}, which costs {head.step - good.step} steps")
            return
        self._tell(what)
        values: dict[str, object] = {"head": None}
        if self._record.header.state is RunState.ACTIVE:
            message = f"{what}, nor is any checkpoint before it: gemma-orch start would begin again at step 0"
            values |= {"state": RunState.FAILED, "message": message, "exit_code": ExitCode.DATA}
        self._set_header(**values)


def _name(attempt: AttemptRecord) -> str:
    return attempt_name(attempt.session, attempt.attempt)
