"""Start the worker as a child process: its command line, the packages it needs, and the terminal that both share."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
from collections.abc import Sequence

from orchestrator.interpreter import command_of
from state.errors import UserError

TRAINING_MODULES = ("torch", "numpy", "safetensors", "sentencepiece")


def require_training_extra() -> None:
    """Check that the worker runs on this system, and that the packages of the training extra are installed.

    Raises:
        UserError: the system is not Linux or macOS, or a package is missing.
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
            f"packages of the training extra are missing: {', '.join(missing)}",
            remedy=install_command("train"),
        )


def worker_command(verb: str, arguments: Sequence[str]) -> list[str]:
    """Return the command line for a verb of the worker."""
    return command_of("worker", verb, *arguments)


def hand_over(verb: str, arguments: Sequence[str]) -> int:
    """Run a verb of the worker in this process's terminal, and return its exit code.

    Raises:
        UserError: the training extra is missing.
    """
    require_training_extra()
    return run_with_our_terminal(worker_command(verb, arguments))


def run_with_our_terminal(command: Sequence[str]) -> int:
    """Run a child in this process's terminal, forward SIGTERM to it, and return its exit code by the shells' convention."""
    child = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: child.terminate())  # else the child would outlive us
    try:
        while True:
            try:
                exit_code = child.wait()
                return exit_code if exit_code >= 0 else 128 - exit_code  # shells report death by signal N as 128 + N
            except KeyboardInterrupt:
                continue  # Ctrl-C reaches the child too; wait for it to save and end
    finally:
        signal.signal(signal.SIGTERM, before)
