"""Demonstrate the product's claim: a run whose processes are killed ends with the weights of an undisturbed run."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.console import Console

from orchestrator.interpreter import command_of
from orchestrator.monitoring.render import sessions_table
from orchestrator.monitoring.status import observe_run
from orchestrator.monitoring.views import StatusView
from orchestrator.signals import signal_group
from orchestrator.wiring import HOME_VARIABLE, wire
from orchestrator.worker_process.command import require_training_extra
from state.errors import ExitCode
from state.report import Heartbeat, Phase

_LOOK_S = 0.05
_DEADLINE_S = 600.0  # the demo takes less than a minute; a very slow machine gets ten
_SESSIONS = 5


@dataclass(frozen=True)
class Blow:
    """One signal, sent when the run has trained up to a step."""

    at_share: float
    """The step, as a share of the run's steps."""
    signal_name: str
    """By name: on Windows, where this module is imported as well, some signals are missing."""
    target: str

    @property
    def number(self) -> signal.Signals:
        """The signal."""
        return signal.Signals[self.signal_name]


BLOWS = (Blow(0.12, "SIGTERM", "worker"), Blow(0.34, "SIGKILL", "worker"), Blow(0.56, "SIGKILL", "controller"))


def run_demo(total_steps: int, say: Callable[[str], None], environment: Mapping[str, str]) -> int:
    """Train once undisturbed and once in a chain of killed sessions, and compare the final states.

    Returns:
        0 if the two states are identical, 4 if not.

    Raises:
        UserError: the worker does not run on this system.
    """
    require_training_extra()
    with tempfile.TemporaryDirectory(prefix="gemma-orch-demo-") as home:
        stage = _Stage({**environment, HOME_VARIABLE: home})
        say(f"1. {total_steps} steps in one session, undisturbed")
        began = time.monotonic()
        stage.start("straight", total_steps).wait(_DEADLINE_S)
        say(f"   done in {time.monotonic() - began:.1f} s")
        say(f"2. the same steps in short sessions, with {len(BLOWS)} processes killed on the way")
        began = time.monotonic()
        _play(stage, total_steps, say)
        say(f"   done in {time.monotonic() - began:.1f} s; session by session:")
        stage.show("chained")
        return _conclude(stage.status("straight"), stage.status("chained"), say)


def _conclude(straight: StatusView, chained: StatusView, say: Callable[[str], None]) -> int:
    for view in (straight, chained):
        if view.step != view.total_steps:
            say(f"run {view.run} ended at step {view.step} of {view.total_steps}: {view.message}")
            return ExitCode.DATA
    if straight.state_sha256 != chained.state_sha256:
        say(f"different: sha256 {straight.state_sha256} straight, {chained.state_sha256} chained")
        return ExitCode.DATA
    say(f"identical: sha256 {chained.state_sha256}")
    return ExitCode.DONE


def _play(stage: _Stage, total_steps: int, say: Callable[[str], None]) -> None:
    controller = stage.start(
        "chained", total_steps, "--session-steps", str(total_steps // _SESSIONS), "--checkpoint-every", "0.5s"
    )
    waiting = list(BLOWS)
    deadline = time.monotonic() + _DEADLINE_S
    while controller.poll() is None and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        live = stage.live("chained") if waiting else None
        if live is not None and live.phase is Phase.TRAINING and live.step >= waiting[0].at_share * total_steps:
            blow = waiting[0]
            if blow.target == "worker" and not (live.process and signal_group(live.process, blow.number)):
                continue  # this session has just ended; signal the next one
            say(f"   step {live.step}: {blow.signal_name} to the {blow.target}")
            waiting.pop(0)
            if blow.target == "controller":
                controller.send_signal(blow.number)
                controller.wait()
                say("   the same command again")
                controller = stage.start("chained", total_steps)
    if waiting:
        say(f"   the run ended before {len(waiting)} of {len(BLOWS)} signals; try more steps: gemma-orch demo --total-steps 1000")
    controller.kill()
    controller.wait()


class _Stage:
    """A temporary home, driven through the real command line."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._ports = wire(environment)

    def start(self, run: str, total_steps: int, *options: str) -> subprocess.Popen[bytes]:
        """Start or continue a run, as a user would."""
        command = command_of("orchestrator", "start", "--total-steps", str(total_steps), "--name", run, *options)
        return subprocess.Popen(command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def status(self, run: str) -> StatusView:
        """Return a run's status."""
        return observe_run(self._ports, run)

    def live(self, run: str) -> Heartbeat | None:
        """Return the newest heartbeat of a run's live session.

        Read in this process: starting a child for each poll would slow down the training that it watches.
        """
        return self.status(run).live if run in self._ports.runs.names() else None

    def show(self, run: str) -> None:
        """Print a run's sessions."""
        Console().print(sessions_table(self.status(run).sessions, self._ports.clock.now()))
