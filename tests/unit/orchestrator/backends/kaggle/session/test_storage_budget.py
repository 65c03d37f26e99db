from __future__ import annotations

from typing import Any

import pytest

from orchestrator.backends.kaggle.session.storage_budget import storage_plan

GIB = 1024**3


def plan(**values: Any) -> Any:
    return storage_plan(
        **{
            "checkpoint_bytes": GIB,
            "stored_bytes": 0,
            "budget_bytes": 120 * GIB,
            "uploads": 13,
            "kept_attempts": 3,
            "num_elsewhere": 2,
            **values,
        }
    )


def test_nothing_is_deleted_while_all_of_a_session_fits() -> None:
    assert (plan().most_versions, plan().most_uploads, plan().is_over_budget) == (14, 13, False)
    assert plan(checkpoint_bytes=0).most_versions == 14
    assert plan(num_elsewhere=0).most_uploads == 13


def test_large_checkpoints_leave_fewer_versions_for_each_attempt() -> None:
    assert plan(checkpoint_bytes=5 * GIB).most_versions == 1 + 6
    assert plan(checkpoint_bytes=5 * GIB, stored_bytes=105 * GIB).most_versions == 1 + 3


def test_never_fewer_than_two_verified_checkpoints_stand_however_small_the_budget() -> None:
    assert plan(checkpoint_bytes=50 * GIB, stored_bytes=115 * GIB).most_versions == 1 + 1
    assert plan(checkpoint_bytes=50 * GIB, stored_bytes=115 * GIB).is_over_budget


@pytest.mark.parametrize("num_elsewhere", [0, 1])
def test_where_fewer_than_two_stand_elsewhere_nothing_is_deleted_and_uploads_are_fewer(num_elsewhere: int) -> None:
    large = plan(checkpoint_bytes=12 * GIB, num_elsewhere=num_elsewhere)
    assert (large.most_versions, large.most_uploads, large.is_over_budget) == (14, 5, False)
    too_large = plan(checkpoint_bytes=70 * GIB, num_elsewhere=num_elsewhere)
    assert (too_large.most_versions, too_large.most_uploads, too_large.is_over_budget) == (14, 2, True)
