from __future__ import annotations

from pathlib import Path

import pytest
import torch

from state.errors import TemporaryError
from worker.kaggle.machine import check_machine, list_gpus, torch_gpus

TWO = ("GPU 0: Tesla T4 (UUID: GPU-1)", "GPU 1: Tesla T4 (UUID: GPU-2)")


def driver_tool(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a tool named nvidia-smi before all others."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_machine_that_was_asked_for_is_named():
    assert check_machine("t4x2", lambda: TWO, lambda: ("Tesla T4", "Tesla T4")) == "2 x Tesla T4"


def test_a_cpu_is_always_there():
    assert check_machine("cpu", lambda: (), lambda: ()) == "the CPU"


@pytest.mark.parametrize("listed", [(), TWO[:1], ("GPU 0: Tesla P100-PCIE-16GB (UUID: GPU-1)",), (TWO[0], "GPU 1: Tesla L4")])
def test_another_machine_is_refused_before_torch_is_loaded(listed: tuple[str, ...]):
    def torch_is_loaded() -> tuple[str, ...]:
        raise AssertionError("it need not be")

    with pytest.raises(TemporaryError, match="asked for 2 GPUs of the kind T4, got another machine: the machine has") as caught:
        check_machine("t4x2", lambda: listed, torch_is_loaded)
    assert (listed[-1] if listed else "no GPU") in str(caught.value)


def test_gpus_that_torch_cannot_use_are_refused():
    with pytest.raises(TemporaryError, match="torch finds Tesla T4"):
        check_machine("t4x2", lambda: TWO, lambda: ("Tesla T4",))


def test_a_torch_without_cuda_is_told():
    assert "computes on the CPU" in check_machine("t4x2", lambda: TWO, lambda: None)


def test_the_drivers_tool_lists_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    driver_tool(tmp_path, f"echo '{TWO[0]}'; echo '{TWO[1]}'; echo 'a warning'", monkeypatch)
    assert list_gpus() == TWO


def test_a_tool_that_fails_lists_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    driver_tool(tmp_path, f"echo '{TWO[0]}'; exit 9", monkeypatch)
    assert list_gpus() == ()


def test_without_the_tool_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_gpus() == ()


def test_torch_says_which_gpus_it_can_use():
    found = torch_gpus()
    assert found is None if torch.version.cuda is None else len(found or ()) == torch.cuda.device_count()
