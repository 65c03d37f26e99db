"""Imports torch and numpy, and reports one that is missing, broken, too old or too new."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

from state.errors import UserError
from state.installation import install_command
from state.torch_versions import NEWEST_TESTED_TORCH, TORCH_REQUIREMENT, is_known_torch, is_untested_torch
from worker.failure import missing_extra

Load = Callable[[str], ModuleType]
_BROKEN = (ImportError, OSError, RuntimeError, AttributeError, NameError, SyntaxError, TypeError, ValueError)
"""Errors that a broken installation raises on import: a missing library, a module of another version, a truncated file."""


def load_torch(say: Callable[[str], None] = lambda _: None, load: Load = importlib.import_module) -> ModuleType:
    """Import numpy and torch, and return torch.

    Args:
        say: Receives a line if gemma-orch was not tested with this version of torch.
        load: Imports a module.

    Raises:
        UserError: one of them is missing or broken, or torch's version is not supported.
    """
    # First, for torch imports numpy as well: a broken numpy would be reported as a broken torch.
    _load("numpy", load)
    torch = _load("torch", load)
    version = str(getattr(torch, "__version__", "of unknown version, as parts of it are missing"))
    if not is_known_torch(version):
        raise UserError(f"torch is {version}, which gemma-orch does not support", expected=TORCH_REQUIREMENT, remedy=_remedy())
    if is_untested_torch(version):
        say(f"torch {version} is newer than {_dotted(NEWEST_TESTED_TORCH)}, the newest version that gemma-orch was tested with")
    return torch


def _load(name: str, load: Load) -> ModuleType:
    try:
        return load(name)
    except _BROKEN as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise missing_extra(name) from error
        if isinstance(error, OSError) and error.errno is not None:  # the disk failed, not the installation
            raise
        raise UserError(
            f"{name} is installed, but cannot be imported: {type(error).__name__}: {first_line(error)}",
            expected=f"that `import {name}` works in this Python",
            remedy=f"uninstall {name}, then {_remedy()}",
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; those of numpy and torch are pages long."""
    return next(iter(str(error).strip().splitlines()), "no reason given")


def _remedy() -> str:
    on_kaggle = "on Kaggle, whose image has its own torch: install a newer gemma-orch where the controller runs"
    return f"{install_command('train')}; {on_kaggle}"


def _dotted(minor: tuple[int, int]) -> str:
    return ".".join(map(str, minor))
