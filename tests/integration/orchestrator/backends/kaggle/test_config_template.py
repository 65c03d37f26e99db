from __future__ import annotations

import os
import tomllib
from pathlib import Path

from tests.kaggle_accounts import account
from tests.terminal import Terminal


def test_the_owner_is_found_in_the_credentials_or_stays_open(tmp_path: Path) -> None:
    with account(tmp_path) as user:
        path = user.home / "gemma-orch.toml"
        found = user.type("init", str(path), "--backend", "kaggle", credentials="token")
        assert found.returncode == 0, found.stderr
        assert 'owner = "tester"' in path.read_text()
        assert user.emulator.settings.access_token not in found.stdout + found.stderr + path.read_text()
        nobody = Terminal(tmp_path / "home").type("init", str(path), "--force", "--backend", "kaggle")
        assert (nobody.exit_code, "no Kaggle credentials were found" in nobody.stderr) == (0, True)
        assert "owner" not in tomllib.loads(path.read_text())["kaggle"]


def test_on_a_terminal_an_answer_that_cannot_be_is_asked_for_again(tmp_path: Path) -> None:
    with account(tmp_path) as user:
        ours, theirs = os.openpty()
        os.write(ours, b"no name!\n\nUpper\na--b\nkonkani\n")
        path = user.home / "gemma-orch.toml"
        asked = user.type("init", str(path), "--backend", "kaggle", stdin=theirs)
        os.close(ours)
        os.close(theirs)
        assert asked.returncode == 0, asked.stderr
        for said in (
            "Kaggle user name is invalid: 'no name!'",
            "the run's name is invalid: 'Upper'",
            "'a--b' cannot have kernels",
        ):
            assert said in asked.stderr
        assert "gemma-orch doctor --backend kaggle" in asked.stdout
        assert tomllib.loads(path.read_text())["run"]["name"] == "konkani"


def test_on_a_terminal_it_asks_and_proposes_what_it_found(tmp_path: Path) -> None:
    with account(tmp_path) as user:
        ours, theirs = os.openpty()
        os.write(ours, b"\nkonkani\n")  # the proposed user name, then a name of one's own
        path = user.home / "gemma-orch.toml"
        asked = user.type("init", str(path), "--backend", "kaggle", stdin=theirs)
        os.close(ours)
        os.close(theirs)
        assert asked.returncode == 0, asked.stderr
        assert "Kaggle user name [tester]" in asked.stderr
        assert "Name of the run [my-gemma]" in asked.stderr
        assert tomllib.loads(path.read_text())["run"]["name"] == "konkani"
