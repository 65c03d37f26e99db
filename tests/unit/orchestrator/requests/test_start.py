from __future__ import annotations

import pytest

from orchestrator.requests.start import read_too_often
from state.ledger import RunHeader, RunRecord, RunWishes
from state.spec import DataSpec
from tests.factories import DATA, RUN, START, run_spec

UNIMAX = DataSpec(mixing="unimax", max_epochs=2.0)
MIXED = DATA.evolve(tokens={"a": 100_000, "b": 1_000}, mixture={"a": 0.9, "b": 0.1})


@pytest.mark.parametrize(("data", "words"), [(UNIMAX, "b 5.1 times"), (DataSpec(), "")])
def test_a_cap_on_epochs_that_more_steps_exceed_is_spoken_of(data: DataSpec, words: str) -> None:
    spec = run_spec(total_steps=100, data=data)  # 100 * 8 * 64 tokens
    header = RunHeader(name=RUN, created_at=START, resumed_at=START, data=(MIXED,))
    said = read_too_often(RunRecord(header, RunWishes(spec=spec)), spec)
    assert (words in said, bool(said)) == (True, bool(words))


def test_a_cap_that_holds_is_not_spoken_of() -> None:
    spec = run_spec(total_steps=30, data=UNIMAX)
    header = RunHeader(name=RUN, created_at=START, resumed_at=START, data=(MIXED,))
    assert read_too_often(RunRecord(header, RunWishes(spec=spec)), spec) == ""
