"""The scenario of the crash tests, as a program: it plays it in children that are killed after every n-th side effect.

Usage: python -m tests.chain.reference_scenario FOLDER. A process of its own, because a process with threads may not fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from orchestrator.backends.simulated import Scenario
from state import crash_points
from state.ledger import CheckpointState, RerunWish
from state.session import RunState
from state.spec import Retention
from tests.factories import RUN, START
from tests.simulation import Simulation

_COURSES = {
    (2, 1): Scenario(killed=True),
    (3, 1): Scenario(lost_answer=True, unknown_looks=2),
    (4, 1): Scenario(refuses_start=True),
    (4, 2): Scenario(rots_after=10),
}
_TOTAL_STEPS = 80


def script(session: int, attempt: int) -> Scenario:
    """Session 2 is killed, the answer to the launch of 3 is lost, 4 finds its start corrupt and then saves a bad checkpoint."""
    return _COURSES.get((session, attempt), Scenario())


def play(root: Path, life: int) -> Simulation:
    """Bring the run to its end, then run session 2 again; a later life goes on where an earlier one died."""
    run = Simulation(root, script, start=START + timedelta(minutes=10 * life))
    run.create(total_steps=_TOTAL_STEPS, retention=Retention(keep_last=2, keep_session_starts=5))
    run.run_until_over()
    if not any(attempt.branch for attempt in run.record.attempts) and run.record.wishes.rerun is None:
        run.runs.set_rerun(RUN, RerunWish(session=2, adopt=False, requested_at=run.clock.now()))
    run.run_until_over()
    return run


def final(run: Simulation) -> dict[str, Any]:
    """What must not depend on who was killed when: everything but times, owners and handles."""
    record = run.record
    timeless = {
        "planned_at",
        "launched_at",
        "running_at",
        "ended_at",
        "handle",
        "created_at",
        "verified_at",
        "resumed_at",
        "manifest_sha256",
    }
    return {
        "header": record.header.model_dump(mode="json", exclude=timeless),
        "wishes": record.wishes.model_dump(mode="json"),
        "attempts": [attempt.model_dump(mode="json", exclude=timeless) for attempt in record.attempts],
        "checkpoints": [known.model_dump(mode="json", exclude=timeless) for known in record.checkpoints.values()],
        "store": run.store.ids(),
        "leftovers": sorted(path.name for path in run.home.run(RUN).checkpoints.glob(".*")),
        "events": sorted(set(run.events())),
        "launches": run.backend.launches(),
        "alive": run.backend.alive(),
    }


def play_and_die(root: Path, after: int) -> bool:
    """Play in a child that is killed after so many side effects; return whether it came to its end instead."""
    child = os.fork()
    if child == 0:
        count = 0

        def count_down(kind: crash_points.EffectKind, what: str) -> None:
            nonlocal count
            count += 1
            if count == after:
                os.kill(os.getpid(), signal.SIGKILL)

        crash_points.observe(count_down)
        try:
            play(root, life=0)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.waitstatus_to_exitcode(status) == 0, "the child failed"
    return True


def main(folder: Path) -> None:
    """Print the undisturbed result, then one line for each kill whose continuation ends otherwise, then how many there were."""
    undisturbed = play(folder / "undisturbed", life=0)
    reference = final(undisturbed)
    assert undisturbed.record.header.state is RunState.FINISHED
    assert CheckpointState.PRUNED in {known.state for known in undisturbed.record.checkpoints.values()}
    undisturbed.close()
    kills, differences = 0, []
    while not play_and_die(folder / str(kills + 1), kills + 1):
        kills += 1
        run = play(folder / str(kills), life=1)
        outcome = final(run)
        run.close()
        missing = set(reference["events"]) - set(outcome["events"])
        if missing or {**outcome, "events": None} != {**reference, "events": None}:
            changed = [key for key in reference if key != "events" and reference[key] != outcome[key]]
            differences.append({"after": kills, "changed": changed, "missing_events": sorted(missing), "outcome": outcome})
    sys.stdout.write(json.dumps({"reference": reference, "kills": kills, "differences": differences}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
