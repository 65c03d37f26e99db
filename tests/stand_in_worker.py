"""A worker that trains nothing, for tests of the local backend: python stand_in_worker.py {finish|wait|vanish} SESSION.JSON.

`finish` reports at once, `wait` waits for the stop file (or to be killed), `vanish` ends without a word. The lock's descriptor is
inherited and stays open as long as this process lives, as the real worker's does.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

_LOOK_S = 0.005
_LONGEST_S = 600.0


def main(mode: str, spec_path: Path) -> None:
    """Do as told."""
    folder, spec = spec_path.parent, json.loads(spec_path.read_text())
    os.fstat(int(os.environ["GEMMA_ORCH_LOCK_FD"]))  # the lock is really here
    sys.stdout.write("नमस्ते from the stand-in\n")
    if mode == "vanish":
        sys.exit(7)
    begun = datetime.now(UTC).isoformat()
    heartbeat = {"at": begun, "pid": os.getpid(), "phase": "training", "start_step": 0, "step": 1, "left_s": 9.0}
    _write(folder / "heartbeat.json", heartbeat | {"process": _identity()})
    outcome = "budget"
    if mode == "wait":
        outcome = "stopped"
        _wait_for(folder / "stop")
    known = {key: spec[key] for key in ("run", "session", "attempt", "fence")}
    report = {
        **known,
        "outcome": outcome,
        "reason": "because",
        "start_step": 0,
        "end_step": 1,
        "saved_step": None,
        "head": None,
        "started_at": begun,
        "ended_at": datetime.now(UTC).isoformat(),
    }
    _write(folder / "report.json", report)


def _identity() -> dict[str, object]:
    """A ProcessIdentity; the module that knows it needs pydantic, which takes a while to load."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19],
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid_namespace": os.readlink("/proc/self/ns/pid"),
    }


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + _LONGEST_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


def _write(path: Path, value: object) -> None:
    staged = path.with_suffix(".part")
    staged.write_text(json.dumps(value))
    os.replace(staged, path)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
