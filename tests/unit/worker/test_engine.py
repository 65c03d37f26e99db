from __future__ import annotations

import errno
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from state.errors import UserError
from state.installation import install_command
from worker.engine import first_line, load_torch


def machine_with(**modules: Any) -> Callable[[str], ModuleType]:
    """Imports numpy and these modules; one that is an error fails with it."""
    modules = {"numpy": SimpleNamespace(), **modules}

    def load(name: str) -> ModuleType:
        found = modules.get(name)
        if found is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if isinstance(found, Exception):
            raise found
        module: ModuleType = found
        return module

    return load


def torch_of(version: str) -> SimpleNamespace:
    return SimpleNamespace(__version__=version)


def test_what_is_installed_here_is_taken_in_silence() -> None:
    said: list[str] = []
    load_torch(said.append)
    assert said == []


def test_a_version_within_the_range_that_was_not_tested_is_said_and_taken() -> None:
    said: list[str] = []
    load_torch(said.append, machine_with(torch=torch_of("2.15.0+cu130")))
    assert said == ["torch 2.15.0+cu130 is newer than 2.13, the newest version that gemma-orch was tested with"]


@pytest.mark.parametrize("version", ["2.9.1+cu126", "2.16.0", "main"])
def test_another_version_is_refused_with_what_is_expected_and_what_to_do(version: str) -> None:
    with pytest.raises(UserError, match="which gemma-orch does not support") as caught:
        load_torch(load=machine_with(torch=torch_of(version)))
    assert version in caught.value.what
    assert caught.value.expected == "torch>=2.10,<2.16"
    assert install_command("train") in caught.value.remedy
    assert "a newer gemma-orch" in caught.value.remedy


def test_a_folder_that_was_left_of_a_torch_is_no_torch() -> None:
    with pytest.raises(UserError, match="torch is of unknown version"):
        load_torch(load=machine_with(torch=SimpleNamespace()))


def test_what_is_missing_is_installed_by_the_printed_command() -> None:
    for modules, missing in (({}, "torch"), ({"torch": torch_of("2.13.0"), "numpy": None}, "numpy")):
        with pytest.raises(UserError, match=f"{missing} is not installed") as caught:
            load_torch(load=machine_with(**modules))
        assert caught.value.remedy == install_command("train")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libcuda.so.1: cannot open shared object file"),
        OSError("libcublas.so.12: cannot open shared object file"),
        ModuleNotFoundError("No module named 'typing_extensions'", name="typing_extensions"),
        RuntimeError("module was compiled against another version of the ABI"),
        AttributeError("module 'torch' has no attribute '_C'"),
        NameError("name '_C' is not defined"),
        SyntaxError("invalid syntax"),
        TypeError("metaclass conflict"),
        ValueError("source code string cannot contain null bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("module", ["torch", "numpy"])
def test_what_is_broken_is_named_with_its_reason(module: str, error: Exception) -> None:
    modules = {"torch": torch_of("2.13.0"), module: error}
    with pytest.raises(UserError, match=f"{module} is installed, but cannot be imported: {type(error).__name__}") as caught:
        load_torch(load=machine_with(**modules))
    assert str(error) in caught.value.what
    assert caught.value.expected == f"that `import {module}` works in this Python"
    assert caught.value.remedy.startswith(f"uninstall {module}, then {install_command('train')}")


def test_a_disk_that_fails_is_no_broken_installation() -> None:
    with pytest.raises(OSError, match="Input/output error"):
        load_torch(load=machine_with(torch=OSError(errno.EIO, "Input/output error")))


def test_of_a_long_error_the_first_line_is_told() -> None:
    assert first_line(ImportError("\n\nIMPORTANT: READ THIS\n\nFor pages.")) == "IMPORTANT: READ THIS"
    assert first_line(ImportError("")) == "no reason given"
