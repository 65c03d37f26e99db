"""`python -m tests.open_files FOLDER SPEC` runs a session and prints each file of a folder that it opens."""

from __future__ import annotations

import sys
from pathlib import Path

from state.clock import SystemClock
from worker.session.runner import Host, run_session


def main(folder: str, spec: str) -> int:
    """Return the session's exit code."""

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(f"{folder}/"):
            sys.stdout.write(f"{arguments[0]}\n")

    sys.addaudithook(note)
    clock = SystemClock()
    return run_session(Path(spec), Host(clock=clock, started_s=clock.monotonic()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
