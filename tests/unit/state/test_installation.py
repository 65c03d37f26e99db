from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from state.installation import Installation, install_command, this_installation

PIP = "/env/bin/python -m pip install"
GIT = {"url": "https://host.example/me/gemma-orch", "vcs_info": {"vcs": "git", "commit_id": "abc", "requested_revision": "main"}}


def installation(folder: Path, direct_url: Any = None, *, installer: str = "pip", prefix: Path | None = None) -> Installation:
    """Return an installation by an environment's folder, in which gemma-orch has this `direct_url.json`."""
    metadata = folder / "site" / "gemma_orch-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: gemma-orch\nVersion: 0.1.0\n")
    (metadata / "INSTALLER").write_text(f"{installer}\n")
    if direct_url is not None:
        (metadata / "direct_url.json").write_text(direct_url if isinstance(direct_url, str) else json.dumps(direct_url))
    return this_installation(
        [str(folder / "site")], packages_root=folder / "site", prefix=prefix or folder, python="/env/bin/python"
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "my checkout"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "gemma-orch"\n')
    return folder


@pytest.mark.parametrize(("info", "option"), [({"editable": True}, "--editable "), ({"editable": False}, ""), ({}, "")])
def test_a_folder_is_installed_again_as_it_was_with_the_extra(tmp_path: Path, checkout: Path, info: Any, option: str) -> None:
    here = installation(tmp_path, {"url": checkout.as_uri(), "dir_info": info})
    assert here.command("train") == f"{PIP} {option}'{checkout}[train]'"
    assert here.command("train", "corpus") == f"{PIP} {option}'{checkout}[train,corpus]'"


def test_a_wheel_is_named_as_the_file_that_it_is(tmp_path: Path) -> None:
    wheel = tmp_path / "gemma_orch-0.1.0-py3-none-any.whl"
    wheel.touch()
    here = installation(tmp_path, {"url": wheel.as_uri(), "archive_info": {}})
    assert here.command("train") == f"{PIP} 'gemma-orch[train] @ {wheel.as_uri()}'"


@pytest.mark.parametrize(
    ("direct_url", "requirement"),
    [
        (GIT, "gemma-orch[train] @ git+https://host.example/me/gemma-orch@abc"),
        ({**GIT, "subdirectory": "sub"}, "gemma-orch[train] @ git+https://host.example/me/gemma-orch@abc#subdirectory=sub"),
        (
            {"url": "https://host.example/gemma-orch.zip", "archive_info": {}},
            "gemma-orch[train] @ https://host.example/gemma-orch.zip",
        ),
        (
            {"url": "file:///gone/repository", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "gemma-orch[train] @ git+file:///gone/repository@abc",
        ),
    ],
)
def test_a_repository_or_an_archive_is_named_with_the_very_commit(tmp_path: Path, direct_url: Any, requirement: str) -> None:
    assert installation(tmp_path, direct_url).command("train") == f"{PIP} '{requirement}'"


@pytest.mark.parametrize(
    "direct_url",
    [
        None,
        {"url": "file:///gone/folder", "dir_info": {}},
        "no JSON",
        "[]",
        {"vcs_info": {}},
        {"url": "https://x", "vcs_info": {}},
    ],
)
def test_where_the_source_is_unknown_or_gone_a_checkout_is_asked_for_and_never_an_index(tmp_path: Path, direct_url: Any) -> None:
    here = installation(tmp_path, direct_url)
    assert here.command("train") == f"from the folder of a checkout of gemma-orch: {PIP} '.[train]'"
    assert here.requirement("train") == ".[train]"


def test_a_checkout_that_is_not_installed_names_its_folder(checkout: Path) -> None:
    here = this_installation([], packages_root=checkout, python="/env/bin/python")
    assert here.command("train") == f"{PIP} --editable '{checkout}[train]'"


@pytest.mark.parametrize("text", ["[project]\nname = 'another'\n", "no TOML", "[tool]\n"])
def test_the_pyproject_of_another_project_is_no_checkout(checkout: Path, text: str) -> None:
    (checkout / "pyproject.toml").write_text(text)
    assert this_installation([], packages_root=checkout).source is None


@pytest.mark.parametrize(
    ("mark", "words"),
    [("uv-receipt.toml", "uv tool install --force"), ("pipx_metadata.json", "pipx install --force")],
)
def test_an_environment_of_its_own_is_made_again_by_what_made_it(tmp_path: Path, checkout: Path, mark: str, words: str) -> None:
    prefix = tmp_path / "gemma-orch"
    prefix.mkdir()
    (prefix / mark).touch()
    here = installation(tmp_path, {"url": checkout.as_uri(), "dir_info": {}}, installer="uv", prefix=prefix)
    assert here.command("train") == f"{words} '{checkout}[train]'"


def test_added_to_another_tool_or_to_an_environment_of_uv_it_needs_no_pip(tmp_path: Path, checkout: Path) -> None:
    prefix = tmp_path / "notebook"
    prefix.mkdir()
    (prefix / "uv-receipt.toml").touch()
    here = installation(tmp_path, {"url": checkout.as_uri(), "dir_info": {}}, installer="uv", prefix=prefix)
    assert here.command("train") == f"uv pip install --python /env/bin/python '{checkout}[train]'"


def test_this_very_installation_can_be_installed_again() -> None:
    assert install_command("train").endswith("[train]'")
    assert "'gemma-orch[train]'" not in install_command("train"), "no index has it"
