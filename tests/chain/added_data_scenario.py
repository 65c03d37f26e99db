"""Adds data to a run in children that are killed after every n-th side effect, as a program; see test_data_versions.

Usage: python -m tests.chain.added_data_scenario FOLDER. A process of its own, because a process with threads may not fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from orchestrator.requests.add_data import add_data
from state import crash_points, files
from state.ledger import DataRecord, StopWish
from state.session import RunState
from state.spec import RunSpec
from tests.factories import DATA, RUN, START
from tests.simulation import Simulation

_TOTAL_STEPS = 80


class FolderPreparer:
    """Makes a folder for each data version, and finds it made."""

    def __init__(self, home: Path) -> None:
        self._runs = home / "runs"

    def __call__(self, spec: RunSpec, keep_lease: Callable[[], None], *, version: int = 1, first_step: int = 0) -> DataRecord:
        """Make one."""
        if version == 1:
            return DATA
        folder = f"data-{version}"
        (self._runs / spec.name / folder).mkdir(parents=True, exist_ok=True)
        files.write_atomically(self._runs / spec.name / folder / "data.json", b"{}")
        keep_lease()
        return DATA.evolve(first_step=first_step, folder=folder, corpus=spec.data.corpus, sha256=str(version) * 64)


def simulation(root: Path, life: int) -> Simulation:
    """The run's world in a later life."""
    return Simulation(root, start=START + timedelta(minutes=10 * life), prepare=FolderPreparer(root))


def stopped_run(root: Path) -> None:
    """A run that was stopped half-way."""
    run = simulation(root, 0)
    run.create(total_steps=_TOTAL_STEPS)
    run.run_until_launch(2)
    run.runs.set_stop(RUN, StopWish.CHECKPOINT)
    run.run_until_over()
    assert run.record.header.state is RunState.STOPPED
    run.controller.release(RUN)
    run.close()


def add(root: Path, life: int) -> None:
    """What the user types, again after a kill."""
    run = simulation(root, life)
    add_data(run.ports, RUN, corpus=[Path("/more")], say=lambda _: None)
    run.close()


def finish(root: Path) -> dict[str, Any]:
    """Go on to the run's end; what must not depend on who was killed when."""
    run = simulation(root, 2)
    run.controller.activate(RUN)
    run.run_until_over()
    record = run.record
    manifests = [run.store.manifest(name)[0] for name in sorted(run.store.ids())]
    found = {
        "data": [data.model_dump(mode="json") for data in record.header.data],
        "fence": record.header.newest_fence,
        "state": record.header.state,
        "trained": [(manifest.id, manifest.data_sha256, manifest.trajectory_sha256) for manifest in manifests],
        "told": sum("data version" in text for text in run.events()),
        "folders": sorted(path.name for path in (root / "runs" / RUN).glob("data*")),
        "launches": run.backend.launches(),
    }
    run.close()
    return found


def add_and_die(root: Path, after: int) -> bool:
    """Add the data in a child that is killed after so many side effects; return whether it came to its end instead."""
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
            add(root, life=1)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.waitstatus_to_exitcode(status) == 0, "the child failed"
    return True


def main(folder: Path) -> None:
    """Print the undisturbed result, how many kills there were, and those whose continuation ends otherwise."""
    undisturbed = folder / "undisturbed"
    stopped_run(undisturbed)
    add(undisturbed, life=1)
    reference = finish(undisturbed)
    kills, differences = 0, []
    while True:
        root = folder / str(kills + 1)
        stopped_run(root)
        if add_and_die(root, kills + 1):
            break
        kills += 1
        add(root, life=1)
        if (found := finish(root)) != reference:
            differences.append({"after": kills, "found": found})
    sys.stdout.write(json.dumps({"reference": reference, "kills": kills, "differences": differences}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
