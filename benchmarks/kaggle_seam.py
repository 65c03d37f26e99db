"""Seconds between a session's last dataset version and the next push, over a chain of the real command line.

    python -m benchmarks.kaggle_seam [--sessions 6] [--poll-s 10] [--processing-s 0]

Both moments are the emulator's: the one at which it answered the worker's CreateDatasetVersion with the report in it, and the
one at which it accepted the next SaveKernel. What the platform takes by itself is taken off: the processing of that version, and
after it that of the next attempt's own dataset, which the push needs; with `--processing-s 0` there is nothing to take off.
The poll interval is shorter than the default of a minute, so that what a seam takes beside waiting for its poll weighs more
here. Judged are the mean and the longest seam, against one poll interval.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.kaggle_account import Account, User, emulator
from benchmarks.measure import verdict

STEPS_A_SESSION = 40
PATIENCE_S = 900.0


def seams(account: Account, processing_s: float) -> list[float]:
    """Return the seconds of every seam, from the emulator's journal."""
    requests: list[dict[str, Any]] = account.ask("requests")
    delivered_s: float | None = None
    found = []
    for request in requests:
        if request["status"] != 200:
            continue
        answered_s = request["at"] + request["real_s"]
        if request["route"] == "CreateDatasetVersion" and request["session"] is not None:
            delivered_s = answered_s
        elif request["route"] == "SaveKernel" and delivered_s is not None:
            found.append(answered_s - delivered_s - 2 * processing_s)
            delivered_s = None
    return found


def main() -> int:
    """Run the chain, print its seams, and return 1 when one is too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=6)
    parser.add_argument("--poll-s", type=float, default=10.0)
    parser.add_argument("--processing-s", type=float, default=0.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with emulator(folder, processing_s=options.processing_s, queue_s=0) as account:
            user = User(
                folder / "machine",
                account,
                total_steps=options.sessions * STEPS_A_SESSION,
                session={"steps": STEPS_A_SESSION, "limit": "10m"},
                kaggle={"poll_every": f"{options.poll_s:g}s"},
            )
            user.prepare()
            controller = user.start()
            try:
                code = controller.wait(PATIENCE_S)
            finally:
                controller.kill()
            if code != 0:
                raise RuntimeError(user.said())
            found = seams(account, options.processing_s)
    print("seams: " + ", ".join(f"{seconds:.2f} s" for seconds in found))
    polls = [seconds / options.poll_s for seconds in found]
    reached = [
        verdict(f"mean of {len(polls)} seams, in poll intervals of {options.poll_s:g} s", statistics.mean(polls), at_most=1.0),
        verdict("the longest of them", max(polls), at_most=1.0),
    ]
    return int(not all(reached))


if __name__ == "__main__":
    sys.exit(main())
