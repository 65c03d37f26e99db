"""Starts a controller in the background, so that it outlives the terminal."""

from __future__ import annotations

import os
import subprocess

from orchestrator.interpreter import command_of
from orchestrator.ports import Ports
from state.stores.run_store import is_in_force

# Windows has no process sessions; there a process detaches from its console instead.
_OWN_CONSOLE = getattr(subprocess, "DETACHED_PROCESS", 0) | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)


def go_on_in_background(ports: Ports, run: str) -> None:
    """Start a controller that outlives the terminal, unless another one holds the run."""
    lease = ports.runs.lease(run)
    if lease is not None and lease.owner != ports.owner and is_in_force(lease, ports.clock.now()):
        return  # another controller holds the run
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
