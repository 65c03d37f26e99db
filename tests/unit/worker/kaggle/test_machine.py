from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from state.errors import TemporaryError
from worker.kaggle.machine import check_machine, gpus_of, torch_gpus

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

    with pytest.raises(TemporaryError, match="Kaggle gave another machine than 2 x T4: the machine has") as caught:
        check_machine("t4x2", lambda: listed, torch_is_loaded)
    assert (listed[-1] if listed else "no GPU") in str(caught.value)


def test_gpus_that_torch_cannot_use_are_refused():
    with pytest.raises(TemporaryError, match="torch finds Tesla T4"):
        check_machine("t4x2", lambda: TWO, lambda: ("Tesla T4",))


def test_a_torch_without_cuda_is_told():
    assert "computes on the CPU" in check_machine("t4x2", lambda: TWO, lambda: None)


def test_torch_says_which_gpus_it_can_use():
    found = torch_gpus()
    assert found is None if torch.version.cuda is None else len(found or ()) == torch.cuda.device_count()


class Cuda:
    """The GPUs of a torch; the driver may refuse it."""

    def __init__(self, refusal: str | None = None) -> None:
        self._refusal = refusal

    def device_count(self) -> int:
        return 2

    def get_device_name(self, index: int) -> str:
        if self._refusal is not None:
            raise RuntimeError(self._refusal)
        return f"Tesla T4 number {index}"


def torch_with(cuda: Cuda, version: str | None = "12.8") -> SimpleNamespace:
    return SimpleNamespace(__version__="2.10.0+cu128", version=SimpleNamespace(cuda=version), cuda=cuda)


def test_gpus_have_the_names_that_torch_gives_them():
    assert gpus_of(torch_with(Cuda())) == ("Tesla T4 number 0", "Tesla T4 number 1")
    assert gpus_of(torch_with(Cuda("not asked"), version=None)) is None


def test_a_driver_that_refuses_torch_gives_the_machine_back():
    refused = torch_with(Cuda("The NVIDIA driver on your system is too old\nUpdate it."))
    with pytest.raises(TemporaryError, match=r"torch 2.10.0\+cu128 cannot use this machine's GPUs: The NVIDIA driver") as caught:
        check_machine("t4x2", lambda: TWO, lambda: gpus_of(refused))
    assert "the session ends at once" in caught.value.remedy
