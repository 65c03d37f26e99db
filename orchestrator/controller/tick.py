"""One tick of the controller: observe, reconcile the record, decide, act, record.

A tick may be killed at any line; the next one continues from the record and a new observation. Each action is recorded before it
is carried out, and may safely be carried out twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.controller.attempt import ref_of
from orchestrator.controller.checkpoints import Checkpoints, collect
from orchestrator.controller.decide import AskToStop, Decision, Drop, Finish, GiveUp, Kill, Launch, Resume, Wait, decide
from orchestrator.controller.launch import Launcher
from orchestrator.controller.lease import Leases
from orchestrator.controller.reconcile import Observed, reconcile, settled
from orchestrator.controller.training_data import TrainingData, check_order
from orchestrator.ports import AttemptStatus, Ports, Quota
from state.errors import ExitCode
from state.ledger import AttemptRecord, ClearWish, PutAttempt, RunRecord, SetHeader, Waiting
from state.session import AttemptState, RunState


@dataclass(frozen=True)
class Tick:
    """The result of a tick: its decision and the run's record."""

    decision: Decision
    record: RunRecord


class Controller:
    """Advances runs, one tick at a time."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._leases = Leases(ports)
        self._data = TrainingData(ports, self._leases)
        self._checkpoints = Checkpoints(ports, self._leases)
        self._launcher = Launcher(ports, self._leases, self._data, self._checkpoints)

    def tick(self, run: str, *, until: Callable[[RunRecord], bool] = lambda _record: False) -> Tick:
        """Observe a run, make one decision and carry it out.

        Args:
            run: The run's name.
            until: Called with the reconciled record; if it returns True, the tick decides nothing more.

        Raises:
            LeaseHeldError: another controller holds the run.
            UserError: the run uses a data order that this version does not support.
        """
        self._leases.take(run)
        record = self._ports.runs.load(run)
        check_order(record)
        record = self._data.relocated(self._reconciled(record))
        by_hand = self.run_by_hand(record)
        if by_hand is None:
            record = self._checkpoints.tidied(record)
        if until(record):
            return Tick(Wait("nothing: the request is done"), record)
        now = self._ports.clock.now()
        quota = Quota(available=True)
        if record.live_attempt is None:  # on some platforms this is a network call
            quota = self._ports.backend(record.spec.backend, run).quota(now)
        decision = decide(record, quota, now, by_hand)
        if isinstance(decision, Finish) and not self._may_finish(record, decision):
            return Tick(Wait("the next tick: the head was corrupt and is quarantined"), self._ports.runs.load(run))
        if not isinstance(decision, Wait):
            decision = self._act(record, decision) or decision
            record = self._ports.runs.load(run)
        return Tick(decision, self._noted(record, decision))

    def _noted(self, record: RunRecord, decision: Decision) -> RunRecord:
        """Record what the next session waits for, so that `status` can show it; None while a session runs."""
        waiting = None
        if isinstance(decision, Wait) and (record.live_attempt is None or record.live_attempt.state is AttemptState.PLANNED):
            waiting = Waiting(reason=decision.reason, until=decision.until)
        if record.header.waiting == waiting:
            return record
        return self._leases.changed(record, [SetHeader(record.header.evolve(waiting=waiting))])

    def keep_lease(self, run: str) -> None:
        """Renew the run's lease during long work.

        Raises:
            LeaseLostError: another controller has taken the run.
        """
        self._leases.keep(run)

    def release(self, run: str) -> None:
        """Release the run's lease."""
        self._leases.release(run)

    def activate(self, run: str) -> None:
        """Make a run active on the user's `start`; cancels a pending stop request.

        Raises:
            LeaseHeldError: another controller holds the run.
            UserError: the run uses a data order that this version does not support.
        """
        self._leases.take(run)
        record = self._ports.runs.load(run)
        check_order(record)
        header = record.header.evolve(
            state=RunState.ACTIVE, message=None, exit_code=ExitCode.DONE, resumed_at=self._ports.clock.now(), step_backs=0
        )
        self._leases.apply(record, [SetHeader(header), ClearWish("stop", record.wishes.stop)])

    def _may_finish(self, record: RunRecord, decision: Finish) -> bool:
        """Return whether the run may finish: its head, if it has one, verifies. If the head is corrupt, the run falls back."""
        reached = decision.state is RunState.FINISHED and record.header.state is RunState.ACTIVE
        return not reached or record.header.head is None or self._checkpoints.is_sound(record, record.header.head)

    def _reconciled(self, record: RunRecord) -> RunRecord:
        live = record.live_attempt
        observation, report = None, None
        if live is not None and live.state is not AttemptState.PLANNED:
            backend, ref = self._ports.backend(live.backend, record.name), ref_of(record, live)
            observation = backend.observe(ref)
            report = backend.report(ref)
        store = self._ports.checkpoints(record.name)
        found, corrupt = collect(store, record.checkpoints, lambda: self._leases.keep(record.name))
        world = Observed(observation, report, found, corrupt, present=frozenset(store.ids()))
        record = self._leases.changed(record, reconcile(record, world, self._ports.clock.now()))
        for error in corrupt:
            store.quarantine(error.checkpoint_id, str(error))
        return record

    def run_by_hand(self, record: RunRecord) -> AttemptRecord | None:
        """Return the newest attempt if the user runs it again by hand, without a controller."""
        if record.live_attempt is not None or not record.attempts:
            return None
        newest = record.attempts[-1]
        backend = self._ports.backend(newest.backend, record.name)
        if not backend.can_be_run_by_hand:
            return None
        return newest if backend.observe(ref_of(record, newest)).sighting is AttemptStatus.RUNNING else None

    def _act(self, record: RunRecord, decision: Decision) -> Wait | None:
        """Carry out a decision; return the reason to wait, if it turns out that it must wait."""
        match decision:
            case Launch():
                return self._launcher.plan_and_launch(record, decision)
            case Resume(attempt):
                return self._launcher.launch(record, attempt)
            case AskToStop(attempt):
                if attempt.asked_at is None:
                    self._leases.apply(record, [PutAttempt(attempt.evolve(asked_at=self._ports.clock.now()))])
                self._ports.backend(attempt.backend, record.name).ask_to_stop(ref_of(record, attempt))
            case Kill(attempt, reason):
                if attempt.reason != reason:  # a killed session writes no report with the reason
                    self._leases.apply(record, [PutAttempt(attempt.evolve(reason=reason))])
                self._ports.backend(attempt.backend, record.name).kill(ref_of(record, attempt))
            case Drop(attempt):
                self._leases.apply(record, [PutAttempt(attempt.evolve(state=AttemptState.DROPPED))])
            case Finish(state, message):
                self._leases.changed(record, settled(record, state, message, ExitCode.DONE))
            case GiveUp(message, exit_code):
                self._leases.changed(record, settled(record, RunState.FAILED, message, exit_code))
            case Wait():
                pass
        return None
