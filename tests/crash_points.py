"""Kills a session after its n-th side effect, for every n, and runs it again each time: `python -m tests.crash_points DIR`.

A process of its own, because it forks: torch is imported once, and every session is a child that may be killed. The parent
runs no torch operation, so that there are no threads for a child to miss.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import worker.session.assembly  # noqa: F401 - imported once for all children
from state import crash_points
from state.errors import DataError
from state.spec import SessionSpec
from tests.dying_worker import die
from tests.sessions import SmallRun, let_saver_finish

STEPS = 7


def main(folder: Path) -> None:
    """Print one JSON line for every n."""
    shutil.rmtree(folder, ignore_errors=True)
    run = SmallRun(folder, total_steps=STEPS)
    # The session starts from a checkpoint, makes one after every step, and deletes those that are too many.
    in_child(lambda: run.run(run.spec(1, max_steps=2)))
    start = run.expected()
    spec = run.spec(2, start=start, checkpoint_every_s=1e-6, retention={"keep_last": 2})
    pristine = folder.with_name(folder.name + "-pristine")
    shutil.rmtree(pristine, ignore_errors=True)
    shutil.copytree(folder, pristine)
    number, ended = 0, -1
    while ended < 0:
        number += 1
        shutil.rmtree(folder)
        shutil.copytree(pristine, folder)
        ended = in_child(partial(run_and_die, run, spec, number))
        again = in_child(lambda: run.run(spec))
        sys.stdout.write(json.dumps({"effect": number, "ended": ended, "again": again, **found(run)}) + "\n")
        sys.stdout.flush()


def run_and_die(run: SmallRun, spec: SessionSpec, number: int) -> int:
    seen = 0

    def count(kind: crash_points.EffectKind, what: str) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            die()

    crash_points.observe(count)
    # Every checkpoint is finished before the next step: the effects then come in the same order each time.
    return run.run(spec, asked_to_stop=let_saver_finish)


def in_child(act: Callable[[], int]) -> int:
    """Run it in a forked process; return its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = act()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def found(run: SmallRun) -> dict[str, object]:
    """What stands in the store: the newest state, and checkpoints that are not what they say."""
    corrupt = []
    for name in run.store.ids():
        try:
            run.store.verify_tensors(name)
        except DataError:
            corrupt.append(name)
    newest = run.newest()
    assert newest is not None
    hidden = [entry.name for entry in run.layout.checkpoints.iterdir() if entry.name.startswith(".")]
    return {
        "hidden": hidden,
        "step": newest.step,
        "state_sha256": newest.state_sha256,
        "corrupt": corrupt,
        "kept": len(run.store.ids()),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
