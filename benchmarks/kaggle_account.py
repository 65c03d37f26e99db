"""What the Kaggle measurements share: an emulator in a process of its own, and a user who types commands against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN = "bench"

_CONFIG = """
[run]
name = "{run}"
total_steps = {total_steps}
backend = "kaggle"

[model]
{model}

[data]
prepared = "data"
sequence_length = 16

[training]
batch_size = 2
threads = {threads}

[session]
{session}

[kaggle]
accelerator = "cpu"
{kaggle}
"""

SMALL_MODEL = {
    "num_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "sliding_window": 8,
    "local_layers_per_global": 1,
}


@dataclass(frozen=True)
class Account:
    """An emulated account, seen from the user's machine."""

    url: str
    environment: Mapping[str, str]
    """Variables with which a client reaches the emulator, and nothing else."""

    def ask(self, what: str) -> Any:
        """Ask the emulator itself: `requests`, `sessions`, `errors`."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/__emulator__/{what}", timeout=60) as answer:
            return json.load(answer)


@contextmanager
def emulator(folder: Path, **settings: float) -> Iterator[Account]:
    """Run an emulator in a process of its own, so that what it computes is not the measured process's.

    It has the lowest priority: it plays machines elsewhere, and must not take this one's cores from what is measured.

    Args:
        folder: For its files.
        settings: Of `tests/kaggle_emulator/settings.py`.
    """
    options = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", f"{value:g}")]
    command = ["nice", "-n", "19", sys.executable, "-m", "tests.kaggle_emulator", "--state", str(folder / "kaggle"), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=without_kaggle())
    try:
        assert process.stdout is not None
        environment = {}
        for line in process.stdout:
            if not line.startswith("export "):
                break
            name, _, value = line.removeprefix("export ").rstrip("\n").partition("=")
            environment[name] = value
        yield Account(environment["http_proxy"], environment)
    finally:
        process.terminate()
        process.wait()


def without_kaggle() -> dict[str, str]:
    """Return this process's variables without those that point a client at an account."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(("KAGGLE", "HTTP", "NO_PROXY"))}


class User:
    """A user's machine: a home, a config, and the real commands.

    Args:
        folder: Of the machine.
        account: Where the commands go.
        total_steps: Of the run.
        threads: That compute.
        model: The config's [model] table.
        session: Its [session] table.
        kaggle: Its [kaggle] table, without the accelerator.
    """

    def __init__(
        self,
        folder: Path,
        account: Account,
        *,
        total_steps: int,
        threads: int = 1,
        model: Mapping[str, object] = SMALL_MODEL,
        session: Mapping[str, object],
        kaggle: Mapping[str, object],
    ) -> None:
        self._folder = folder
        folder.mkdir()
        self.environment = {**without_kaggle(), **account.environment, "GEMMA_ORCH_HOME": str(folder / "home")}
        tables = {name: _table(values) for name, values in {"model": model, "session": session, "kaggle": kaggle}.items()}
        self._config = folder / "run.toml"
        self._config.write_text(_CONFIG.format(run=RUN, total_steps=total_steps, threads=threads, **tables))

    def command(self, *arguments: str) -> list[str]:
        """Return the argument list of a command."""
        return [sys.executable, "-m", "orchestrator", *arguments]

    def type(self, *arguments: str) -> str:
        """Type a command, and return what it prints."""
        result = subprocess.run(self.command(*arguments), env=self.environment, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {result.stdout}{result.stderr}")
        return result.stdout

    def prepare(self) -> None:
        """Prepare the sample, and bring it to the account."""
        self.type("prepare", "--out", str(self._folder / "data"))
        self.type("upload", str(self._folder / "data"))

    def start(self) -> subprocess.Popen[bytes]:
        """Start the controller; what it says lies in `controller.log`."""
        with open(self._folder / "controller.log", "wb") as log:
            command = self.command("start", "--config", str(self._config))
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def said(self) -> str:
        """Return what the controller has said."""
        return (self._folder / "controller.log").read_text()


def _table(values: Mapping[str, object]) -> str:
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def wait_for(condition: Callable[[], object], what: str, limit_s: float) -> None:
    """Wait until a condition holds."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(0.1)
