"""The engine under a training, torch and numpy: imported where one that is broken, too old or too new can still be reported."""

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
"""What importing half an installation raises: a library that is missing, another version's module, a file that was cut."""


def load_torch(say: Callable[[str], None] = lambda _: None, load: Load = importlib.import_module) -> ModuleType:
    """Return torch, and import numpy before it: torch does so too, and would be called broken where numpy is.

    Args:
        say: Told of a version that gemma-orch was not tested with.
        load: Imports a module.

    Raises:
        UserError: one of them is missing or broken, or torch's version is not known.
    """
    _load("numpy", load)
    torch = _load("torch", load)
    version = str(getattr(torch, "__version__", "of no version, as parts of it are missing"))
    if not is_known_torch(version):
        raise UserError(f"torch is {version}, which gemma-orch does not know", expected=TORCH_REQUIREMENT, remedy=_remedy())
    if is_untested_torch(version):
        say(f"torch {version} is newer than those that gemma-orch was tested with, up to {_dotted(NEWEST_TESTED_TORCH)}")
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
            f"{name} is installed, and cannot be imported: {type(error).__name__}: {first_line(error)}",
            expected=f"that `import {name}` works in this Python",
            remedy=f"uninstall {name}, then {_remedy()}",
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; those of numpy and torch go on for pages."""
    return next(iter(str(error).strip().splitlines()), "no reason given")


def _remedy() -> str:
    return f"{install_command('train')}; on Kaggle, whose image has its own: a newer gemma-orch where the controller runs"


def _dotted(minor: tuple[int, int]) -> str:
    return ".".join(map(str, minor))
