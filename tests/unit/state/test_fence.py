from __future__ import annotations

import pytest

from state.fence import Commit, judge_commit, next_fence


def test_tokens_begin_at_1_and_grow() -> None:
    assert [next_fence(newest) for newest in (0, 1, 7)] == [1, 2, 8]


@pytest.mark.parametrize(
    ("fence", "branch", "step", "commit"),
    [
        (5, None, 41, Commit.HEAD),
        (6, None, 41, Commit.HEAD),
        (4, None, 41, Commit.BRANCH),
        (5, "rerun-s001a2", 41, Commit.BRANCH),
        (5, None, 40, Commit.BRANCH),
        (5, None, 39, Commit.BRANCH),
        (4, "rerun-s001a2", 99, Commit.BRANCH),
    ],
)
def test_only_the_newest_attempt_of_the_line_moves_the_head_and_only_forwards(
    fence: int, branch: str | None, step: int, commit: Commit
) -> None:
    assert judge_commit(fence=fence, newest_fence=5, branch=branch, step=step, head_step=40) is commit
