from __future__ import annotations

import pytest

from state.ledger import RunHeader
from state.session import LIVE_STATES, AttemptState
from tests.factories import DATA, attempt, checkpoint, header, run_record


def test_a_run_without_a_checkpoint_is_at_step_0() -> None:
    record = run_record()
    assert (record.name, record.head, record.head_step, record.live_attempt) == ("tamil", None, 0, None)


def test_a_run_is_where_its_head_is() -> None:
    first, second = checkpoint(20), checkpoint(40, parent="step-00000020-s001a1")
    record = run_record(checkpoints=[first, second], head=first.id)
    assert (record.head, record.head_step) == (first, 20)
    assert record.parents == {first.id: None, second.id: first.id}


@pytest.mark.parametrize("state", list(AttemptState))
def test_an_attempt_that_may_be_alive_is_the_live_one(state: AttemptState) -> None:
    record = run_record([attempt(1), attempt(2, state=state)])
    live = record.live_attempt
    assert (live is not None) == (state in LIVE_STATES)
    if live is not None:
        assert live.session == 2


def test_a_header_survives_the_way_to_json_and_back() -> None:
    later = DATA.evolve(first_step=5, folder="data-2")
    written = header(data=(DATA, later))
    assert RunHeader.from_json(written.to_json(), "the ledger") == written


def test_a_header_written_before_data_had_versions_is_read_as_one_version_of_the_first_order() -> None:
    old = header().model_dump(mode="json")
    old["data"] = {"sha256": "d" * 64, "vocab_size": 300, "tokens": {"en": 1000}, "mixture": {"en": 1.0}}
    (data,) = RunHeader.model_validate(old).data
    assert data == DATA.evolve(order_version=1)
    assert RunHeader.model_validate({**old, "data": None}).data == ()
