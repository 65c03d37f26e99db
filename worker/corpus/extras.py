"""Imports libraries that only some corpus formats need, when the first such file is found."""

from __future__ import annotations

import importlib
from typing import Any

from state.errors import UserError
from state.installation import install_command


def required(module: str, what: str) -> Any:
    """Import a library that `what` needs.

    Raises:
        UserError: it is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what} cannot be read without the library {module} ({error})", remedy=install_command("train", "corpus")
        ) from error
