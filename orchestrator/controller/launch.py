"""Launches an attempt: records the intent, submits it, records the result."""

from __future__ import annotations

from orchestrator.controller.attempt import plan_attempt
from orchestrator.controller.checkpoints import Checkpoints
from orchestrator.controller.decide import Launch, Wait
from orchestrator.controller.lease import Leases
from orchestrator.controller.reconcile import Draft, step_back
from orchestrator.controller.training_data import TrainingData
from orchestrator.ports import Backend, Ports
from state.errors import AmbiguousError, CorruptCheckpointError, GemmaOrchError, NotLaunchedError, TemporaryError
from state.ledger import CEILING_GRACE_S, AttemptRecord, Change, ClearWish, PutAttempt, RunRecord, SetHeader
from state.report import Outcome
from state.session import AttemptState
from state.spec import SessionSpec


class Launcher:
    """Plans and submits attempts."""

    def __init__(self, ports: Ports, leases: Leases, data: TrainingData, checkpoints: Checkpoints) -> None:
        self._ports = ports
        self._leases = leases
        self._data = data
        self._checkpoints = checkpoints

    def plan_and_launch(self, record: RunRecord, decision: Launch) -> Wait | None:
        """Verify data and start checkpoint, then plan and submit an attempt; return the reason to wait, if any."""
        prepared = self._data.prepared(record, decision)
        if prepared is None:
            return None
        record = prepared
        if decision.start_checkpoint is not None and not self._checkpoints.is_sound(record, decision.start_checkpoint, decision):
            return None  # the run fell back to an earlier checkpoint: the next tick decides again
        attempt, session_spec = plan_attempt(record, decision, self._ports.home, self._ports.clock.now())
        lag_s = self._ports.backend(attempt.backend, record.name).lag_s
        attempt = attempt.evolve(grace_s=CEILING_GRACE_S + lag_s)
        changes: list[Change] = [
            PutAttempt(attempt, session_spec),
            SetHeader(record.header.evolve(newest_fence=attempt.fence)),
        ]
        if decision.branch is not None:
            changes.append(ClearWish("rerun", record.wishes.rerun))
        return self.launch(self._leases.apply(record, changes), attempt)

    def launch(self, record: RunRecord, planned: AttemptRecord) -> Wait | None:
        """Submit a planned attempt or advance its preparation; return the reason to wait, if any."""
        self._leases.keep(record.name)  # verification may have taken long, and the submission may as well
        backend = self._ports.backend(planned.backend, record.name)
        spec = self._ports.runs.session_spec(record.name, planned.session, planned.attempt)
        now = self._ports.clock.now()
        attempt = planned.evolve(state=AttemptState.LAUNCHING, launched_at=now)
        try:
            if (reason := _not_ready(backend, spec)) is not None:
                return Wait(reason)
            record = self._leases.apply(record, [PutAttempt(attempt)])
            handle = backend.launch(spec)
        except AmbiguousError:
            return None  # it stays "launching": the next tick polls whether it exists
        except NotLaunchedError as error:
            self._leases.apply(record, [PutAttempt(attempt.evolve(state=AttemptState.PLANNED))])
            return Wait(error.what)
        except GemmaOrchError as error:
            self._never_launched(self._leases.apply(record, [PutAttempt(attempt)]), attempt, error)
            if isinstance(error, CorruptCheckpointError):  # found while its bytes were copied to the backend
                draft = Draft(self._ports.runs.load(record.name), self._ports.clock.now())
                step_back(draft, error.checkpoint_id, error.what)
                self._leases.apply(record, draft.changes)
            return None
        running = attempt.evolve(state=AttemptState.RUNNING, running_at=now, handle=handle)
        self._leases.apply(record, [PutAttempt(running)])
        return None

    def _never_launched(self, record: RunRecord, attempt: AttemptRecord, error: GemmaOrchError) -> None:
        now = self._ports.clock.now()
        draft = Draft(record, now)
        ended = draft.put_attempt(attempt, state=AttemptState.ENDED, ended_at=now)
        reason = f"the launch failed: {error}"
        draft.put_attempt(ended, state=AttemptState.LOST, outcome=Outcome.FAILED, reason=reason, error_class=error.error_class)
        draft.tell(f"session {attempt.session} attempt {attempt.attempt} {Outcome.FAILED}: {reason}")
        self._leases.apply(record, draft.changes)


def _not_ready(backend: Backend, spec: SessionSpec) -> str | None:
    """Prepare a planned attempt on its backend; return the reason to wait, None when it is ready.

    Nothing is submitted yet, so the next tick can retry after any temporary failure.
    """
    try:
        return backend.make_ready(spec)
    except TemporaryError as error:
        return error.what
