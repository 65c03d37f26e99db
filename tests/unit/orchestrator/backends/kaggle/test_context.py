from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.backends.kaggle.context import KaggleContext
from state.clock import ManualClock
from state.layout import RunLayout
from tests.factories import RUN
from tests.fake_kaggle import OWNER, FakeKaggle
from tests.kaggle_stage import SETTINGS, kaggle_context


def test_a_run_lies_under_the_accounts_user(tmp_path: Path) -> None:
    assert kaggle_context(FakeKaggle(), RunLayout(tmp_path)).owner == OWNER


def test_a_run_that_names_an_owner_does_not_connect_to_find_one(tmp_path: Path) -> None:
    def connect() -> None:
        pytest.fail("the owner is known")

    settings = SETTINGS.evolve(owner="another")
    context = KaggleContext(connect, RUN, RunLayout(tmp_path), ManualClock(), settings)  # type: ignore[arg-type]
    assert context.owner == "another"
