from __future__ import annotations

import json
from pathlib import Path

import pytest

from state.errors import UserError
from state.kaggle.credentials import (
    Credentials,
    describe_sources,
    find_credentials,
    session_credentials,
    token_credentials,
)

_SECRET = "this-must-not-be-shown"


def key_file(folder: Path, user: str = "filed") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kaggle.json"
    path.write_text(json.dumps({"username": user, "key": _SECRET}))
    return path


def test_without_any_the_error_says_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="settings/api"):
        find_credentials({}, tmp_path)
    assert describe_sources({}, tmp_path) == ()


def test_a_key_is_found_where_the_official_client_finds_it(tmp_path: Path) -> None:
    elsewhere = key_file(tmp_path / "elsewhere", "configured")
    assert find_credentials({"KAGGLE_CONFIG_DIR": str(elsewhere.parent)}, tmp_path).user == "configured"
    key_file(tmp_path / "xdg" / "kaggle", "of-xdg")
    assert find_credentials({"XDG_CONFIG_HOME": str(tmp_path / "xdg")}, tmp_path).user == "of-xdg"
    key_file(tmp_path / ".config" / "kaggle", "of-config")
    assert find_credentials({}, tmp_path).user == "of-config"
    path = key_file(tmp_path / ".kaggle", "of-home")
    found = find_credentials({}, tmp_path)
    assert (found.user, found.key, found.source) == ("of-home", _SECRET, str(path))
    named = find_credentials({"KAGGLE_USERNAME": "named", "KAGGLE_KEY": "k"}, tmp_path)
    assert (named.user, named.key, named.source) == ("named", "k", "KAGGLE_USERNAME and KAGGLE_KEY")


def test_a_token_is_found_literally_by_path_and_in_its_files(tmp_path: Path) -> None:
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "access_token.txt").write_text(" of-txt\n")
    assert find_credentials({}, tmp_path).token == "of-txt"
    (tmp_path / ".kaggle" / "access_token").write_text("of-file\n")
    assert find_credentials({}, tmp_path).token == "of-file"
    assert find_credentials({"KAGGLE_API_TOKEN": "literal"}, tmp_path).token == "literal"
    (tmp_path / "token").write_text("by-path\n")
    found = find_credentials({"KAGGLE_API_TOKEN": str(tmp_path / "token")}, tmp_path)
    assert (found.token, found.source) == ("by-path", f"KAGGLE_API_TOKEN, the file {tmp_path / 'token'}")


def test_a_token_file_of_a_windows_editor_begins_with_a_mark_that_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "access_token").write_text("of-file\n", encoding="utf-8-sig")
    assert find_credentials({}, tmp_path).token == "of-file"


def test_a_token_comes_first_and_remembers_the_key_beside_it(tmp_path: Path) -> None:
    key_file(tmp_path / ".kaggle")
    (tmp_path / ".kaggle" / "credentials.json").write_text(json.dumps({"refresh_token": _SECRET, "username": "logged-in"}))
    environment = {"KAGGLE_API_TOKEN": _SECRET, "KAGGLE_USERNAME": "named", "KAGGLE_KEY": _SECRET}
    found = find_credentials(environment, tmp_path)
    assert found.token == _SECRET
    assert found.instead is not None
    assert found.instead.user == "named"
    sources = describe_sources(environment, tmp_path)
    assert [(source.name.rpartition("/")[2], source.user, source.is_chosen) for source in sources] == [
        ("KAGGLE_API_TOKEN", None, True),
        ("KAGGLE_USERNAME and KAGGLE_KEY", "named", False),
        ("kaggle.json", "filed", False),
        ("credentials.json, made by `kaggle auth login`", "logged-in", False),
    ]
    assert _SECRET not in f"{found!r} {sources!r}"


def test_an_oauth_login_is_found_last(tmp_path: Path) -> None:
    (tmp_path / ".kaggle").mkdir()
    login = tmp_path / ".kaggle" / "credentials.json"
    login.write_text(json.dumps({"refresh_token": _SECRET, "username": "logged-in"}))
    found = find_credentials({}, tmp_path)
    assert (found.user, found.oauth_file, found.token, found.key) == ("logged-in", login, None, None)


@pytest.mark.parametrize("content", [f'{{"key": "{_SECRET}"', f'["{_SECRET}"]'])
def test_a_broken_file_is_named_and_not_shown(tmp_path: Path, content: str) -> None:
    path = key_file(tmp_path / ".kaggle")
    path.write_text(content)
    with pytest.raises(UserError, match=r"kaggle\.json may hold") as caught:
        find_credentials({}, tmp_path)
    assert _SECRET not in f"{caught.value} {caught.value.__cause__}"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        find_credentials({}, tmp_path)


def test_files_without_credentials_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / ".kaggle"
    folder.mkdir()
    (folder / "kaggle.json").write_text('{"username": "", "key": 3}')
    (folder / "credentials.json").write_text("{}")
    (folder / "access_token").write_text(" \n")
    assert describe_sources({"KAGGLE_API_TOKEN": " ", "KAGGLE_USERNAME": "half"}, tmp_path) == ()


def test_a_session_speaks_with_its_own_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of-session\n")
    environment = {
        "KAGGLE_API_V1_TOKEN": str(tmp_path / "token"),
        "KAGGLE_API_TOKEN": "another",
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
    }
    assert session_credentials(environment, "owner") == Credentials(
        "the session's token, KAGGLE_API_V1_TOKEN", user="owner", token="of-session"
    )
    assert find_credentials(environment, tmp_path).token == "of-session"
    for nothing in ({}, {"KAGGLE_API_V1_TOKEN": str(tmp_path / "missing")}):
        with pytest.raises(UserError, match="token is missing"):
            session_credentials(nothing)


def test_a_token_from_elsewhere_can_be_used(tmp_path: Path) -> None:
    found = token_credentials(_SECRET, "a dataset", "owner").of("other")
    assert (found.token, found.user) == (_SECRET, "other")
    assert _SECRET not in repr(found)


def test_an_unknown_environment_of_kaggle_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="MOON"):
        find_credentials({"KAGGLE_API_ENVIRONMENT": "MOON", "KAGGLE_API_TOKEN": "t"}, tmp_path)
