from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.kaggle.session.quota import weekly_quota
from state.kaggle.records import AcceleratorQuota
from tests.factories import after, session_spec
from tests.kaggle_stage import SETTINGS, Stage

GPU = SETTINGS.evolve(accelerator="t4x2")
HOUR_S = 3600.0


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def gpu_stage(root: Path, **values: Any) -> Stage:
    return Stage(root, GPU.evolve(**values))


@pytest.mark.parametrize(
    ("used_h", "reserved_h", "reserve_h", "available"),
    [(0, 0, 0, True), (29.5, 0, 0, True), (29.9, 0, 0, False), (18, 12, 0, False), (20, 0, 10, False), (19, 0, 10, True)],
)
def test_a_session_needs_more_quota_than_the_settling_time(
    used_h: float, reserved_h: float, reserve_h: float, *, available: bool
) -> None:
    told = AcceleratorQuota(after(9), used_h * HOUR_S, reserved_h * HOUR_S, 30 * HOUR_S)
    quota = weekly_quota(told, GPU.evolve(gpu_reserve_s=reserve_h * HOUR_S))
    assert quota.available is available
    assert available or (quota.until == after(9) and f"of {30.0} h are used" in quota.reason)


def test_a_quota_that_kaggle_does_not_tell_of_is_left_to_kaggle() -> None:
    assert weekly_quota(AcceleratorQuota(None, None, None, None), GPU).available


def test_the_quota_is_read_before_a_gpu_push_at_most_once_a_poll(tmp_path: Path) -> None:
    stage = gpu_stage(tmp_path)
    stage.launch()
    assert stage.account.names().index("quota") < stage.account.names().index("push_kernel")
    before = stage.account.count("quota")
    stage.clock.advance(61.0)
    for _ in range(9):
        assert stage.backend.quota(stage.clock.now()).available
    assert stage.account.count("quota") == before + 1


def test_a_quota_that_cannot_be_read_is_waited_for(tmp_path: Path) -> None:
    stage = gpu_stage(tmp_path)
    stage.account.broken = {"quota"}
    told = stage.backend.quota(stage.clock.now())
    assert (told.available, told.until) == (False, after(60))
    assert "cannot be read" in told.reason
    assert stage.backend.make_ready(session_spec()) is not None


def test_cpu_sessions_have_no_quota(stage: Stage) -> None:
    assert stage.backend.quota(after(0)).available
    stage.launch()
    assert stage.account.count("quota") == 0
