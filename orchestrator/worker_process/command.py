"""Run the worker as a child process: its command line, the packages it needs, our terminal."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
from collections.abc import Sequence

from orchestrator.interpreter import command_of
from state.errors import UserError

TRAINING_MODULES = ("torch", "numpy", "safetensors", "sentencepiece")


def require_training_extra() -> None:
    """Check that the worker runs here: it is for Linux and macOS, and needs packages.

    Raises:
        UserError: the system is another one, or something is missing.
    """
    if importlib.util.find_spec("fcntl") is None:
        raise UserError(
            "to prepare data, train or export on this machine needs Linux or macOS",
            remedy="do it in WSL or on another machine; data that is prepared there can be used here: --data DIR",
        )
    missing = [module for module in TRAINING_MODULES if importlib.util.find_spec(module) is None]
    if missing:
        from state.installation import install_command  # it loads ssl, and this module is loaded by every command

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
