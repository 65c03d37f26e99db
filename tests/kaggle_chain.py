"""A user's whole Kaggle run on loopback: a home, a config, the real commands, and an emulator that runs the pushed kernels."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from orchestrator.monitoring.status import observe_run
from orchestrator.wiring import wire
from state.ledger import RunRecord
from tests.kaggle_emulator.emulator import KaggleEmulator
from tests.kaggle_emulator.leaks import Leak, find_leaks
from tests.kaggle_emulator.session_model import Session
from tests.patience import PATIENCE_S, wait_until

RUN = "chain"

CONFIG = """
[run]
name = "{name}"
total_steps = {total_steps}
backend = "{backend}"

[model]
num_layers = 2
hidden_size = 32
intermediate_size = 64
num_heads = 2
num_kv_heads = 1
head_dim = 16
sliding_window = 8
local_layers_per_global = 1

[data]
prepared = "data"
sequence_length = 16

[training]
batch_size = 2
threads = 1

[session]
steps = {session_steps}
limit = "{limit}"
checkpoint_every = "1h"

[kaggle]
accelerator = "cpu"
poll_every = "{poll_every}"
stop_poll_every = "{poll_every}"
settle = "{settle}"
processing_limit = "600s"
"""


class KaggleRun:
    """One user's machine, pointed at an emulator."""

    def __init__(
        self,
        root: Path,
        emulator: KaggleEmulator,
        *,
        total_steps: int,
        session_steps: int,
        limit: str = "2h",
        poll_every_s: float = 0.5,
        settle: str = "5s",
    ) -> None:
        self.root = root
        self.emulator = emulator
        root.mkdir(exist_ok=True)
        self._said = root / "said.txt"
        user = root / "user"
        user.mkdir(exist_ok=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.upper().startswith(("KAGGLE", "HTTP", "NO_PROXY"))},
            **emulator.client_environment(user),
            "GEMMA_ORCH_HOME": str(root / "home"),
            "COLUMNS": "200",
        }
        self._values = {"limit": limit, "poll_every": f"{poll_every_s}s", "settle": settle}
        self.plan(total_steps=total_steps, session_steps=session_steps)

    def plan(self, *, total_steps: int, session_steps: int) -> None:
        """Write the config of the run, and of one that is not interrupted."""
        values = {"total_steps": total_steps, **self._values}
        self.config = self._write("kaggle.toml", name=RUN, backend="kaggle", session_steps=session_steps, **values)
        self.straight_config = self._write("straight.toml", name="straight", backend="local", session_steps=total_steps, **values)

    def _write(self, file: str, **values: object) -> Path:
        path = self.root / file
        path.write_text(CONFIG.format(**values), encoding="utf-8")
        return path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "orchestrator", *arguments]

    def type(self, *arguments: str, expect: int = 0) -> str:
        """Type a command, check its exit code, and return all that it said."""
        result = subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        said = result.stdout + result.stderr
        with self._said.open("a", encoding="utf-8") as log:
            log.write(said)
        assert result.returncode == expect, f"{arguments}: {result.returncode}\n{said}"
        assert "Traceback" not in said, said
        return said

    def prepare(self) -> None:
        """Prepare the sample, and bring it to the account."""
        self.type("prepare", "--out", str(self.root / "data"))
        self.type("upload", str(self.root / "data"))

    def begin(self) -> subprocess.Popen[bytes]:
        """Start a controller that goes on while the test does other things."""
        with self._said.open("ab") as log:
            controller = subprocess.Popen(
                self.command("start", "--config", str(self.config)), env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        self.emulator.clients.append(controller)
        return controller

    def said(self) -> str:
        """All that commands and controllers have printed on this machine."""
        return self._said.read_text(encoding="utf-8")

    def leaks(self) -> list[Leak]:
        """Where a credential of the account can be read on this machine: printed, or in any file of it."""
        files = ((str(path.relative_to(self.root)), path) for path in sorted(self.root.rglob("*")))
        return list(find_leaks(self.emulator.accounts.secrets(), [("what was printed", self.said())], files))

    def record(self) -> RunRecord:
        """What the ledger says."""
        return wire(self.environment).runs.load(RUN)

    def digest(self, name: str) -> str:
        """The state digest of a run's head."""
        sha256 = observe_run(wire(self.environment), name).state_sha256
        assert sha256 is not None
        return sha256

    def session(self, slug: str) -> Session:
        """Wait until a kernel's session runs, and return it."""
        sessions = self.emulator.sessions
        return wait_until(
            lambda: next((one for one in reversed(sessions.all()) if one.slug == slug and one.process_id is not None), None),
            f"{slug} to run",
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a controller as a power cut does."""
    process.send_signal(signal.SIGKILL)
    process.wait()
