"""One tick: observe everything, reconcile the record with it, decide, act, record.

A tick may die at any line; the next one finds its way from the record and the world. The record says what is meant to be
true before anything is done about it, so that everything here may be done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.controller.attempt import plan_attempt
from orchestrator.controller.checkpoints import collect
from orchestrator.controller.decide import AskToStop, Decision, Drop, Finish, GiveUp, Kill, Launch, Resume, Wait, decide
from orchestrator.controller.prune import prunable
from orchestrator.controller.reconcile import Draft, World, reconcile, step_back
from orchestrator.controller.rerun import compare
from orchestrator.ports import AttemptRef, Backend, Ports, Quota, Sighting
from state.data_manifest import TOKENIZER_NAME
from state.errors import (
    AmbiguousError,
    CorruptCheckpointError,
    DataError,
    ExitCode,
    GemmaOrchError,
    NotLaunchedError,
    TemporaryError,
    UserError,
)
from state.layout import HomeLayout, attempt_name
from state.ledger import (
    CEILING_GRACE_S,
    AttemptRecord,
    Change,
    CheckpointState,
    ClearWish,
    DataRecord,
    PutAttempt,
    RunRecord,
    SetHeader,
    Waiting,
)
from state.report import Outcome
from state.session import AttemptState, RunState
from state.spec import ORDER_VERSION, RunSpec, SessionSpec
from state.stores.run_store import lease_lost

LEASE_S = 60.0  # a controller that is silent for this long may be replaced; a dead one on this machine at once


@dataclass(frozen=True)
class Tick:
    """What a tick found and decided."""

    decision: Decision
    record: RunRecord


class Controller:
    """Brings runs on, one tick at a time."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def tick(self, run: str, *, until: Callable[[RunRecord], bool] = lambda _record: False) -> Tick:
        """Bring a run on by one decision.

        Args:
            run: The run's name.
            until: Asked once the record says what is; when it says yes, nothing more is decided.

        Raises:
            LeaseHeldError: another controller is at work on it.
            UserError: another gemma-orch began it, which reads data in another order.
        """
        self._take_lease(run)
        record = self._ports.runs.load(run)
        check_order(record)
        record = self._relocated(self._reconciled(record))
        by_hand = self.run_by_hand(record)
        if by_hand is None:
            record = self._tidied(record)
        if until(record):
            return Tick(Wait("nothing: what was asked for is done"), record)
        now = self._ports.clock.now()
        quota = Quota(available=True)
        if record.live_attempt is None:  # asking costs a call on some platforms
            quota = self._ports.backend(record.spec.backend, run).quota(now)
        decision = decide(record, quota, now, by_hand)
        if isinstance(decision, Finish) and not self._may_finish(record, decision):
            return Tick(Wait("the next tick: the head was not what it should be"), self._ports.runs.load(run))
        if not isinstance(decision, Wait):
            decision = self._act(record, decision) or decision
            record = self._ports.runs.load(run)
        return Tick(decision, self._noted(record, decision))

    def _noted(self, record: RunRecord, decision: Decision) -> RunRecord:
        """Return the record with what the next session waits for, so that others can tell; nothing while one runs."""
        waiting = None
        if isinstance(decision, Wait) and (record.live_attempt is None or record.live_attempt.state is AttemptState.PLANNED):
            waiting = Waiting(reason=decision.reason, until=decision.until)
        if record.header.waiting == waiting:
            return record
        return self._changed(record, [SetHeader(record.header.model_copy(update={"waiting": waiting}))])

    def _take_lease(self, run: str) -> None:
        """Take the run's lease, or prolong it when half of it is gone; what was known of the run before is old now."""
        now = self._ports.clock.now()
        lease = self._ports.runs.lease(run)
        if lease is None or lease.owner != self._ports.owner or (lease.until - now).total_seconds() < LEASE_S / 2:
            self._ports.runs.acquire(run, self._ports.owner, now, LEASE_S)

    def keep_lease(self, run: str) -> None:
        """Prolong the run's lease in the middle of a tick; one that was lost is not taken again, for our record is old.

        Raises:
            LeaseLostError: another controller has had the run since this tick began.
        """
        lease = self._ports.runs.lease(run)
        if lease is None or lease.owner != self._ports.owner:
            raise lease_lost(run)
        self._take_lease(run)

    def release(self, run: str) -> None:
        """Let other controllers have the run."""
        self._ports.runs.release(run, self._ports.owner)

    def activate(self, run: str) -> None:
        """Make a run active because the user says start; takes back a stop that was asked for.

        Raises:
            LeaseHeldError: another controller is at work on it.
            UserError: another gemma-orch began it, which reads data in another order.
        """
        self._take_lease(run)
        record = self._ports.runs.load(run)
        check_order(record)
        header = record.header.model_copy(
            update={
                "state": RunState.ACTIVE,
                "message": None,
                "exit_code": ExitCode.DONE,
                "resumed_at": self._ports.clock.now(),
                "step_backs": 0,
            }
        )
        self._apply(record, [SetHeader(header), ClearWish("stop", record.wishes.stop)])

    def _apply(self, record: RunRecord, changes: Sequence[Change]) -> None:
        self._ports.runs.apply(record.name, self._ports.owner, changes)

    def _prepared(self, record: RunRecord, decision: Launch) -> RunRecord | None:
        """Return the record of a run whose data is there, prepared now when it was not; None: decide anew.

        What only the user can mend ends the run, with the reason in its record; a rerun it only calls off.
        """
        known = record.header.data
        lost = [
            number
            for number, data in enumerate(known, start=1)
            if not self._ports.has_data(record.name, data) or (number == 1 and _is_elsewhere(record))
        ]
        if known and not lost:
            return record
        try:
            if not known:
                known = (self._ports.prepare(record.spec, lambda: self.keep_lease(record.name)),)
            for number in lost:
                self._restore(record, number)
        except (UserError, DataError) as error:
            if decision.branch is None:
                self._settle(record, RunState.FAILED, str(error), error.exit_code)
            else:
                draft = Draft(record, self._ports.clock.now())
                _call_off(draft, record, decision, str(error))
                self._apply(record, draft.changes)
            return None
        # That may have taken hours: what the user has asked for meanwhile counts.
        wishes = self._ports.runs.load(record.name).wishes
        if wishes.spec != record.spec:
            return None
        record = self._changed(record, [SetHeader(record.header.model_copy(update={"data": known}))])
        return record if record.wishes == wishes and wishes.stop is None else None

    def _relocated(self, record: RunRecord) -> RunRecord:
        """Return the record with the place that the user names now for a folder made already, once the same data lies there."""
        if not _is_elsewhere(record):
            return record
        first, *later = record.header.data
        moved = first.model_copy(update={"folder": record.spec.data.prepared})
        if not self._ports.has_data(record.name, moved):
            return record
        return self._changed(record, [SetHeader(record.header.model_copy(update={"data": (moved, *later)}))])

    def _restore(self, record: RunRecord, number: int) -> None:
        """Make a lost data version again; the mixture stays what it was, whatever the spec says by now.

        Raises:
            DataError: its text gives other tokens now.
        """
        known = record.header.data[number - 1]
        spec = record.spec if number == 1 else spec_of_version(record, known, self._ports.home)
        data = self._ports.prepare(spec, lambda: self.keep_lease(record.name), version=number, first_step=known.first_step)
        if data.sha256 != known.sha256 and spec.data.prepared is not None:
            raise DataError(
                f"{spec.data.prepared} holds other data than run {record.name} is trained on: sha256 {data.sha256[:12]}",
                expected=known.sha256[:12],
                remedy="say with --data where that data lies now, or begin another run with --name",
            )
        if data.sha256 != known.sha256:
            raise DataError(
                f"the data of run {record.name} was lost, and its corpus has changed since: it gives other tokens now",
                expected=f"data with digest {known.sha256[:12]}, which is what the run is trained on",
                remedy="put the corpus back as it was, or begin another run with --name",
            )

    def _may_finish(self, record: RunRecord, decision: Finish) -> bool:
        """Return whether a run that has reached its last step really has it: a head that is damaged is stepped back from."""
        reached = decision.state is RunState.FINISHED and record.header.state is RunState.ACTIVE
        return not reached or record.header.head is None or self._is_sound(record, record.header.head)

    def _reconciled(self, record: RunRecord) -> RunRecord:
        live = record.live_attempt
        observation, report = None, None
        if live is not None and live.state is not AttemptState.PLANNED:
            backend, ref = self._ports.backend(live.backend, record.name), ref_of(record, live)
            observation = backend.observe(ref)
            report = backend.report(ref)
        store = self._ports.checkpoints(record.name)
        found, corrupt = collect(store, record.checkpoints, lambda: self.keep_lease(record.name))
        world = World(observation, report, found, corrupt, present=frozenset(store.ids()))
        record = self._changed(record, reconcile(record, world, self._ports.clock.now()))
        for error in corrupt:
            store.quarantine(error.checkpoint_id, str(error))
        return record

    def _tidied(self, record: RunRecord) -> RunRecord:
        """Compare reruns, prune, sweep, and make the store say what the record says; only while nothing runs."""
        if record.live_attempt is not None:
            return record
        store = self._ports.checkpoints(record.name)
        draft = Draft(record, self._ports.clock.now())
        for attempt in record.attempts:
            if attempt.branch is not None and attempt.comparison is None:
                verdict = compare(record, attempt, store)
                draft.put_attempt(attempt, comparison=verdict)
                draft.tell(f"session {attempt.session} attempt {attempt.attempt}: {verdict}")
        for checkpoint_id in prunable(record):
            draft.put_checkpoint(record.checkpoints[checkpoint_id], state=CheckpointState.PRUNED)
        record = self._changed(record, draft.changes)
        for checkpoint_id in store.ids():
            checkpoint = record.checkpoints.get(checkpoint_id)
            if checkpoint is not None and checkpoint.state is CheckpointState.QUARANTINED:
                store.quarantine(checkpoint_id, checkpoint.note or "")
            elif checkpoint is not None and checkpoint.state is CheckpointState.PRUNED:
                store.delete(checkpoint_id)
        store.sweep(lambda name: self._is_over(record, name))
        return record

    def _is_over(self, record: RunRecord, name: str) -> bool:
        """Return whether an attempt of the run can write no more: not the live one, nor one that somebody runs by hand."""
        known = {attempt_name(attempt.session, attempt.attempt): attempt for attempt in record.attempts}
        return name in known and self._sighting(record, known[name]) in (Sighting.ENDED, Sighting.MISSING)

    def _sighting(self, record: RunRecord, attempt: AttemptRecord) -> Sighting:
        return self._ports.backend(attempt.backend, record.name).observe(ref_of(record, attempt)).sighting

    def _changed(self, record: RunRecord, changes: Sequence[Change]) -> RunRecord:
        if not changes:
            return record
        self._apply(record, changes)
        return self._ports.runs.load(record.name)

    def run_by_hand(self, record: RunRecord) -> AttemptRecord | None:
        """Return the newest attempt when somebody is running it again by hand, with no controller."""
        if record.live_attempt is not None or not record.attempts:
            return None
        newest = record.attempts[-1]
        if not self._ports.backend(newest.backend, record.name).can_be_run_by_hand:
            return None
        return newest if self._sighting(record, newest) is Sighting.RUNNING else None

    def _act(self, record: RunRecord, decision: Decision) -> Wait | None:
        """Carry a decision out; return what it waits for, when that shows only now."""
        match decision:
            case Launch():
                return self._plan_and_launch(record, decision)
            case Resume(attempt):
                return self._launch(record, attempt)
            case AskToStop(attempt):
                if attempt.asked_at is None:
                    self._apply(record, [PutAttempt(attempt.model_copy(update={"asked_at": self._ports.clock.now()}))])
                self._ports.backend(attempt.backend, record.name).ask_to_stop(ref_of(record, attempt))
            case Kill(attempt, reason):
                if attempt.reason != reason:  # what was killed cannot say why
                    self._apply(record, [PutAttempt(attempt.model_copy(update={"reason": reason}))])
                self._ports.backend(attempt.backend, record.name).kill(ref_of(record, attempt))
            case Drop(attempt):
                self._apply(record, [PutAttempt(attempt.model_copy(update={"state": AttemptState.DROPPED}))])
            case Finish(state, message):
                self._settle(record, state, message, ExitCode.DONE)
            case GiveUp(message, exit_code):
                self._settle(record, RunState.FAILED, message, exit_code)
            case Wait():
                pass
        return None

    def _settle(self, record: RunRecord, state: RunState, message: str, exit_code: int) -> None:
        changes: list[Change] = []
        if record.header.state is RunState.ACTIVE:  # what has ended already stays what it is
            header = record.header.model_copy(update={"state": state, "message": message, "exit_code": exit_code})
            changes.append(SetHeader(header))
        if record.wishes.stop is not None:
            changes.append(ClearWish("stop", record.wishes.stop))
        self._changed(record, changes)

    def _plan_and_launch(self, record: RunRecord, decision: Launch) -> Wait | None:
        prepared = self._prepared(record, decision)
        if prepared is None:
            return None
        record = prepared
        if decision.start_checkpoint is not None and not self._is_sound(record, decision.start_checkpoint, decision):
            return None  # the record has stepped back: the next tick decides anew
        attempt, session_spec = plan_attempt(record, decision, self._ports.home, self._ports.clock.now())
        lag_s = self._ports.backend(attempt.backend, record.name).lag_s
        attempt = attempt.model_copy(update={"grace_s": CEILING_GRACE_S + lag_s})
        changes: list[Change] = [
            PutAttempt(attempt, session_spec),
            SetHeader(record.header.model_copy(update={"newest_fence": attempt.fence})),
        ]
        if decision.branch is not None:
            changes.append(ClearWish("rerun", record.wishes.rerun))
        self._apply(record, changes)
        return self._launch(record, attempt)

    def _is_sound(self, record: RunRecord, checkpoint_id: str, decision: Launch | None = None) -> bool:
        """Return whether a checkpoint is what it was; else put it aside, and call off the rerun that wanted it."""
        try:
            self._ports.checkpoints(record.name).verify(checkpoint_id, record.checkpoints[checkpoint_id].expected())
        except CorruptCheckpointError as error:
            draft = Draft(record, self._ports.clock.now())
            step_back(draft, checkpoint_id, error.what)
            if decision is not None and decision.branch is not None:
                _call_off(draft, record, decision, error.what)
            self._apply(record, draft.changes)
            return False
        return True

    def _launch(self, record: RunRecord, planned: AttemptRecord) -> Wait | None:
        """Launch a planned attempt, or bring it nearer to that; return what it waits for."""
        self.keep_lease(record.name)  # verifying may have taken long, and the answer to a launch may too
        backend = self._ports.backend(planned.backend, record.name)
        spec = self._ports.runs.session_spec(record.name, planned.session, planned.attempt)
        now = self._ports.clock.now()
        attempt = planned.model_copy(update={"state": AttemptState.LAUNCHING, "launched_at": now})
        try:
            if (reason := _not_ready(backend, spec)) is not None:
                return Wait(reason)
            self._apply(record, [PutAttempt(attempt)])
            handle = backend.launch(spec)
        except AmbiguousError:
            return None  # it stays "launching": the next tick looks whether it exists
        except NotLaunchedError as error:
            self._apply(record, [PutAttempt(attempt.model_copy(update={"state": AttemptState.PLANNED}))])
            return Wait(error.what)
        except GemmaOrchError as error:
            self._apply(record, [PutAttempt(attempt)])
            self._never_launched(record, attempt, error)
            if isinstance(error, CorruptCheckpointError):  # found out when its bytes were wanted somewhere else
                draft = Draft(self._ports.runs.load(record.name), self._ports.clock.now())
                step_back(draft, error.checkpoint_id, error.what)
                self._apply(record, draft.changes)
            return None
        running = attempt.model_copy(update={"state": AttemptState.RUNNING, "running_at": now, "handle": handle})
        self._apply(record, [PutAttempt(running)])
        return None

    def _never_launched(self, record: RunRecord, attempt: AttemptRecord, error: GemmaOrchError) -> None:
        now = self._ports.clock.now()
        draft = Draft(record, now)
        ended = draft.put_attempt(attempt, state=AttemptState.ENDED, ended_at=now)
        reason = f"it could not be launched: {error}"
        draft.put_attempt(ended, state=AttemptState.LOST, outcome=Outcome.FAILED, reason=reason, error_class=error.error_class)
        draft.tell(f"session {attempt.session} attempt {attempt.attempt} {Outcome.FAILED}: {reason}")
        self._apply(record, draft.changes)


