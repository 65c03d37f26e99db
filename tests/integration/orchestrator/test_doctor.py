from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.doctor import examine
from state.installation import install_command
from state.layout import HomeLayout


@pytest.mark.parametrize(("version", "ok"), [("2.9.1+cu126", False), ("2.10.0", True), ("2.15.1", True), ("2.16.0", False)])
def test_a_torch_that_sessions_would_refuse_is_named_with_what_to_do(
    version: str, ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = tmp_path / "site" / f"torch-{version}.dist-info" / "METADATA"
    described.parent.mkdir(parents=True)
    described.write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    monkeypatch.syspath_prepend(described.parents[1])
    torch = next(finding for finding in examine(HomeLayout(tmp_path / "home"), 1) if finding.subject == "torch")
    assert (torch.found, torch.ok, torch.remedy) == (version, ok, None if ok else install_command("train"))
