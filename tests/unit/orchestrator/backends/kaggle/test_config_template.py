from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from orchestrator.backends.kaggle.config_template import check_names, kaggle_template, slugs_of
from orchestrator.config import make_spec, read_config
from state.backend_settings import KaggleSettings
from state.errors import UserError
from state.kaggle.names import LONGEST_SLUG, slugify
from tests.terminal import Terminal


def test_the_template_is_read_as_a_run_on_kaggle_with_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "gemma-orch.toml"
    path.write_text(kaggle_template("konkani", "somebody"))
    spec = make_spec("konkani", read_config(path), previous=None, num_cores=2, origin="the file")
    assert (spec.backend, spec.name, spec.kaggle) == ("kaggle", "konkani", KaggleSettings(owner="somebody"))


def test_what_is_commented_out_is_the_default_and_can_be_said(tmp_path: Path) -> None:
    text = kaggle_template("konkani", "somebody")
    head, _, table = text.partition("[kaggle]\n")
    said = "\n".join(line.removeprefix("# ") for line in table.splitlines())
    path = tmp_path / "gemma-orch.toml"
    path.write_text(f"{head}[kaggle]\n{said}\n")
    assert set(tomllib.loads(path.read_text())["kaggle"]) == {
        field.removesuffix("_s").removesuffix("_bytes") for field in KaggleSettings.model_fields
    }
    spec = make_spec("konkani", read_config(path), previous=None, num_cores=2, origin="the file")
    examples = {"gpu_reserve_s": 7200.0, "token_dataset": "somebody/my-token", "owner": "somebody"}
    assert spec.kaggle == KaggleSettings.model_validate(examples)


@pytest.mark.parametrize("name", ["a", "konkani", "a-1", "x" * 31])
def test_every_name_that_is_taken_has_slugs_that_are_their_own_and_short_enough(name: str) -> None:
    check_names(name, "somebody")
    assert all(slugify(slug) == slug and len(slug) <= LONGEST_SLUG for slug in slugs_of(name))


@pytest.mark.parametrize(
    ("name", "owner", "said"),
    [
        ("x" * 32, None, "too long"),
        ("a--b", None, "not their own slugs"),
        ("Konkani", None, "the run's name is invalid"),
        ("konkani", "some body", "user name is invalid"),
        ("konkani", 'x"\n', "user name is invalid"),
        ("konkani", "", "user name is invalid"),
    ],
)
def test_names_that_kaggle_would_change_are_refused(name: str, owner: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        kaggle_template(name, owner)


def test_without_a_terminal_options_say_everything(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "home")
    path = tmp_path / "gemma-orch.toml"
    typed = terminal.type("init", str(path), "--backend", "kaggle", "--owner", "somebody", "--name", "konkani")
    assert typed.exit_code == 0, typed.output
    assert 'owner = "somebody"' in path.read_text()
    assert "konkani-s001a1-k, somebody/gemma-orch-konkani-s001a1, somebody/gemma-orch-konkani-control" in typed.stderr
    assert "too long" in str(terminal.fail("init", str(tmp_path / "x"), "--backend", "kaggle", "--name", "x" * 40))
    assert "did you mean 'kaggle'" in str(terminal.fail("init", str(tmp_path / "x"), "--backend", "kagle"))
    assert "--owner me is invalid: sessions on this machine have no account" in str(
        terminal.fail("init", str(tmp_path / "x"), "--owner", "me")
    )
    assert "backend local has no live check" in str(terminal.fail("doctor", "--live-check"))
    assert not (tmp_path / "x").exists()
    assert terminal.type("init", str(tmp_path / "x"), "--name", "mine").exit_code == 0
    assert 'name = "mine"' in (tmp_path / "x").read_text()
