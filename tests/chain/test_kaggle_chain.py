"""The chain on Kaggle: the real command line, the unmodified client library, and kernels that an emulator really runs."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.monitoring.status import observe_run
from orchestrator.wiring import wire
from state.kaggle.names import attempt_dataset_slug, attempt_kernel_slug
from state.ledger import CheckpointState
from state.report import Heartbeat, Outcome, Phase
from tests.kaggle_chain import RUN, KaggleRun, kill
from tests.kaggle_emulator.emulator import KaggleEmulator
from tests.kaggle_emulator.faults import Fault
from tests.kaggle_emulator.session_model import Session
from tests.kaggle_emulator.settings import Settings
from tests.patience import PATIENCE_S, wait_until

STEPS_A_SESSION = 100
ENDLESS = 1_000_000
"""Steps of a session that ends when the test says so."""
POLLS_IN_THE_OUTAGE = 8


def slug(session: int, attempt: int = 1) -> str:
    return attempt_kernel_slug(RUN, session, attempt)


@contextmanager
def emulated(folder: Path, **settings: Any) -> Iterator[KaggleEmulator]:
    """Emulate Kaggle; at the end nothing may have got out, or run beside something else, or told a secret."""
    with KaggleEmulator(
        folder, Settings(timescale=1.0, start_at=datetime.now(UTC), processing_s=0.5, queue_s=0.2, **settings)
    ) as emulator:
        yield emulator
        assert emulator.errors == []
        assert [escape.target for escape in emulator.journal.escapes] == []
        assert emulator.leaks() == []
        assert emulator.sessions.max_live(f"gemma-orch-{RUN}-") <= 1


def is_training(session: Session) -> bool:
    try:
        heartbeat = Heartbeat.from_json((session.working / "heartbeat.json").read_bytes(), "the heartbeat")
    except OSError:
        return False
    return heartbeat.phase is Phase.TRAINING


def spoil(emulator: KaggleEmulator) -> dict[str, Fault]:
    """Plan what goes wrong; each mishap by the session that it meets."""
    refreshed_at = (datetime.now(UTC) + timedelta(seconds=2)).isoformat().replace("+00:00", "Z")
    faults = {
        "the answer to the push of session 3 is lost": Fault(
            "SaveKernel", "drop_after", calls=[1], match={"slug": f"*/{slug(3)}"}
        ),
        "the weekly quota refuses session 4": Fault(
            "SaveKernel",
            "refuse",
            calls=[1],
            match={"slug": f"*/{slug(4)}"},
            value="Maximum weekly GPU quota of 30.00 hours reached.",
        ),
        "the quota is refreshed soon": Fault("GetAcceleratorQuotaStatistics", "rewrite", body={"quotaRefreshTime": refreshed_at}),
        "a version of session 5 loses its state": Fault(
            "CreateDatasetVersion",
            "lose_file",
            calls=[1],
            match={"datasetSlug": attempt_dataset_slug(RUN, 5, 1)},
            files="*.safetensors",
        ),
        "session 6 sees an old mount": Fault("SessionStart", "stale_mount", match={"kernelSlug": slug(6)}, files="*-s0*"),
    }
    emulator.faults.add(*faults.values())
    return faults


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[KaggleEmulator]:
    with emulated(tmp_path) as emulator:
        yield emulator


def test_a_chain_with_every_mishap_equals_one_uninterrupted_local_run(tmp_path: Path, emulator: KaggleEmulator) -> None:
    run = KaggleRun(tmp_path / "machine", emulator, total_steps=ENDLESS, session_steps=ENDLESS)
    run.prepare()
    faults = spoil(emulator)
    chance = random.Random(0)
    controller = run.begin()

    # Session 1 is stopped dead until Kaggle's limit ends it, and the controller is killed while it waits.
    first = run.session(slug(1))
    emulator.sessions.send_signal(first, signal.SIGSTOP)
    time.sleep(chance.random())
    kill(controller)
    controller = run.begin()
    emulator.sessions.cut_off(first)
    assert first.done.wait(PATIENCE_S)
    assert first.outcome == "CANCEL_ACKNOWLEDGED"

    # Its second attempt is asked to end by a SIGTERM, while no controller lives.
    second = run.session(slug(1, 2))
    wait_until(lambda: is_training(second), "the second attempt to train")
    kill(controller)
    emulator.sessions.send_signal(second, signal.SIGTERM)
    assert second.done.wait(PATIENCE_S)
    assert second.outcome == "COMPLETE"
    reached = Heartbeat.from_json((second.working / "heartbeat.json").read_bytes(), "the heartbeat").step
    total_steps = reached + 5 * STEPS_A_SESSION
    run.plan(total_steps=total_steps, session_steps=STEPS_A_SESSION)
    controller = run.begin()

    # No status call is answered for a while, in which the controller is killed again.
    run.session(slug(2))
    outage = Fault("GetKernelSessionStatus", "status")
    emulator.faults.add(outage)
    time.sleep(chance.random())
    kill(controller)
    controller = run.begin()
    wait_until(lambda: emulator.faults.hits(outage) >= POLLS_IN_THE_OUTAGE, "polls in the outage")
    emulator.faults.remove(outage)

    run.session(slug(3))
    time.sleep(chance.random())
    kill(controller)
    controller = run.begin()

    assert controller.wait(timeout=PATIENCE_S) == 0, run.said()
    record = run.record()
    assert record.head_step == total_steps
    run.type("start", "--config", str(run.straight_config))
    assert run.digest(RUN) == run.digest("straight")
    assert record.attempts[1].outcome is Outcome.STOPPED
    sessions = {attempt.session for attempt in record.attempts if attempt.saved_step is not None}
    assert len(sessions) >= 6
    assert not [name for name, fault in faults.items() if not emulator.faults.hits(fault)]
    assert record.attempts[0].outcome is Outcome.LOST
    assert all(checkpoint.state is not CheckpointState.QUARANTINED for checkpoint in record.checkpoints.values())
    assert observe_run(wire(run.environment), RUN).state == "finished"
    assert run.leaks() == []


def test_sessions_that_may_not_write_hand_over_in_kernel_outputs_and_another_machine_goes_on_by_ticks_alone(
    tmp_path: Path,
) -> None:
    with emulated(tmp_path, session_token_can_write=False) as emulator:
        run = KaggleRun(tmp_path / "machine", emulator, total_steps=8, session_steps=4)
        run.prepare()
        run.type("start", "--config", str(run.straight_config))
        controller = run.begin()
        run.session(slug(1))
        kill(controller)

        other = KaggleRun(tmp_path / "other", emulator, total_steps=8, session_steps=4)
        other.type("adopt", f"{emulator.settings.user}/{RUN}")
        wait_until(lambda: f"{RUN}: step 8 of 8, finished" in other.type("tick", RUN), "the run to end")
        assert other.digest(RUN) == run.digest("straight")
        assert [session.slug for session in emulator.sessions.all()] == [slug(1), slug(2)]
        assert emulator.sessions.all()[1].mounted[f"{emulator.settings.user}/{slug(1)}"] == 1
        dataset = next(made for made in emulator.datasets.all() if made.slug == attempt_dataset_slug(RUN, 1, 1))
        assert len(dataset.versions) == 1
