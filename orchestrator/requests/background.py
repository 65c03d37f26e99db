"""Run a controller in the background, where it outlives this terminal."""

from __future__ import annotations

import os
import subprocess

from orchestrator.interpreter import command_of
from orchestrator.ports import Ports
from state.stores.run_store import is_in_force

# Windows has no sessions of processes to leave: there a process leaves its console instead.
_OWN_CONSOLE = getattr(subprocess, "DETACHED_PROCESS", 0) | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)


def go_on_in_background(ports: Ports, run: str) -> None:
    """Start a controller of a run that outlives this terminal."""
    lease = ports.runs.lease(run)
    if lease is not None and lease.owner != ports.owner and is_in_force(lease, ports.clock.now()):
        return  # one is at work already
    ports.runs.release(run, ports.owner)
    folder = ports.home.run(run)
    folder.root.mkdir(parents=True, exist_ok=True)
    with open(folder.controller_log, "ab") as log:
        subprocess.Popen(
            command_of("orchestrator", "start", "--name", run),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            creationflags=_OWN_CONSOLE,
            cwd=os.path.sep,
        )
