"""Run the worker as a child process: its command line, the packages it needs, our terminal."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from state.errors import UserError
from state.installation import install_command

TRAINING_MODULES = ("torch", "numpy", "safetensors", "sentencepiece")

_HOME_OF_OUR_PACKAGES = Path(__file__).absolute().parents[2]


def command_of(package: str, *arguments: str) -> list[str]:
    """Return the command line that runs one of our packages: ours, whatever lies in the folder where the user stands.

    `python -m` looks there first: a `worker.py` or a `random.py` of the user's would be run instead.
    """
    in_a_checkout = Path.cwd() == _HOME_OF_OUR_PACKAGES  # then what lies there is ours, installed or not
    return [sys.executable, *([] if in_a_checkout else ["-P"]), "-m", package, *arguments]


def require_training_extra() -> None:
    """Check that what runs a session is installed.

    Raises:
        UserError: something is missing.
    """
    missing = [module for module in TRAINING_MODULES if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"this needs the training extra; not installed: {', '.join(missing)}",
            remedy=install_command("train"),
        )


def worker_command(verb: str, arguments: Sequence[str]) -> list[str]:
    """Return the command line of a worker's verb."""
    return command_of("worker", verb, *arguments)


def hand_over(verb: str, arguments: Sequence[str]) -> int:
    """Run a worker's verb with our terminal, and return its exit code.

    Raises:
        UserError: the training extra is missing.
    """
    require_training_extra()
    return run_with_our_terminal(worker_command(verb, arguments))


def run_with_our_terminal(command: Sequence[str]) -> int:
    """Run a child with our terminal, pass SIGTERM on to it, and return its exit code as a shell tells it."""
    child = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: child.terminate())  # else the child would go on alone
    try:
        while True:
            try:
                exit_code = child.wait()
                return exit_code if exit_code >= 0 else 128 - exit_code  # as a shell tells of a command that a signal ended
            except KeyboardInterrupt:
                continue  # Ctrl-C reaches the child as well: it is the child that answers
    finally:
        signal.signal(signal.SIGTERM, before)
