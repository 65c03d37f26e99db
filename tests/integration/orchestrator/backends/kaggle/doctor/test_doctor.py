from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.backends.kaggle.doctor.doctor import examine_kaggle
from orchestrator.backends.kaggle.doctor.probe_dataset import write_canary
from orchestrator.ports import Finding
from state.clock import Clock
from state.errors import DataError
from state.kaggle.names import CANARY_SLUG
from state.layout import HomeLayout
from tests.kaggle_accounts import Account, account
from tests.kaggle_emulator.faults import Fault


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Account]:
    with account(tmp_path) as user:
        yield user


def examined(user: Account, *, credentials: str = "key", clock: Clock | None = None, **more: str) -> dict[str, Finding]:
    environment = {**user.emulator.client_environment(user.home, credentials=credentials), **more}
    findings = examine_kaggle(
        environment, HomeLayout(user.home / "gemma-orch"), print, live_check=False, clock=clock or user.clock
    )
    assert all(finding.remedy for finding in findings if not finding.ok), "what fails says what to do"
    return {finding.subject: finding for finding in findings}


def test_a_good_account_has_nothing_to_mend(user: Account) -> None:
    found = examined(user)
    assert all(finding.ok for finding in found.values())
    assert found["kaggle account"].found == "tester"
    assert "0s of 30h used this week, 30h left, refreshed at 2026-11-28 00:00 UTC" in found["gpu quota"].found
    assert found["clock"].found == "as Kaggle's"
    assert "version 1 of gemma-orch-canary written" in found["dataset write"].found
    assert "unknown" in found["phone verified"].found
    assert {"kagglesdk", "requests", "kaggle"} <= set(found)
    assert "version 2" in examined(user)["dataset write"].found


def test_credentials_are_named_with_the_one_that_wins_and_never_shown(user: Account) -> None:
    (user.home / ".kaggle").mkdir()
    (user.home / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": "other", "key": "f" * 32}))
    found = examined(user, KAGGLE_API_TOKEN=user.emulator.settings.access_token)
    said = found["kaggle credentials"].found
    assert said.index("KAGGLE_API_TOKEN (used)") < said.index("KAGGLE_USERNAME and KAGGLE_KEY of tester (not used)")
    assert "kaggle.json of other (not used)" in said
    everything = " ".join(f"{finding.found} {finding.remedy}" for finding in found.values())
    for secret in (user.emulator.settings.access_token, user.emulator.settings.key, "f" * 32):
        assert secret not in everything


def test_a_token_that_kaggle_does_not_accept_is_said_to_be_left_for_the_key_beside_it(user: Account) -> None:
    said = examined(user, KAGGLE_API_TOKEN="KGAT_stale")["kaggle credentials"]
    assert said.ok
    assert said.found.startswith("KAGGLE_API_TOKEN (not used: Kaggle does not accept it), KAGGLE_USERNAME")
    assert said.found.endswith("of tester (used)")
    assert said.remedy is not None
    assert "remove KAGGLE_API_TOKEN" in said.remedy


def test_without_credentials_or_with_wrong_ones_the_rest_is_left_out(user: Account) -> None:
    nothing = examined(user, credentials="none")
    assert not nothing["kaggle credentials"].ok
    assert "kaggle account" not in nothing
    wrong = examined(user, KAGGLE_KEY="0" * 32)
    assert not wrong["kaggle account"].ok
    assert "does not accept" in wrong["kaggle account"].found
    assert "dataset write" not in wrong
    (user.home / ".kaggle").mkdir()
    (user.home / ".kaggle" / "kaggle.json").write_text("{")
    assert "it is not JSON" in examined(user, credentials="none")["kaggle credentials"].found


class Late:
    """A clock that is behind the emulator's."""

    def __init__(self, user: Account, seconds: float) -> None:
        self._clock = user.clock
        self._behind = timedelta(seconds=seconds)
        self.monotonic = user.clock.monotonic
        self.sleep = user.clock.sleep

    def now(self) -> datetime:
        return self._clock.now() - self._behind


def test_a_clock_that_is_wrong_is_to_be_set(user: Account) -> None:
    assert examined(user, clock=Late(user, 30))["clock"].ok
    late = examined(user, clock=Late(user, 600))["clock"]
    assert not late.ok
    assert "behind Kaggle's" in late.found


def test_a_used_up_quota_says_until_when_and_that_the_phone_is_verified(user: Account) -> None:
    user.emulator.quota.note(user.emulator.clock.now(), "GPU", 108_000)
    found = examined(user)
    assert not found["gpu quota"].ok
    assert "30h of 30h used" in found["gpu quota"].found
    assert "yes" in found["phone verified"].found


def test_a_quota_that_is_not_told_is_no_fault(user: Account) -> None:
    user.emulator.faults.add(Fault("GetAcceleratorQuotaStatistics", "rewrite", body={"gpuQuota": None}))
    assert "unknown" in examined(user)["gpu quota"].found


def test_an_outage_is_told_for_each_thing_that_could_not_be_seen(user: Account) -> None:
    user.emulator.faults.add(Fault("GetAcceleratorQuotaStatistics", "status", calls=range(2, 100)))
    user.emulator.faults.add(Fault("GetDataset", "status"))
    found = examined(user)
    assert [found[name].ok for name in ("clock", "gpu quota", "dataset write")] == [False, False, False]
    assert "unknown" in found["phone verified"].found


def test_an_account_that_cannot_be_reached_is_said_once(user: Account) -> None:
    user.emulator.faults.add(Fault("*", "drop_before"))
    found = examined(user)
    assert not found["kaggle account"].ok
    assert "can reach" in (found["kaggle account"].remedy or "")


def test_a_canary_that_comes_back_as_another_one_is_no_canary(user: Account, tmp_path: Path) -> None:
    user.emulator.faults.add(Fault("CreateDataset", "corrupt_file"))
    with pytest.raises(DataError, match="reads back other bytes than were written"):
        write_canary(user.api, user.clock, tmp_path / "resume", limit_s=300)


def test_old_canaries_are_deleted_now_and_then(user: Account, tmp_path: Path) -> None:
    for number in range(1, 8):
        canary = write_canary(user.api, user.clock, tmp_path / "resume", limit_s=300)
        assert canary.version == number
        assert canary.ready_after_s >= 30
    info = user.api.dataset(CANARY_SLUG)
    assert info is not None
    assert len(info.versions) == 2


def test_the_command_fails_when_something_is_missing_and_says_what_is_next(tmp_path: Path) -> None:
    with account(tmp_path) as user:
        bad = user.type("doctor", "--backend", "kaggle", credentials="none")
        assert bad.returncode == 2
        assert "missing" in bad.stdout
        assert "next: make an API token" in bad.stdout