def spec_of_version(record: RunRecord, data: DataRecord, home: HomeLayout) -> RunSpec:
    """Return the run's spec with the text of a data version that was added later, cut by the run's own tokenizer."""
    made_already = Path(data.folder).is_absolute()
    first = home.run(record.name).data_folder(record.header.data[0].folder)
    source = record.spec.data.model_copy(
        update={
            "corpus": data.corpus,
            "prepared": data.folder if made_already else None,
            "tokenizer": None if made_already else str(first / TOKENIZER_NAME),
        }
    )
    return record.spec.model_copy(update={"data": source})


def _is_elsewhere(record: RunRecord) -> bool:
    """Return whether the user names another place for the run's first data than the record."""
    place = record.spec.data.prepared
    return bool(record.header.data) and place is not None and record.header.data[0].folder != place


def _call_off(draft: Draft, record: RunRecord, rerun: Launch, why: str) -> None:
    draft.changes.append(ClearWish("rerun", record.wishes.rerun))
    draft.tell(f"session {rerun.session} cannot run again: {why}")


def check_order(record: RunRecord) -> None:
    """Check that a run is read in the order that this gemma-orch reads in.

    Asked before anything is written: what the gemma-orch that began the run could not read any more would be lost to it.

    Raises:
        UserError: it is not.
    """
    if record.header.data and (order := record.header.data[0].order_version) != ORDER_VERSION:
        raise UserError(
            f"run {record.name} was begun by another gemma-orch, which reads data in order {order}",
            expected=f"order {ORDER_VERSION}, the only one that this gemma-orch reads in",
            remedy="go on with the gemma-orch that began it, or begin another run with --name",
        )


def _not_ready(backend: Backend, spec: SessionSpec) -> str | None:
    """Return what a planned attempt waits for; what could not be done now is tried again, for nothing has been sent."""
    try:
        return backend.make_ready(spec)
    except TemporaryError as error:
        return error.what


def ref_of(record: RunRecord, attempt: AttemptRecord) -> AttemptRef:
    """Return what a backend knows an attempt by."""
    return AttemptRef(record.name, attempt.session, attempt.attempt, attempt.handle, attempt.launched_at, attempt.limit_s)
