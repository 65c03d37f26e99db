"""Memory and processor of `gemma-orch start` while it chains sessions on Kaggle, polling once a minute as by default.

    python -m benchmarks.kaggle_controller [--minutes 2.5]

The controller makes ready and pushes a session against an emulator in another process, and watches it train a tiny model. Its
processor time is that of all its threads over the minutes in which nothing happens but polls; what a push takes, most of it
packing the worker's code, is shown beside it. Then the session is stopped by a SIGTERM, the controller collects it and pushes
the next one, and the most memory that it ever had is read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from benchmarks.kaggle_account import Account, User, emulator, wait_for
from benchmarks.measure import verdict

LARGEST_MIB = 100.0
LARGEST_CPU_PERCENT = 0.5
SETTLE_S = 15.0
PATIENCE_S = 300.0


def cpu_s(pid: int) -> float:
    """Return the processor seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def mib(pid: int, field: str) -> float:
    """Return a memory field of a process's status: VmRSS or VmHWM."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def running(account: Account) -> list[int]:
    """Return the sessions that run."""
    return [session["id"] for session in account.ask("sessions") if session["status"] == "RUNNING"]


def terminate(account: Account, session: int) -> None:
    """Send a session SIGTERM."""
    body = json.dumps({"session": session, "signal": "SIGTERM"}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(urllib.request.Request(f"{account.url}/__emulator__/signal", body, method="POST"), timeout=60).close()


def main() -> int:
    """Measure, print, and return 1 when a number is not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, emulator(Path(name), processing_s=0, queue_s=0) as account:
        user = User(Path(name, "machine"), account, total_steps=10**9, session={"limit": "1h"}, kaggle={})
        user.prepare()
        controller = user.start()
        try:
            wait_for(lambda: running(account), "a session to run", PATIENCE_S)
            time.sleep(SETTLE_S)
            begin_cpu_s = before_s = cpu_s(controller.pid)
            calls, begun_s = len(account.ask("requests")), time.monotonic()
            time.sleep(options.minutes * 60)
            used_s, whole_s = cpu_s(controller.pid) - before_s, time.monotonic() - begun_s
            mine = [request for request in account.ask("requests")[calls:] if request["session"] is None]
            resident_mib = mib(controller.pid, "VmRSS")
            (first,) = running(account)
            before_s = cpu_s(controller.pid)
            terminate(account, first)
            wait_for(lambda: set(running(account)) - {first}, "the next session to run", PATIENCE_S)
            seam_s = cpu_s(controller.pid) - before_s
            most_mib = mib(controller.pid, "VmHWM")
        finally:
            controller.kill()
            controller.wait()
    print(f"{begin_cpu_s:.2f} s of processor until the first session ran, {seam_s:.2f} s for the next one")
    rpcs = sum(request["route"] not in ("BlobPut", "Download", "Admin") for request in mine)
    print(f"{rpcs} calls in {whole_s:.0f} s, {used_s:.2f} s of processor; resident then {resident_mib:.0f} MiB")
    reached = [
        verdict("controller's memory at most, two pushes included", most_mib, at_most=LARGEST_MIB, unit="MiB"),
        verdict("its processor time while it watches", 100 * used_s / whole_s, at_most=LARGEST_CPU_PERCENT, unit="% of a core"),
    ]
    return int(not all(reached))


if __name__ == "__main__":
    sys.exit(main())
