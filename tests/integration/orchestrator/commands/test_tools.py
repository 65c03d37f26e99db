from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.terminal import Terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path / "home")


def test_doctor_says_what_was_found(terminal: Terminal) -> None:
    findings = {finding["subject"]: finding for finding in json.loads(terminal.type("doctor", "--json").stdout)}
    assert findings["torch"]["ok"]
    assert str(terminal.home) in findings["home"]["found"]
    assert "next:" in terminal.type("doctor").stdout
