from __future__ import annotations

from pathlib import Path

import pytest

from state.errors import UserError
from state.layout import AttemptLayout, HomeLayout, attempt_name, check_run_name, checkpoint_id, parse_attempt_name


@pytest.mark.parametrize("name", ["a", "tamil-270m", "0", "a" * 40])
def test_a_name_that_every_platform_takes_is_taken(name: str) -> None:
    assert check_run_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "Tamil", "a_b", "a b", "a/b", "..", "a" * 41, "तमिल"])
def test_any_other_name_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(UserError, match="1 to 40 lower-case letters, digits and hyphens"):
        check_run_name(name)


def test_a_device_of_windows_names_no_run_there() -> None:
    assert check_run_name("con", on_windows=False) == "con"
    assert check_run_name("icon", on_windows=True) == "icon"
    with pytest.raises(UserError, match="no device of Windows"):
        check_run_name("con", on_windows=True)


@pytest.mark.parametrize(("session", "attempt", "name"), [(3, 1, "s003a1"), (12, 10, "s012a10"), (12345, 2, "s12345a2")])
def test_an_attempts_name_can_be_read_back(session: int, attempt: int, name: str) -> None:
    assert attempt_name(session, attempt) == name
    assert parse_attempt_name(name) == (session, attempt)


@pytest.mark.parametrize("name", ["", "s1a1", "s003", "s003a", "xs003a1", "s003a1x", "step-00000040-s003a1"])
def test_what_is_no_attempts_name_is_none(name: str) -> None:
    assert parse_attempt_name(name) is None


def test_checkpoints_sort_by_step() -> None:
    assert checkpoint_id(40, 3, 1) == "step-00000040-s003a1"
    assert checkpoint_id(9, 9, 9) < checkpoint_id(10, 1, 1)


def test_every_file_has_one_place() -> None:
    home = HomeLayout(Path("/place"))
    run = home.run("tamil")
    attempt = run.attempt(3, 1)
    assert home.ledger == Path("/place/ledger.sqlite3")
    assert home.cache == Path("/place/cache")
    assert (run.data, run.checkpoints) == (Path("/place/runs/tamil/data"), Path("/place/runs/tamil/checkpoints"))
    assert run.controller_log == Path("/place/runs/tamil/controller.log")
    assert attempt == AttemptLayout(Path("/place/runs/tamil/sessions/s003a1"))
    names = [attempt.spec, attempt.lock, attempt.launched, attempt.heartbeat, attempt.metrics, attempt.log, attempt.stop]
    names.append(attempt.report)
    assert len(set(names)) == 8
    assert {name.parent for name in names} == {attempt.root}
