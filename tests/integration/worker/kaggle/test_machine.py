from __future__ import annotations

from pathlib import Path

import pytest

from worker.kaggle.machine import list_gpus

TWO = ("GPU 0: Tesla T4 (UUID: GPU-1)", "GPU 1: Tesla T4 (UUID: GPU-2)")


def driver_tool(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a tool named nvidia-smi before all others."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_drivers_tool_lists_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    driver_tool(tmp_path, f"echo '{TWO[0]}'; echo '{TWO[1]}'; echo 'a warning'", monkeypatch)
    assert list_gpus() == TWO


def test_a_tool_that_fails_lists_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    driver_tool(tmp_path, f"echo '{TWO[0]}'; exit 9", monkeypatch)
    assert list_gpus() == ()


def test_without_the_tool_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_gpus() == ()
